"""Minibatches of examples, in an order that depends on a seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from d2lbert.errors import InputError
from d2lbert.randomness import generator


class Batches:
    """The examples in minibatches, newly shuffled in each epoch.

    `examples`: of any task, with `num_examples` and `rows`, as `Examples`.
    Each iteration yields the batches of one epoch; `epoch` is the number of
    the next one. The last batch of an epoch has the rows that are left.
    """

    def __init__(self, examples: Any, batch_size: int, seed: int = 0) -> None:
        if batch_size < 1:
            raise InputError(f'batch_size = {batch_size}: expected 1 or more')
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.examples.num_examples // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        order = generator(self.seed, 'order', epoch).permutation(
            self.examples.num_examples
        )
        for start in range(0, len(order), self.batch_size):
            yield self.examples.rows(order[start : start + self.batch_size])

    def from_step(self, step: int) -> Iterator[Any]:
        """Yield batches without end, beginning with the one of `step`."""
        self.epoch, skipped = divmod(step, len(self))
        while True:
            yield from islice(self, skipped, None)
            skipped = 0
