"""What a micro-batch asks of the network, in few numbers.

A loss depends on the encodings of `<cls>` and of the predicted positions, so
only these *queries* are computed in the last block. Slots that ask for the
same token at the same position, as all padding of a row does, become one
with the sum of their weights. The losses stay the same.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from d2lbert.data.examples import Batch

#: Where shapes shall be few, there is a multiple of so many slots.
SLOTS = 256


class LossInputs(NamedTuple):
    """The arguments of `BERTModel.losses` for B rows of T tokens.

    Each row has Q queries, of which the first is its `<cls>`: the T tokens
    themselves, or fewer than T.
    """

    tokens: np.ndarray  # (B, T) int32
    segments: np.ndarray  # (B, T) int32
    valid_lens: np.ndarray  # (B,) float32
    queries: np.ndarray  # (B, Q) int32, positions
    slots: np.ndarray  # (N,), row · Q + query of each token to predict
    mlm_labels: np.ndarray  # (N,)
    mlm_weights: np.ndarray  # (N,) float32
    nsp_labels: np.ndarray  # (B,) int32
    nsp_weights: np.ndarray  # (B,) float32


class Questions(NamedTuple):
    """The tokens to predict, `(N,)` each, ordered by row and position."""

    row: np.ndarray
    position: np.ndarray
    label: np.ndarray
    weight: np.ndarray


def loss_inputs(
    batch: Batch,
    mlm_weights: np.ndarray,
    nsp_weights: np.ndarray,
    num_lengths: int = 0,
    skips_slots: bool = False,
) -> LossInputs:
    """Return the arguments of `BERTModel.losses` for a micro-batch.

    `mlm_weights`: `(B, P)`, `nsp_weights`: `(B,)`: see
    `Recipe.loss_weights`. Rows are cut to the longest. `num_lengths`: of so
    many lengths at most, so that there are few shapes, 0 for any;
    `skips_slots`: see `backends.base.DataParallel`.
    """
    num_rows, max_len = batch.tokens.shape
    num_tokens = row_length(batch.valid_lens, max_len, num_lengths)
    num_queries, multiple = None, 1
    if num_lengths:
        num_queries = batch.pred_positions.shape[1] + 1
        multiple = batch.pred_positions.size if skips_slots else SLOTS
    questions = merge_slots(batch, mlm_weights)
    queries, slots = choose_queries(
        questions, num_rows, num_tokens, num_queries
    )
    slots, labels, weights = fill_up(
        (slots, questions.label, questions.weight), multiple
    )
    return LossInputs(
        batch.tokens[:, :num_tokens],
        batch.segments[:, :num_tokens],
        batch.valid_lens,
        queries,
        slots,
        labels,
        weights.astype(np.float32),
        batch.nsp_labels,
        nsp_weights,
    )


def row_length(valid_lens: np.ndarray, max_len: int, num_lengths: int) -> int:
    """Return the length that rows are cut to, that of the longest.

    With `num_lengths` it is the next of so many.
    """
    num_tokens = int(valid_lens.max())
    step = math.ceil(max_len / num_lengths) if num_lengths else 1
    return min(max_len, num_tokens + -num_tokens % step)


def merge_slots(batch: Batch, mlm_weights: np.ndarray) -> Questions:
    """Return the questions of the slots that have a weight.

    Slots of one row that ask for the same label at the same position become
    one question with the sum of their weights.
    """
    max_len = batch.tokens.shape[1]
    row, slot = np.nonzero(mlm_weights)
    position = batch.pred_positions[row, slot]
    label = batch.mlm_labels[row, slot]
    # One number for each question: NumPy sorts numbers faster than columns
    num_labels = label.max(initial=0) + 1
    number = (row * max_len + position) * num_labels + label
    asked, which = np.unique(number, return_inverse=True)
    place, label = np.divmod(asked, num_labels)
    row, position = np.divmod(place, max_len)
    weight = np.bincount(which.ravel(), mlm_weights[mlm_weights != 0])
    return Questions(row, position, label, weight)


def choose_queries(
    questions: Questions,
    num_rows: int,
    num_tokens: int,
    num_queries: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the queries of each row and the slot of each question.

    A row's queries are `<cls>`, then the positions that are asked for, in
    order, and again `<cls>` for the rest. `num_queries`: how many each row
    has, by default as many as one row needs. Where that is `num_tokens` or
    more, every token is a query.
    """
    wanted = np.zeros((num_rows, num_tokens), bool)
    wanted[:, 0] = wanted[questions.row, questions.position] = True
    num_queries = num_queries or int(wanted.sum(axis=1).max())
    if num_queries >= num_tokens:
        num_queries = num_tokens
        wanted[:] = True
    query = wanted.cumsum(axis=1) - 1
    queries = np.zeros((num_rows, num_queries), np.int32)
    rows, positions = np.nonzero(wanted)
    queries[rows, query[rows, positions]] = positions
    return (
        queries,
        questions.row * num_queries
        + query[questions.row, questions.position],
    )


def fill_up(
    arrays: tuple[np.ndarray, ...], multiple: int
) -> list[np.ndarray]:
    """Return arrays `(N,)` with zeros appended, to a multiple in length.

    They have one element at least, because MXNet has no empty arrays. A slot
    of weight 0 does not count.
    """
    size = max(1, len(arrays[0]))
    size += -size % multiple
    return [np.pad(array, (0, size - len(array))) for array in arrays]
