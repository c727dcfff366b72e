"""A corpus as lines of text: found, fetched, verified and read.

Nothing is ever unpacked to disk. An archive is read in memory, under a
byte limit, and only a whole download with the right hash reaches the
cache, so there is nothing half-written for a killed run to leave behind.

What only some calls need is imported where it is used, so that importing
this module costs next to nothing.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING

from d2lbert.errors import CorpusError, InputError
from d2lbert.files import write_file

if TYPE_CHECKING:
    import gzip

    import requests

ARCHIVE = 'wikitext-2-v1.zip'
SHA256 = '92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c'
# The archive's first address, a bucket of Amazon's S3, is gone since 2024.
# These are its author's copy and the one that MXNet's own loader names.
MIRRORS = (
    'https://wikitext.smerity.com/' + ARCHIVE,
    'https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/'
    'gluon/dataset/wikitext-2/' + ARCHIVE,
)
TRAIN_FILE = 'wiki.train.tokens'

MAX_TEXT_BYTES = 1 << 30  # WikiText-103, fifty times WikiText-2, has 0.54e9
MAX_DOWNLOAD_BYTES = 1 << 26  # the archive has 4.5e6
MAX_TAR_MEMBERS = 10_000

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
    import pooch

    return Path(pooch.os_cache('d2lbert'))


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
    suffix = name.lower()
    if suffix.endswith(('.gz', '.tgz')) or data.startswith(b'\x1f\x8b'):
        data = _unpack(_read_gzip, data, name, max_bytes)
    if suffix.endswith('.zip') or data.startswith(b'PK\3\4'):
        data = _unpack(_read_zip, data, name, max_bytes)
    elif suffix.endswith(('.tar', '.tar.gz', '.tgz')) or _is_tar(data):
        data = _unpack(_read_tar, data, name, max_bytes)
    return _decode(data, name)


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
        reason = getattr(error, 'strerror', None) or error
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
    _expect_one(len(found), f'folder {name}')
    return found[0]


def _expect_one(count: int, holder: str) -> None:
    if count != 1:
        raise CorpusError(
            f'The {holder} holds {count or "no"} files named {TRAIN_FILE}, '
            'but exactly one was expected: give another one, or give the '
            'text file itself.'
        )


def _read_file(path: str | Path, name: str) -> bytes:
    # Opening anything else, a pipe say, could wait or go on for ever.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, 'not a regular file', str(path))
    with open(path, 'rb') as file:
        return _read_bounded(file, name, MAX_TEXT_BYTES)


class _BoundedBytes(io.BytesIO):
    """Bytes in memory that refuse to grow beyond a limit."""

    def __init__(self, name: str, max_bytes: int) -> None:
        super().__init__()
        self._name = name
        self._max_bytes = max_bytes

    def write(self, chunk) -> int:
        if self.tell() + len(chunk) > self._max_bytes:
            raise CorpusError(
                f'{self._name} gives more than {self._max_bytes:,} bytes, '
                'the most that is read: give a smaller corpus, or, if it '
                'should not be that large, another copy of it.'
            )
        return super().write(chunk)


def _read_bounded(
    stream: IO[bytes] | gzip.GzipFile, name: str, max_bytes: int
) -> bytes:
    buffer = _BoundedBytes(name, max_bytes)
    shutil.copyfileobj(stream, buffer)
    return buffer.getvalue()


def _decode(data: bytes, name: str) -> list[str]:
    try:
        text = data.decode('utf-8').removeprefix('\ufeff')
    except UnicodeDecodeError as error:
        line = data.count(b'\n', 0, error.start) + 1
        raise CorpusError(
            f'The corpus {name} is not UTF-8 text: byte '
            f'{data[error.start]:#04x} at offset {error.start} (line {line}) '
            f'is wrong ({error.reason}); convert the file to UTF-8.'
        ) from error
    if not text or text.isspace():
        raise CorpusError(
            f'The corpus {name} is empty: give a text with a paragraph a '
            'line.'
        )
    return io.StringIO(text, newline=None).readlines()


# Reading archives


def _unpack(read, data: bytes, name: str, max_bytes: int) -> bytes:
    """What `read` makes of an archive; its failures become CorpusErrors."""
    try:
        return read(io.BytesIO(data), name, max_bytes)
    except _archive_errors() as error:
        raise CorpusError(
            f'{name} is damaged, or is not the archive that its name or its '
            f'first bytes announce ({type(error).__name__}: {error}): it has '
            f'{len(data):,} bytes and begins with {data[:16]!r}; give '
            'another copy of it.'
        ) from error


def _archive_errors() -> tuple[type[Exception], ...]:
    """What the standard library raises on bytes that are no such archive.

    It differs from one Python to the next.
    """
    import struct
    import tarfile
    import zipfile
    import zlib

    return (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        struct.error,
        EOFError,
        OSError,
        OverflowError,
        RuntimeError,  # an encrypted member, an unknown compression method
        ValueError,
    )


def _read_gzip(file: IO[bytes], name: str, max_bytes: int) -> bytes:
    import gzip

    with gzip.GzipFile(fileobj=file) as stream:
        return _read_bounded(stream, name, max_bytes)


def _read_zip(file: IO[bytes], name: str, max_bytes: int) -> bytes:
    import zipfile

    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)
            plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            _check_member(member.filename, plain, name)
        _check_overlap(members, name)
        found = [m for m in members if _is_train_file(m.filename)]
        _expect_one(len(found), f'archive {name}')
        # The other methods cannot be undone a bounded piece at a time.
        if found[0].compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise CorpusError(
                f'The archive {name} is compressed by method '
                f'{found[0].compress_type}, but stored or deflated members '
                'were expected: pack it again in the usual way.'
            )
        _check_size(found[0].file_size, name, max_bytes)
        with archive.open(found[0]) as stream:
            data = _read_bounded(stream, name, max_bytes)
    if len(data) != found[0].file_size:
        raise zipfile.BadZipFile(
            f'{TRAIN_FILE} should have {found[0].file_size:,} bytes and has '
            f'{len(data):,}'
        )
    return data


def _check_overlap(members: Iterable, name: str) -> None:
    """No two members may share bytes, as they do in a zip bomb."""
    ordered = sorted(members, key=lambda member: member.header_offset)
    for first, second in pairwise(ordered):
        if first.header_offset + first.compress_size > second.header_offset:
            raise CorpusError(
                f'The archive {name} is refused: its members '
                f'{first.filename!r} and {second.filename!r} overlap, as in '
                'a zip bomb; give another copy of it.'
            )


def _is_tar(data: bytes) -> bool:
    return data[257:262] == b'ustar'


def _read_tar(file: IO[bytes], name: str, max_bytes: int) -> bytes:
    import tarfile

    found = []
    with tarfile.open(fileobj=file, mode='r:') as archive:
        for index, member in enumerate(archive):
            if index == MAX_TAR_MEMBERS:
                raise CorpusError(
                    f'The archive {name} holds more than {MAX_TAR_MEMBERS:,} '
                    'members, the most that are read: give another one.'
                )
            plain = member.isfile() or member.isdir()
            _check_member(member.name, plain, name)
            if member.isfile() and _is_train_file(member.name):
                found.append(member)
        _expect_one(len(found), f'archive {name}')
        _check_size(found[0].size, name, max_bytes)
        stream = archive.extractfile(found[0])
        assert stream is not None  # it is a regular file
        return _read_bounded(stream, name, max_bytes)


def _is_train_file(member_name: str) -> bool:
    return member_name.rpartition('/')[2] == TRAIN_FILE


def _check_member(member_name: str, plain: bool, name: str) -> None:
    """Refuse a whole archive for one member that is up to no good."""
    parts = member_name.replace('\\', '/').split('/')
    absolute = parts[0] == '' or parts[0].endswith(':')
    if absolute or '..' in parts or not plain:
        raise CorpusError(
            f'The archive {name} is refused for its member '
            f'{member_name!r}: only regular files and folders with relative '
            "paths, without '..', were expected; give another copy of it."
        )


def _check_size(size: int, name: str, max_bytes: int) -> None:
    if size > max_bytes:
        raise CorpusError(
            f'The {TRAIN_FILE} of {name} has {size:,} bytes, but at most '
            f'{max_bytes:,} are read: give a smaller corpus.'
        )


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
    import pooch

    body = _BoundedBytes(url, MAX_DOWNLOAD_BYTES)
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
