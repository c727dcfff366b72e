"""State dicts of PyTorch before 1.6, read without unpickling."""

import io
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nli
from d2lbert.data.torch_files import LEGACY_START, read_legacy
from d2lbert.errors import D2LBertError
from d2lbert.frameworks import load_tab
from d2lbert.pytest_plugin import require
from d2lbert.tools.convert import convert, read_weights

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def _torch():
    require('torch')


@pytest.fixture(scope='module')
def weights():
    require('torch')
    return nli.small_weights(load_tab('torch'), num_hiddens=4, max_len=6)


def legacy(tensors):
    """What PyTorch before 1.6 writes."""
    import torch

    file = io.BytesIO()
    torch.save(tensors, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, W in expected.items():
        np.testing.assert_array_equal(found[name], W, name)
        assert found[name].dtype == W.dtype


def test_a_state_dict(weights):
    data = nli.params(weights, 'torch')
    assert data.startswith(LEGACY_START)
    assert_equal(read_legacy(data), weights)


def test_views_of_one_storage():
    import torch

    X = torch.arange(12, dtype=torch.float64).reshape(3, 4)
    tensors = {'turned': X.T, 'empty': torch.zeros(0, 3)}
    assert_equal(
        read_legacy(legacy(OrderedDict(tensors))),
        {name: T.numpy() for name, T in tensors.items()},
    )


def test_parameters_on_a_layer():
    import torch

    net = torch.nn.Linear(2, 3)
    expected = {n: T.detach().numpy() for n, T in net.state_dict().items()}
    assert_equal(read_legacy(legacy(net.state_dict())), expected)


def test_convert_reads_it(weights, tmp_path):
    (tmp_path / 'old.params').write_bytes(nli.params(weights, 'torch'))
    out = tmp_path / 'net.safetensors'
    assert_equal(
        convert(tmp_path / 'old.params', 'safetensors', out), weights
    )
    assert_equal(read_weights(out), weights)


# ---- hostile files ---------------------------------------------------


def pieces(tensors=b'', keys=(), rest=b''):
    """A file whose fourth pickle is given."""
    machine = {'protocol_version': 1001, 'little_endian': True}
    parts = [0x1950A86A20F9469CFC6C, 1001, machine]
    dumped = [pickle.dumps(part, 2) for part in parts]
    return b''.join([*dumped, tensors, pickle.dumps(list(keys), 2), rest])


class Call:
    """Is a call of a function once it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def tensor(size=2, offset=0, shape=(2,), strides=(1,), kind='FloatStorage'):
    """The fourth pickle with one tensor, as instructions."""

    def number(n):
        return b'J' + struct.pack('<i', n)

    def numbers(values):
        return b'(' + b''.join(map(number, values)) + b't'

    def text(value):
        return b'X' + struct.pack('<I', len(value)) + value.encode()

    return b''.join([
        b'\x80\x02}', text('a'), b'ctorch._utils\n_rebuild_tensor_v2\n((',
        text('storage'), b'ctorch\n', kind.encode(), b'\n', text('0'),
        text('cpu'), number(size), b'NtQ', number(offset), numbers(shape),
        numbers(strides), b'\x89ccollections\nOrderedDict\n)RtRs.',
    ])  # fmt: skip


STORAGE = struct.pack('<qff', 2, 1.0, 2.0)


def test_the_pieces_are_a_file():
    found = read_legacy(pieces(tensor(), ['0'], STORAGE))
    assert_equal(found, {'a': np.array([1, 2], np.float32)})


# A tuple of the last one twice, 60 times: 2⁶⁰ parts in 360 bytes
DEEP = b')q\x00' + b''.join(
    b'h%ch%c\x86q%c' % (i, i, i + 1) for i in range(60)
)
BAD = {
    'a deep key': pieces(b'\x80\x02}' + DEEP + b'K\x01s.'),
    'deep arguments': pieces(b'\x80\x02cos\nsystem\n' + DEEP + b'R.'),
    'a deep function': pieces(b'\x80\x02' + DEEP + b')R.'),
    'a deep storage': pieces(b'\x80\x02' + DEEP + b'Q.'),
    'a deep result': pieces(b'\x80\x02' + DEEP + b'.'),
    'a call of another function': pieces(pickle.dumps(Call(eval, '1'), 2)),
    'a call with state': pieces(b'\x80\x02cos\nsystem\n}b.'),
    'a call of a known one': pieces(
        b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.'
    ),
    'another instruction': pieces(b'\x80\x02cos\nsystem\n)\x81.'),
    'a new object': pieces(b'\x80\x02(cos\nsystem\no.'),
    'text instructions': pieces(b"(dp0\nS'a'\nI1\ns."),
    'a number': pieces(b'\x80\x02K\x01.'),
    'a list of names': pieces(pickle.dumps({'a': 1}, 2)),
    'a name that is no text': pieces(pickle.dumps({1: 2}, 2)),
    'an empty stack': pieces(b'\x80\x02R.'),
    'no mark': pieces(b'\x80\x02t.'),
    'an unknown memory': pieces(b'\x80\x02h\x09.'),
    'integers': pieces(tensor(kind='LongStorage'), ['0'], STORAGE),
    'another storage': pieces(tensor(kind='../x'), ['0'], STORAGE),
    'a storage too few': pieces(tensor(), [], STORAGE),
    'a storage too many': pieces(tensor(), ['0', '1'], STORAGE),
    'a storage of another size': pieces(tensor(3), ['0'], STORAGE),
    'a huge storage': pieces(
        tensor(2**31 - 1), ['0'], struct.pack('<q', 2**31 - 1)
    ),
    'a negative size': pieces(tensor(-1), ['0'], struct.pack('<q', -1)),
    'a shape beyond the storage': pieces(
        tensor(shape=(3,)), ['0'], STORAGE
    ),
    'an offset beyond it': pieces(tensor(offset=1), ['0'], STORAGE),
    'a negative offset': pieces(tensor(offset=-1), ['0'], STORAGE),
    'a negative stride': pieces(tensor(strides=(-1,)), ['0'], STORAGE),
    'a stride of 0 and a huge shape': pieces(
        tensor(shape=(2**31 - 1,), strides=(0,)), ['0'], STORAGE
    ),
    'more axes than strides': pieces(
        tensor(shape=(1, 1)), ['0'], STORAGE
    ),
    'too many axes': pieces(
        tensor(shape=[1] * 40, strides=[1] * 40), ['0'], STORAGE
    ),
    'bytes at its end': pieces(tensor(), ['0'], STORAGE + b'\0'),
    'an end within the storage': pieces(tensor(), ['0'], STORAGE[:-1]),
    'an end within a pickle': pieces(tensor())[:-30],
    'nothing more': LEGACY_START,
}  # fmt: skip


@pytest.mark.parametrize('data', BAD.values(), ids=BAD)
def test_bad_files(data, tmp_path):
    assert data.startswith(LEGACY_START)
    with pytest.raises(ValueError):
        read_legacy(data)
    path = tmp_path / 'net.params'
    path.write_bytes(data)
    with pytest.raises(D2LBertError) as error:
        read_weights(path)
    assert '\n' not in str(error.value)


def test_too_many_instructions(monkeypatch):
    from d2lbert.data import torch_files

    monkeypatch.setattr(torch_files, 'MAX_INSTRUCTIONS', 20)
    with pytest.raises(ValueError, match='more than 20 instructions'):
        read_legacy(pieces(tensor(), ['0'], STORAGE))


WHOLE = pieces(tensor(), ['0'], STORAGE)


@given(st.integers(len(LEGACY_START), len(WHOLE) - 1), st.integers(0, 255))
@settings(max_examples=300)
def test_any_byte_changed(place, value):
    """It is read or refused, and nothing else happens."""
    data = bytearray(WHOLE)
    data[place] = value
    try:
        found = read_legacy(bytes(data))
    except ValueError:
        return
    assert all(isinstance(W, np.ndarray) for W in found.values())
