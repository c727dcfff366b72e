"""The rows of a shard that go through the network at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def rows_at_a_time(
    num_rows: int,
    max_len: int,
    num_workers: int,
    least_tokens: int,
    most_tokens: int,
) -> int:
    """Return how many rows of a shard go through the network at a time.

    `num_workers`: those of the shard, each of which gets a part where that
    has `least_tokens`; a part has at most `most_tokens`.
    """
    share = math.ceil(num_rows / num_workers)
    num_tokens = max(share * max_len, least_tokens)
    return max(1, min(num_tokens, most_tokens) // max_len)


def micro_batches(
    batch: Any, shard: slice, num_rows: int
) -> list[np.ndarray]:
    """Return the rows of each micro-batch of a shard, longest rows first.

    Rows of similar length go together, so that little is padding. The
    longest come first because they decide how much memory is needed.
    `batch`: of any task, with `tokens` and `valid_lens`.
    """
    rows = np.arange(len(batch.tokens))[shard]
    rows = rows[np.argsort(-batch.valid_lens[rows], kind='stable')]
    return [
        rows[start : start + num_rows]
        for start in range(0, len(rows), num_rows)
    ]
