"""All random numbers of a run, from its one seed.

Each use has a stream of its own that is addressed, not advanced: the
dropout of row 7 in step 40 does not depend on what was drawn before. So
all frameworks see the same numbers, shards and micro-batches see the same
as one batch, and a resumed run has no generator to restore.
"""

from __future__ import annotations

import math
from functools import cached_property

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


class DropoutMasks:
    """The dropout masks of some rows of a batch.

    Row `rows[i]` of the batch of a step has its own stream, from which the
    dropout layers draw in the order in which they are called, and as many
    numbers as its `lens[i]` valid tokens need. A row is therefore masked
    alike in any shard or micro-batch, padded to any length. No numbers are
    drawn for padding; it is kept.
    """

    def __init__(
        self,
        seed: int,
        step: int,
        rows: np.ndarray,
        lens: np.ndarray,
        num_tokens: int,
        queries: np.ndarray | None = None,
    ) -> None:
        """Address the masks of some rows of a step.

        `num_tokens`: the length T that the rows are padded to; `queries`:
        the positions `(len(rows), Q)` of `BERTEncoder.forward`, where Q is
        less than T unless every token is one.
        """
        self.address = seed, 'dropout', step
        self.rows = [int(row) for row in rows]
        self.lens = [int(length) for length in lens]
        self.num_tokens = num_tokens
        self.queries = queries

    @cached_property
    def streams(self) -> list[np.random.BitGenerator]:
        """The source of random bits of each row."""
        return [bit_generator(*self.address, row) for row in self.rows]

    @property
    def device_seed(self) -> int:
        """The seed of a device that draws these masks itself."""
        bits = bit_generator(*self.address, self.rows[0])
        return int(bits.random_raw() >> 1)  # PyTorch's seeds are signed

    def __call__(self, shape: tuple[int, ...], p: float) -> np.ndarray:
        """Return which elements to keep, boolean.

        `shape`: `(rows, T, H)` for encodings, or `(rows, heads, T, T)` for
        attention weights; with Q in place of the first T where only the
        queries are encoded, with the masks that they have among all. An
        element is dropped with probability `p`, rounded to a multiple of
        1/65536.

        Raises `ValueError` for any other shape.
        """
        num_rows, *heads, num_vectors, width = shape
        is_attention = bool(heads)
        queries = None if num_vectors == self.num_tokens else self.queries
        if (
            num_rows != len(self.rows)
            or (queries is None and num_vectors != self.num_tokens)
            or (queries is not None and num_vectors != queries.shape[1])
            or (is_attention and width != self.num_tokens)
        ):
            raise ValueError(
                f'a dropout layer has an input of shape {shape}, in a batch '
                f'of {len(self.rows)} rows of {self.num_tokens} tokens: '
                'expected a vector for each token or query, or the attention '
                'weights of these'
            )
        dropped = round(p * 65536)
        keep = np.ones(shape, bool)
        for i, (stream, length) in enumerate(
            zip(self.streams, self.lens, strict=True)
        ):
            columns = length if is_attention else width
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
