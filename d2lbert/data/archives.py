"""Read a corpus out of an archive of unknown origin.

One regular member is read as a stream, up to a limit of bytes. Nothing is
unpacked to a disk, so no path or link in an archive has an effect.
"""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from posixpath import basename
from typing import IO, Any, TypeVar

from d2lbert.errors import CorpusError

Found = TypeVar('Found')

#: The files of WikiText-2 by the names of its parts.
SPLIT_FILES = {
    split: f'wiki.{split}.tokens' for split in ('train', 'valid', 'test')
}
TRAIN_FILE = SPLIT_FILES['train']
#: The ends of archives' names.
SUFFIXES = ('.zip', '.tar.gz', '.tgz', '.tar', '.gz')
#: An archive with more members is refused before they fill the memory.
MAX_MEMBERS = 10_000
#: With any other method a few bytes can give gigabytes in one piece.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
CHUNK = 1 << 16


class Bounded(io.RawIOBase):
    """A stream out of an archive, up to a limit of bytes.

    Every error of reading it is a `CorpusError`.
    """

    def __init__(self, stream: IO[bytes], name: str, max_bytes: int) -> None:
        self.stream = stream
        self.name = name
        self.max_bytes = max_bytes

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes."""
        with archive_errors(self.name):
            data = self.stream.read(len(buffer))
            self._check(self.stream.tell())
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place that is counted from the stream's start."""
        assert whence == io.SEEK_SET
        self._check(offset)
        with archive_errors(self.name):
            return self.stream.seek(offset)

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self.stream.tell()

    def _check(self, place: int) -> None:
        if place > self.max_bytes:
            raise too_large(self.name, self.max_bytes)


def open_text(
    file: IO[bytes], name: str, max_bytes: int, member: str = TRAIN_FILE
) -> IO[bytes]:
    """Return the text in an archive as a stream, or `file` that is none.

    `file`: can be sought in; `name`: where it is from, for errors. Its
    suffix or the first bytes tell the type of the archive. `member`: the
    name of the text in an archive. Raises `CorpusError`, here or where the
    stream is read, for an archive that is damaged, that does not have
    exactly one `member`, or whose text has more than `max_bytes`; and for a
    text file that has no part of this name.
    """

    def bounded(stream: Any) -> Any:
        buffered = Bounded(stream, name, max_bytes)
        return io.BufferedReader(buffered, CHUNK)

    suffix = name.lower()
    with archive_errors(name):
        if suffix.endswith(('.gz', '.tgz')) or starts(file, b'\x1f\x8b'):
            file = bounded(gzip.GzipFile(fileobj=file))
        if suffix.endswith('.zip') or starts(file, b'PK\3\4'):
            return bounded(open_zip(file, name, member))
        is_tar = suffix.endswith(('.tar', '.tar.gz', '.tgz'))
        if is_tar or starts(file, b'ustar', 257):
            return bounded(open_tar(file, name, member))
    if member != TRAIN_FILE and not name.endswith(member):
        raise no_split(name)
    return file


def starts(file: IO[bytes], magic: bytes, offset: int = 0) -> bool:
    """Return whether a file has these bytes near its start."""
    found = file.read(offset + len(magic))[offset:]
    file.seek(0)
    return found == magic


@contextmanager
def archive_errors(name: str) -> Iterator[None]:
    """Turn any error of reading an archive into a `CorpusError`."""
    try:
        yield
    except CorpusError:
        raise
    except Exception as error:  # the types differ from Python to Python
        raise CorpusError(
            f'The archive {name} cannot be read ({type(error).__name__}: '
            f'{error}): expected was a zip, tar or gzip file, as its name or '
            'its first bytes say: give another copy of it.'
        ) from error


def open_zip(file: IO[bytes], name: str, text: str) -> IO[bytes]:
    """Return a text in a zip, of this name, as a stream."""
    check_count(count_members(file))
    archive = zipfile.ZipFile(file)
    found = [
        member
        for member in archive.infolist()
        if basename(member.filename) == text
        and stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG)
        and member.compress_type in METHODS
    ]
    return archive.open(only_one(found, f'archive {name}', text))


def open_member(
    file: IO[bytes], name: str, wanted: str, max_bytes: int
) -> IO[bytes]:
    """Return a member of a zip as a stream of at most `max_bytes`.

    `name`: where the zip is from, for errors. Raises `CorpusError`, here or
    where the stream is read, for a zip that is damaged or does not have
    exactly one file with the name `wanted`.
    """
    with archive_errors(name):
        stream = open_zip(file, name, wanted)
    return io.BufferedReader(Bounded(stream, name, max_bytes), CHUNK)


def read_member(data: bytes, name: str, wanted: str, max_bytes: int) -> bytes:
    """Return the bytes of a member of a zip. See `open_member`."""
    with open_member(io.BytesIO(data), name, wanted, max_bytes) as stream:
        return stream.read()


def count_members(file: IO[bytes]) -> int:
    """Return how many members a zip lists, or more.

    `ZipFile` would read the list as a whole.
    """
    number, mark, before = 0, b'PK\1\2', b''
    while chunk := file.read(CHUNK):
        number += (before + chunk).count(mark)
        before = chunk[1 - len(mark) :]
    return number


def open_tar(file: IO[bytes], name: str, text: str) -> IO[bytes]:
    """Return a text in a tar, of this name, as a stream."""
    archive = tarfile.TarFile(fileobj=file)
    members = list(islice(archive, MAX_MEMBERS + 1))
    check_count(len(members))
    found = [
        member
        for member in members
        if basename(member.name) == text and member.isfile()
    ]
    stream = archive.extractfile(only_one(found, f'archive {name}', text))
    assert stream is not None  # it is a regular file
    return stream


def join_chunks(chunks: Iterable[bytes], name: str, max_bytes: int) -> bytes:
    """Return all bytes of some chunks; raise `CorpusError` beyond a limit."""
    joined = io.BytesIO()
    for chunk in chunks:
        if joined.tell() + len(chunk) > max_bytes:
            raise too_large(name, max_bytes)
        joined.write(chunk)
    return joined.getvalue()


def too_large(name: str, max_bytes: int) -> CorpusError:
    """Return the error about a source that gives too many bytes."""
    return CorpusError(
        f'{name} gives more than {max_bytes:,} bytes, the most that is read: '
        'give a smaller corpus, or, if it should not be that large, another '
        'copy of it.'
    )


def no_split(name: str) -> CorpusError:
    """Return the error about a corpus without a part to evaluate on."""
    return CorpusError(
        f'The corpus {name} has no such part to evaluate on: expected was '
        f'an archive or a folder with {SPLIT_FILES["valid"]} and '
        f'{SPLIT_FILES["test"]}, or the sample, which has a part valid. Give '
        'the path of a text as the split.'
    )


def only_one(found: Sequence[Found], holder: str, text: str) -> Found:
    """Return the only text found; raise `CorpusError` for none or more."""
    if len(found) != 1:
        raise CorpusError(
            f'The {holder} holds {len(found) or "no"} files named '
            f'{text}, but exactly one was expected, a regular file '
            'and in a zip stored or deflated: give another one, or give the '
            'text file itself.'
        )
    return found[0]


def check_count(num_members: int) -> None:
    """Raise `ValueError` for an archive with too many members."""
    if num_members > MAX_MEMBERS:
        raise ValueError(f'more than {MAX_MEMBERS:,} members')
