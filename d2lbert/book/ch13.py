"""`train_ch13` and what it needs, as far as all frameworks share it.

The book trains image classifiers with it, and BERT's classifier of sentence
pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from backends.base import Backend
from backends.types import Array, Device
from d2lbert.book.animator import Accumulator, Animator, Timer

#: How many times an epoch's curve gets a point.
POINTS = 5


def accuracy(backend: Backend, y_hat: Array, y: Array) -> float:
    """Return how many predictions are right.

    `y_hat`: scores `(N, num_classes)`, or the predicted classes `(N,)`;
    `y`: the classes, `(N,)`.
    """
    predicted, labels = backend.to_numpy(y_hat), backend.to_numpy(y)
    if predicted.ndim > 1 and predicted.shape[1] > 1:
        predicted = predicted.argmax(axis=1)
    return float((predicted.astype(labels.dtype) == labels).sum())


def train(
    train_iter: Any,
    num_epochs: int,
    devices: Sequence[Device],
    train_batch: Callable[[Any, Any], tuple[Any, Any]],
    evaluate: Callable[[], float],
) -> None:
    """Train for some epochs, plot, and print the book's two lines.

    `train_batch`: takes the features and labels of a batch, and returns the
    sum of its losses and how many predictions were right; `evaluate`:
    returns the accuracy on the test set.
    """
    timer, num_batches = Timer(), len(train_iter)
    # The book divides by no fifth of fewer than five batches
    interval = max(1, num_batches // POINTS)
    animator = Animator(
        xlabel='epoch', xlim=[1, num_epochs], ylim=[0, 1],
        legend=['train loss', 'train acc', 'test acc'],
    )  # fmt: skip
    for epoch in range(num_epochs):
        # Sums of losses, of right predictions, of rows, of labels
        metric = Accumulator(4)
        for i, (features, labels) in enumerate(train_iter, 1):
            timer.start()
            loss, num_right = train_batch(features, labels)
            metric.add(loss, num_right, len(labels), math.prod(labels.shape))
            timer.stop()
            if i % interval == 0 or i == num_batches:
                means = metric[0] / metric[2], metric[1] / metric[3]
                animator.add(epoch + i / num_batches, (*means, None))
        test_acc = evaluate()
        animator.add(epoch + 1, (None, None, test_acc))
    print(
        f'loss {metric[0] / metric[2]:.3f}, '
        f'train acc {metric[1] / metric[3]:.3f}, test acc {test_acc:.3f}'
    )
    speed = metric[2] * num_epochs / timer.sum()
    print(f'{speed:.1f} examples/sec on {list(devices)}')
