"""The matrix products of the chapter's work, alone.

They are the least that a training step or an encoder has to compute. Their
time says how fast the rest could become with these libraries.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from backends.cores import available_cores
from benchmarks.workload import CHAPTER, Sizes


class Product(NamedTuple):
    """So many products of an (m, k) and a (k, n) matrix."""

    m: int
    k: int
    n: int
    count: int = 1

    @property
    def flops(self) -> float:
        """Return its floating-point operations."""
        return 2.0 * self.m * self.k * self.n * self.count


def with_gradients(products: Iterable[Product]) -> Iterator[Product]:
    """Yield products, and those of the gradients of both factors."""
    for m, k, n, count in products:
        yield Product(m, k, n, count)
        yield Product(m, n, k, count)
        yield Product(k, m, n, count)


def block_products(
    num_rows: int, length: int, num_queries: int, sizes: Sizes = CHAPTER
) -> Iterator[Product]:
    """Yield the products of a block for rows of one length.

    `num_queries`: of each row, at most `length`.
    """
    H, F, heads, *_ = sizes
    keys, queries = num_rows * length, num_rows * num_queries
    count, size = num_rows * heads, H // heads
    yield from [Product(keys, H, H)] * 2  # keys, values
    yield from [Product(queries, H, H)] * 2  # queries, joined heads
    yield Product(num_queries, size, length, count)  # scores
    yield Product(num_queries, length, size, count)  # weighted means
    yield Product(queries, H, F)
    yield Product(queries, F, H)


def encoder_products(
    lens: Sequence[int], sizes: Sizes = CHAPTER
) -> list[Product]:
    """Return the products of the encoder for rows that go together."""
    length = max(lens)
    block = [*block_products(len(lens), length, length, sizes)]
    return block * sizes.num_blks


def training_products(
    batch: Sequence[np.ndarray],
    vocab_size: int,
    num_rows: int,
    counts_padding: bool,
    sizes: Sizes = CHAPTER,
) -> list[list[Product]]:
    """Return the products of a training step, micro-batch by micro-batch.

    `num_rows`: of a micro-batch. Rows of similar length go together, and the
    last block computes `<cls>` and the predicted positions only, as in our
    code. `counts_padding`: where a row has padding among its slots, it has
    one more prediction, with which a recipe counts all of them.
    """
    _, _, valid_lens, _, weights, _, _ = batch
    H, *_ = sizes
    real = (weights > 0).sum(axis=1)
    nums_predictions = real + (counts_padding & (real < weights.shape[1]))
    order = np.argsort(-valid_lens, kind='stable')
    micro_batches = []
    for start in range(0, len(order), num_rows):
        rows = order[start : start + num_rows]
        length = int(valid_lens[rows].max())
        predicted = nums_predictions[rows]
        block = [*block_products(len(rows), length, length, sizes)]
        last = block_products(
            len(rows), length, 1 + int(real[rows].max()), sizes
        )
        num_predictions = int(predicted.sum())
        products = [
            *block * (sizes.num_blks - 1),
            *last,
            Product(num_predictions, H, H),
            Product(num_predictions, H, vocab_size),
            Product(len(rows), H, H),
            Product(len(rows), H, 2),
        ]
        micro_batches.append([*with_gradients(products)])
    return micro_batches


# ---- their time ------------------------------------------------------


def time_products(
    parts: Iterable[Sequence[Product]],
    repeats: int = 3,
    in_numpy: Callable[[Product], bool] = lambda product: False,
) -> dict[str, float]:
    """Time some products on all cores; return the best time, and their work.

    `parts`: those of each micro-batch, which one core computes; `in_numpy`:
    says whether NumPy makes a product, else PyTorch does.
    """
    import torch
    from threadpoolctl import threadpool_limits

    shares: list[list[Product]] = [[] for _ in range(available_cores())]
    for part in sorted(parts, key=flops_of, reverse=True):
        min(shares, key=flops_of).extend(part)
    works = []
    for share in filter(None, shares):
        memory = new_memory(share)
        works.append(
            [multiplication(one, memory, in_numpy(one)) for one in share]
        )

    def compute(calls: Sequence[Callable[[], Any]]) -> None:
        for multiply in calls:
            multiply()

    times = []
    one_core = partial(torch.set_num_threads, 1)
    with (
        threadpool_limits(1),
        ThreadPoolExecutor(len(works), initializer=one_core) as threads,
    ):
        for _ in range(repeats + 1):  # the first one warms up
            start = time.perf_counter()
            list(threads.map(compute, works))
            times.append(time.perf_counter() - start)
    flops = sum(map(flops_of, shares))
    return {'seconds': min(times[1:]), 'flops': flops}


def flops_of(products: Iterable[Product]) -> float:
    """Return the floating-point operations of some products."""
    return sum(product.flops for product in products)


def new_memory(products: Iterable[Product]) -> list[np.ndarray]:
    """Return float32 memory for both factors and the result of each product.

    It is written once, because the first use of memory takes long.
    """
    sizes = [
        (m * k * count, k * n * count, m * n * count)
        for m, k, n, count in products
    ]
    rng = np.random.default_rng(0)
    return [
        rng.random(size, np.float32)
        for size in np.max(sizes, axis=0).tolist()
    ]


def multiplication(
    product: Product, memory: Sequence[np.ndarray], in_numpy: bool
) -> Callable[[], Any]:
    """Return what makes a product in memory that is there."""
    import torch

    m, k, n, count = product
    axes = () if count == 1 else (count,)
    A, B, out = (
        part[: math.prod(shape)].reshape(shape)
        for part, shape in zip(
            memory, [(*axes, m, k), (*axes, k, n), (*axes, m, n)], strict=True
        )
    )
    if in_numpy:
        return partial(np.matmul, A, B, out=out)
    return partial(
        torch.matmul,
        *map(torch.from_numpy, (A, B)),
        out=torch.from_numpy(out),
    )
