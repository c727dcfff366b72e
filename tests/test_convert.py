"""Weights cross frameworks and packages, and nothing damaged does."""

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import d2lbert
import helpers
from d2lbert.errors import InputError, RunError
from d2lbert.tools import convert
from d2lbert.weights import get_weights, mxnet_name, neutral

GOLDEN = Path(__file__).parent / 'golden'
TEXTS = ['a crane is flying', ('a crane driver', 'he left')]
NAMES = {
    'torch-state-dict': 'net.pt',
    'mxnet-params': 'net.params',
    'safetensors': 'net.safetensors',
    'flax-state': 'flax.safetensors',
}


@pytest.fixture
def folder(saved, one_backend):
    """The folder of a run, the same for all tests."""
    return saved(one_backend)


@pytest.fixture
def weights(folder):
    return convert.read_weights(folder)


@pytest.fixture
def file(tmp_path):
    """Writes a file of weights and gives its path."""

    def file(data, name='weights'):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return file


def represent(run):
    return d2lbert.represent(run.net, run.vocab, TEXTS)


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for name, W in expected.items():
        np.testing.assert_array_equal(found[name], W, err_msg=name)


def textbook_weights():
    with np.load(GOLDEN / 'textbook-torch-odd.npz') as arrays:
        return dict(arrays)


# ---- there and back --------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('via', ['mxnet-params', 'safetensors', 'flax-state'])
def test_a_network_in_another_framework(
    all_tabs, backend_name, saved, tmp_path, via
):
    """Trained in one, it represents text in another as it did."""
    other = {'jax': 'mxnet', 'mxnet': 'torch', 'torch': 'jax'}[backend_name]
    path, out = tmp_path / NAMES[via], tmp_path / 'run'
    convert.convert(saved(backend_name), via, path)
    convert.convert(path, 'run', out, like=saved(other))
    for ours, theirs in zip(
        represent(d2lbert.load_run(saved(backend_name))),
        represent(d2lbert.load_run(out)),
        strict=True,
    ):
        np.testing.assert_allclose(theirs, ours, atol=1e-5)


@pytest.mark.torch
def test_torch_reads_a_state_dict(both_tabs, saved, tmp_path):
    import torch

    path = tmp_path / 'net.pt'
    convert.convert(saved('mxnet'), 'torch-state-dict', path)
    run = d2lbert.load_run(saved('torch'))
    run.net.load_state_dict(torch.load(path), strict=True)
    theirs = represent(d2lbert.load_run(saved('mxnet')))
    for X, Y in zip(represent(run), theirs, strict=True):
        np.testing.assert_allclose(X, Y, atol=1e-5)


@pytest.mark.mxnet
def test_mxnet_reads_params(both_tabs, saved, tmp_path):
    path = tmp_path / 'net.params'
    convert.convert(saved('torch'), 'mxnet-params', path)
    run = d2lbert.load_run(saved('mxnet'))
    run.net.load_parameters(str(path))
    theirs = represent(d2lbert.load_run(saved('torch')))
    for X, Y in zip(represent(run), theirs, strict=True):
        np.testing.assert_allclose(X, Y, atol=1e-5)


@pytest.mark.mxnet
def test_params_written_by_mxnet(both_tabs, saved, tmp_path):
    run = d2lbert.load_run(saved('mxnet'))
    path = tmp_path / 'net.params'
    run.net.save_parameters(str(path))
    assert_equal(convert.read_weights(path), get_weights(run.net))


@pytest.mark.jax
def test_flax_reads_a_state(all_tabs, saved, tmp_path):
    from flax import nnx
    from flax.traverse_util import unflatten_dict
    from safetensors.flax import load_file as load_flax

    path = tmp_path / 'flax.safetensors'
    convert.convert(saved('torch'), 'flax-state', path)
    net = d2lbert.load_run(saved('jax')).net
    paths = {
        tuple(int(word) if word.isdigit() else word for word in name): X
        for name, X in (
            (name.split('.'), X) for name, X in load_flax(path).items()
        )
    }
    assert (
        paths.keys()
        == dict(nnx.to_flat_state(nnx.state(net, nnx.Param))).keys()
    )
    nnx.update(net, unflatten_dict(paths))
    assert_equal(get_weights(net), convert.read_weights(saved('torch')))


def test_the_textbooks_own_file():
    """As d2l 1.0.3 has written it; its names are those of its torch tab."""
    path = GOLDEN / 'textbook-mxnet-odd.params'
    weights = convert.read_weights(path)
    assert_equal(weights, textbook_weights())
    assert convert.to_mxnet(weights) == path.read_bytes()


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('to', ['mxnet-params', 'safetensors', 'flax-state'])
def test_every_bit_survives(file, to, dtype):
    weights = {
        name: W.astype(dtype) for name, W in textbook_weights().items()
    }
    path = file(convert.WRITERS[to](weights))
    found = convert.read_weights(path)
    assert_equal(found, weights)
    assert {W.dtype for W in found.values()} == {np.dtype(dtype)}


def test_names_of_a_parallel_network(tmp_path):
    weights = textbook_weights()
    path = tmp_path / 'net.safetensors'
    save_file({f'module.{name}': W for name, W in weights.items()}, path)
    assert_equal(convert.read_weights(path), weights)


def test_mxnet_2_writes_an_archive_of_numpy(file):
    weights = textbook_weights()
    archive = io.BytesIO()
    np.savez(
        archive,
        **{mxnet_name(name): W for name, W in weights.items()},
    )
    assert_equal(convert.read_weights(file(archive.getvalue())), weights)


def test_names_are_those_of_the_tab(tab):
    """The table here against the tab's, which needs the framework."""
    net = tab.BERTModel(9, 4, 6, 2, 3)
    native = net.backend.parameter_shapes(net)
    names = neutral(dict.fromkeys(native))
    assert list(names) == [
        d2lbert.weights.neutral_name(net, name) for name in native
    ]
    if net.backend.name == 'mxnet':
        assert [mxnet_name(name) for name in names] == list(native)


def test_an_imported_run(saved, tmp_path, backend_name):
    path = tmp_path / 'book.params'
    convert.convert(saved(backend_name), 'mxnet-params', path)
    out = tmp_path / 'run'
    convert.convert(path, 'run', out, like=saved(backend_name))
    assert '"weights_from": "book.params"' in (out / 'run.json').read_text()
    imported = d2lbert.load_run(out)
    assert imported.steps == []
    imported.save(tmp_path / 'copy')
    assert 'NaN' not in (tmp_path / 'copy' / 'run.json').read_text()
    assert not (out / 'losses.png').exists()


# ---- what cannot be used ---------------------------------------------


@pytest.fixture
def assert_refused(tmp_path, folder):
    """Nothing is written, whatever it should have become."""

    def assert_refused(source, match, error=InputError):
        for to in ('safetensors', 'run'):
            like = folder if to == 'run' else None
            with pytest.raises(error, match=match):
                convert.convert(source, to, tmp_path / 'out', like=like)
            assert not (tmp_path / 'out').exists()

    return assert_refused


class Trap:
    """Opening a pickle of it would be noticed."""

    def __reduce__(self):
        return pytest.fail, ('a pickle was opened',)


@pytest.mark.parametrize('protocol', [2, pickle.HIGHEST_PROTOCOL])
def test_a_pickle_is_refused(file, assert_refused, protocol):
    data = pickle.dumps({'a': Trap()}, protocol)
    assert_refused(file(data), r'never opened.*safetensors\.torch\.save_file')


@pytest.mark.torch
@pytest.mark.parametrize('zipped', [True, False])
def test_a_file_of_torch_save_is_refused(
    both_tabs, file, assert_refused, zipped
):
    import torch

    path = file(b'', 'net.pt')
    torch.save({'a': Trap()}, path, _use_new_zipfile_serialization=zipped)
    assert_refused(path, r'save_file\(net\.state_dict\(\)')


def test_an_archive_with_a_pickle_deep_inside(file, assert_refused):
    archive = io.BytesIO()
    np.savez(archive, **textbook_weights())
    with zipfile.ZipFile(archive, 'a') as names:
        names.writestr('trap.npy', npy_of_objects())
        names.writestr('trap.pkl', pickle.dumps(Trap()))
    assert_refused(
        file(archive.getvalue()), 'weights', (InputError, RunError)
    )


def npy_of_objects():
    data = io.BytesIO()
    np.save(data, np.array([Trap()], object), allow_pickle=True)
    return data.getvalue()


@pytest.mark.parametrize(
    'data', [b'', b'hello', b'<html>', bytes(40), b'(lp0\n.']
)
def test_what_is_no_file_of_weights(file, assert_refused, data):
    assert_refused(file(data), 'no file of weights')


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no pipes here')
def test_a_pipe_is_not_waited_for(tmp_path, assert_refused):
    os.mkfifo(tmp_path / 'pipe')
    assert_refused(tmp_path / 'pipe', r'cannot be read \(not a regular file')


def test_a_file_that_is_too_large_is_not_read(tmp_path, assert_refused):
    path = tmp_path / 'large'
    with path.open('wb') as file:
        file.truncate(convert.MAX_WEIGHTS + 1)
    assert_refused(path, 'more than 8,589,934,592')


def test_numbers_that_numpy_has_not(file, assert_refused):
    about = {'a': {'dtype': 'BF16', 'shape': [1], 'data_offsets': [0, 2]}}
    head = json.dumps(about).encode()
    data = struct.pack('<Q', len(head)) + head + bytes(2)
    assert_refused(file(data), 'type BF16, .* write float32')


def test_an_archive_of_other_files(file, assert_refused):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, 'w') as names:
        names.writestr('notes.txt', 'no array')
    assert_refused(file(archive.getvalue()), r'notes\.txt has type')


def test_what_is_not_there(tmp_path, assert_refused):
    assert_refused(tmp_path / 'none', 'cannot be read')
    assert_refused(tmp_path, 'holds no run')


def test_a_file_cut_short(file, weights):
    """Wherever it is cut, that is seen."""
    for data in (convert.to_mxnet(weights), convert.to_safetensors(weights)):
        for length in {*range(8, 400, 9), len(data) - 1, len(data) // 2}:
            with pytest.raises((RunError, InputError)):
                convert.read_weights(file(data[:length]))


def test_bytes_after_the_end(file, weights, assert_refused):
    data = convert.to_mxnet(weights) + b'!'
    assert_refused(file(data), '1 bytes too many', RunError)


def test_flipped_bits_of_the_structure(file):
    """Nothing but the values of a damaged list of MXNet's gets through."""
    weights = textbook_weights()
    data = convert.to_mxnet(weights)
    values = [W.tobytes() for W in weights.values()]
    inside = set()
    for part in values:
        start = data.index(part)
        inside |= set(range(start, start + len(part)))
    outside = [i for i in range(len(data)) if i not in inside]
    rng = np.random.default_rng(0)
    for i in rng.choice(outside, 200, replace=False):
        damaged = bytearray(data)
        damaged[i] ^= 1 << rng.integers(8)
        try:
            found = convert.read_weights(file(bytes(damaged)))
        except (RunError, InputError):
            continue
        # The device, and whether shapes are NumPy's, are of no importance
        assert_equal(found, weights)


@pytest.mark.parametrize('size', [2**62, -1, 2**31])
def test_a_giant_array_is_refused_before_it_is_allocated(
    file, assert_refused, size
):
    head = struct.pack('<QQQ', convert.LIST_MAGIC, 0, 1)
    array = struct.pack('<Iii2qiii', 0xF993FACA, 0, 2, size, 4, 1, 0, 0)
    assert_refused(file(head + array + bytes(99)), 'cannot be read', RunError)


def test_every_name_and_shape_is_listed(file, weights, assert_refused):
    del weights['hidden.0.bias'], weights['nsp.output.weight']
    weights['mlm.mlp.3.bias'] = weights['mlm.mlp.3.bias'][1:]
    weights['encoder.extra'] = np.zeros(3, np.float32)
    with pytest.raises(InputError) as caught:
        convert.read_weights(file(convert.to_safetensors(weights)))
    for fault in (
        'hidden.0.bias is missing',
        'nsp.output.weight is missing',
        'mlm.mlp.3.bias has shape',
        'encoder.extra is not a parameter',
    ):
        assert fault in str(caught.value)


def test_numbers_beyond_float32_make_no_run(file, weights, folder, tmp_path):
    weights = {name: W.astype(np.float64) for name, W in weights.items()}
    weights['hidden.0.weight'][1, 2] = 1e300
    source = file(convert.to_safetensors(weights))
    with pytest.raises(InputError, match=r'hidden\.0\.weight.*not finite'):
        convert.convert(source, 'run', tmp_path / 'out', like=folder)
    assert not (tmp_path / 'out').exists()


def few_arrays(num_hiddens, num_blks=1):
    weights = {
        'encoder.token_embedding.weight': np.ones((1, num_hiddens)),
        'encoder.pos_embedding': np.ones((1, 1, num_hiddens)),
        'encoder.blks.0.ffn.dense1.weight': np.ones((1, num_hiddens)),
    }
    for i in range(num_blks):
        weights[f'encoder.blks.{i}.x'] = np.ones(1)
    return {name: W.astype(np.float32) for name, W in weights.items()}


@pytest.mark.parametrize(
    ('sizes', 'fault'),
    [
        ({'num_hiddens': 100_000}, r'blks\.0\.attention\.W_q.* is missing'),
        ({'num_hiddens': 512, 'num_blks': 100}, r'blks\.99\.ffn.* missing'),
        ({'num_hiddens': 0}, r'shape .*0\), without numbers'),
    ],
)
def test_a_few_numbers_make_no_giant(file, assert_refused, sizes, fault):
    """A layer of 100,000 times 100,000 numbers would fill the memory."""
    data = convert.to_safetensors(few_arrays(**sizes))
    assert_refused(file(data), fault)


def test_a_file_of_another_network(file, assert_refused):
    data = convert.to_safetensors({'0.weight': np.ones((2, 2), np.float32)})
    assert_refused(
        file(data), r'token_embedding.*there is 0\.weight \(2, 2\)'
    )


@pytest.mark.parametrize('number', [np.nan, np.inf])
def test_numbers_that_are_not_finite(file, weights, assert_refused, number):
    weights['hidden.0.weight'][1, 2] = number
    data = convert.to_safetensors(weights)
    assert_refused(file(data), r'hidden\.0\.weight holds numbers')


def test_types_that_are_not_real_numbers(file, weights, assert_refused):
    weights['hidden.0.bias'] = weights['hidden.0.bias'].astype(np.int32)
    data = convert.to_safetensors(weights)
    assert_refused(file(data), r'hidden\.0\.bias has type int32')


def test_a_run_of_other_sizes(file, folder, tmp_path):
    path = file(convert.to_safetensors(textbook_weights()))
    with pytest.raises(InputError, match='has shape') as caught:
        convert.convert(path, 'run', tmp_path / 'out', folder)
    assert 'encoder.blks.2.ffn.dense1.bias is not' in str(caught.value)
    assert not (tmp_path / 'out').exists()


def test_nothing_is_overwritten(file, folder):
    path = file(b'precious')
    with pytest.raises(InputError, match='exists already'):
        convert.convert(folder, 'safetensors', path)
    assert path.read_bytes() == b'precious'
    with pytest.raises(InputError, match='holds a run already'):
        convert.convert(folder, 'run', folder, like=folder)


def test_the_best_weights_of_another_run_are_not_kept(
    train, one_backend, text_file, tmp_path
):
    like, out = tmp_path / 'like', tmp_path / 'out'
    train(one_backend, out=like, evaluate_every=1, split=text_file)
    convert.convert(like, 'run', out, like=like)
    assert not d2lbert.load_run(out).evaluations
    with pytest.raises(InputError, match='has no best weights'):
        d2lbert.load_run(out, best=True)


def test_like_belongs_to_run(folder, tmp_path):
    for to, like in (('run', None), ('safetensors', folder)):
        with pytest.raises(InputError, match='--like RUN and --to run'):
            convert.convert(folder, to, tmp_path / 'out', like)


# ---- the command -----------------------------------------------------


def test_the_command(run, folder, tmp_path):
    path = tmp_path / 'net.params'
    done = run('convert', folder, '--to', 'mxnet-params', '--out', path)
    assert done.status == 0 and str(path) in done.out
    new = tmp_path / 'run'
    done = run(
        *('convert', path, '--to', 'run', '--like', folder, '--out', new)
    )
    assert done.status == 0
    ours, theirs = (
        run('encode', path, 'a crane is flying') for path in (folder, new)
    )
    assert ours == theirs and ours.status == 0
    done = run('convert', new, '--to=safetensors', '--out', tmp_path / 's')
    assert done.status == 0
    assert_equal(
        load_file(tmp_path / 's'), load_file(folder / 'weights.safetensors')
    )


@pytest.mark.parametrize(
    ('data', 'status', 'expected'),
    [
        (pickle.dumps({}), 2, 'safetensors.torch.save_file'),
        (b'hello', 2, 'no file of weights'),
        (struct.pack('<QQQ', 0x112, 0, 7), 1, 'cannot be read'),
    ],
)
def test_the_command_refuses(run, file, tmp_path, data, status, expected):
    out = tmp_path / 'out'
    done = run(
        'convert', file(data), '--to', 'safetensors', '--out', out
    )  # fmt: skip
    helpers.assert_refused(done, expected, status=status)
    assert not out.exists()


def test_the_command_refuses_an_unknown_format(run, folder, tmp_path):
    done = run(*('convert', folder, '--to=onnx', '--out', tmp_path / 'x'))
    helpers.assert_refused(done, "'onnx'", "'mxnet-params'")


def test_the_command_refuses_a_folder_that_is_not_there(
    run, folder, tmp_path
):
    out = tmp_path / 'none' / 'net.params'
    done = run(*('convert', folder, '--to=mxnet-params', '--out', out))
    helpers.assert_refused(done, out, 'give another --out')
