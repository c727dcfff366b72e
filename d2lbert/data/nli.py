"""From pairs of sentences to examples for natural language inference."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from d2lbert.data.checks import check_encoder_inputs, check_range
from d2lbert.data.examples import NUM_SPECIAL_TOKENS, join_pair, padded
from d2lbert.data.vocab import CLS, PAD, SEP, Vocab
from d2lbert.errors import InputError

Tokens = Sequence[str]


class NLIBatch(NamedTuple):
    """Pairs of sentences as B examples of T tokens, padded."""

    tokens: np.ndarray  # (B, T) int32
    segments: np.ndarray  # (B, T) int32, 0 or 1
    valid_lens: np.ndarray  # (B,) float32, tokens that are not padding
    labels: np.ndarray  # (B,) int32, the class

    @property
    def num_examples(self) -> int:
        """How many examples there are, B."""
        return len(self.tokens)

    def rows(self, index: Any) -> NLIBatch:
        """Return some of the examples."""
        return NLIBatch(*(array[index] for array in self))


def make_nli_examples(
    premises: Sequence[Tokens],
    hypotheses: Sequence[Tokens],
    labels: Sequence[int],
    vocab: Vocab,
    max_len: int,
) -> NLIBatch:
    """Return pairs of tokenized sentences as examples, in order.

    `<cls>`, the premise, `<sep>`, the hypothesis, `<sep>`, and padding up to
    `max_len`. A pair that is longer is cut by `cut_pair`. Raises
    `InputError` for a vocabulary without the special tokens and a `max_len`
    without room for two words.
    """
    check_nli_max_len(max_len)
    check_special_tokens(vocab)
    tokens, segments = [], []
    for premise, hypothesis in zip(premises, hypotheses, strict=True):
        pair = cut_pair(premise, hypothesis, max_len - NUM_SPECIAL_TOKENS)
        joined, its_segments = join_pair(*pair, CLS, SEP)
        tokens.append(vocab[joined])
        segments.append(its_segments)
    lens = list(map(len, tokens))
    return NLIBatch(
        padded(list(chain.from_iterable(tokens)), lens, max_len, vocab[PAD]),
        padded(list(chain.from_iterable(segments)), lens, max_len),
        np.array(lens, np.float32),
        np.array(labels, np.int32),
    )


def cut_pair(
    premise: Tokens, hypothesis: Tokens, most: int
) -> tuple[list[str], list[str]]:
    """Return a pair of at most `most` tokens together.

    The last token of the longer one is dropped, or of the hypothesis where
    both are alike, until they fit.
    """
    a, b = len(premise), len(hypothesis)
    while a + b > most:
        if a > b:
            a -= 1
        else:
            b -= 1
    return list(premise[:a]), list(hypothesis[:b])


def check_nli_max_len(max_len: int) -> None:
    """Raise `InputError` unless an example has room for two words."""
    if max_len < NUM_SPECIAL_TOKENS + 2:
        raise InputError(
            f'max_len = {max_len} leaves no room for two words: choose '
            f'{NUM_SPECIAL_TOKENS + 2} or more'
        )


def check_special_tokens(vocab: Vocab) -> None:
    """Raise `InputError` for a vocabulary that lacks a special token."""
    missing = [
        token for token in (PAD, CLS, SEP) if token not in vocab.token_to_idx
    ]
    if missing:
        raise InputError(
            f'the vocabulary has no {", ".join(missing)}: give the one of a '
            'pretrained network'
        )


def check_nli_batch(
    batch: NLIBatch, vocab_size: int, max_positions: int, num_classes: int
) -> None:
    """Raise `InputError` for a batch that cannot be trained on.

    `vocab_size`, `max_positions`: how many tokens and positions the network
    has embeddings for.
    """
    num_rows, _ = batch.tokens.shape
    shapes = [array.shape for array in batch]
    expected = [batch.tokens.shape] * 2 + [(num_rows,)] * 2
    if shapes != expected or not batch.tokens.size:
        raise InputError(
            f'the arrays {", ".join(NLIBatch._fields)} have the shapes '
            f'{shapes}: expected (B, T), (B, T), (B,), (B,) of the same B '
            'examples, one or more'
        )
    check_encoder_inputs(batch, vocab_size, max_positions)
    check_range('labels', batch.labels, 0, num_classes - 1)
