"""From paragraphs of text to pretraining examples.

Next sentence prediction pairs every sentence with its successor or with a
random sentence; masked language modelling then hides some of the tokens.
Both draw from Python's `random` in the order in which the textbook does, so
that the same seed gives the textbook's own examples, to the bit.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, MutableSequence, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np

from d2lbert.data.vocab import CLS, MASK, PAD, RESERVED_TOKENS, SEP, Vocab
from d2lbert.errors import CorpusError, InputError

Token = TypeVar('Token')
Paragraphs = Sequence[Sequence[Any]]

#: The share of a sequence's tokens that is predicted.
PREDICTED = 0.15
#: A pair comes with `<cls>` and two `<sep>`.
NUM_SPECIAL_TOKENS = 3
#: Words seen less often become `<unk>`.
MIN_FREQ = 5


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

    def rows(self, index: Any) -> Batch:
        """Return some of the examples."""
        return Batch(*(array[index] for array in self))


def read_paragraphs(lines: Iterable[str]) -> list[list[str]]:
    """Return the sentences of each line that has two or more, lower-cased."""
    return [
        line.strip().lower().split(' . ') for line in lines if ' . ' in line
    ]


def tokenize(sentences: Iterable[str]) -> list[list[str]]:
    """Split each sentence into its words."""
    return [sentence.split() for sentence in sentences]


def load_examples(
    lines: Iterable[str], max_len: int, rng: Any = random
) -> tuple[Batch, Vocab]:
    """Make the pretraining examples of a text, and its vocabulary.

    `lines`: a paragraph each, sentences separated by `' . '`; `max_len`:
    the length to which examples are padded, beyond which they are dropped;
    `rng`: a `random.Random`, or the module itself.

    Raises `InputError` for a `max_len` without room for a prediction and
    `CorpusError` for a text that yields no example.
    """
    check_max_len(max_len)
    paragraphs = read_paragraphs(lines)
    rng.shuffle(paragraphs)
    return make_examples(list(map(tokenize, paragraphs)), max_len, rng)


def make_examples(
    paragraphs: Sequence[list[list[str]]], max_len: int, rng: Any = random
) -> tuple[Batch, Vocab]:
    """Make the examples of tokenized paragraphs, and their vocabulary."""
    vocab = Vocab(
        list(chain.from_iterable(paragraphs)), MIN_FREQ, RESERVED_TOKENS
    )
    numbered = [vocab[paragraph] for paragraph in paragraphs]
    cls, sep = vocab[CLS], vocab[SEP]
    pairs = [
        pair
        for paragraph in numbered
        for pair in sentence_pairs(paragraph, numbered, max_len, rng)
    ]
    if not pairs:
        raise CorpusError(
            f'the corpus of {len(paragraphs)} paragraphs yields no example '
            f'of at most {max_len} tokens: it needs lines of two sentences '
            "or more, separated by ' . ', or a greater max_len"
        )
    examples = []
    for tokens_a, tokens_b, is_next in pairs:
        tokens, segments = join_pair(tokens_a, tokens_b, cls, sep)
        examples.append(
            (
                *mask_tokens(
                    tokens, (cls, sep), vocab[MASK], range(len(vocab)), rng
                ),
                segments,
                is_next,
            )
        )
    return pad_examples(examples, max_len, vocab[PAD]), vocab


def sentence_pairs(
    paragraph: Sequence[Any],
    paragraphs: Paragraphs,
    max_len: int,
    rng: Any = random,
) -> list[tuple[Any, Any, bool]]:
    """Return each sentence with a next one, and whether it really follows.

    Pairs that do not fit `max_len` with their special tokens are dropped.
    """
    pairs = (
        next_sentence(a, b, paragraphs, rng) for a, b in pairwise(paragraph)
    )
    return [
        pair
        for pair in pairs
        if len(pair[0]) + len(pair[1]) + NUM_SPECIAL_TOKENS <= max_len
    ]


def next_sentence(
    sentence: Any, successor: Any, paragraphs: Paragraphs, rng: Any = random
) -> tuple[Any, Any, bool]:
    """Return a sentence and its successor, or half the time another."""
    if rng.random() < 0.5:
        return sentence, successor, True
    return sentence, rng.choice(rng.choice(paragraphs)), False


def join_pair(
    tokens_a: list[Token],
    tokens_b: list[Token] | None,
    cls: Token,
    sep: Token,
) -> tuple[list[Token], list[int]]:
    """Return BERT's input for one sentence or two, and its segments."""
    tokens = [cls, *tokens_a, sep]
    segments = [0] * len(tokens)
    if tokens_b is not None:
        tokens += [*tokens_b, sep]
        segments += [1] * (len(tokens_b) + 1)
    return tokens, segments


def mask_tokens(
    tokens: list[Token],
    special: tuple[Token, Token],
    mask: Token,
    vocabulary: Sequence[Token],
    rng: Any = random,
) -> tuple[list[Token], list[int], list[Token]]:
    """Hide 15 % of the tokens, at least one.

    Returns the sequence with its replacements, the positions predicted, in
    order, and the true tokens there.
    """
    candidates = [i for i, token in enumerate(tokens) if token not in special]
    num_predictions = max(1, round(len(tokens) * PREDICTED))
    masked, positions = replace_tokens(
        tokens, candidates, num_predictions, mask, vocabulary, rng
    )
    positions.sort()
    return masked, positions, [tokens[i] for i in positions]


def replace_tokens(
    tokens: list[Token],
    candidates: MutableSequence[int],
    num_predictions: int,
    mask: Token,
    vocabulary: Sequence[Token],
    rng: Any = random,
) -> tuple[list[Token], list[int]]:
    """Choose positions among the candidates and replace their tokens.

    80 % become `mask`, 10 % stay as they are, 10 % become any token of the
    vocabulary. `candidates` is shuffled in place.
    """
    masked = list(tokens)
    rng.shuffle(candidates)
    positions = list(candidates[:num_predictions])
    for position in positions:
        if rng.random() < 0.8:
            masked[position] = mask
        elif rng.random() >= 0.5:
            masked[position] = rng.choice(vocabulary)
    return masked, positions


def num_slots(max_len: int) -> int:
    """Return how many prediction slots an example has."""
    return round(max_len * PREDICTED)


def pad_examples(
    examples: Sequence[
        tuple[list[int], list[int], list[int], list[int], bool]
    ],
    max_len: int,
    pad: int,
) -> Batch:
    """Pad examples to one length and stack them.

    An example is its masked tokens, predicted positions, true tokens there,
    segments and whether the second sentence follows.
    """
    size, slots = len(examples), num_slots(max_len)
    batch = Batch(
        np.full((size, max_len), pad, np.int32),
        np.zeros((size, max_len), np.int32),
        np.zeros(size, np.float32),
        np.zeros((size, slots), np.int32),
        np.zeros((size, slots), np.float32),
        np.zeros((size, slots), np.int32),
        np.zeros(size, np.int32),
    )
    for i, (tokens, positions, labels, segments, is_next) in enumerate(
        examples
    ):
        batch.tokens[i, : len(tokens)] = tokens
        batch.segments[i, : len(segments)] = segments
        batch.valid_lens[i] = len(tokens)
        batch.pred_positions[i, : len(positions)] = positions
        batch.mlm_weights[i, : len(positions)] = 1
        batch.mlm_labels[i, : len(labels)] = labels
        batch.nsp_labels[i] = is_next
    return batch


def check_max_len(max_len: int) -> None:
    """Raise `InputError` unless an example can have a prediction."""
    shortest = NUM_SPECIAL_TOKENS + 2
    if max_len < shortest or num_slots(max_len) < 1:
        raise InputError(
            f'max_len = {max_len} leaves no room for two sentences and a '
            f'prediction: choose {shortest} or more'
        )
