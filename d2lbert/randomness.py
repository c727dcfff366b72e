"""All random numbers of a run, from its one seed.

Each use has a stream of its own that is addressed, not advanced: the
dropout of row 7 in step 40 does not depend on what was drawn before. So
both frameworks see the same numbers, shards and micro-batches see the same
as one batch, and a resumed run has no generator to restore.
"""

from __future__ import annotations

import math

import numpy as np

STREAMS = ('weights', 'order', 'dropout')


def bit_generator(
    seed: int, stream: str, *counters: int
) -> np.random.BitGenerator:
    """Return the source of random bits for one use of one of `STREAMS`."""
    key = (STREAMS.index(stream), *counters)
    return np.random.SFC64(np.random.SeedSequence(seed, spawn_key=key))


def generator(seed: int, stream: str, *counters: int) -> np.random.Generator:
    """Return a NumPy generator for one use of one of `STREAMS`."""
    return np.random.Generator(bit_generator(seed, stream, *counters))


def device_seed(seed: int, step: int, row: int) -> int:
    """Return the seed of a device that draws its dropout masks itself."""
    bits = bit_generator(seed, 'dropout', step, int(row))
    return int(bits.random_raw() >> 1)  # PyTorch's seeds are signed


class DropoutMasks:
    """Draws the dropout masks of some rows of a batch.

    Row `rows[i]` of the batch of a step has its own stream, from which the
    dropout layers draw in the order in which they are called, and as many
    numbers as its `lens[i]` valid tokens need. A row is therefore masked
    alike whatever shard or micro-batch it is in and whatever length that
    was padded to. What is drawn for padding does not matter and is kept.
    """

    def __init__(
        self,
        seed: int,
        step: int,
        rows: np.ndarray,
        lens: np.ndarray,
        queries: np.ndarray | None = None,
    ) -> None:
        """`queries`: the positions `(rows, Q)` of `BERTEncoder.forward`."""
        self.streams = [
            bit_generator(seed, 'dropout', step, int(row)) for row in rows
        ]
        self.lens = [int(length) for length in lens]
        self.queries = queries

    def __call__(self, shape: tuple[int, ...], p: float) -> np.ndarray:
        """Return which elements to keep, boolean.

        `shape`: `(rows, T, H)` for encodings, or `(rows, heads, T, T)` for
        attention weights; with Q < T for the last T but one where only the
        queries are encoded: they get what they get among all. An element is
        dropped with probability `p`, rounded to a multiple of 1/65536.
        """
        dropped = round(p * 65536)
        keep = np.ones(shape, bool)
        *heads, num_queries, width = shape[1:]
        queries = self.queries
        if queries is not None and num_queries != queries.shape[1]:
            queries = None
        for i, (stream, length) in enumerate(
            zip(self.streams, self.lens, strict=True)
        ):
            # Heads are of attention weights, whose width is that of the keys
            columns = length if heads else width
            drawn = (*heads, length, columns)
            size = math.prod(drawn)
            numbers = stream.random_raw(-(-size // 4)).view(np.uint16)
            numbers = numbers[:size].reshape(drawn)
            if queries is not None:
                numbers = numbers[..., queries[i], :]
            np.greater_equal(
                numbers,
                dropped,
                out=keep[i, ..., : numbers.shape[-2], :columns],
            )
        return keep
