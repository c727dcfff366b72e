"""The minibatches of a dataset, where the framework has no loader."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np


class DataLoader:
    """Minibatches of a dataset: `dataset[indices]` of a few at a time.

    `shuffle`: whether each epoch has a new order, which Python's `random`
    decides. The last batch has the rows that are left.
    """

    def __init__(
        self, dataset: Any, batch_size: int, shuffle: bool = False
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        order = list(range(len(self.dataset)))
        if self.shuffle:
            random.shuffle(order)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            yield self.dataset[np.array(rows)]
