"""From paragraphs to a text in numbers, which need not fit into memory.

First the words are numbered and counted as they come. Then the paragraphs
are put into their shuffled order, and each word becomes the indices of its
tokens in the vocabulary.
"""

from __future__ import annotations

import mmap
import tempfile
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, count, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from d2lbert.data.vocab import PAD, Vocab

#: How many paragraphs are in memory as words.
PARAGRAPHS_AT_A_TIME = 1024
#: How many numbers are collected before they are counted and kept.
NUMBERS_AT_A_TIME = 1 << 22
#: How many bytes of a memory map may stay in memory, if possible.
MOST_MAPPED = 1 << 30
#: Makes a vocabulary of how often each word occurs.
MakeVocab = Callable[[Mapping[str, int]], Vocab]


class Paragraphs(Sequence[range]):
    """The numbers of each paragraph's sentences.

    `bounds`: where each paragraph starts, and the number of all sentences.
    A list of ranges would take ten times the memory.
    """

    def __init__(self, bounds: np.ndarray) -> None:
        self.bounds = array('q', bounds.astype(np.int64).tobytes())

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, i: Any) -> Any:
        return range(self.bounds[i], self.bounds[i + 1])

    def __iter__(self) -> Iterator[range]:
        return map(range, self.bounds, islice(self.bounds, 1, None))


class Text(NamedTuple):
    """A text of T tokens and S sentences, in numbers."""

    tokens: np.ndarray  # (T + 1,) integers, all tokens, then a `<pad>`
    starts: np.ndarray  # (S,) integers, where in `tokens` a sentence starts
    lengths: np.ndarray  # (S,) int32, how many tokens a sentence has
    paragraphs: Sequence[range]  # the numbers of each paragraph's sentences


class NumberedText(NamedTuple):
    """A text whose words have numbers in the order of first occurrence."""

    words: np.ndarray  # (W,) int32, the number of each word
    lengths: np.ndarray  # (S,) int32, how many words a sentence has
    sizes: np.ndarray  # (P,) int32, how many sentences a paragraph has
    counts: dict[str, int]  # how often each word occurs, by their numbers


class Growing:
    """An array that grows: in memory, or in a file without a name.

    `folder`: for the file, which no process leaves behind; None for the
    memory. Little is in memory in any case.
    """

    def __init__(self, dtype: Any, folder: Path | None) -> None:
        self.dtype, self.folder = np.dtype(dtype), folder
        self.blocks: list[np.ndarray] = []
        self.size = 0
        self.file: IO[bytes] | None = None

    def append(self, block: np.ndarray) -> None:
        """Append some numbers."""
        self.size += len(block)
        self.blocks.append(block.astype(self.dtype, copy=False))
        if self.folder and self.size > NUMBERS_AT_A_TIME:
            if self.file is None:
                self.file = tempfile.TemporaryFile(  # noqa: SIM115
                    dir=self.folder
                )
            for kept in self.blocks:
                self.file.write(kept.data)
            self.blocks.clear()

    def array(self) -> np.ndarray:
        """Return all numbers; nothing can be appended then."""
        if self.file is None:
            return np.concatenate([np.empty(0, self.dtype), *self.blocks])
        with self.file as file:
            file.flush()
            return np.memmap(file, self.dtype, 'r')


def number_words(
    paragraphs: Iterable[Sequence[str]],
    make_vocab: MakeVocab,
    shuffle: Callable[[array[int]], None] | None = None,
    folder: Path | None = None,
) -> tuple[Text, Vocab]:
    """Return a text in numbers and its vocabulary.

    `paragraphs`: their sentences, whose words spaces separate; `shuffle`:
    puts the numbers of the paragraphs into another order; `folder`: for
    files without a name, see `Growing`.
    """
    numbered = count_words(paragraphs, folder)
    order = None
    if shuffle:
        order = array('q', range(len(numbered.sizes)))
        shuffle(order)
    vocab = make_vocab(numbered.counts)
    return arrange(numbered, vocab, order, folder), vocab


def count_words(
    paragraphs: Iterable[Sequence[str]], folder: Path | None = None
) -> NumberedText:
    """Number the words of a text in their order, and count them."""
    numbers: dict[str, int] = defaultdict(count().__next__)
    lengths, sizes = array('i'), array('i')
    words, counts = Growing(np.int32, folder), np.zeros(0, np.int64)

    def split_sentences(block: Iterable[Sequence[str]]) -> Iterator[Any]:
        for paragraph in block:
            sizes.append(len(paragraph))
            for sentence in paragraph:
                split = sentence.split()
                lengths.append(len(split))
                yield split

    def count_again() -> np.ndarray:
        block = np.concatenate([np.empty(0, np.int32), *collected])
        words.append(block)
        found = np.bincount(block, minlength=len(numbers))
        found[: len(counts)] += counts
        return found

    paragraphs, collected, size = iter(paragraphs), [], 0
    while block := list(islice(paragraphs, PARAGRAPHS_AT_A_TIME)):
        found = np.fromiter(
            map(
                numbers.__getitem__,
                chain.from_iterable(split_sentences(block)),
            ),
            np.int32,
        )
        collected.append(found)
        size += len(found)
        if size >= NUMBERS_AT_A_TIME:
            counts, size = count_again(), 0
            collected.clear()
    counts = count_again()
    return NumberedText(
        words.array(),
        np.frombuffer(lengths, np.int32),
        np.frombuffer(sizes, np.int32),
        dict(zip(numbers, counts.tolist(), strict=True)),
    )


def arrange(
    text: NumberedText,
    vocab: Vocab,
    order: Sequence[int] | None = None,
    folder: Path | None = None,
) -> Text:
    """Put the paragraphs into an order, and words into a vocabulary.

    `vocab.token_freqs` then has words that are equally frequent in the
    order of their first occurrence.
    """
    pieces = Pieces(vocab, list(text.counts))
    tokens = Growing(np.min_scalar_type(len(vocab)), folder)
    first_seen = FirstSeen(len(text.counts))
    lengths = []
    sizes = text.sizes if order is None else text.sizes[np.asarray(order)]
    for words, num_words in blocks_of(text, order):
        if order is not None:
            first_seen.add(words)
        indices, num_tokens = pieces.of(words, num_words)
        tokens.append(indices)
        lengths.append(num_tokens)
    tokens.append(np.array([vocab[PAD]]))
    if order is not None and vocab.token_freqs:
        names = list(text.counts)
        counts = {
            names[number]: text.counts[names[number]]
            for number in first_seen.order
        }
        vocab.token_freqs = Counter(counts).most_common()
    all_lengths = np.concatenate([np.empty(0, np.int32), *lengths])
    return Text(
        tokens.array(),
        ends_of(all_lengths)[:-1],
        all_lengths,
        Paragraphs(ends_of(sizes)),
    )


def blocks_of(
    text: NumberedText, order: Sequence[int] | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield words and the sentences' lengths of some paragraphs at a time."""
    # Where the sentences of a paragraph start, and where their words do
    sentences = ends_of(text.sizes)
    words = ends_of(text.lengths)[sentences]
    numbers = np.arange(len(text.sizes)) if order is None else order
    for start in range(0, len(text.sizes), PARAGRAPHS_AT_A_TIME):
        block = np.asarray(numbers[start : start + PARAGRAPHS_AT_A_TIME])
        lengths = text.lengths[runs(sentences, block)]
        yield text.words[runs(words, block)], lengths
        release(text.words)


def release(array: np.ndarray) -> None:
    """Give what was read of a large memory map back to the system.

    It would do so itself, but only where memory becomes scarce.
    """
    if isinstance(array, np.memmap) and array.nbytes > MOST_MAPPED:
        with suppress(AttributeError):  # not on Windows
            array._mmap.madvise(  # type: ignore[attr-defined]
                mmap.MADV_DONTNEED
            )


def runs(bounds: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Return all places in some runs, one run after the other.

    Run i has the places from `bounds[i]` to below `bounds[i + 1]`.
    """
    firsts = bounds[which].astype(np.int64)
    lengths = bounds[which + 1] - firsts
    shifts = firsts - (np.cumsum(lengths) - lengths)
    return np.repeat(shifts, lengths) + np.arange(lengths.sum())


def ends_of(lengths: np.ndarray) -> np.ndarray:
    """Return where each of some runs starts, and then where the last ends."""
    total = int(lengths.sum(dtype=np.int64))
    ends = np.zeros(len(lengths) + 1, np.int32 if total < 2**31 else np.int64)
    np.cumsum(lengths, out=ends[1:])
    return ends


class Pieces:
    """The indices of the tokens of each word, by the words' numbers."""

    def __init__(self, vocab: Vocab, words: Sequence[str]) -> None:
        tokens = vocab.split_words(words)
        self.is_whole = tokens is None
        if tokens is None:
            self.indices = np.array(vocab[words], np.int32)
        else:
            flat = list(chain.from_iterable(tokens))
            self.indices = np.array(vocab[flat], np.int32)
            lengths = np.array(list(map(len, tokens)), np.int32)
            self.bounds = ends_of(lengths)

    def of(
        self, words: np.ndarray, num_words: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of some sentences, and their lengths.

        `words`, `num_words`: the numbers of all words, and how many of them
        each sentence has.
        """
        if self.is_whole:
            return self.indices[words], num_words
        ends = ends_of(self.bounds[words + 1] - self.bounds[words])
        num_tokens = np.diff(ends[ends_of(num_words)])
        return self.indices[runs(self.bounds, words)], num_tokens


class FirstSeen:
    """The numbers from 0 to `size`, in the order of first occurrence."""

    def __init__(self, size: int) -> None:
        self.is_seen = np.zeros(size, bool)
        self.order: list[int] = []

    def add(self, numbers: np.ndarray) -> None:
        """Take the next numbers."""
        new = numbers[~self.is_seen[numbers]]
        if len(new):
            found, places = np.unique(new, return_index=True)
            self.order += found[places.argsort()].tolist()
            self.is_seen[found] = True
