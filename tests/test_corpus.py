"""The corpus reader against a real server, hostile archives and faults."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import os
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
from itertools import islice
from pathlib import Path

import filelock
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import server
from d2lbert.data import archives, corpus
from d2lbert.errors import CorpusError, D2LBertError, InputError

ROOT = Path(corpus.__file__).parents[2]
TRAIN = 'wikitext-2/wiki.train.tokens'
TEXT = ' \n = Crane = \n \n The crane is a <unk> — a bird . It flies . \n'
LINES = [' \n', ' = Crane = \n', ' \n', TEXT.splitlines(True)[-1]]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache; the folder itself does not exist yet."""
    folder = tmp_path / 'cache' / 'd2lbert'
    monkeypatch.setenv('D2LBERT_CACHE', str(folder))
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    return folder


def zip_of(*members, compression=zipfile.ZIP_DEFLATED):
    """A zip of (name or ZipInfo, content) pairs, in that order."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', compression) as archive:
        for member, content in members:
            archive.writestr(member, content)
    return file.getvalue()


def tar_of(*members, mode='w:gz'):
    """A tar of (name, content, type) triples, in that order."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content, kind in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            member.size = len(content)
            member.linkname = '/etc/passwd'
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


GOOD = zip_of(
    ('wikitext-2/', ''),
    ('wikitext-2/wiki.valid.tokens', 'valid \n'),
    (TRAIN, TEXT),
    # Something that does not compress, so that there is a body to cut.
    ('wikitext-2/noise', os.urandom(200_000)),
)
GOOD_SHA256 = hashlib.sha256(GOOD).hexdigest()


# The server


def send(body=GOOD, *answer, **headers):
    return server.send(body, *answer, **headers)


def send_without_end(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(65536))


def send_slowly(handler):
    handler.send_response(200)
    handler.send_header('Content-Length', len(GOOD))
    handler.end_headers()
    for start in range(0, len(GOOD), 10_000):
        handler.wfile.write(GOOD[start : start + 10_000])
        time.sleep(0.05)


@pytest.fixture
def site():
    with server.serving() as site:
        site.answers = [send()]
        site.url += f'/{corpus.ARCHIVE}'
        yield site


def fetch(site):
    return corpus.fetch([site.url], GOOD_SHA256)


def dead_url():
    """An address that nobody answers at."""
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))
        return f'http://127.0.0.1:{unused.getsockname()[1]}/x.zip'


def open_lines(path):
    """What Python itself, and so the textbook's reader, makes of a file."""
    with open(path, encoding='utf-8') as file:
        return file.readlines()


def cached_files(cache):
    return {path.name for path in cache.glob('*')} - {
        corpus.ARCHIVE + '.lock'
    }


def start(code, **env):
    """Python code run in another process, from the repository's root."""
    return subprocess.Popen(
        [sys.executable, '-c', code],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding='utf-8',
    )


def fetch_code(url):
    return (
        'import hashlib\n'
        'from d2lbert.data import corpus\n'
        f'data = corpus.fetch([{url!r}], {GOOD_SHA256!r})\n'
        'print(hashlib.sha256(data).hexdigest())\n'
    )


# Fetching


def test_fetch_keeps_one_verified_archive(site, cache):
    assert fetch(site) == GOOD
    assert (cache / corpus.ARCHIVE).read_bytes() == GOOD
    assert fetch(site) == GOOD  # from the cache
    assert len(site.requests) == 1
    assert 'python' not in site.requests[0]['User-Agent'].lower()
    assert cached_files(cache) == {corpus.ARCHIVE}


def test_wikitext2_is_fetched_and_read(site, monkeypatch):
    whole = functools.partial(corpus.fetch, [site.url], GOOD_SHA256)
    monkeypatch.setattr(corpus, 'fetch', whole)
    assert corpus.read_lines() == LINES


@pytest.mark.parametrize(
    ('answer', 'expected'),
    [
        (send(b'<Error>AccessDenied</Error>', 403), 'status 403 Forbidden'),
        (send(b'gone', 404), 'status 404'),
        (
            send(b'<html>Log in</html>', Content_Type='text/html'),
            "begin with b'<html>Log in",
        ),
        (
            send(b'', 302, Location='/login'),
            'status 302 Found, a redirect to /login',
        ),
        (send(b'', 304), 'status 304'),
        (send(GOOD[:1000], 206), 'status 206'),
    ],
)
def test_answer_that_is_no_archive(site, cache, answer, expected):
    site.answers = [answer, send()]
    with pytest.raises(CorpusError, match=expected):
        fetch(site)
    assert len(site.requests) == 1
    assert not cached_files(cache)


def redirect_without_end(url):
    def answer(handler):
        handler.send_response(301)
        handler.send_header('Location', url)
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(65536))

    return answer


@pytest.mark.parametrize('endless', [False, True])
def test_redirect_is_not_followed(site, cache, endless):
    with server.serving() as elsewhere:
        elsewhere.answers = [send()]
        site.answers = [
            redirect_without_end(elsewhere.url)
            if endless
            else send(b'', 301, Location=elsewhere.url)
        ]
        with pytest.raises(CorpusError, match='status 301'):
            fetch(site)
        assert not elsewhere.requests
    assert not cached_files(cache)


CUT = send(GOOD[:100_000], length=len(GOOD))


@pytest.mark.parametrize('answer', [CUT, send(b'busy', 503)])
def test_passing_faults_are_retried_a_bounded_number_of_times(
    site, cache, answer
):
    site.answers = [answer]
    with pytest.raises(CorpusError, match='after 3 attempts'):
        fetch(site)
    assert len(site.requests) == 3
    assert not cached_files(cache)


def test_body_cut_short_then_whole(site):
    site.answers = [CUT, CUT, send()]
    assert fetch(site) == GOOD
    assert len(site.requests) == 3


def test_wrong_hash_shows_both(site, cache):
    body = GOOD[:-1] + b'!'
    site.answers = [send(body)]
    with pytest.raises(CorpusError) as caught:
        fetch(site)
    assert GOOD_SHA256 in str(caught.value)
    assert hashlib.sha256(body).hexdigest() in str(caught.value)
    assert len(site.requests) == 1
    assert not cached_files(cache)


def test_body_without_end_is_stopped(site, cache, monkeypatch):
    monkeypatch.setattr(corpus, 'MAX_DOWNLOAD_BYTES', 1_000_000)
    site.answers = [send_without_end]
    with pytest.raises(CorpusError, match='more than 1,000,000 bytes'):
        fetch(site)
    assert len(site.requests) == 1
    assert not cached_files(cache)


def test_length_that_is_no_number(site):
    site.answers = [send(length='many')]
    assert fetch(site) == GOOD


def test_next_mirror_is_tried(site):
    site.answers = [send(b'no', 403), send(b'no archive'), send()]
    assert corpus.fetch([site.url] * 3, GOOD_SHA256) == GOOD


def send_a_byte_now_and_then(handler):
    handler.send_response(200)
    handler.send_header('Content-Length', len(GOOD))
    handler.end_headers()
    with contextlib.suppress(OSError):  # the client hangs up
        for i in range(len(GOOD)):
            handler.wfile.write(GOOD[i : i + 1])
            time.sleep(0.1)


def test_a_mirror_that_is_too_slow_gives_way_to_the_next(site, monkeypatch):
    monkeypatch.setattr(corpus, 'PATIENCE', 0.5)
    site.answers = [send_a_byte_now_and_then, send()]
    start = time.monotonic()
    assert corpus.fetch([site.url] * 2, GOOD_SHA256) == GOOD
    assert len(site.requests) == 2
    assert time.monotonic() - start < 10
    site.answers = [send_a_byte_now_and_then]
    with pytest.raises(CorpusError, match=r'too slow: \d bytes in 1 seconds'):
        corpus.get(site.url, 10**6)


def test_every_mirror_is_reported(site):
    site.answers = [send(b'no', 403), send(b'no', 404)]
    with pytest.raises(CorpusError, match=r'403.*404') as caught:
        corpus.fetch([site.url] * 2, GOOD_SHA256)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('bad', [b'', GOOD[:-1], b'\0' + GOOD[1:]])
def test_cached_archive_that_went_bad(site, cache, caplog, bad):
    cache.mkdir(parents=True)
    (cache / corpus.ARCHIVE).write_bytes(bad)
    assert fetch(site) == GOOD
    assert (cache / corpus.ARCHIVE).read_bytes() == GOOD
    assert len(site.requests) == 1
    assert 'went bad' in caplog.text


def test_no_network_and_no_cache_says_what_to_do(cache):
    with pytest.raises(CorpusError) as caught:
        corpus.fetch([dead_url()], GOOD_SHA256)
    message = str(caught.value)
    assert str(cache / corpus.ARCHIVE) in message
    assert GOOD_SHA256 in message
    assert 'D2LBERT_WIKITEXT2' in message
    assert '--corpus PATH' in message


def test_cached_archive_needs_neither_network_nor_writing(cache):
    cache.mkdir(parents=True)
    (cache / corpus.ARCHIVE).write_bytes(GOOD)
    cache.chmod(0o555)
    assert corpus.fetch([dead_url()], GOOD_SHA256) == GOOD
    assert os.listdir(cache) == [corpus.ARCHIVE]
    cache.chmod(0o755)


def test_cache_folder_that_is_a_file(site, cache):
    cache.parent.mkdir()
    cache.write_text('in the way')
    with pytest.raises(CorpusError, match=r'set .* D2LBERT_CACHE'):
        fetch(site)
    assert not site.requests


def test_another_process_does_not_end(site, cache, monkeypatch):
    monkeypatch.setattr(corpus, 'LOCK_TIMEOUT', 0.1)
    cache.mkdir(parents=True)
    with (
        filelock.FileLock(cache / f'{corpus.ARCHIVE}.lock'),
        pytest.raises(CorpusError, match='no other process has locked'),
    ):
        fetch(site)
    assert not site.requests


@pytest.mark.skipif(os.name == 'nt', reason='needs a limit on file sizes')
def test_disk_full(site, cache):
    limit = (
        'import resource\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n'
    )
    process = start(limit + fetch_code(site.url))
    _, error = process.communicate()
    assert process.returncode == 1
    assert 'errors.CorpusError: The cache folder' in error
    assert not cached_files(cache)


def test_killed_while_downloading(site, cache):
    site.answers = [send_slowly, send()]
    process = start(fetch_code(site.url))
    while not site.requests:
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM if os.name == 'nt' else signal.SIGKILL)
    process.communicate()
    assert not cached_files(cache)
    assert fetch(site) == GOOD


@pytest.mark.skipif(os.name == 'nt', reason='needs SIGKILL')
def test_killed_while_reading_an_archive(tmp_path):
    path = write(tmp_path / 'given.zip', zip_of((TRAIN, TEXT * 10_000)))
    process = start(
        'from d2lbert.data import corpus\n'
        "print('reading', flush=True)\n"
        f'while True: corpus.read_lines({str(path)!r})\n'
    )
    assert process.stdout.readline() == 'reading\n'
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert os.listdir(tmp_path) == ['given.zip']
    assert corpus.read_lines(path) == LINES * 10_000


def test_leftover_of_a_killed_save(site, cache):
    cache.mkdir(parents=True)
    part = cache / f'.d2lbert-{"0" * 16}.part'
    part.write_bytes(GOOD[:1000])
    os.utime(part, (0, 0))
    assert fetch(site) == GOOD
    assert cached_files(cache) == {corpus.ARCHIVE}


def test_processes_at_once_make_one_download(site, cache):
    site.answers = [send_slowly]
    processes = [start(fetch_code(site.url)) for _ in range(8)]
    for process in processes:
        output, error = process.communicate()
        assert output.strip() == GOOD_SHA256, error
    assert len(site.requests) == 1
    assert cached_files(cache) == {corpus.ARCHIVE}


def test_mirrors_are_addresses_of_the_archive():
    assert len(set(corpus.MIRRORS)) == len(corpus.MIRRORS) > 1
    for url in corpus.MIRRORS:
        assert url.startswith('https://')
        assert url.endswith('/wikitext-2-v1.zip')


def test_default_cache_folder(monkeypatch):
    monkeypatch.delenv('D2LBERT_CACHE')
    assert 'd2lbert' in str(corpus.cache_folder())


# Finding


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize('way', ['path', 'variable'])
@pytest.mark.parametrize(
    ('place', 'content', 'given'),
    [
        ('wikitext-2-v1.zip', GOOD, 'wikitext-2-v1.zip'),
        ('renamed', GOOD, 'renamed'),
        ('a/wiki.train.tokens', TEXT.encode(), 'a'),
        ('a/wikitext-2/wiki.train.tokens', TEXT.encode(), 'a'),
        ('folder.zip/wiki.train.tokens', TEXT.encode(), 'folder.zip'),
        ('wiki.train.tokens', TEXT.encode(), 'wiki.train.tokens'),
        ('Kräne und Züge.txt', TEXT.encode(), 'Kräne und Züge.txt'),
        (
            'w.tgz',
            tar_of((TRAIN, TEXT.encode(), tarfile.REGTYPE)),
            'w.tgz',
        ),
        (
            'w.tar',
            tar_of((TRAIN, TEXT.encode(), tarfile.REGTYPE), mode='w'),
            'w.tar',
        ),
        ('my.txt.gz', gzip.compress(TEXT.encode(), mtime=0), 'my.txt.gz'),
    ],
)
def test_archive_folder_or_file(
    tmp_path, monkeypatch, way, place, content, given
):
    write(tmp_path / place, content)
    if way == 'path':
        assert corpus.read_lines(tmp_path / given) == LINES
        assert corpus.read_lines(str(tmp_path / given)) == LINES
    else:
        monkeypatch.setenv('D2LBERT_WIKITEXT2', str(tmp_path / given))
        assert corpus.read_lines('wikitext-2') == LINES


def test_sample():
    from d2lbert.data import sample

    assert corpus.read_lines('sample') == list(sample.lines())


@pytest.mark.parametrize(
    'name', ['wikitext2', 'no/such/file.zip', '', 'a\0b', 'x' * 5000, None, 3]
)
def test_name_that_is_no_corpus(name):
    with pytest.raises(InputError) as caught:
        corpus.read_lines(name)
    message = str(caught.value)
    assert repr(str(name)) in message
    for expected in ("'sample'", "'wikitext-2'", 'path', 'archive', 'folder'):
        assert expected in message


def test_variable_that_leads_nowhere(monkeypatch):
    monkeypatch.setenv('D2LBERT_WIKITEXT2', '/no/such/file')
    with pytest.raises(InputError, match='D2LBERT_WIKITEXT2=/no/such/file'):
        corpus.read_lines()


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs named pipes')
def test_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(InputError, match='not a regular file'):
        corpus.read_lines(tmp_path / 'pipe')


def test_folder_without_a_corpus(tmp_path):
    with pytest.raises(CorpusError, match=r'no files named wiki\.train'):
        corpus.read_lines(tmp_path)


def test_folder_with_two(tmp_path):
    write(tmp_path / 'wiki.train.tokens', b'a')
    write(tmp_path / TRAIN, b'b')
    with pytest.raises(CorpusError, match='holds 2 files'):
        corpus.read_lines(tmp_path)


# Archives


def link_info(name, kind=stat.S_IFLNK):
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o777) << 16
    return info


def patched(data, old, new):
    assert old in data
    return data.replace(old, new)


def resized(content, size):
    """A zip whose two headers say that its only member has `size` bytes."""
    data = zip_of((TRAIN, content))
    old = len(content).to_bytes(4, 'little')
    return patched(data, old, size.to_bytes(4, 'little'))


HOSTILE_ZIPS = {
    'link': zip_of((link_info(TRAIN), '/etc/passwd')),
    'pipe': zip_of((link_info(TRAIN, stat.S_IFIFO), '')),
    'missing': zip_of(('wikitext-2/wiki.valid.tokens', 'x')),
    'empty archive': zip_of(),
    'in two folders': zip_of((TRAIN, TEXT), ('b/wiki.train.tokens', TEXT)),
    'says less': resized(b'x' * 0x12345, 0x1234),
    'bzip2': zip_of((TRAIN, TEXT), compression=zipfile.ZIP_BZIP2),
    'lzma': zip_of((TRAIN, TEXT), compression=zipfile.ZIP_LZMA),
    'cut': GOOD[:-100],
    'front lost': GOOD[-200:],
    'flipped': patched(
        zip_of((TRAIN, TEXT), compression=0), b'bird', b'Bird'
    ),
    'error page': b"<?xml version='1.0'?><Error>AccessDenied</Error>",
    'nothing': b'',
    'text': TEXT.encode(),
}


@pytest.mark.parametrize('case', HOSTILE_ZIPS)
def test_hostile_or_damaged_zip(tmp_path, case):
    path = write(tmp_path / 'given.zip', HOSTILE_ZIPS[case])
    with pytest.raises(CorpusError, match=r'given\.zip') as caught:
        corpus.read_lines(path)
    assert '\n' not in str(caught.value)


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_zip_with_the_same_member_twice():
    data = zip_of((TRAIN, TEXT), (TRAIN, TEXT + TEXT))
    with pytest.raises(CorpusError, match='2 files named wiki'):
        corpus.lines_of(data, 'x.zip')


def test_encrypted_zip():
    data = bytearray(zip_of((TRAIN, TEXT)))
    data[6] |= 1
    data[data.rindex(b'PK\1\2') + 8] |= 1
    with pytest.raises(CorpusError, match='encrypted'):
        corpus.lines_of(bytes(data), 'x.zip')


FILE, LINK = tarfile.REGTYPE, tarfile.SYMTYPE
GOOD_MEMBER = (TRAIN, TEXT.encode(), FILE)
HOSTILE_TARS = {
    'link': tar_of((TRAIN, b'', LINK)),
    'hard link': tar_of((TRAIN, b'', tarfile.LNKTYPE)),
    'pipe': tar_of((TRAIN, b'', tarfile.FIFOTYPE)),
    'missing': tar_of(('wiki.valid.tokens', b'x', FILE)),
    'folder': tar_of((TRAIN, b'', tarfile.DIRTYPE)),
    'twice': tar_of(GOOD_MEMBER, GOOD_MEMBER),
    'cut': tar_of(GOOD_MEMBER)[:-20],
    'not gzip': b"<?xml version='1.0'?><Error>AccessDenied</Error>",
    'not tar': gzip.compress(TEXT.encode(), mtime=0),
    'nothing': b'',
}


@pytest.mark.parametrize('case', HOSTILE_TARS)
def test_hostile_or_damaged_tar(tmp_path, case):
    path = write(tmp_path / 'given.tar.gz', HOSTILE_TARS[case])
    with pytest.raises(CorpusError, match=r'given\.tar\.gz'):
        corpus.read_lines(path)


BEYOND = [
    '/etc/evil',
    '../evil',
    'a/../../evil',
    'a\\..\\evil',
    'C:/evil',
    'link',
]


@pytest.mark.parametrize('evil', BEYOND)
def test_paths_and_links_of_an_archive_have_no_effect(
    tmp_path, monkeypatch, evil
):
    monkeypatch.chdir(tmp_path)
    zipped = zip_of(
        (link_info(evil) if evil == 'link' else evil, '/etc/passwd'),
        (f'{evil}/{corpus.TRAIN_FILE}', TEXT),
    )
    tarred = tar_of(
        (evil, b'', LINK),
        (f'{evil}/{corpus.TRAIN_FILE}', TEXT.encode(), FILE),
    )
    assert corpus.lines_of(zipped, 'x.zip') == LINES
    assert corpus.lines_of(tarred, 'x.tgz') == LINES
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('size', [0x123456, 0xFFFFFFF0])
def test_zip_that_announces_too_many_bytes(size):
    """The text is right under its CRC, and no memory is taken for more."""
    text = b'x' * 0x12345
    assert corpus.lines_of(resized(text, size), 'x.zip') == [text.decode()]


@pytest.mark.parametrize(
    ('name', 'data'),
    [
        ('x.zip', zip_of((TRAIN, bytes(10_000_000)))),
        ('x.tgz', tar_of((TRAIN, bytes(10_000_000), FILE))),
        ('x.tgz', tar_of((TRAIN, b'x', FILE), ('b', bytes(10**7), FILE))),
        ('x.tar', tar_of((TRAIN, bytes(10_000_000), FILE), mode='w')),
        ('x.gz', gzip.compress(bytes(10_000_000), mtime=0)),
    ],
)
def test_bomb_stops_at_the_limit(name, data):
    with pytest.raises(CorpusError, match=r'1,000,000'):
        corpus.lines_of(data, name, max_bytes=1_000_000)


def test_bomb_takes_no_more_memory_than_the_limit():
    data = zip_of((TRAIN, bytes(10_000_000)))
    corpus.lines_of(GOOD, 'x.zip')  # what is imported stays
    tracemalloc.start()
    with pytest.raises(CorpusError):
        corpus.lines_of(data, 'x.zip', max_bytes=1_000_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


def pax(size):
    """A tar whose extended header says how large its member is."""
    header = tarfile.TarInfo.create_pax_global_header({'size': size})
    return header + tar_of(GOOD_MEMBER, mode='w')


@pytest.mark.parametrize('size', ['-1', '-1024', '-99999', '1' * 30, 'x'])
def test_tar_whose_header_lies(size):
    with pytest.raises(CorpusError):
        corpus.lines_of(pax(size), 'x.tar')


def test_tar_of_headers_without_end():
    header = tarfile.TarInfo.create_pax_global_header({'comment': 'x'})
    with pytest.raises(CorpusError):
        corpus.lines_of(header * 5000, 'x.tar')


def test_too_many_members(monkeypatch):
    monkeypatch.setattr(archives, 'MAX_MEMBERS', 3)
    members = [(str(index), b'', FILE) for index in range(3)]
    for data, name in (
        (tar_of(*members, GOOD_MEMBER), 'x.tgz'),
        (zip_of(*(m[:2] for m in (*members, GOOD_MEMBER))), 'x.zip'),
    ):
        with pytest.raises(CorpusError, match='more than 3 members'):
            corpus.lines_of(data, name)


def test_file_larger_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, 'MAX_TEXT_BYTES', 5)
    with pytest.raises(InputError, match='7 bytes, more than 5'):
        corpus.read_lines(write(tmp_path / 'x.txt', b'a line\n'))


# Text


def test_only_what_open_takes_for_a_newline_is_one(tmp_path):
    text = 'a\x85b\u2028c\x0bd\x0ce\x1cf\r\ng\rh\n\ni'
    path = write(tmp_path / 'x.txt', text.encode())
    expected = open_lines(path)
    assert corpus.read_lines(path) == expected
    assert expected == [text[:11] + '\n', 'g\n', 'h\n', '\n', 'i']


def test_byte_order_mark_is_dropped():
    assert corpus.lines_of(b'\xef\xbb\xbfa\n', 'x.txt') == ['a\n']


@pytest.mark.parametrize(
    ('data', 'expected'),
    [
        (b'one\ntwo\xff\n', r'0xff at offset 7 \(line 2\)'),
        ('Zürich'.encode('latin-1'), r'0xfc at offset 1 \(line 1\)'),
        (b'cut \xe2\x80', r'0xe2 at offset 4 '),
        ('UTF-16'.encode('utf-16-le').join([b'\xff\xfe', b'']), 'offset 0'),
        (b'\xed\xa0\x80', 'offset 0'),
    ],
)
@pytest.mark.parametrize('packed', [False, True])
def test_invalid_utf8_is_reported_with_its_offset(data, expected, packed):
    name = 'x.zip' if packed else 'x.txt'
    with pytest.raises(CorpusError, match=expected):
        corpus.lines_of(zip_of((TRAIN, data)) if packed else data, name)


@pytest.mark.parametrize('data', [b'', b'\n', b' \n\t\n', b'\xef\xbb\xbf'])
def test_empty_corpus(data):
    with pytest.raises(CorpusError, match=r'x\.txt is empty'):
        corpus.lines_of(data, 'x.txt')
    with pytest.raises(CorpusError, match=r'x\.zip is empty'):
        corpus.lines_of(zip_of((TRAIN, data)), 'x.zip')


def test_locale_does_not_matter(tmp_path):
    path = write(tmp_path / 'x.txt', TEXT.encode())
    code = (
        'import locale, sys\n'
        'from d2lbert.data import corpus\n'
        'print(locale.getpreferredencoding(False), file=sys.stderr)\n'
        f'print(ascii(corpus.read_lines({str(path)!a})))\n'
    )
    process = start(
        code, LC_ALL='C', LANG='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0'
    )
    output, error = process.communicate()
    if os.name != 'nt':
        assert 'UTF' not in error  # the locale is one that could do harm
    assert output.strip() == ascii(LINES), error


def test_importing_the_reader_is_cheap():
    code = (
        'import sys, d2lbert.data.corpus\n'
        "costly = {'requests', 'urllib3', 'filelock', 'platformdirs'}\n"
        'print(sorted(costly & set(sys.modules)))\n'
    )
    output, error = start(code).communicate()
    assert output.strip() == '[]', error


# Any bytes at all

SUFFIXES = st.sampled_from(['.zip', '.tar', '.tgz', '.gz', '.txt', ''])
# With checksums, which all but a plain tar have
SUMMED = {
    'deflated.zip': zip_of(('wikitext-2/', ''), (TRAIN, TEXT)),
    'stored.zip': zip_of((TRAIN, TEXT), ('b', 'x'), compression=0),
    'given.tgz': tar_of(GOOD_MEMBER),
}
PLAIN = {'given.tar': tar_of(('b', b'x', FILE), GOOD_MEMBER, mode='w')}
ARCHIVES = SUMMED | PLAIN
quick = settings(
    max_examples=40,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def lines_or_typed_error(data, name):
    """Read it; say whether it could be."""
    try:
        lines = corpus.lines_of(data, name, max_bytes=100_000)
    except D2LBertError as error:
        assert name in str(error)
        return False
    assert lines
    assert all('\n' not in line[:-1] for line in lines)
    assert lines == LINES or name not in SUMMED
    return True


@quick
@given(data=st.binary(max_size=2000), suffix=SUFFIXES)
def test_any_bytes_give_lines_or_a_typed_error(data, suffix):
    lines_or_typed_error(data, 'given' + suffix)


@quick
@given(
    name=st.sampled_from(list(ARCHIVES)),
    where=st.floats(0, 1, exclude_max=True),
    cut=st.integers(0, 8),
    new=st.binary(max_size=8),
)
def test_damaged_archives_give_lines_or_a_typed_error(name, where, cut, new):
    archive = ARCHIVES[name]
    at = int(where * len(archive))
    lines_or_typed_error(archive[:at] + new + archive[at + cut :], name)


def changed_bytes(archive):
    """Each byte with one bit flipped, with all, and 0; but zeros in a row."""
    for at, byte in enumerate(archive):
        if not any(archive[at - 1 : at + 2]):
            continue
        for new in {byte ^ 1, byte ^ 0x80, byte ^ 0xFF, 0} - {byte}:
            yield archive[:at] + bytes([new]) + archive[at + 1 :]


def damaged(name):
    """Each archive with a byte changed, then each that is cut."""
    archive = ARCHIVES[name]
    step = 64 if name in PLAIN else 1
    yield from changed_bytes(archive)
    yield from (archive[:end] for end in range(0, len(archive), step))


@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize('name', ARCHIVES)
def test_damaged_archives(name):
    """A sample of those of `test_every_damaged_archive`."""
    for data in islice(damaged(name), 0, None, 29):
        lines_or_typed_error(data, name)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize('name', ARCHIVES)
def test_every_damaged_archive(name):
    read = [lines_or_typed_error(data, name) for data in damaged(name)]
    assert len(read) > 600
    assert 0 < read.count(True) < len(read)


@quick
@given(text=st.text(st.characters(exclude_categories=['Cs']), min_size=1))
def test_text_is_read_as_open_reads_it(tmp_path, text):
    path = write(tmp_path / 'x.txt', b'x' + text.encode())
    assert corpus.read_lines(path) == open_lines(path)


@quick
@given(data=st.binary(min_size=1, max_size=300))
def test_bytes_are_text_exactly_where_python_says_so(data):
    data = b'x' + data
    try:
        expected = data.decode('utf-8')
    except UnicodeDecodeError as error:
        with pytest.raises(CorpusError, match=f'offset {error.start} '):
            corpus.lines_of(data, 'x.txt')
    else:
        lines = corpus.lines_of(data, 'x.txt')
        assert ''.join(lines) == expected.replace('\r\n', '\n').replace(
            '\r', '\n'
        )


# The real corpus


def test_real_wikitext2(tmp_path, monkeypatch, wikitext2):
    monkeypatch.setenv('D2LBERT_WIKITEXT2', wikitext2)
    lines = corpus.read_lines()
    assert len(lines) == 36_718
    assert sum(len(line.encode()) for line in lines) == 10_797_148
    assert sum(len(line.split()) for line in lines) == 2_051_910
    path = write(tmp_path / 'wiki.train.tokens', ''.join(lines).encode())
    assert open_lines(path) == lines
