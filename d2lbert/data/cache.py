"""Keep pretraining examples in the cache and read them from there.

The same text, length, seed and tokens make the same examples. Each set of
examples is a file in the cache's folder `examples`: see
`d2lbert.data.stored`. Its name and its manifest have the checksum of all
that decides the examples.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np

from d2lbert import __version__
from d2lbert.data.corpus import cache_folder
from d2lbert.data.examples import (
    Batch,
    Examples,
    check_max_len,
    draw_pairs,
    example_blocks,
    load_text,
    stream_paragraphs,
)
from d2lbert.data.files import (
    DAMAGE,
    NO_ROOM,
    describe_error,
    read_header,
    remove_unfinished,
    sha256,
)
from d2lbert.data.stored import (
    layout_of,
    num_bytes,
    read_examples,
    write_examples,
)
from d2lbert.data.text import Corpus
from d2lbert.data.vocab import Vocab
from d2lbert.data.wordpiece import Tokens, tokens_of
from d2lbert.errors import CorpusError, RunError

#: To be raised when other examples are made of a text, or kept otherwise.
FORMAT = 3
#: How many files are kept, the newest: of WikiText-2 each has 11 MB.
NUM_KEPT = 8
#: Fewer are kept where they have more bytes together.
MAX_KEPT_BYTES = 1 << 34
#: The names of the files, and of locks while a large one is made.
FILE_NAMES = '[0-9a-f]' * 64 + '.safetensors'
LOCK_NAMES = f'.{"[0-9a-f]" * 64}.lock'
#: A smaller corpus, in bytes, is taken into memory where the cache cannot
#: be written.
LARGE = 1 << 26
#: How many paragraphs tell the disk space that all take.
NUM_PROBED = 4096


class Progress(Protocol):
    """What long work tells its user."""

    def say(self, message: str) -> None:
        """Show a line."""

    def bar(
        self, label: str, total: int, unit: str
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Show how much is done, and a remaining time.

        Gives a function to call with how much of `total` is done.
        """


class Silence:
    """The progress that nobody sees."""

    def say(self, message: str) -> None:
        """Show nothing."""

    @contextmanager
    def bar(
        self, label: str, total: int, unit: str
    ) -> Iterator[Callable[[int], None]]:
        """Show nothing."""
        yield lambda done: None


def load_cached_examples(
    corpus: Corpus,
    max_len: int,
    seed: int,
    tokens: Tokens | None = None,
    progress: Progress | None = None,
) -> tuple[Examples, Vocab]:
    """Return the examples of `load_examples`, with `random.Random(seed)`.

    They are read from the cache, or made and written to it. Where the cache
    cannot be read or written, the examples of a corpus of less than `LARGE`
    bytes are made in memory. `tokens`: by default the chapter's words.

    Raises the errors of `load_examples` and of reading the corpus, and
    `CorpusError` for a large corpus whose examples the disk cannot take.
    """
    check_max_len(max_len)
    tokens, progress = tokens or tokens_of(), progress or Silence()
    state = corpus.state()
    key = sha256(
        repr(
            (
                *(FORMAT, __version__, sys.version_info[:2], max_len, seed),
                *(tokens.about, corpus.sha256()),
            )
        ).encode()
    )
    path = cache_folder() / 'examples' / f'{key}.safetensors'
    with suppress(*DAMAGE, RunError):  # a `RunError` for another format
        return read_examples(path)
    build = Build(corpus, max_len, seed, tokens, progress, path)
    if corpus.size < LARGE:
        found = build.small()
    else:
        with build.alone():
            with suppress(*DAMAGE, RunError):  # another process was faster
                return read_examples(path)
            found = build.large()
    if corpus.state() != state:
        path.unlink(missing_ok=True)
        raise CorpusError(
            f'The corpus {corpus.name} has changed while it was read: start '
            'again when nothing writes to it.'
        )
    return found


class Build:
    """Examples that are being made for the file `path`."""

    def __init__(
        self,
        corpus: Corpus,
        max_len: int,
        seed: int,
        tokens: Tokens,
        progress: Progress,
        path: Path,
    ) -> None:
        self.corpus = corpus
        self.max_len = max_len
        self.rng = random.Random(seed)
        self.tokens = tokens
        self.progress = progress
        self.path = path

    def small(self) -> tuple[Examples, Vocab]:
        """Make the examples of a corpus that fits into memory."""
        pairs, vocab, blocks = self.prepare()
        state = self.rng.getstate()
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.write(len(pairs), vocab, blocks())
            return read_examples(self.path)
        self.rng.setstate(state)
        parts = zip(*blocks(), strict=True)
        return Batch(*map(np.concatenate, parts)), vocab

    def large(self) -> tuple[Examples, Vocab]:
        """Make the examples of a corpus that does not fit into memory.

        Raises `CorpusError` where there is no room on the disk.
        """
        folder = self.path.parent
        needed = self.estimate()
        self.check_room(needed)
        self.progress.say(
            f'{self.corpus.name} is read for the first time. Its examples '
            f'take about {gigabytes(needed)} of {folder}, which has '
            f'{gigabytes(free_bytes(folder))} free'
        )
        pairs, vocab, blocks = self.prepare(folder)
        layout = layout_of(len(pairs), self.max_len, len(vocab))
        self.check_room(num_bytes(layout))
        self.write(len(pairs), vocab, blocks())
        return read_examples(self.path)

    def prepare(
        self, folder: Path | None = None
    ) -> tuple[np.ndarray, Vocab, Callable[[], Iterator[Batch]]]:
        """Return all pairs, the vocabulary, and what makes the examples."""
        size = self.corpus.size
        with self.progress.bar('text, 1 of 2', size, 'B') as show:
            lines = self.corpus.lines(tell=show)
            text, vocab = load_text(
                lines, self.max_len, self.rng, self.tokens.make, folder
            )
        pairs = draw_pairs(text, self.max_len, self.rng)

        def blocks() -> Iterator[Batch]:
            total, done = len(pairs), 0
            with self.progress.bar('examples, 2 of 2', total, '') as show:
                for block in example_blocks(
                    text, vocab, pairs, self.max_len, self.rng
                ):
                    yield block
                    done += block.num_examples
                    show(done)

        return pairs, vocab, blocks

    def write(
        self, num_examples: int, vocab: Vocab, blocks: Iterator[Batch]
    ) -> None:
        """Write the examples; remove what is old."""
        remove_unfinished(self.path.parent)
        write_examples(self.path, num_examples, self.max_len, vocab, blocks)
        remove_old(self.path.parent)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let one process at a time make these examples.

        Turns an `OSError` of the disk into a `CorpusError`.
        """
        from filelock import FileLock, Timeout

        folder = self.path.parent
        lock = FileLock(folder / f'.{self.path.stem}.lock')
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                self.progress.say(
                    'another process is making the same examples: waiting'
                )
                lock.acquire()
            try:
                remove_unfinished(folder)
                yield
            finally:
                with suppress(OSError):
                    os.unlink(lock.lock_file)
                lock.release()
        except OSError as error:
            room = 'make room, or ' * (error.errno in NO_ROOM)
            raise CorpusError(
                f'The examples of {self.corpus.name} cannot be kept in '
                f'{folder} ({describe_error(error)}): {room}set the '
                'environment variable D2LBERT_CACHE to a folder that can be '
                'written and has more room.'
            ) from error

    def estimate(self) -> int:
        """Return about how many bytes of the disk are needed."""
        place = 1

        def tell(now: int) -> None:
            nonlocal place
            place = max(place, now)

        num_words = num_pairs = 0
        lines = self.corpus.lines(tell=tell)
        paragraphs = stream_paragraphs(lines)
        for _, paragraph in zip(range(NUM_PROBED), paragraphs, strict=False):
            lengths = [len(sentence.split()) for sentence in paragraph]
            num_words += sum(lengths)
            num_pairs += sum(
                a + b + 3 <= self.max_len for a, b in pairwise(lengths)
            )
        share = min(1, place / self.corpus.size)
        example = num_bytes(layout_of(1, self.max_len, 1 << 15))
        # Numbers of words of 4 bytes, then of 2, then the examples
        numbers, tokens = 4 * num_words, 2 * num_words
        most = max(numbers + tokens, tokens + num_pairs * example)
        return int(most / share)

    def check_room(self, needed: int) -> None:
        """Raise `CorpusError` where the disk has not so many bytes."""
        folder = self.path.parent
        free = free_bytes(folder)
        if needed > free:
            raise CorpusError(
                f'The examples of {self.corpus.name} need about '
                f'{gigabytes(needed)} of the disk, and {folder} has '
                f'{gigabytes(free)} free: make room, or set the environment '
                'variable D2LBERT_CACHE to a folder with more room.'
            )


def free_bytes(folder: Path) -> int:
    """Return how many bytes can be written into a folder."""
    return shutil.disk_usage(folder).free


def gigabytes(size: int) -> str:
    """Return a number of bytes in words."""
    return f'{size / 1e9:.1f} GB'


def remove_old(folder: Path) -> None:
    """Remove all files of this module but the newest; keep other files."""
    ours = filter(is_ours, folder.glob(FILE_NAMES))
    total = 0
    newest_first = sorted(ours, key=os.path.getmtime, reverse=True)
    for i, path in enumerate(newest_first):
        total += path.stat().st_size
        if i and (i >= NUM_KEPT or total > MAX_KEPT_BYTES):
            path.unlink(missing_ok=True)
    remove_unfinished(folder)
    remove_unfinished(folder, names=LOCK_NAMES)


def is_ours(path: Path) -> bool:
    """Return whether `write_examples` has written a file under this name.

    Only its manifest is read.
    """
    try:
        about, _ = read_header(path)
        return about['key'] == path.stem
    except (*DAMAGE, RunError):
        return False
