"""Find, fetch, verify and read a corpus.

A download is kept in memory until its SHA-256 has been verified, and is then
written to the cache as a whole. `d2lbert.data.text` reads a corpus as a
stream, also out of an archive.

Modules that only a download needs are imported there, because they take
long.
"""

from __future__ import annotations

import glob
import logging
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from d2lbert.data.archives import (
    CHUNK,
    SPLIT_FILES,
    TRAIN_FILE,
    join_chunks,
    no_split,
    only_one,
)
from d2lbert.data.files import (
    check_regular,
    describe_error,
    remove_unfinished,
    sha256,
    write_file,
)
from d2lbert.data.text import Corpus, Source
from d2lbert.errors import CorpusError, InputError, expand_home

if TYPE_CHECKING:
    import requests  # noqa: TID251

ARCHIVE = 'wikitext-2-v1.zip'
SHA256 = '92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c'
# The archive's first address, a bucket of Amazon's S3, is gone since 2024.
# These are its author's copy and the one that MXNet's own loader names.
MIRRORS = (
    'https://wikitext.smerity.com/' + ARCHIVE,
    'https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/'
    'gluon/dataset/wikitext-2/' + ARCHIVE,
)

#: What `read_lines` takes into memory; `open_corpus` has no limit.
MAX_TEXT_BYTES = 1 << 30
MAX_DOWNLOAD_BYTES = 1 << 26  # the archive has 4.5e6

ATTEMPTS = 3  # for each mirror
TIMEOUTS = (10, 30)  # seconds to connect, and to wait for the next bytes
PATIENCE = 20  # seconds that a slow mirror has to become faster
LEAST_SPEED = 5_000  # bytes a second of a whole download
LOCK_TIMEOUT = 600  # seconds to wait for another process's download
# Some mirrors refuse Python's default User-Agent.
HEADERS = {'User-Agent': 'd2lbert', 'Accept-Encoding': 'identity'}

OTHER_WAYS = (
    'name another copy of the archive, its folder or its '
    f'{TRAIN_FILE} with --corpus PATH or in the environment variable '
    'D2LBERT_WIKITEXT2; or take --corpus sample'
)


Paths = str | os.PathLike | Sequence[str | os.PathLike]


def open_corpus(corpus: Paths = 'wikitext-2', split: str = 'train') -> Corpus:
    """Return a corpus, whose lines can be read as a stream.

    `corpus` is one of these, or a list of several, whose texts follow each
    other:

    * 'sample', the embedded corpus;
    * 'wikitext-2', which is read from the path in `D2LBERT_WIKITEXT2` if
      that is set, else from the cache, else from a mirror;
    * the path of an archive (.zip, .tar, .tar.gz, .tgz) or a folder with
      one `wiki.train.tokens`, or of a UTF-8 text file, which may be gzipped;
    * a pattern of such paths with `*`, `?`, `[…]` or `**`, which stands for
      all that match it, sorted.

    `split`: the part of WikiText-2, `'train'`, `'valid'` or `'test'`, whose
    file is in the same archive or folder, or beside a `wiki.train.tokens`.
    The sample has a `'valid'` part.

    Raises `InputError` for a name or path of no readable file, and
    `CorpusError` for a corpus that could not be fetched. Reading the lines
    raises `CorpusError` for one that is damaged, not UTF-8 or empty, or that
    has no such part.
    """
    return Corpus(sources_of(corpus, split=split))


def read_lines(corpus: Paths = 'wikitext-2') -> list[str]:
    """Return the lines of a corpus, a paragraph each, with their newlines.

    `corpus`: see `open_corpus`. The lines are those of
    `open(path, encoding='utf-8').readlines()`, on every platform and in
    every locale, without a byte order mark.

    Raises the errors of `open_corpus`, and `InputError` for a file that is
    too large for the memory.
    """
    if corpus == 'sample':
        from d2lbert.data import sample

        return sample.lines()
    found = Corpus(sources_of(corpus, MAX_TEXT_BYTES))
    return list(found.lines(MAX_TEXT_BYTES))


def cache_folder() -> Path:
    """Return the folder of the cache, which need not exist yet.

    It is `D2LBERT_CACHE`, or else the platform's folder for caches.
    """
    folder = os.environ.get('D2LBERT_CACHE')
    if folder:
        return Path(expand_home(folder, 'D2LBERT_CACHE='))
    import platformdirs

    try:
        # Where a user has no home, it begins with ~ or is an error
        return Path(expand_home(platformdirs.user_cache_dir('d2lbert')))
    except (InputError, RuntimeError) as error:
        raise InputError(
            'the cache has no place, because the home folder of this user '
            'is not known: name a folder in the environment variable '
            'D2LBERT_CACHE'
        ) from error


def fetch(mirrors: Sequence[str] = MIRRORS, expected: str = SHA256) -> bytes:
    """Return WikiText-2's archive, from the cache or else from a mirror.

    Processes that fetch at the same time make one download. Raises
    `CorpusError` if no mirror gives an archive with the `expected` SHA-256,
    or if the cache folder cannot be written.
    """
    path = cache_folder() / ARCHIVE
    if data := _read_cached(path, expected):
        return data
    import filelock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f'{path}.lock', timeout=LOCK_TIMEOUT):
            if data := _read_cached(path, expected):
                return data
            data = _download(mirrors, expected, path)
            write_file(path, data)
            remove_unfinished(path.parent)
            return data
    except (OSError, ValueError) as error:  # also `filelock.Timeout`
        raise CorpusError(
            f'The cache folder {path.parent} cannot be used ({error}): set '
            'the environment variable D2LBERT_CACHE to a folder that can be '
            f'written and that no other process has locked; or {OTHER_WAYS}.'
        ) from error


def lines_of(
    data: bytes, name: str, max_bytes: int = MAX_TEXT_BYTES
) -> list[str]:
    """Return the lines of a corpus, given the bytes of its file.

    `name`: where the bytes are from, see `archives.open_text`. Raises
    `CorpusError` for a corpus that is damaged, not UTF-8 or empty, or that
    unpacks to more than `max_bytes`.
    """
    return list(Corpus([Source.of_bytes(name, data)]).lines(max_bytes))


# ---- files -----------------------------------------------------------


def sources_of(
    corpus: Paths, most: int | None = None, split: str = 'train'
) -> list[Source]:
    """Return the files of a corpus. See `open_corpus`.

    `most`: the largest size of a file that is accepted, in bytes.
    """
    if isinstance(corpus, (list, tuple)):
        if not corpus:
            raise InputError('corpus = []: expected one path or more')
        return [
            source
            for one in corpus
            for source in sources_of(one, most, split)
        ]
    if corpus == 'sample':
        text = ''.join(f'{line}\n' for line in sample_lines(split))
        return [Source.of_bytes('sample', text.encode())]
    if corpus != 'wikitext-2':
        return [
            source_of(path, most=most, split=split)
            for path in matches(corpus)  # type: ignore[arg-type]
        ]
    path = os.environ.get('D2LBERT_WIKITEXT2')
    if path:
        return [source_of(path, 'D2LBERT_WIKITEXT2=', most, split)]
    name, member = str(cache_folder() / ARCHIVE), SPLIT_FILES[split]
    return [Source.of_bytes(name, fetch(), member)]


def sample_lines(split: str) -> list[str]:
    """Return the lines of a part of the embedded corpus.

    Raises `CorpusError` for a part that it does not have.
    """
    from d2lbert.data import sample

    parts = {'train': sample.lines, 'valid': sample.held_out_lines}
    if split not in parts:
        raise no_split('sample')
    return parts[split]()


def matches(corpus: str | os.PathLike) -> list[str | os.PathLike]:
    """Return the paths that a pattern stands for, or the path itself."""
    if not isinstance(corpus, (str, os.PathLike)):
        return [corpus]
    pattern = os.fsdecode(corpus)
    if not glob.has_magic(pattern) or os.path.lexists(pattern):
        return [corpus]
    found = sorted(glob.glob(expand_home(pattern), recursive=True))
    if not found:
        raise InputError(
            f'The corpus {pattern!r} is a pattern that no path matches: give '
            'another one, or the path of a file'
        )
    return [*found]


def source_of(
    corpus: str | os.PathLike,
    option: str = '',
    most: int | None = None,
    split: str = 'train',
) -> Source:
    """Return a file, or the one in a folder.

    `option`: what precedes the path in errors; `split`: see `open_corpus`.
    """
    name, member = f'{option}{corpus}', SPLIT_FILES[split]
    try:
        path = expand_home(os.fsdecode(corpus), option)
        if os.path.isdir(path):
            places = (
                f'{path}/{member}',
                f'{path}/wikitext-2/{member}',
            )
            found = list(filter(os.path.exists, places))
            path = only_one(found, f'folder {name}', member)
            name = f'{option}{path}'
        elif os.path.basename(path) == TRAIN_FILE:
            path = path.removesuffix(TRAIN_FILE) + member
            name = f'{option}{path}'
        check_regular(path, most)
        open(path, 'rb').close()
        return Source(
            name,
            os.path.getsize(path),
            lambda: open(path, 'rb'),
            partial(state_of, path),
            member,
        )
    except InputError:
        raise
    except (OSError, TypeError, ValueError) as error:
        raise InputError(
            f'The corpus {name!r} cannot be read ({describe_error(error)}); '
            "expected was 'sample', 'wikitext-2', or the path of an archive "
            f'(.zip, .tar, .tar.gz), of a folder holding {TRAIN_FILE}, or of '
            'a UTF-8 text file with a paragraph a line: give one of these.'
        ) from error


def state_of(path: str) -> tuple[int, ...]:
    """Return what changes where a file is written, replaced or removed."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


# ---- downloads -------------------------------------------------------


def _read_cached(path: Path, expected: str) -> bytes | None:
    """Return the cached archive, or None where there is no good one."""
    try:
        check_regular(path, MAX_DOWNLOAD_BYTES)
        data = path.read_bytes()
        _check_sha256(data, expected)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, CorpusError) as error:
        logging.getLogger(__name__).warning(
            'The cached %s went bad and is fetched again: %s.', path, error
        )
        return None
    return data


def _check_sha256(data: bytes, expected: str) -> None:
    found = sha256(data)
    if found != expected:
        raise CorpusError(
            f'{len(data):,} bytes that begin with {data[:16]!r} and whose '
            f'SHA-256 is {found}, expected was {expected}'
        )


def _download(mirrors: Sequence[str], expected: str, path: Path) -> bytes:
    """Return the archive from the first mirror that gives it.

    `path`: where the error tells the user to put the archive.
    """
    failures = []
    for url in mirrors:
        try:
            data = get(url, MAX_DOWNLOAD_BYTES)
            _check_sha256(data, expected)
            return data
        except CorpusError as error:
            failures.append(f'{url}: {error}')
    raise CorpusError(
        'The cache has no good copy of WikiText-2 and no mirror gave one '
        f'({"; ".join(failures)}). Fetch {ARCHIVE} on a machine that can '
        f'(SHA-256 {expected}) and put it at {path}; or {OTHER_WAYS}.'
    )


def get(url: str, max_bytes: int) -> bytes:
    """Return the body at `url`; try again after errors of the network.

    Raises `CorpusError` for a redirect, any status but 200, a body that is
    larger than `max_bytes` or that comes too slowly, and where all attempts
    have failed.
    """
    import requests  # noqa: TID251
    from urllib3.exceptions import HTTPError  # noqa: TID251

    for attempt in range(ATTEMPTS):
        time.sleep(0.2 * attempt)
        try:
            with requests.get(
                url,
                headers=HEADERS,
                timeout=TIMEOUTS,
                allow_redirects=False,
                stream=True,
                hooks={'response': _check_status},
            ) as response:
                return join_chunks(_chunks(response), url, max_bytes)
        except (
            OSError,
            HTTPError,
        ) as error:  # those of requests are `OSError`
            failure = error
    raise CorpusError(f'after {ATTEMPTS} attempts, {failure}') from failure


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """Yield the bytes of a body as they come.

    Raises `CorpusError` where they come more slowly than `LEAST_SPEED`.
    """
    size, start = 0, time.monotonic()
    # `iter_content` would wait for all bytes of a chunk
    while chunk := response.raw.read1(CHUNK, decode_content=True):
        size += len(chunk)
        seconds = time.monotonic() - start
        if seconds > PATIENCE and size < LEAST_SPEED * seconds:
            raise CorpusError(
                f'too slow: {size:,} bytes in {seconds:.0f} seconds'
            )
        yield chunk


def _check_status(response: requests.Response, **_) -> None:
    """Raise for every status but 200, before the body is read.

    Raises `OSError` for an error of the server, which may be gone in the
    next attempt, and `CorpusError` for any other status.
    """
    if response.status_code == 200:
        return
    response.close()
    status = f'status {response.status_code} {response.reason}'
    if response.is_redirect:
        status += f', a redirect to {response.headers["Location"]}'
    raise (OSError if response.status_code >= 500 else CorpusError)(status)
