"""Checkpoints, without a network: whole or nothing, whatever happens."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st
from safetensors import safe_open
from safetensors.numpy import load, load_file, save

import kill_saves
from d2lbert.data import files
from d2lbert.data.files import DAMAGE, FORMAT, NO_CHECKSUM
from d2lbert.errors import InputError, RunError, RunWarning
from d2lbert.runs import checkpoint as module
from d2lbert.runs.checkpoint import Checkpoint, Checkpoints, check_arrays
from d2lbert.runs.folder import (
    locked,
    make_folder,
    read_manifest,
    to_manifest,
)
from kill_saves import forge, manifest, same, small

ROOT = Path(module.__file__).parents[2]
#: A sample of thousands in the default run, and each with `make test-all`.
all_of_them = pytest.param(1, marks=pytest.mark.slow, id='all')


@pytest.fixture
def checkpoints(tmp_path):
    """The checkpoints of steps 2 and 3."""
    checkpoints = Checkpoints(tmp_path)
    for step in (2, 3):
        checkpoints.save(small(step))
    return checkpoints


def names(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def assert_the_one_before(checkpoints, *words):
    with pytest.warns(RunWarning, match='Going on from step 2') as warned:
        found = Checkpoints(checkpoints.folder.parent).load()
    assert same(found, small(2))
    for word in words:
        assert word in str(warned[0].message)


# ---- saving and pruning ----------------------------------------------


def test_what_is_saved_is_loaded(checkpoints, tmp_path):
    found = Checkpoints(tmp_path).load()
    assert same(found, small(3))
    assert vars(found).keys() == vars(small(3)).keys()
    assert found.data == small(3).data


@pytest.mark.parametrize('keep', [2, 3])
def test_the_newest_are_kept(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, keep)
    for step in range(5):
        checkpoints.save(small(step))
    assert checkpoints.find() == [4, 3, 2, 1, 0][:keep]
    assert len(names(checkpoints)) == keep


def test_any_reader_of_safetensors_can_read_a_checkpoint(checkpoints):
    with safe_open(checkpoints.path(3), 'numpy') as file:
        about = json.loads(file.metadata()['manifest'])
    found = load_file(checkpoints.path(3))
    assert about.pop('format') == FORMAT
    assert same(Checkpoint(arrays=found, **about), small(3))


def test_leftovers_are_ignored_and_cleaned(checkpoints, tmp_path):
    foreign = [
        'notes.txt',
        'step-4.safetensors',
        'step-0000004.safetensors',
        'step-000004.safetensors.part',
        '.d2lbert-notes.part',
    ]
    for name in (f'.d2lbert-{"1f" * 8}.part', *foreign):
        (checkpoints.folder / name).write_bytes(b'cut sho')
    again = Checkpoints(tmp_path)
    assert again.load().num_steps == 3
    again.save(small(4))
    assert again.find() == [4, 3]
    ours = [again.path(step).name for step in (3, 4)]
    assert names(again) == sorted([*foreign, *ours])


def test_damaged_ones_do_not_push_out_whole_ones(checkpoints, tmp_path):
    checkpoints.path(3).write_bytes(b'')
    again = Checkpoints(tmp_path)
    with pytest.warns(RunWarning):
        assert again.load().num_steps == 2
    again.save(small(4))
    assert again.find() == [4, 2]
    assert same(again.read(2), small(2)) and same(again.read(4), small(4))


# ---- killed, and out of room -----------------------------------------


def kill(mode, folder, every):
    """Run `kill_saves.py`; return what it counted."""
    done = subprocess.run(
        [sys.executable, kill_saves.__file__, mode, str(folder), str(every)],
        capture_output=True,
        text=True,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        timeout=300,
    )
    if done.returncode == 77:
        pytest.skip('strace may not attach to a process here')
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.parametrize('every', [5, all_of_them])
def test_killed_or_failing_at_any_call_of_a_save(tmp_path, every):
    counts = kill('calls', tmp_path, every)
    assert counts['killed, old left'] >= 30 / every
    assert counts['killed, new left'] >= 10 / every
    assert counts['failed, old left'] >= 10 / every


@pytest.mark.skipif(not shutil.which('strace'), reason='needs strace')
@pytest.mark.parametrize('every', [5, all_of_them])
def test_killed_at_any_system_call_of_a_save(tmp_path, every):
    counts = kill('strace', tmp_path, every)
    assert counts['killed, old left'] >= 20 / every
    assert counts['killed, new left'] >= 3 / every


def assert_save_fails(checkpoints, *words):
    with pytest.raises(RunError, match='Older ones are kept') as error:
        checkpoints.save(small(4))
    assert same(Checkpoints(checkpoints.folder.parent).load(), small(3))
    for word in words:
        assert word in str(error.value)


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full')
def test_a_full_device(checkpoints, monkeypatch):
    def open_full(path, mode):
        return open('/dev/full', 'wb')

    with monkeypatch.context() as patch:
        patch.setattr(files, 'open', open_full, raising=False)
        assert_save_fails(checkpoints, 'step 4', 'No space left')
    checkpoints.save(small(4))
    assert checkpoints.load().num_steps == 4


def test_a_limit_of_file_size(checkpoints):
    resource = pytest.importorskip('resource')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        assert_save_fails(checkpoints, 'too large')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [name for name in names(checkpoints) if 'part' in name]


def test_a_full_file_system():
    """Fills a real one, byte by byte larger, until a save fits."""
    with tempfile.TemporaryDirectory() as folder:
        mount = ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', folder]
        try:
            subprocess.run(mount, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip('mounting a file system is not allowed here')
        try:
            checkpoints = Checkpoints(folder)
            for step in (2, 3):
                checkpoints.save(small(step))
            fill = Path(folder) / 'fill'
            with (
                open(fill, 'wb', buffering=0) as file,
                pytest.raises(OSError),
            ):
                while True:
                    file.write(bytes(4096))
            assert_save_fails(checkpoints, 'No space left')
            fill.unlink()
            checkpoints.save(small(4))
        finally:
            subprocess.run(['umount', folder], check=True)


# One that cannot be listed cannot be brought to the disk either
@pytest.mark.parametrize('mode', [0o555, 0o333])
def test_a_folder_that_cannot_be_written(mode):
    """Root may write everywhere, and is therefore somebody else here."""
    if not hasattr(os, 'geteuid'):
        pytest.skip('Windows has other rights')
    root = os.geteuid() == 0
    # Nobody may not read root's Python, and it remembers what it lacked
    importlib.import_module('filelock')
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, mode)
        try:
            if root:
                os.seteuid(65534)
            for use in (make_folder, locked(folder).__enter__):
                with pytest.raises(InputError, match='Permission denied'):
                    use(folder) if use is make_folder else use()
        finally:
            if root:
                os.seteuid(0)


def test_what_cannot_be_read_now_is_not_removed():
    if not hasattr(os, 'geteuid') or os.geteuid():
        pytest.skip('only root can become somebody else')
    importlib.import_module('safetensors.numpy')
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(folder)
        for step in (2, 3):
            checkpoints.save(small(step))
        os.chmod(folder, 0o755)
        os.chmod(checkpoints.path(3), 0)
        again = Checkpoints(folder)
        try:
            os.seteuid(65534)
            with pytest.raises(RunError, match=r'now \(Permission denied\)'):
                again.load()
        finally:
            os.seteuid(0)
        assert again.load().num_steps == 3


def test_what_cannot_be_removed_is_told(checkpoints):
    (checkpoints.folder / 'step-000009.safetensors').mkdir()
    with pytest.warns(RunWarning, match=r'not be removed: step-000009.*\('):
        checkpoints.save(small(4))
    assert checkpoints.find() == [9, 4, 3]


# ---- numbers that no training has ----------------------------------


@pytest.mark.parametrize(
    ('name', 'value', 'words'),
    [
        ('weights.a', np.nan, 'weights.a is not finite'),
        ('m.a', np.inf, 'm.a is not finite'),
        ('v.a', -1, 'v.a is negative'),
    ],
)
def test_numbers_that_no_training_has(checkpoints, name, value, words):
    broken = small(4)
    broken.arrays[name][1, 1] = value
    with pytest.raises(RunError, match=f'4 is not written: {words}'):
        checkpoints.save(broken)
    assert checkpoints.find() == [3, 2]
    broken = small(3)
    broken.arrays[name][1, 1] = value
    forge(checkpoints.path(3), manifest(), broken.arrays)
    assert_the_one_before(checkpoints, words)


# ---- one training at a time ------------------------------------------

HOLD = """
import sys
from d2lbert.runs.folder import locked
with locked(sys.argv[1]):
    print('locked', flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_for_one_until_it_ends_or_is_killed(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, '-c', HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
    )
    with holder:
        assert holder.stdout.readline() == b'locked\n'
        with (
            pytest.raises(InputError, match='another process is using'),
            locked(tmp_path),
        ):
            pass
        holder.kill()
        holder.wait()
        with locked(tmp_path), pytest.raises(InputError, match='another'):
            locked(tmp_path).__enter__()


# ---- damage ----------------------------------------------------------


def damaged(whole):
    """Yield a file cut at each length, changed at each byte, and longer."""
    for length in range(len(whole)):
        yield whole[:length]
    for position in range(len(whole)):
        for change in (*(1 << bit for bit in range(8)), 0xFF):
            data = bytearray(whole)
            data[position] ^= change
            yield bytes(data)
    yield whole + b'\n'
    yield whole + b'\0'
    yield whole + whole


@pytest.mark.parametrize('every', [17, all_of_them])
def test_every_byte_and_every_length(checkpoints, every):
    path = checkpoints.path(3)
    whole = path.read_bytes()
    for data in islice(damaged(whole), 0, None, every):
        path.write_bytes(data)
        try:
            checkpoints.read(3)
        except DAMAGE:
            continue
        except RunError as error:
            # A digit of the format
            assert 'has format' in str(error)
            continue
        pytest.fail('the damage was not noticed')
    path.write_bytes(whole)
    assert same(checkpoints.read(3), small(3))


def test_the_damage_is_named(checkpoints):
    path = checkpoints.path(3)
    path.write_bytes(path.read_bytes()[:-1])
    assert_the_one_before(checkpoints, f'{path.name} (', 'not fully covered')
    path.write_bytes(path.read_bytes() + b'0')
    assert_the_one_before(checkpoints, f'{path.name} (', 'not as it was')
    path.write_bytes(save(small(3).arrays))
    assert_the_one_before(checkpoints, f'{path.name} (it has no manifest')
    path.unlink()
    path.mkdir()
    assert_the_one_before(checkpoints, f'{path.name} (not a regular file')


def test_all_damaged(checkpoints, tmp_path):
    for step in (2, 3):
        checkpoints.path(step).write_bytes(b'')
    with pytest.raises(RunError, match=r'all .*: step-000003.*step-000002'):
        Checkpoints(tmp_path).load()


def test_a_newer_format(checkpoints, tmp_path):
    newer = save({}, {'manifest': '{"format": 9, "more": "to come"}'})
    checkpoints.path(3).write_bytes(newer)
    with pytest.raises(RunError, match='has format 9, this d2lbert reads 2'):
        Checkpoints(tmp_path).load()


class Evil:
    """What no one may unpickle."""

    def __reduce__(self):
        return os.abort, ()


def test_pickles_are_not_opened(checkpoints):
    pickle = pytest.importorskip('pickle')
    data = pickle.dumps({'weights.a': Evil()})
    checkpoints.path(3).write_bytes(data)
    assert_the_one_before(checkpoints)
    forge(checkpoints.path(3), data.decode('latin-1'))
    assert_the_one_before(checkpoints)


def header(content, size=None):
    text = json.dumps(content).encode()
    return (len(text) if size is None else size).to_bytes(8, 'little') + text


def described(shape, end, dtype='F32'):
    return {'a': {'dtype': dtype, 'shape': shape, 'data_offsets': [0, end]}}


@pytest.mark.parametrize(
    'data',
    [
        header({}, size=1 << 62),
        header({}, size=(1 << 64) - 1),
        header(described([1 << 40, 1 << 20], 16)),
        header(described([1 << 40], 1 << 42)),
        header(described([1 << 63, 2], 0)),
        header(described([4], 16)),
        header(described([-4], 16)) + bytes(16),
        header(described([4], 16, 'F1024')) + bytes(16),
        header([]),
        b'',
    ],
    ids=range(10),
)
def test_giant_and_false_headers_allocate_nothing(checkpoints, data):
    import tracemalloc

    checkpoints.path(3).write_bytes(data)
    tracemalloc.start()
    assert_the_one_before(checkpoints)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_a_giant_file_is_not_read(checkpoints):
    path = checkpoints.path(3)
    with path.open('r+b') as file:
        file.truncate(1 << 42)
    assert_the_one_before(checkpoints, path.name)


def test_a_giant_manifest_is_not_read(tmp_path):
    path = tmp_path / 'run.json'
    with path.open('wb') as file:
        file.truncate(1 << 42)
    with pytest.raises(OSError, match='more than'):
        read_manifest(path)


@pytest.mark.parametrize(
    'text',
    [
        '',
        '[]',
        'null',
        '{}',
        f'{{"format": {FORMAT}}}',
        '[' * 100_000,
        manifest(config=1)[:-1],
        manifest(more=1),
    ],
    ids=range(8),
)
def test_a_manifest_of_something_else(checkpoints, text):
    forge(checkpoints.path(3), text)
    assert_the_one_before(checkpoints)


@pytest.mark.parametrize('text', [NO_CHECKSUM, f'"{NO_CHECKSUM}"'])
def test_a_text_that_looks_like_the_place_of_the_checksum(tmp_path, text):
    """It stands before it and after it, in a path say."""
    checkpoint = replace(small(3), config={text: text})
    Checkpoints(tmp_path).save(checkpoint)
    assert same(Checkpoints(tmp_path).load(), checkpoint)
    (tmp_path / 'run.json').write_bytes(to_manifest({text: text}, {}))
    assert read_manifest(tmp_path / 'run.json') == ({text: text}, {})


def test_a_checkpoint_of_another_step(checkpoints):
    forge(checkpoints.path(3), manifest(), small(4).arrays)
    assert_the_one_before(checkpoints, 'has 4 steps')
    forge(checkpoints.path(3), manifest(), {'weights.a': np.zeros(3)})
    assert_the_one_before(checkpoints, 'steps')


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def assert_no_manifest(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'manifest.json'
        path.write_bytes(data)
        with pytest.raises((RunError, *DAMAGE)):
            read_manifest(path)


@given(st.binary())
def test_bytes_are_no_manifest(data):
    assert_no_manifest(data)


@given(json_values, st.booleans())
def test_json_is_no_manifest(content, formatted):
    if formatted and isinstance(content, dict):
        content = {'format': FORMAT, 'sha256': 'x', **content}
    assert_no_manifest(json.dumps(content).encode())


@given(st.dictionaries(st.text(), json_values), st.data())
def test_a_manifest_comes_back_unless_it_was_changed(content, draw):
    content = {
        name: value
        for name, value in content.items()
        if name not in ('format', 'sha256', 'files')
    }
    data = to_manifest(content, {})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'manifest.json'
        path.write_bytes(data)
        assert repr(read_manifest(path)) == repr((content, {}))
    position = draw.draw(st.integers(0, len(data) - 1))
    change = draw.draw(st.integers(1, 255))
    damaged = bytearray(data)
    damaged[position] ^= change
    assert_no_manifest(bytes(damaged))


def test_a_manifest_nested_without_end(tmp_path):
    assert_no_manifest(b'[' * 1_000_000)


# ---- arrays that do not fit ------------------------------------------


def test_all_that_does_not_fit_is_listed():
    expected = {name: np.zeros((3, 2), np.float32) for name in 'abcd'}
    arrays = {
        'a': np.zeros((3, 2), np.float32),
        'b': np.zeros((2, 3), np.float32),
        'c': np.zeros((3, 2), np.float16),
        'e': np.zeros(1, np.float32),
    }
    check_arrays(expected, expected)
    with pytest.raises(RunError) as error:
        check_arrays(arrays, expected)
    for words in (
        'd is missing',
        "b is ((2, 3), 'float32') instead of ((3, 2), 'float32')",
        "c is ((3, 2), 'float16')",
        "e is ((1,), 'float32') instead of not there",
    ):
        assert words in str(error.value)


@given(
    st.dictionaries(
        st.text(max_size=5).filter(lambda name: name != '__metadata__'),
        numpy_st.arrays(
            numpy_st.integer_dtypes(endianness='?')
            | numpy_st.unsigned_integer_dtypes(endianness='?')
            | numpy_st.floating_dtypes(endianness='?', sizes=(16, 32, 64)),
            numpy_st.array_shapes(min_dims=0, min_side=0, max_side=4),
        ).map(np.transpose),
    )
)
def test_safetensors_reads_what_we_write(arrays):
    header, parts = files.to_safetensors(arrays, {'about': 'ä"'})
    data = b''.join([header, *parts])
    read = load(data)
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype.newbyteorder('=')
        np.testing.assert_array_equal(read[name], array)
