"""A corpus as a stream of lines: it is never in memory as a whole."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

from d2lbert.data.archives import SUFFIXES, TRAIN_FILE, open_text
from d2lbert.data.files import chunks, describe_error, sha256, sha256_of
from d2lbert.errors import CorpusError

#: An archive may give so many bytes, and more where it is large itself.
MAX_UNPACKED = 1 << 30
#: No text gets this much smaller by compression.
MAX_RATIO = 100
#: A line is in memory as a whole, and so are its words.
MAX_LINE = 1 << 26


@dataclass(frozen=True)
class Source:
    """A file of a corpus.

    `name`: where it is, for errors; its suffix may tell an archive; `size`:
    in bytes; `open`: returns it from its start; `state`: returns something
    else after a change; `member`: which text of an archive it is.
    """

    name: str
    size: int
    open: Callable[[], IO[bytes]]
    state: Callable[[], Any] = lambda: None
    member: str = TRAIN_FILE

    @classmethod
    def of_bytes(
        cls, name: str, data: bytes, member: str = TRAIN_FILE
    ) -> Source:
        """Return a source that is in memory."""
        opened = partial(io.BytesIO, data)
        return cls(name, len(data), opened, member=member)

    def lines(
        self,
        max_bytes: int | None = None,
        tell: Callable[[int], None] = lambda place: None,
    ) -> Iterator[str]:
        """Yield the lines, as `open(path, encoding='utf-8')` does.

        A byte order mark is left out. `max_bytes`: the most that is
        unpacked from an archive; `tell`: is called with the place in the
        file, after each line. Raises `CorpusError` where the file is
        damaged, not UTF-8, or can no longer be read.
        """
        if max_bytes is None:
            max_bytes = max(MAX_UNPACKED, MAX_RATIO * self.size)
        with read_errors(self.name), self.open() as file:
            stream = open_text(file, self.name, max_bytes, self.member)
            with closing(io.TextIOWrapper(stream, 'utf-8-sig')) as text:
                try:
                    while line := text.readline(MAX_LINE):
                        check_line(line, self.name)
                        yield line
                        tell(self.size if file.closed else file.tell())
                except UnicodeDecodeError:
                    stream = open_text(
                        self.open(), self.name, max_bytes, self.member
                    )
                    with closing(stream):
                        check_utf8(stream, self.name)
                    raise

    def sha256(self) -> str:
        """Return the SHA-256 of the file."""
        with read_errors(self.name), self.open() as file:
            return sha256_of(chunks(file))

    def suffix(self) -> str:
        """Return the suffix of an archive, or nothing."""
        name = self.name.lower()
        return next(filter(name.endswith, SUFFIXES), '')


class Corpus:
    """The lines of some files, one after the other, as often as needed."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.size = sum(source.size for source in sources)
        self.name = sources[0].name
        if len(sources) > 1:
            self.name += f' and {len(sources) - 1} more'

    def lines(
        self,
        max_bytes: int | None = None,
        tell: Callable[[int], None] = lambda place: None,
    ) -> Iterator[str]:
        """Yield the lines of all files: see `Source.lines`.

        Raises `CorpusError`, too, where none of them has any text.
        """
        before, is_empty = 0, True

        def tell_all(place: int) -> None:
            tell(before + place)

        for source in self.sources:
            for line in source.lines(max_bytes, tell_all):
                is_empty = is_empty and line.isspace()
                yield line
            before += source.size
        if is_empty:
            raise CorpusError(
                f'The corpus {self.name} is empty: give a text with a '
                'paragraph a line.'
            )

    def state(self) -> list[Any]:
        """Return something that is different after a change of a file."""
        return [source.state() for source in self.sources]

    def sha256(self) -> str:
        """Return the SHA-256 of all that decides the lines."""
        about = [
            (source.suffix(), source.member, source.sha256())
            for source in self.sources
        ]
        return sha256(repr(about).encode())


@contextmanager
def read_errors(name: str) -> Iterator[None]:
    """Turn an `OSError` of reading a corpus into a `CorpusError`."""
    try:
        yield
    except OSError as error:
        raise CorpusError(
            f'The corpus {name} can no longer be read '
            f'({describe_error(error)}): start again when it can.'
        ) from error


def check_line(line: str, name: str) -> None:
    """Raise `CorpusError` for a line that is too long."""
    if len(line) == MAX_LINE and line[-1] != '\n':
        raise CorpusError(
            f'The corpus {name} has a line of more than {MAX_LINE:,} '
            'characters: give a text with a paragraph a line.'
        )


def check_utf8(stream: IO[bytes], name: str) -> None:
    """Raise `CorpusError` with the place of the first invalid byte."""
    offset = 0
    for number, line in enumerate(stream, 1):
        try:
            line.decode('utf-8')
        except UnicodeDecodeError as error:
            raise CorpusError(
                f'The corpus {name} is not UTF-8 text: byte '
                f'{line[error.start]:#04x} at offset {offset + error.start} '
                f'(line {number}) is wrong ({error.reason}); convert the '
                'file to UTF-8.'
            ) from error
        offset += len(line)
