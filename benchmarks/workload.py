"""The chapter's workload, and how much arithmetic it is; NumPy only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

FRAMEWORKS = ('torch', 'mxnet')
BATCH_SIZE, MAX_LEN = 512, 64
#: A multiplication and an addition, in the forward pass and, for both
#: inputs of each product, in the backward pass.
FLOPS_PER_PRODUCT = 2 * 3


class Sizes(NamedTuple):
    """The arguments of `BERTModel` after the vocabulary's size."""

    num_hiddens: int = 128
    ffn_num_hiddens: int = 256
    num_heads: int = 2
    num_blks: int = 2
    dropout: float = 0.2


CHAPTER = Sizes()


class Examples(NamedTuple):
    """Seven arrays in the chapter's order, and the vocabulary's size."""

    arrays: list[np.ndarray]
    vocab_size: int

    def batches(self, batch_size: int) -> list[list[np.ndarray]]:
        """Cut the examples into minibatches, in their order."""
        starts = range(0, len(self.arrays[0]), batch_size)
        return [
            [array[start : start + batch_size] for array in self.arrays]
            for start in starts
        ]


def save_examples(
    path: str | Path, arrays: Sequence[np.ndarray], vocab_size: int
) -> None:
    """Write examples for `read_examples`."""
    np.savez(path, *arrays, np.array(vocab_size))


def read_examples(path: str | Path) -> Examples:
    """Read what `save_examples` has written."""
    with np.load(path, allow_pickle=False) as file:  # noqa: TID251
        *arrays, vocab_size = (file[name] for name in file.files)
    return Examples(arrays, int(vocab_size))


def full_batch(
    batch_size: int, num_tokens: int, vocab_size: int
) -> list[np.ndarray]:
    """Return a batch of random tokens without any padding."""
    rng = np.random.RandomState(0)
    shape = batch_size, num_tokens
    slots = batch_size, max(1, round(0.15 * num_tokens))
    positions = rng.rand(*shape).argsort(axis=1)[:, : slots[1]]
    return [
        rng.randint(vocab_size, size=shape).astype(np.int32),
        rng.randint(2, size=shape).astype(np.int32),
        np.full(batch_size, num_tokens, np.float32),
        positions.astype(np.int32),
        np.ones(slots, np.float32),
        rng.randint(vocab_size, size=slots).astype(np.int32),
        rng.randint(2, size=batch_size).astype(np.int32),
    ]


def encoding_flops(lens: Iterable[int], sizes: Sizes = CHAPTER) -> float:
    """Return the floating-point operations that encoding texts needs.

    Those of its matrix products without padding: of n tokens in each block,
    times 2, n (4 H² + 2 H F) + 2 n² H. See `useful_flops`.
    """
    return (
        2
        * sizes.num_blks
        * sum(block_multiplications(n, sizes) for n in lens)
    )


def block_multiplications(n: int, sizes: Sizes) -> int:
    """Return the multiplications of a block for a row of n tokens."""
    H, F, *_ = sizes
    return n * (4 * H * H + 2 * H * F) + 2 * n * n * H


def useful_flops(
    batch: Sequence[np.ndarray], vocab_size: int, sizes: Sizes = CHAPTER
) -> float:
    """Return the floating-point operations that a training step needs.

    Those of its matrix products on real tokens and real predictions only,
    where the last block's queries are the predicted positions and `<cls>`.
    With n tokens in a row, q queries in it, p predictions, hidden size H,
    feed-forward size F and a vocabulary of V, a row takes, times 6,

    * in each block but the last n (4 H² + 2 H F) + 2 n² H;
    * in the last 2 n H² + q (2 H² + 2 H F) + 2 n q H;
    * in the heads p (H² + H V) + H² + 2 H.
    """
    _, _, valid_lens, positions, weights, _, _ = batch
    H, F, _, num_blks, _ = sizes
    total = 0.0
    for n, row_positions, row_weights in zip(
        map(int, valid_lens), positions, weights, strict=True
    ):
        predicted = row_positions[row_weights > 0]
        p, q = len(predicted), len(set(predicted.tolist()) | {0})
        block = block_multiplications(n, sizes)
        last = 2 * n * H * H + q * (2 * H * H + 2 * H * F) + 2 * n * q * H
        heads = p * (H * H + H * vocab_size) + H * H + 2 * H
        total += (num_blks - 1) * block + last + heads
    return FLOPS_PER_PRODUCT * total


def sentences(lines: Iterable[str], number: int) -> list[str]:
    """Return the first sentences of a corpus that have some real words."""
    found: list[str] = []
    for line in lines:
        for sentence in line.lower().split(' . '):
            words = sentence.split()
            if len(set(words)) >= 5 and len(words) <= MAX_LEN - 2:
                found.append(' '.join(words))
                if len(found) == number:
                    return found
    raise ValueError(f'the corpus has {len(found)} sentences, not {number}')
