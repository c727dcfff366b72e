"""A corpus as lines of text: found, fetched, verified and read.

Nothing is ever unpacked to disk. An archive is read in memory, under a
byte limit, and only a whole download with the right hash reaches the
cache, so there is nothing half-written for a killed run to leave behind.

What only some calls need is imported where it is used, so that importing
this module costs next to nothing.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from d2lbert.data.archives import (
    TRAIN_FILE,
    BoundedBytes,
    expect_one,
    read_bounded,
    unpack,
)
from d2lbert.data.files import check_regular, describe_error, write_file
from d2lbert.errors import CorpusError, InputError

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

MAX_TEXT_BYTES = 1 << 30  # WikiText-103, fifty times WikiText-2, has 0.54e9
MAX_DOWNLOAD_BYTES = 1 << 26  # the archive has 4.5e6

ATTEMPTS = 3  # for each mirror
TIMEOUTS = (10, 30)  # seconds to connect, and to wait for the next bytes
LOCK_TIMEOUT = 600  # seconds to wait for another process's download
# Some mirrors turn Python's default User-Agent away.
HEADERS = {'User-Agent': 'd2lbert', 'Accept-Encoding': 'identity'}

OTHER_WAYS = (
    f'point the environment variable D2LBERT_WIKITEXT2 at any copy of the '
    f'archive, its folder or its {TRAIN_FILE}; or name one with --corpus '
    'PATH; or take the embedded corpus with --corpus sample'
)


def read_lines(corpus: str | os.PathLike = 'wikitext-2') -> list[str]:
    """The lines of a corpus, a paragraph each, with their newlines.

    `corpus` is 'sample', the embedded corpus; 'wikitext-2', which is taken
    from the path in `D2LBERT_WIKITEXT2` if that is set, else from the
    cache, else from a mirror; or a path to an archive (.zip, .tar, .tar.gz,
    .tgz), a folder, or a UTF-8 text file, which may be gzipped. An archive
    or a folder must hold one `wiki.train.tokens`. The lines are those that
    `open(path, encoding='utf-8').readlines()` gives, on every platform and
    in every locale, less a byte order mark.

    Raises `InputError` for a name or path that leads to no readable file,
    and `CorpusError` for a corpus that is damaged, hostile, not UTF-8 or
    empty, or that could not be fetched.
    """
    if corpus == 'sample':
        from d2lbert.data import sample

        return list(sample.lines())
    if corpus != 'wikitext-2':
        return _read_path(corpus, given='')
    path = os.environ.get('D2LBERT_WIKITEXT2')
    if path:
        return _read_path(path, given='D2LBERT_WIKITEXT2=')
    return lines_of(fetch(), str(cache_folder() / ARCHIVE))


def cache_folder() -> Path:
    """Where downloads are kept: `D2LBERT_CACHE`, else the platform's cache.

    The folder need not exist yet.
    """
    folder = os.environ.get('D2LBERT_CACHE')
    if folder:
        return Path(os.path.expanduser(folder))
    import platformdirs

    return Path(platformdirs.user_cache_dir('d2lbert'))


def fetch(mirrors: Sequence[str] = MIRRORS, sha256: str = SHA256) -> bytes:
    """WikiText-2's archive: from the cache, else from the first good mirror.

    Processes that fetch at the same time make one download. Raises
    `CorpusError` when no mirror gives an archive whose SHA-256 is `sha256`,
    or when the cache folder cannot be written.
    """
    path = cache_folder() / ARCHIVE
    data = _read_cached(path, sha256)
    if data is not None:
        return data
    import filelock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f'{path}.lock', timeout=LOCK_TIMEOUT):
            data = _read_cached(path, sha256)
            if data is None:
                data = _download(mirrors, sha256, path)
                write_file(path, data)
    except filelock.Timeout as error:
        raise CorpusError(
            f'Another process has held {error.lock_file} for {LOCK_TIMEOUT} '
            'seconds, which a download of WikiText-2 should not take: stop '
            f'that process and try again; or {OTHER_WAYS}.'
        ) from error
    except (OSError, ValueError) as error:
        raise CorpusError(
            f'The cache folder {path.parent} cannot be used ({error}): set '
            'the environment variable D2LBERT_CACHE to a folder that can be '
            f'written; or {OTHER_WAYS}.'
        ) from error
    return data


def lines_of(
    data: bytes, name: str, max_bytes: int = MAX_TEXT_BYTES
) -> list[str]:
    """The lines of a corpus given as the bytes of its file.

    `name` says in errors where the bytes are from, and its suffix, or else
    how the bytes begin, whether they are an archive. Raises `CorpusError`,
    after unpacking at most `max_bytes`.
    """
    return _decode(unpack(data, name, max_bytes), name)


# Finding and reading files


def _read_path(corpus: str | os.PathLike, given: str) -> list[str]:
    """The lines of what the user points at; `given` leads it in errors."""
    name = f'{given}{corpus}'
    try:
        path = os.path.expanduser(os.fsdecode(corpus))
        if os.path.isdir(path):
            path = _train_file_in(path, name)
            name = f'{given}{path}'
        data = _read_file(path, name)
    except (OSError, TypeError, ValueError) as error:
        reason = describe_error(error)
        raise InputError(
            f'The corpus {name!r} cannot be read ({reason}); expected was '
            "'sample', 'wikitext-2', or the path of an archive (.zip, .tar, "
            f'.tar.gz), of a folder holding {TRAIN_FILE}, or of a UTF-8 text '
            'file with a paragraph a line: give one of these.'
        ) from error
    return lines_of(data, name)


def _train_file_in(folder: str, name: str) -> str:
    places = (
        os.path.join(folder, TRAIN_FILE),
        os.path.join(folder, 'wikitext-2', TRAIN_FILE),
    )
    found = [place for place in places if os.path.exists(place)]
    expect_one(len(found), f'folder {name}')
    return found[0]


def _read_file(path: str | Path, name: str) -> bytes:
    check_regular(path)
    with open(path, 'rb') as file:
        return read_bounded(file, name, MAX_TEXT_BYTES)


def _decode(data: bytes, name: str) -> list[str]:
    # A buffer at a time: one string could take four times the bytes
    stream = io.BytesIO(data.removeprefix(codecs.BOM_UTF8))
    text = io.TextIOWrapper(stream, 'utf-8')
    try:
        lines = text.readlines()
    except UnicodeDecodeError:
        raise _encoding_error(data, name) from None
    if all(map(str.isspace, lines)):
        raise CorpusError(
            f'The corpus {name} is empty: give a text with a paragraph a '
            'line.'
        )
    return lines


def _encoding_error(data: bytes, name: str) -> CorpusError:
    """What is wrong, and where in all of `data`."""
    try:
        data.decode('utf-8')
    except UnicodeDecodeError as error:
        line = data.count(b'\n', 0, error.start) + 1
        return CorpusError(
            f'The corpus {name} is not UTF-8 text: byte '
            f'{data[error.start]:#04x} at offset {error.start} (line {line}) '
            f'is wrong ({error.reason}); convert the file to UTF-8.'
        )
    raise AssertionError('decoding in one go and by buffers differ')


# Fetching


def _read_cached(path: Path, sha256: str) -> bytes | None:
    """The cached archive, or None if there is none or it went bad."""
    try:
        data = _read_file(path, str(path))
        found = _sha256(data)
        if found == sha256:
            return data
        fault = f'its SHA-256 is {found}, expected was {sha256}'
    except FileNotFoundError:
        return None
    except (OSError, CorpusError) as error:
        fault = str(error)
    import logging

    logging.getLogger(__name__).warning(
        'The cached %s went bad and is fetched again: %s.', path, fault
    )
    return None


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


class _MirrorError(Exception):
    """Why a mirror did not give the archive."""


def _download(mirrors: Sequence[str], sha256: str, path: Path) -> bytes:
    """The archive from the first mirror that gives it; `path` is advice."""
    failures = []
    for url in mirrors:
        try:
            return _download_verified(url, sha256)
        except _MirrorError as error:
            failures.append(f'{url}: {error}')
    raise CorpusError(
        'The cache has no good copy of WikiText-2 and no mirror gave one '
        f'({"; ".join(failures)}). Fetch {ARCHIVE} on a machine that can '
        f'(SHA-256 {sha256}) and put it at {path}; or {OTHER_WAYS}.'
    )


def _download_verified(url: str, sha256: str) -> bytes:
    data = _download_with_retries(url)
    found = _sha256(data)
    if found != sha256:
        raise _MirrorError(
            f'{len(data):,} bytes whose SHA-256 is {found}, expected was '
            f'{sha256}'
        )
    return data


def _download_with_retries(url: str) -> bytes:
    """The body at `url`; only what may pass by itself is tried again."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _download_once(url)
        except OSError as error:  # also the base of all errors of requests
            failure = error
        except (CorpusError, ValueError) as error:  # too long; a bad header
            raise _MirrorError(str(error)) from error
        if attempt < ATTEMPTS:
            time.sleep(0.2 * attempt)
    raise _MirrorError(f'after {ATTEMPTS} attempts, {failure}') from failure


def _download_once(url: str) -> bytes:
    import pooch  # noqa: TID251

    body = BoundedBytes(url, MAX_DOWNLOAD_BYTES)
    download = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(),
        timeout=TIMEOUTS,
        headers=HEADERS,
        allow_redirects=False,
        hooks={'response': _check_response},
    )
    download(url, body, None)
    return body.getvalue()


def _check_response(response: requests.Response, **_) -> None:
    """Stop at any answer that is not an archive, before its body is read."""
    status = f'status {response.status_code} {response.reason}'
    content_type = response.headers.get('Content-Type', '')
    if response.status_code >= 500:
        response.close()
        raise OSError(status)
    if response.is_redirect:
        response.close()
        raise _MirrorError(
            f'{status}, a redirect to {response.headers["Location"]}, which '
            'is not followed'
        )
    if response.status_code != 200 or 'html' in content_type.lower():
        response.close()
        raise _MirrorError(
            f'{status} with content of type {content_type or "unknown"}'
        )
