"""Corpora that are read as a stream and trained on through a memory map."""

import gc
import gzip
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import d2lbert
from d2lbert.data import cache, examples, files, sample, stored, text, words
from d2lbert.data.batches import Batches
from d2lbert.data.cache import load_cached_examples
from d2lbert.data.corpus import open_corpus, read_lines
from d2lbert.data.examples import load_examples
from d2lbert.errors import CorpusError, InputError
from helpers import ROOT, RUN_SIZES, corpus_of

LINES = sample.lines()[:200]
SIZES = [
    f'--{name.replace("_", "-")}={size}' for name, size in RUN_SIZES.items()
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv('D2LBERT_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'examples'


@pytest.fixture
def large(monkeypatch):
    """Makes a small corpus a large one."""
    monkeypatch.setattr(cache, 'LARGE', 0)
    monkeypatch.setattr(stored, 'SMALL', 0)
    monkeypatch.setattr(words, 'NUMBERS_AT_A_TIME', 500)
    monkeypatch.setattr(words, 'PARAGRAPHS_AT_A_TIME', 7)
    monkeypatch.setattr(words, 'MOST_MAPPED', 0)
    monkeypatch.setattr(examples, 'PARAGRAPHS', 11)


def assert_same(found, expected):
    for name in examples.Batch._fields:
        ours, theirs = (
            one.column(name, slice(None)) for one in (found[0], expected[0])
        )
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert found[1].token_freqs == expected[1].token_freqs
    assert found[1].idx_to_token == expected[1].idx_to_token


# ---- several files ---------------------------------------------------


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(f'{line}\n' for line in lines), 'utf-8')
    return path


def test_several_files_and_a_pattern(tmp_path):
    first = write(tmp_path / 'b.txt', ['one . two'])
    write(tmp_path / 'a.txt', ['three . four'])
    deep = tmp_path / 'in' / 'folder' / 'c.txt.gz'
    deep.parent.mkdir(parents=True)
    deep.write_bytes(gzip.compress(b'five . six'))  # without a newline
    expected = {
        (f'{tmp_path}/*.txt',): ['three . four\n', 'one . two\n'],
        (f'{tmp_path}/**/c*',): ['five . six'],
        (str(first), f'{tmp_path}/[a]*'): ['one . two\n', 'three . four\n'],
        (str(deep), first): ['five . six', 'one . two\n'],
    }
    for paths, lines in expected.items():
        assert list(open_corpus(paths).lines()) == lines
        assert read_lines(paths) == lines
    several = list(open_corpus(['sample', str(first)]).lines())
    assert several == [f'{line}\n' for line in sample.lines()] + [
        'one . two\n'
    ]


def test_a_file_whose_name_is_a_pattern(tmp_path):
    path = write(tmp_path / 'what?.txt', ['one . two'])
    write(tmp_path / 'whats.txt', ['three . four'])
    assert read_lines(str(path)) == ['one . two\n']


def test_a_pattern_that_matches_nothing(tmp_path):
    with pytest.raises(InputError, match=r'\*\.txt.* no path matches'):
        open_corpus(f'{tmp_path}/*.txt')
    with pytest.raises(InputError, match='expected one path or more'):
        open_corpus([])


def test_one_of_several_may_be_empty(tmp_path):
    empty = write(tmp_path / 'a.txt', [])
    full = write(tmp_path / 'b.txt', ['one . two'])
    assert read_lines([empty, full]) == ['one . two\n']
    with pytest.raises(CorpusError, match=r'a\.txt and 1 more is empty'):
        read_lines([empty, empty])


def test_several_on_the_command_line(tmp_path, run, one_backend):
    write(tmp_path / 'a.txt', LINES[:50])
    write(tmp_path / 'b.txt', LINES[50:])
    given = [f'--corpus={tmp_path}/a*', f'--corpus={tmp_path}/b.txt']
    out = tmp_path / 'run'
    options = ['--steps=1', f'--backend={one_backend}', *SIZES]
    done = run('pretrain', f'--out={out}', *given, *options)
    assert done.status == 0, done.err
    config = d2lbert.load_run(out).config
    assert config.corpus == (f'{tmp_path}/a*', f'{tmp_path}/b.txt')
    assert 'a* and 1 more' in config.title()
    run('pretrain', '--resume', f'--out={out}')
    whole = write(tmp_path / 'whole.txt', LINES)
    found = d2lbert.pretrain(
        corpus=whole, backend=one_backend, steps=1, progress=False,
        **RUN_SIZES,
    )  # fmt: skip
    assert found.history == d2lbert.load_run(out).history


@settings(
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.integers(0, 99), st.lists(st.integers(0, 60), max_size=4))
def test_a_text_in_files_is_that_text(tmp_path, large, seed, cuts):
    lines, cuts = LINES[:60], [0, *sorted(cuts), 60]
    paths = [
        write(tmp_path / f'{i}.txt', lines[cuts[i] : cuts[i + 1]])
        for i in range(len(cuts) - 1)
    ]
    found = load_cached_examples(open_corpus(paths), 64, seed)
    assert_same(found, load_examples(lines, 64, random.Random(seed)))


# ---- streams ---------------------------------------------------------


@pytest.mark.parametrize('max_len', [24, 64, 300])
def test_a_large_corpus_makes_the_same_examples(large, folder, max_len):
    corpus = corpus_of(LINES)
    expected = load_examples(LINES, max_len, random.Random(5))
    made = load_cached_examples(corpus, max_len, 5)
    read = load_cached_examples(corpus, max_len, 5)
    assert isinstance(read[0].arrays['tokens'], np.memmap)
    assert_same(made, expected)
    assert_same(read, expected)
    assert len(list(folder.iterdir())) == 1  # no lock and no part
    ours, theirs = (
        list(Batches(one, 100, seed=3)) for one in (read[0], expected[0])
    )
    for a, b in zip(ours, theirs, strict=True):
        for array, other in zip(a, b, strict=True):
            assert array.dtype == other.dtype
            np.testing.assert_array_equal(array, other)


def test_a_line_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(text, 'MAX_LINE', 100)
    path = write(tmp_path / 'a.txt', ['x' * 99])
    assert read_lines(path) == ['x' * 99 + '\n']
    write(path, ['x' * 100])
    with pytest.raises(CorpusError, match='a line of more than 100 char'):
        read_lines(path)


def test_an_archive_that_gives_much_more_than_it_has(tmp_path, monkeypatch):
    path = tmp_path / 'a.gz'
    path.write_bytes(gzip.compress(b'a . b\n' * 100_000))
    assert len(list(open_corpus(path).lines())) == 100_000
    monkeypatch.setattr(text, 'MAX_UNPACKED', 1000)
    monkeypatch.setattr(text, 'MAX_RATIO', 10)
    with pytest.raises(CorpusError, match='gives more than'):
        list(open_corpus(path).lines())


def test_a_file_that_changes_meanwhile(tmp_path, large, folder):
    path = write(tmp_path / 'a.txt', LINES)
    corpus = open_corpus(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, 'draw_pairs', changing(path))
        with pytest.raises(CorpusError, match='has changed while'):
            load_cached_examples(corpus, 64, 0)
    assert not list(folder.iterdir())


def test_a_file_that_is_removed_meanwhile(tmp_path, large, folder):
    path = write(tmp_path / 'a.txt', LINES)
    corpus = open_corpus(path)
    path.unlink()
    with pytest.raises(CorpusError, match=r'a\.txt can no longer be read'):
        load_cached_examples(corpus, 64, 0)


def changing(path):
    def draw_pairs(*args):
        with open(path, 'a') as file:
            file.write('one . two\n')
        return examples.draw_pairs(*args)

    return draw_pairs


# ---- the disk --------------------------------------------------------


def test_the_disk_space_is_checked_before(large, folder, monkeypatch):
    monkeypatch.setattr(cache, 'free_bytes', lambda folder: 1000)
    with pytest.raises(CorpusError, match=r'need about .* GB .* 0\.0 GB fre'):
        load_cached_examples(corpus_of(LINES), 64, 0)
    assert not list(folder.iterdir())


@pytest.mark.slow
def test_the_estimate_is_near(wikitext2):
    corpus = open_corpus(wikitext2)
    build = cache.Build(corpus, 64, 0, cache.tokens_of(), None, Path('x'))
    found, vocab = load_cached_examples(corpus, 64, 0)
    layout = stored.layout_of(found.num_examples, 64, len(vocab))
    needed = stored.num_bytes(layout) + 2 * 2_051_910  # and the words
    assert 0.9 * needed < build.estimate() < 1.2 * needed


@contextmanager
def small_disk(size):
    with tempfile.TemporaryDirectory() as folder:
        mount = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs']
        try:
            subprocess.run([*mount, folder], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip('mounting a file system is not allowed here')
        try:
            yield Path(folder)
        finally:
            gc.collect()  # files that the frames of an error hold open
            subprocess.run(['umount', folder], check=True)


@pytest.mark.parametrize('size', ['16k', '100k'])
def test_a_disk_that_fills_up(large, monkeypatch, size):
    """While words are collected, and while examples are written."""
    monkeypatch.setattr(cache.Build, 'check_room', lambda *args: None)
    with small_disk(size) as disk:
        monkeypatch.setenv('D2LBERT_CACHE', str(disk))
        with pytest.raises(CorpusError, match=r'No space left.*make room'):
            load_cached_examples(corpus_of(LINES), 64, 0)
        assert not list((disk / 'examples').iterdir())


def test_a_cache_that_cannot_be_made(large, tmp_path, monkeypatch):
    (tmp_path / 'file').write_bytes(b'')
    monkeypatch.setenv('D2LBERT_CACHE', str(tmp_path / 'file'))
    with pytest.raises(CorpusError, match='set the environment variable D2L'):
        load_cached_examples(corpus_of(LINES), 64, 0)


# ---- processes -------------------------------------------------------

PROGRAM = """
import sys, time
from d2lbert.data import cache, examples, stored, words
from d2lbert.data.corpus import open_corpus
cache.LARGE, words.NUMBERS_AT_A_TIME = 0, 500
def slow(*args):
    for i, block in enumerate(blocks(*args)):
        print('at', i, flush=True)
        yield block
        time.sleep(float(sys.argv[2]))
examples.BLOCK, blocks = 64, examples.example_blocks
cache.example_blocks = slow
class Progress(cache.Silence):
    def say(self, message):
        print(message, flush=True)
examples, _ = cache.load_cached_examples(
    open_corpus(sys.argv[1]), 64, 0, progress=Progress())
print(examples.column('tokens', slice(None)).sum())
"""


def start(path, pause):
    return subprocess.Popen(
        [sys.executable, '-c', PROGRAM, path, str(pause)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(process, words):
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f'it has not said {words!r}')


@pytest.mark.skipif(os.name == 'nt', reason='needs SIGKILL')
def test_a_killed_build_leaves_nothing(tmp_path, folder, monkeypatch):
    path = write(tmp_path / 'a.txt', LINES)
    process = start(path, 10)
    wait_for(process, 'at 0')
    (part,) = folder.glob(files.UNFINISHED)
    os.utime(part, (time.time() - 20,) * 2)
    # It is not removed as long as its process writes it
    files.remove_unfinished(folder)
    assert part.exists()
    process.kill()
    process.communicate()
    process = start(path, 0)
    process.communicate()
    assert process.returncode == 0
    assert not part.exists()
    assert [one.suffix for one in folder.iterdir()] == ['.safetensors']


def test_locks_of_killed_builds_are_removed(folder):
    folder.mkdir(parents=True)
    old, new = (folder / f'.{digit * 64}.lock' for digit in 'ab')
    for lock in (old, new):
        lock.touch()
    os.utime(old, (0, 0))
    load_cached_examples(corpus_of(LINES), 64, 0)
    assert not old.exists() and new.exists()


@pytest.mark.skipif(os.name == 'nt', reason='has other signals')
def test_a_build_that_ctrl_c_ends_leaves_nothing(tmp_path, folder):
    process = start(write(tmp_path / 'a.txt', LINES), 10)
    wait_for(process, 'at 0')
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode != 0
    assert not list(folder.iterdir())


def test_processes_at_once_make_one_build(tmp_path):
    path = write(tmp_path / 'a.txt', LINES)
    processes = [start(path, 0.2) for _ in range(3)]
    outputs = [process.communicate()[0] for process in processes]
    assert sum('at 0' in output for output in outputs) == 1
    assert len({output.split()[-1] for output in outputs}) == 1


@pytest.mark.slow
def test_what_is_told(tmp_path, large, one_backend, run, monkeypatch):
    """The disk space before, and the time that is left."""
    monkeypatch.setattr(examples, 'BLOCK', 8)
    blocks = cache.example_blocks

    def slow(*args):
        for block in blocks(*args):
            yield block
            time.sleep(0.05)

    monkeypatch.setattr(cache, 'example_blocks', slow)
    path = write(tmp_path / 'a.txt', LINES)
    out = tmp_path / 'run'
    done = run(
        'pretrain', f'--corpus={path}', '--steps=1', f'--out={out}',
        f'--backend={one_backend}', *SIZES,
    )  # fmt: skip
    assert done.status == 0
    first, *_ = done.err.splitlines()
    assert re.fullmatch(
        r'd2lbert: .*a\.txt is read for the first time\. Its examples take '
        r'about 0\.0 GB of .*, which has [\d.]+ GB free',
        first,
    )
    assert re.search(r'examples, 2 of 2: +\d+%.*<\d\d:\d\d', done.err)


# ---- a really large one ----------------------------------------------

# `ru_maxrss` would begin with the memory of these tests
MEASURE = """
import re, sys, time
from d2lbert.data.batches import Batches
from d2lbert.data.cache import load_cached_examples
from d2lbert.data.corpus import open_corpus
start = time.perf_counter()
examples, vocab = load_cached_examples(open_corpus(sys.argv[1]), 64, 0)
batch = next(Batches(examples, 512).from_step(0))
status = open('/proc/self/status').read()
peak = 1024 * int(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1])
print(examples.num_examples, batch.tokens.sum(), peak / 1e9,
      time.process_time(), time.perf_counter() - start)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != 'linux', reason='reads memory in kB')
def test_wikitext2_fifty_times_over(tmp_path, wikitext2):
    """In GB and seconds: 1.2 and 90 the first time, then 0.4 and 2."""
    if shutil.disk_usage(tmp_path).free < 3 << 30:
        pytest.skip('less than 3 GB of the disk are free')
    one = ''.join(read_lines(wikitext2)).encode()
    path = tmp_path / 'large.txt'
    with open(path, 'wb') as file:
        for _ in range(50):
            file.write(one)

    def measure():
        return [
            float(number)
            for number in subprocess.check_output(
                [sys.executable, '-c', MEASURE, path], cwd=ROOT, text=True
            ).split()
        ]

    *made, memory, processor, _ = measure()
    assert memory < 1.2 and processor < 90
    *read, memory, processor, _ = measure()
    assert memory < 0.4 and processor < 2
    assert read == made
    shutil.rmtree(tmp_path / 'cache')
    path.unlink()
