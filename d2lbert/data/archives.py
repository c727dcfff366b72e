"""Reading a corpus out of an archive that nobody vouches for.

An archive is read in memory, under limits, and nothing of it is written to
a disk.

What only some archives need is imported where it is used, so that importing
this module costs next to nothing.
"""

from __future__ import annotations

import io
import shutil
import stat
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import IO, TYPE_CHECKING

from d2lbert.errors import CorpusError

if TYPE_CHECKING:
    import gzip

TRAIN_FILE = 'wiki.train.tokens'
MAX_MEMBERS = 10_000

Reader = Callable[[bytes, str, int], bytes]


def unpack(data: bytes, name: str, max_bytes: int) -> bytes:
    """The text in an archive, or the bytes themselves where they are none.

    `name` says in errors where the bytes are from, and its suffix, or else
    how the bytes begin, whether they are an archive. Raises `CorpusError`,
    after unpacking at most `max_bytes`.
    """
    suffix = name.lower()
    if suffix.endswith(('.gz', '.tgz')) or data.startswith(b'\x1f\x8b'):
        data = _read_archive(_read_gzip, data, name, max_bytes)
    if suffix.endswith('.zip') or data.startswith(b'PK\3\4'):
        return _read_archive(_read_zip, data, name, max_bytes)
    if suffix.endswith(('.tar', '.tar.gz', '.tgz')) or _is_tar(data):
        return _read_archive(_read_tar, data, name, max_bytes)
    return data


def _read_archive(
    read: Reader, data: bytes, name: str, max_bytes: int
) -> bytes:
    """What `read` makes of an archive; its failures become CorpusErrors."""
    try:
        return read(data, name, max_bytes)
    except _archive_errors() as error:
        raise CorpusError(
            f'{name} is damaged, or is not the archive that its name or its '
            f'first bytes announce ({type(error).__name__}: {error}): it has '
            f'{len(data):,} bytes and begins with {data[:16]!r}; give '
            'another copy of it.'
        ) from error


class BoundedBytes(io.BytesIO):
    """Bytes in memory that refuse to grow beyond a limit."""

    def __init__(self, name: str, max_bytes: int) -> None:
        super().__init__()
        self._name = name
        self._max_bytes = max_bytes

    def write(self, chunk) -> int:
        """Write, or raise `CorpusError` beyond the limit."""
        if self.tell() + len(chunk) > self._max_bytes:
            raise CorpusError(
                f'{self._name} gives more than {self._max_bytes:,} bytes, '
                'the most that is read: give a smaller corpus, or, if it '
                'should not be that large, another copy of it.'
            )
        return super().write(chunk)


def read_bounded(
    stream: IO[bytes] | gzip.GzipFile, name: str, max_bytes: int
) -> bytes:
    """Read a whole stream; raise `CorpusError` beyond a limit."""
    buffer = BoundedBytes(name, max_bytes)
    shutil.copyfileobj(stream, buffer)
    return buffer.getvalue()


def expect_one(count: int, holder: str) -> None:
    """Raise `CorpusError` unless a holder has one text."""
    if count != 1:
        raise CorpusError(
            f'The {holder} holds {count or "no"} files named {TRAIN_FILE}, '
            'but exactly one was expected: give another one, or give the '
            'text file itself.'
        )


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


def _read_gzip(data: bytes, name: str, max_bytes: int) -> bytes:
    import gzip

    with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
        return read_bounded(stream, name, max_bytes)


def _read_zip(data: bytes, name: str, max_bytes: int) -> bytes:
    import zipfile

    # Before `zipfile` makes an object of each
    if data.count(b'PK\1\2') > MAX_MEMBERS:
        raise _too_many(name)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)
            plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            _check_member(member.filename, plain, name)
        _check_overlap(members, name)
        found = [m for m in members if _is_train_file(m.filename)]
        expect_one(len(found), f'archive {name}')
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
            text = read_bounded(stream, name, max_bytes)
    if len(text) != found[0].file_size:
        raise zipfile.BadZipFile(
            f'{TRAIN_FILE} should have {found[0].file_size:,} bytes and has '
            f'{len(text):,}'
        )
    return text


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


def _read_tar(data: bytes, name: str, max_bytes: int) -> bytes:
    import tarfile

    found = []
    with tarfile.open(fileobj=io.BytesIO(data), mode='r:') as archive:
        for index, member in enumerate(archive):
            if index == MAX_MEMBERS:
                raise _too_many(name)
            plain = member.isfile() or member.isdir()
            _check_member(member.name, plain, name)
            if member.isfile() and _is_train_file(member.name):
                found.append(member)
        expect_one(len(found), f'archive {name}')
        _check_size(found[0].size, name, max_bytes)
        stream = archive.extractfile(found[0])
        assert stream is not None  # it is a regular file
        return read_bounded(stream, name, max_bytes)


def _too_many(name: str) -> CorpusError:
    return CorpusError(
        f'The archive {name} holds more than {MAX_MEMBERS:,} members, the '
        'most that are read: give another one.'
    )


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
