"""From paragraphs of text to pretraining examples.

Next sentence prediction pairs every sentence with its successor or with a
random sentence. Masked language modelling then replaces some of the tokens.
Both draw from Python's `random` in the same order as the textbook, so the
same seed gives the textbook's own examples, to the bit.

Python draws the random numbers one by one. NumPy computes everything else,
for all words at once or for a block of examples.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, MutableSequence, Sequence
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from d2lbert.data import words
from d2lbert.data.vocab import CLS, MASK, PAD, RESERVED_TOKENS, SEP, Vocab
from d2lbert.data.words import MakeVocab, Text
from d2lbert.errors import CorpusError, InputError

Token = TypeVar('Token')
Sentence = TypeVar('Sentence')

#: The share of a sequence's tokens that is predicted.
PREDICTED = 0.15
#: A pair of sentences has a `<cls>` and two `<sep>`.
NUM_SPECIAL_TOKENS = 3
#: Words seen less often become `<unk>`.
MIN_FREQ = 5
#: How many examples are made at a time, to limit the memory.
BLOCK = 1024
#: The numbers of how many paragraphs' pairs are drawn at a time.
PARAGRAPHS = 1 << 14
#: Stands for a token that is not replaced.
STAYS = -1
#: The last draws of `random.shuffle`. From the end of the list on, it swaps
#: item i with one of items 0 to i; it draws numbers of so many bits until
#: one is at most i.
NUM_DRAWS = 1000
DRAWS = [(i, (i + 1).bit_length()) for i in range(NUM_DRAWS, 0, -1)]


class Batch(NamedTuple):
    """Examples as seven arrays, in the chapter's order.

    B examples of T tokens, padded, with P prediction slots each.
    """

    tokens: np.ndarray  # (B, T) int32
    segments: np.ndarray  # (B, T) int32, 0 or 1
    valid_lens: np.ndarray  # (B,) float32, tokens that are not padding
    pred_positions: np.ndarray  # (B, P) int32
    mlm_weights: np.ndarray  # (B, P) float32, 1 real, 0 padding
    mlm_labels: np.ndarray  # (B, P) int32
    nsp_labels: np.ndarray  # (B,) int32, 1 where B follows A

    @classmethod
    def empty(cls, size: int, max_len: int) -> Batch:
        """Return the arrays of `size` examples, not yet filled."""
        slots = num_slots(max_len)
        return cls(
            np.empty((size, max_len), np.int32),
            np.empty((size, max_len), np.int32),
            np.empty(size, np.float32),
            np.empty((size, slots), np.int32),
            np.empty((size, slots), np.float32),
            np.empty((size, slots), np.int32),
            np.empty(size, np.int32),
        )

    @property
    def num_examples(self) -> int:
        """How many examples there are, B."""
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """How many bytes of the memory they take."""
        return sum(array.nbytes for array in self)

    def rows(self, index: Any) -> Batch:
        """Return some of the examples."""
        return Batch(*(array[index] for array in self))

    def column(self, name: str, index: Any) -> np.ndarray:
        """Return one array of some of the examples."""
        return getattr(self, name)[index]


class Examples(Protocol):
    """Examples in memory, which a `Batch` has, or in a file."""

    @property
    def num_examples(self) -> int:
        """How many examples there are."""

    @property
    def nbytes(self) -> int:
        """How many bytes of the memory they take."""

    def rows(self, index: Any) -> Batch:
        """Return some of the examples, in memory."""

    def column(self, name: str, index: Any) -> np.ndarray:
        """Return one array of some of the examples, in memory."""


def column_blocks(examples: Examples) -> Iterator[memoryview]:
    """Yield the bytes of one array of all examples after the other."""
    for name in Batch._fields:
        for start in range(0, examples.num_examples, 64 * BLOCK):
            part = examples.column(name, slice(start, start + 64 * BLOCK))
            yield np.ascontiguousarray(part).data


def read_paragraphs(lines: Iterable[str]) -> list[list[str]]:
    """Return the lower-case sentences of each line that has a `' . '`."""
    return list(stream_paragraphs(lines))


def stream_paragraphs(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yield the paragraphs of `read_paragraphs`."""
    for line in lines:
        if ' . ' in line:
            yield line.strip().lower().split(' . ')


def word_vocab(counts: Any, size: int | None = None) -> Vocab:
    """Return the chapter's vocabulary.

    `size`: of the vocabulary, at most, with its reserved tokens.
    """
    return Vocab(counts, MIN_FREQ, RESERVED_TOKENS, size)


def load_examples(
    lines: Iterable[str], max_len: int, rng: Any = random
) -> tuple[Batch, Vocab]:
    """Make the pretraining examples of a text, and its vocabulary.

    `lines`: a paragraph each, sentences separated by `' . '`; `max_len`:
    the length to which examples are padded, longer ones are dropped; `rng`:
    a `random.Random`, or the module `random`.

    Raises `InputError` for a `max_len` without room for a prediction and
    `CorpusError` for a text that yields no example.
    """
    text, vocab = load_text(lines, max_len, rng)
    return make_examples(text, vocab, max_len, rng), vocab


def load_text(
    lines: Iterable[str],
    max_len: int,
    rng: Any = random,
    make_vocab: MakeVocab = word_vocab,
    folder: Path | None = None,
) -> tuple[Text, Vocab]:
    """Return a text with its paragraphs shuffled, and its vocabulary.

    `folder`: for what does not fit into memory, see `words.Growing`.
    """
    check_max_len(max_len)
    paragraphs = stream_paragraphs(lines)
    return words.number_words(paragraphs, make_vocab, rng.shuffle, folder)


def number_words(paragraphs: Iterable[Sequence[str]]) -> tuple[Text, Vocab]:
    """Return paragraphs in the chapter's numbers, and their vocabulary."""
    return words.number_words(paragraphs, word_vocab)


def make_examples(
    text: Text, vocab: Vocab, max_len: int, rng: Any = random
) -> Batch:
    """Return the examples of a text. See `load_examples`."""
    pairs = draw_pairs(text, max_len, rng)
    batch = Batch.empty(len(pairs), max_len)
    blocks = example_blocks(text, vocab, pairs, max_len, rng)
    for start, block in zip(range(0, len(pairs), BLOCK), blocks, strict=True):
        for array, part in zip(batch, block, strict=True):
            array[start : start + BLOCK] = part
    return batch


def example_blocks(
    text: Text, vocab: Vocab, pairs: np.ndarray, max_len: int, rng: Any
) -> Iterator[Batch]:
    """Yield the examples of some pairs, `BLOCK` at a time."""
    for start in range(0, len(pairs), BLOCK):
        block = pairs[start : start + BLOCK]
        batch = Batch.empty(len(block), max_len)
        write_pairs(batch, text, block, vocab)
        hide_tokens(batch, vocab, rng)
        yield batch
        words.release(text.tokens)


# ---- next sentence prediction ----------------------------------------


def draw_pairs(text: Text, max_len: int, rng: Any) -> np.ndarray:
    """Return the pairs of sentences that fit `max_len`, `(B, 3)` int32.

    A row has the numbers of both sentences, and 1 where the second one
    follows the first, else 0. Raises `CorpusError` where no pair fits.
    """
    paragraphs, kept = iter(text.paragraphs), []
    while block := list(islice(paragraphs, PARAGRAPHS)):
        pairs = np.fromiter(
            chain.from_iterable(
                pair
                for paragraph in block
                for pair in next_sentences(paragraph, text.paragraphs, rng)
            ),
            np.int32,
        ).reshape(-1, 3)
        num_tokens = text.lengths[pairs[:, :2]].sum(axis=1)
        kept.append(pairs[num_tokens + NUM_SPECIAL_TOKENS <= max_len])
    if not sum(map(len, kept)):
        raise CorpusError(
            f'the corpus of {len(text.paragraphs)} paragraphs yields no '
            f'example of at most {max_len} tokens: it needs lines of two '
            "sentences or more, separated by ' . ', or a greater max_len"
        )
    return np.concatenate(kept)


def next_sentences(
    paragraph: Sequence[Sentence],
    paragraphs: Sequence[Sequence[Sentence]],
    rng: Any,
) -> Iterator[tuple[Sentence, Sentence, bool]]:
    """Yield `next_sentence` of each sentence but the last."""
    for sentence, successor in pairwise(paragraph):
        yield next_sentence(sentence, successor, paragraphs, rng)


def next_sentence(
    sentence: Sentence,
    successor: Sentence,
    paragraphs: Sequence[Sequence[Sentence]],
    rng: Any,
) -> tuple[Sentence, Sentence, bool]:
    """Return a sentence, a second one, and whether that is its successor.

    In half of the cases the second one is any sentence of any paragraph.
    """
    if rng.random() < 0.5:
        return sentence, successor, True
    return sentence, rng.choice(rng.choice(paragraphs)), False


def join_pair(
    tokens_a: list[Token],
    tokens_b: list[Token] | None,
    cls: Token,
    sep: Token,
) -> tuple[list[Token], list[int]]:
    """Return the tokens and segments of one sentence or of two."""
    tokens = [cls, *tokens_a, sep]
    segments = [0] * len(tokens)
    if tokens_b is not None:
        tokens += [*tokens_b, sep]
        segments += [1] * (len(tokens_b) + 1)
    return tokens, segments


def write_pairs(
    batch: Batch, text: Text, pairs: np.ndarray, vocab: Vocab
) -> None:
    """Write pairs of sentences, joined and padded, into a batch."""
    a, b, is_next = pairs.T
    steps = np.arange(batch.tokens.shape[1], dtype=np.int32)
    first_sep = 1 + text.lengths[a][:, None]
    last_sep = first_sep + text.lengths[b][:, None] + 1
    start = np.where(
        steps > first_sep,
        text.starts[b][:, None] - first_sep,
        text.starts[a][:, None],
    )
    # Places that have no token get any token here; the next lines replace it
    tokens = text.tokens.take(start + (steps - 1), mode='clip')
    tokens[:, 0] = vocab[CLS]
    tokens[(steps == first_sep) | (steps == last_sep)] = vocab[SEP]
    tokens[steps > last_sep] = vocab[PAD]
    batch.tokens[:] = tokens
    batch.segments[:] = (steps > first_sep) & (steps <= last_sep)
    batch.valid_lens[:] = last_sep[:, 0] + 1
    batch.nsp_labels[:] = is_next


# ---- masked language modelling ---------------------------------------


def hide_tokens(batch: Batch, vocab: Vocab, rng: Any) -> None:
    """Replace tokens of a batch; write the predictions' arrays into it."""
    max_len, slots = batch.tokens.shape[1], batch.mlm_weights.shape[1]
    is_candidate = np.arange(max_len) < batch.valid_lens[:, None]
    for special in CLS, SEP:
        is_candidate &= batch.tokens != vocab[special]
    num_candidates = is_candidate.sum(axis=1)
    chosen, replaced, nums = draw_predictions(
        num_candidates.tolist(), batch.valid_lens.tolist(), vocab, rng
    )
    firsts = np.cumsum(num_candidates) - num_candidates
    places = np.flatnonzero(is_candidate)[np.repeat(firsts, nums) + chosen]
    order = places.argsort()
    places, replaced = places[order], replaced[order]
    labels = batch.tokens.take(places)
    batch.tokens.put(places, np.where(replaced == STAYS, labels, replaced))
    batch.mlm_weights[:] = padded(np.ones_like(labels), nums, slots)
    batch.mlm_labels[:] = padded(labels, nums, slots)
    batch.pred_positions[:] = padded(places % max_len, nums, slots)


def draw_predictions(
    nums_candidates: Iterable[int],
    nums_tokens: Iterable[int],
    vocab: Vocab,
    rng: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the predictions of each example.

    Returns three arrays: the chosen candidates of all examples, one example
    after the other; the index that replaces each of them, or `STAYS`; and
    the number of candidates chosen in each example.
    """
    mask, indices = vocab[MASK], range(len(vocab))
    chosen, replaced, nums = [], [], []
    for num_candidates, num_tokens in zip(
        nums_candidates, nums_tokens, strict=True
    ):
        order = list(range(num_candidates))
        shuffle(order, rng)
        del order[num_predictions(num_tokens) :]
        chosen += order
        replaced += [replacement(STAYS, mask, indices, rng) for _ in order]
        nums.append(len(order))
    return np.array(chosen, int), np.array(replaced, int), np.array(nums)


def shuffle(items: MutableSequence[Any], rng: Any) -> None:
    """Shuffle a list with the same draws as `rng.shuffle`, twice as fast.

    `rng.shuffle` calls two functions for each item.
    """
    if len(items) > NUM_DRAWS:
        return rng.shuffle(items)
    getrandbits = rng.getrandbits
    for i, num_bits in DRAWS[NUM_DRAWS + 1 - len(items) :]:
        j = getrandbits(num_bits)
        while j > i:
            j = getrandbits(num_bits)
        items[i], items[j] = items[j], items[i]


def replacement(
    token: Token, mask: Token, vocabulary: Sequence[Token], rng: Any
) -> Token:
    """Return the replacement of a token that is to be predicted.

    It is `mask` in 80 % of cases, the token itself in 10 %, and any token of
    the vocabulary in 10 %.
    """
    if rng.random() < 0.8:
        return mask
    if rng.random() < 0.5:
        return token
    return rng.choice(vocabulary)


def num_predictions(num_tokens: float) -> int:
    """Return how many tokens of an example are predicted."""
    return max(1, round(num_tokens * PREDICTED))


def num_slots(max_len: int) -> int:
    """Return how many prediction slots an example has."""
    return round(max_len * PREDICTED)


def padded(
    values: Any, lengths: Any, width: int, padding: int = 0
) -> np.ndarray:
    """Return rows of the given lengths, padded, `(B, width)` int32.

    `values`: the values of all rows, one row after the other.
    """
    rows = np.full((len(lengths), width), padding, np.int32)
    rows[np.arange(width) < np.reshape(lengths, (-1, 1))] = values
    return rows


def check_max_len(max_len: int) -> None:
    """Raise `InputError` unless an example can have a prediction."""
    shortest = NUM_SPECIAL_TOKENS + 2
    if max_len < shortest or num_slots(max_len) < 1:
        raise InputError(
            f'max_len = {max_len} leaves no room for two sentences and a '
            f'prediction: choose {shortest} or more'
        )
