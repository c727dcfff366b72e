"""What a fine-tuned network says of pairs of sentences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from d2lbert.classifier import BERTClassifier
from d2lbert.data.vocab import PAD, Vocab
from d2lbert.errors import InputError
from d2lbert.evaluation.fill_mask import softmax
from d2lbert.finetuning.trainer import logits_of_pairs
from d2lbert.representation import check_vocab_size, encode_text


def infer(
    net: BERTClassifier, vocab: Vocab, pairs: Sequence[tuple[str, str]]
) -> np.ndarray:
    """Return the probabilities of the three classes for many pairs.

    `pairs`: premises and hypotheses, their words separated by spaces; upper
    case does not matter. Returns float32 `(len(pairs), 3)`: entailment,
    contradiction, neutral, as in `d2lbert.data.snli.LABELS`.

    Raises `InputError` for a pair that has no words, only unknown ones, or
    too many for the network, and `RunError` where the network gives numbers
    that are not finite.
    """
    check_vocab_size(net, len(vocab))
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise InputError(
                f'{pair!r}: expected a tuple of a premise and a hypothesis'
            )
    encoded = [encode_text(net, vocab, pair) for pair in pairs]
    return softmax(logits_of_pairs(net, encoded, vocab[PAD]))
