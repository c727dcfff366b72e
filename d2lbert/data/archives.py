"""Read a corpus out of an archive of unknown origin.

One regular member is read as a stream, into memory, up to a limit of bytes.
Nothing is unpacked to a disk, so no path or link in an archive has an effect.
"""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from posixpath import basename
from typing import IO, TypeVar

from d2lbert.errors import CorpusError

Found = TypeVar('Found')

TRAIN_FILE = 'wiki.train.tokens'
#: An archive with more members is refused before they fill the memory.
MAX_MEMBERS = 10_000
#: With any other method a few bytes can give gigabytes in one piece.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
CHUNK = 1 << 16


def unpack(data: bytes, name: str, max_bytes: int) -> bytes:
    """Return the text in an archive, or `data` where it is no archive.

    `name`: where the bytes are from, for errors. Its suffix or the first
    bytes tell the type of the archive. Raises `CorpusError` for an archive
    that is damaged, that does not have exactly one `wiki.train.tokens`, or
    whose text has more than `max_bytes`.
    """
    suffix = name.lower()
    try:
        if suffix.endswith(('.gz', '.tgz')) or data.startswith(b'\x1f\x8b'):
            unzipped = gzip.GzipFile(fileobj=io.BytesIO(data))
            data = read_stream(unzipped, name, max_bytes)
        if suffix.endswith('.zip') or data.startswith(b'PK\3\4'):
            return read_stream(open_zip(data, name), name, max_bytes)
        tar = suffix.endswith(('.tar', '.tar.gz', '.tgz'))
        if tar or data[257:262] == b'ustar':
            return read_stream(open_tar(data, name), name, max_bytes)
    except CorpusError:
        raise
    except Exception as error:  # the types differ from Python to Python
        raise CorpusError(
            f'The archive {name} cannot be read ({type(error).__name__}: '
            f'{error}): it has {len(data):,} bytes and begins with '
            f'{data[:16]!r}; expected was a zip, tar or gzip file, as its '
            'name or its first bytes say: give another copy of it.'
        ) from error
    return data


def open_zip(data: bytes, name: str) -> IO[bytes]:
    """Return the text in a zip as a stream."""
    check_count(data.count(b'PK\1\2'))
    archive = zipfile.ZipFile(io.BytesIO(data))
    found = [
        member
        for member in archive.infolist()
        if basename(member.filename) == TRAIN_FILE
        and stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG)
        and member.compress_type in METHODS
    ]
    return archive.open(only_one(found, f'archive {name}'))


def open_tar(data: bytes, name: str) -> IO[bytes]:
    """Return the text in a tar as a stream."""
    archive = tarfile.TarFile(fileobj=io.BytesIO(data))
    members = list(islice(archive, MAX_MEMBERS + 1))
    check_count(len(members))
    found = [
        member
        for member in members
        if basename(member.name) == TRAIN_FILE and member.isfile()
    ]
    stream = archive.extractfile(only_one(found, f'archive {name}'))
    assert stream is not None  # it is a regular file
    return stream


def read_stream(
    stream: IO[bytes] | gzip.GzipFile, name: str, max_bytes: int
) -> bytes:
    """Return all bytes of a stream; raise `CorpusError` beyond a limit."""
    return join_chunks(
        iter(partial(stream.read, CHUNK), b''), name, max_bytes
    )


def join_chunks(chunks: Iterable[bytes], name: str, max_bytes: int) -> bytes:
    """Return all bytes of some chunks; raise `CorpusError` beyond a limit."""
    joined = io.BytesIO()
    for chunk in chunks:
        if joined.tell() + len(chunk) > max_bytes:
            raise CorpusError(
                f'{name} gives more than {max_bytes:,} bytes, the most that '
                'is read: give a smaller corpus, or, if it should not be '
                'that large, another copy of it.'
            )
        joined.write(chunk)
    return joined.getvalue()


def only_one(found: Sequence[Found], holder: str) -> Found:
    """Return the only text found; raise `CorpusError` for none or more."""
    if len(found) != 1:
        raise CorpusError(
            f'The {holder} holds {len(found) or "no"} files named '
            f'{TRAIN_FILE}, but exactly one was expected, a regular file '
            'and in a zip stored or deflated: give another one, or give the '
            'text file itself.'
        )
    return found[0]


def check_count(num_members: int) -> None:
    """Raise `ValueError` for an archive with too many members."""
    if num_members > MAX_MEMBERS:
        raise ValueError(f'more than {MAX_MEMBERS:,} members')
