"""Examples that are made once and read back afterwards."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from d2lbert.data import cache, files, sample, stored
from d2lbert.data.corpus import open_corpus
from d2lbert.data.examples import load_examples
from d2lbert.errors import CorpusError, InputError
from helpers import corpus_of

LINES = sample.lines()[:60]


def load_cached_examples(lines, max_len, seed):
    return cache.load_cached_examples(corpus_of(lines), max_len, seed)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv('D2LBERT_CACHE', str(tmp_path))
    return tmp_path / 'examples'


@pytest.fixture
def num_made(monkeypatch):
    """A list that is as long as examples were made and not read."""
    calls = []

    def load_text(*args):
        calls.append(args)
        return original(*args)

    original = cache.load_text
    monkeypatch.setattr(cache, 'load_text', load_text)
    return calls


def only_file(folder):
    (path,) = folder.iterdir()
    return path


def assert_same(found, expected):
    ours, theirs = (
        examples.rows(slice(None)) for examples, _ in (found, expected)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert found[1].token_freqs == expected[1].token_freqs
    assert found[1].idx_to_token == expected[1].idx_to_token
    assert found[1].token_to_idx == expected[1].token_to_idx


@pytest.mark.parametrize(
    'lines',
    [
        sample.lines(),
        ['A Straße in \u4f60\u597d . \U0001f426 <mask> <unk> .\n'] * 5,
    ],
)
@pytest.mark.parametrize('max_len', [24, 300])
def test_read_as_made(num_made, lines, max_len):
    made = load_cached_examples(lines, max_len, 3)
    read = load_cached_examples(lines, max_len, 3)
    assert len(num_made) == 1
    assert_same(read, made)
    assert_same(read, load_examples(lines, max_len, random.Random(3)))


def test_wikitext2(wikitext2, num_made):
    corpus = open_corpus(wikitext2)
    made = cache.load_cached_examples(corpus, 64, 0)
    assert_same(cache.load_cached_examples(corpus, 64, 0), made)
    assert len(num_made) == 1


def test_a_file_for_all_that_decides_the_examples(
    folder, num_made, monkeypatch
):
    load_cached_examples(LINES, 64, 0)
    load_cached_examples(LINES, 65, 0)
    load_cached_examples(LINES, 64, 1)
    load_cached_examples(LINES[1:], 64, 0)
    load_cached_examples([*LINES[:-1], f'{LINES[-1]} '], 64, 0)
    load_cached_examples([''.join(LINES[:2]), *LINES[2:]], 64, 0)
    monkeypatch.setattr(cache, '__version__', '0.0.0')
    load_cached_examples(LINES, 64, 0)
    monkeypatch.setattr(cache, 'FORMAT', 0)
    load_cached_examples(LINES, 64, 0)
    assert len(num_made) == len(list(folder.iterdir())) == 8


def test_one_file_under_the_name_of_another(folder, num_made):
    load_cached_examples(LINES, 64, 1)
    other = only_file(folder)
    expected = load_cached_examples(LINES, 64, 0)
    (path,) = set(folder.iterdir()) - {other}
    os.replace(other, path)
    assert_same(load_cached_examples(LINES, 64, 0), expected)
    assert len(num_made) == 3


@pytest.mark.parametrize('damage', ['bit', 'end', 'more', 'empty', 'zeros'])
def test_a_damaged_file_is_made_anew(folder, num_made, damage):
    expected = load_cached_examples(LINES, 64, 0)
    path = only_file(folder)
    data = path.read_bytes()
    for offset in range(0, len(data), len(data) // 10):
        path.write_bytes(damaged(data, damage, offset))
        del num_made[:]
        assert_same(load_cached_examples(LINES, 64, 0), expected)
        assert len(num_made) == 1
        assert_same(load_cached_examples(LINES, 64, 0), expected)
        assert len(num_made) == 1


def damaged(data, damage, offset):
    if damage == 'bit':
        return (
            data[:offset]
            + bytes([data[offset] ^ 1 << offset % 8])
            + data[offset + 1 :]
        )
    return {
        'end': data[:offset],
        'more': data + b'\0' * (offset + 1),
        'empty': b'',
        'zeros': bytes(len(data)),
    }[damage]


def test_a_pickle_is_not_believed(folder, num_made):
    expected = load_cached_examples(LINES, 64, 0)
    only_file(folder).write_bytes(b'\x80\x04cposix\nsystem\n')
    assert_same(load_cached_examples(LINES, 64, 0), expected)
    assert len(num_made) == 2


@pytest.mark.parametrize('place', ['file', 'file/below', 'examples'])
def test_no_folder_no_cache(folder, monkeypatch, num_made, place):
    # A file where a folder should be stops root, too
    (folder.parent / place.partition('/')[0]).write_bytes(b'')
    if place != 'examples':
        monkeypatch.setenv('D2LBERT_CACHE', str(folder.parent / place))
    expected = load_cached_examples(LINES, 64, 0)
    assert_same(load_cached_examples(LINES, 64, 0), expected)
    assert len(num_made) == 2


def test_full_disk(folder, monkeypatch, num_made):
    def write_examples(*args):
        next(args[-1])  # some numbers are drawn already
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(cache, 'write_examples', write_examples)
    expected = load_cached_examples(LINES, 64, 0)
    assert_same(load_cached_examples(LINES, 64, 0), expected)
    assert len(num_made) == 2
    assert not list(folder.iterdir())
    assert_same(expected, load_examples(LINES, 64, random.Random(0)))


def test_only_the_newest_are_kept(folder, num_made):
    for seed in range(cache.NUM_KEPT + 3):
        load_cached_examples(LINES, 64, seed)
        for path in folder.iterdir():  # where clocks are coarse
            seconds = path.stat().st_mtime - 10
            os.utime(path, (seconds, seconds))
    assert len(list(folder.iterdir())) == cache.NUM_KEPT
    del num_made[:]
    for seed in range(3, cache.NUM_KEPT + 3):
        load_cached_examples(LINES, 64, seed)
    assert not num_made


def test_large_files_are_fewer(folder, monkeypatch):
    load_cached_examples(LINES, 64, 0)
    size = only_file(folder).stat().st_size
    monkeypatch.setattr(cache, 'MAX_KEPT_BYTES', int(2.5 * size))
    for seed in (1, 2, 3):
        load_cached_examples(LINES, 64, seed)
    assert len(list(folder.iterdir())) == 2
    monkeypatch.setattr(cache, 'MAX_KEPT_BYTES', 1)
    load_cached_examples(LINES, 64, 4)
    assert len(list(folder.iterdir())) == 1


def test_other_files_are_kept(folder, monkeypatch):
    monkeypatch.setattr(cache, 'NUM_KEPT', 1)
    folder.mkdir()
    mine = f'{"0" * 64}.safetensors'
    others = {
        'notes.txt',
        'mine.safetensors',
        f'{"0" * 63}.safetensors',
        f'{"a" * 64}.safetensors.part',
        '.d2lbert-notes.part',
        mine,
    }
    for name in others:
        (folder / name).write_bytes(b'')
    # As a user's own store might name it, which knows files by their SHA-256
    save_file({'a': np.zeros(3)}, folder / mine)
    old = folder / f'.d2lbert-{"0" * 16}.part'
    old.write_bytes(b'cut sho')
    writing = folder / f'.d2lbert-{"1" * 16}.part'
    writing.write_bytes(b'cut sho')
    for name in others | {old.name}:
        os.utime(folder / name, (0, 0))
    for seed in range(3):
        load_cached_examples(LINES, 64, seed)
    assert others | {writing.name} < set(os.listdir(folder))
    assert not old.exists()
    assert len(os.listdir(folder)) == len(others) + 2


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no pipes here')
@pytest.mark.parametrize('suffix', ['', '.part'])
def test_a_pipe_is_not_waited_for(folder, num_made, suffix):
    """Neither one with the name of a file nor with that of older parts."""
    expected = load_cached_examples(LINES, 64, 0)
    path = only_file(folder)
    path.unlink()
    os.mkfifo(f'{path}{suffix}')
    for _ in range(2):
        assert_same(load_cached_examples(LINES, 64, 0), expected)
    assert len(num_made) == 2


def test_another_format(folder, num_made, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(files, 'FORMAT', 99)
        patch.setattr(stored, 'FORMAT', 99)
        expected = load_cached_examples(LINES, 64, 0)
    assert_same(load_cached_examples(LINES, 64, 0), expected)
    assert len(num_made) == 2


def test_nothing_is_kept_of_what_fails(folder):
    with pytest.raises(InputError, match='max_len = 2'):
        load_cached_examples(LINES, 2, 0)
    with pytest.raises(CorpusError, match='no example'):
        load_cached_examples(['one sentence'], 64, 0)
    assert not folder.exists()


def test_processes_at_once(folder, num_made):
    program = (
        'from d2lbert.data import cache, sample\n'
        'from helpers import corpus_of\n'
        'corpus = corpus_of(sample.lines()[:60])\n'
        'for seed in range(5):\n'
        '    examples, _ = cache.load_cached_examples(corpus, 64, seed)\n'
        "    print(examples.column('tokens', slice(None)).sum())\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', program],
            cwd=Path(__file__).parent,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    found = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * 3
    expected = [
        str(load_examples(LINES, 64, random.Random(seed))[0].tokens.sum())
        for seed in range(5)
    ]
    assert found == [expected] * 3
    assert not num_made
    assert len(list(folder.iterdir())) == 5
