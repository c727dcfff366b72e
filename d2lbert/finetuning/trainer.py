"""The trainer of a classifier, and what a classifier says of examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from backends.groups import ALONE, Group
from d2lbert.classifier import NUM_CLASSES, BERTClassifier
from d2lbert.data.nli import NLIBatch, check_nli_batch
from d2lbert.errors import RunError
from d2lbert.representation import (
    TOKENS_AT_A_TIME,
    batches_of,
    encoder_inputs,
)
from d2lbert.slots import row_length
from d2lbert.trainer import PendingStep, Trainer


class ClassifierStep(NamedTuple):
    """What one training step reports, of the batch as it was seen."""

    loss: float
    accuracy: float
    num_pairs: int
    seconds: float


class ClassifierInputs(NamedTuple):
    """The arguments of `BERTClassifier.losses` for B rows of T tokens."""

    tokens: np.ndarray  # (B, T) int32
    segments: np.ndarray  # (B, T) int32
    valid_lens: np.ndarray  # (B,) float32
    queries: np.ndarray  # (B, 1) int32, zeros: `<cls>` alone is needed
    labels: np.ndarray  # (B,) int32
    weights: np.ndarray  # (B,) float32


class ClassifierTrainer(Trainer):
    """Trains a `BERTClassifier` on pairs of sentences.

    `recipe`: a `FinetuningRecipe`; the other arguments are those of
    `Trainer`. Batches are of `NLIBatch`, steps of `ClassifierStep`.
    """

    LOSSES = ('loss', 'accuracy')

    def check_batch(self, batch: NLIBatch) -> None:
        """Raise `InputError` for a batch that the network cannot take."""
        check_nli_batch(
            batch, self.net.vocab_size, self.net.max_len, NUM_CLASSES
        )

    def loss_inputs(
        self, part: NLIBatch, weights: Sequence[np.ndarray]
    ) -> ClassifierInputs:
        """Return the arguments of `losses` for some rows, cut."""
        num_tokens = row_length(
            part.valid_lens, part.tokens.shape[1], self.parallel.num_lengths
        )
        return ClassifierInputs(
            part.tokens[:, :num_tokens],
            part.segments[:, :num_tokens],
            part.valid_lens,
            np.zeros((len(part.tokens), 1), np.int32),
            part.labels,
            *weights,
        )

    def losses_of(self, pending: PendingStep) -> list[float]:
        """Return the mean loss of a step's rows, and the share right."""
        recipe: Any = self.recipe
        num_rows = pending.num_pairs if recipe.loss == 'sum' else 1
        return [float(loss) / num_rows for loss in pending.gradients.losses()]

    def new_step(
        self, losses: Sequence[float], num_pairs: int, seconds: float
    ) -> ClassifierStep:
        """Return what a step reports."""
        loss, accuracy = losses
        return ClassifierStep(loss, accuracy, num_pairs, seconds)


def logits_of_pairs(
    net: BERTClassifier,
    encoded: Sequence[tuple[list[int], list[int]]],
    pad: int,
    group: Group = ALONE,
) -> np.ndarray:
    """Return the logits of many pairs, `(B, 3)`, without dropout.

    `encoded`: tokens and segments of each pair, without padding; `pad`: the
    index of `<pad>`; `group`: the processes that share the pairs, each of
    which gets all logits. Pairs of similar length go through the network
    together. Raises `RunError` for logits that are not finite.
    """
    lens = [len(tokens) for tokens, _ in encoded]
    batches = batches_of(lens, TOKENS_AT_A_TIME, None)
    own = batches[group.rank :: group.size]

    def inputs(batch: list[int]) -> tuple[np.ndarray, ...]:
        arrays = encoder_inputs(net, [encoded[i] for i in batch], pad)
        return *arrays, np.zeros((len(arrays[0]), 1), np.int32)

    logits = np.zeros((len(lens), NUM_CLASSES), np.float32)
    outputs = net.backend.evaluate(net, map(inputs, own))
    for batch, output in zip(own, outputs, strict=True):
        logits[batch] = output[: len(batch)]
    group.all_reduce([logits])
    if not np.isfinite(logits).all():
        raise RunError(
            'the classifier gives numbers that are not finite, as after a '
            'training that diverged: train again with a smaller --lr'
        )
    return logits


def logits_of(
    net: BERTClassifier,
    examples: NLIBatch,
    pad: int,
    group: Group = ALONE,
) -> np.ndarray:
    """Return the logits of all examples: see `logits_of_pairs`."""
    encoded = [
        (tokens[:length].tolist(), segments[:length].tolist())
        for tokens, segments, length in zip(
            examples.tokens,
            examples.segments,
            examples.valid_lens.astype(int),
            strict=True,
        )
    ]
    return logits_of_pairs(net, encoded, pad, group)


def accuracy_of(
    net: BERTClassifier,
    examples: NLIBatch,
    pad: int,
    group: Group = ALONE,
) -> float:
    """Return the share of examples whose class the network predicts."""
    predicted = logits_of(net, examples, pad, group).argmax(axis=1)
    return float((predicted == examples.labels).mean())
