"""The one training loop.

A step takes a batch, gives each device its share of the rows, cuts each
share into micro-batches of similar length, adds up their gradients, updates
the parameters once, and reports both losses. How a loss is normalised is
the recipe's business, how arrays are computed the backend's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from backends import base
from d2lbert import bert
from d2lbert.data.examples import Batch
from d2lbert.errors import InputError
from d2lbert.randomness import DropoutMasks
from d2lbert.recipes import Recipe

# A micro-batch of this many tokens keeps both the processor and its caches
# busy; larger ones only take more memory.
MICRO_BATCH_TOKENS = 8192


class Step(NamedTuple):
    """What one training step reports."""

    mlm_loss: float
    nsp_loss: float
    num_pairs: int
    seconds: float


class Worker(NamedTuple):
    """Who computes: for which shard, on which device, with which network."""

    shard: int
    device: base.Device
    net: Any


class Trainer:
    """Trains a network on batches by a recipe.

    `net`: a `BERTModel` of either tab with its parameters set; `devices`:
    the backend's devices, a shard for each; `micro_batch`: how many rows go
    through the network at a time, by default as many as make about 8,000
    tokens; `seed`: decides the dropout masks.
    """

    def __init__(
        self,
        net: Any,
        recipe: Recipe,
        *,
        lr: float,
        devices: Sequence[base.Device],
        micro_batch: int | None = None,
        seed: int = 0,
    ) -> None:
        check_positive(lr=lr)
        if micro_batch is not None:
            check_positive(micro_batch=micro_batch)
        self.net = net
        self.backend = net.backend
        self.recipe = recipe
        self.devices = devices
        self.micro_batch = micro_batch
        self.seed = seed
        self.workers = self.new_workers()
        self.optimizer = self.backend.Adam(
            net, lr, recipe.epsilon_inside, bert.ZERO_GRADIENT
        )
        self.num_steps = 0

    def train(
        self, batches: Iterable[Batch], num_steps: int
    ) -> Iterator[Step]:
        """Take `num_steps` steps, yielding what each reports."""
        with self.backend.accumulate_gradients(self.net):
            for _, batch in zip(range(num_steps), batches, strict=False):
                yield self.step(batch)

    def new_workers(self) -> list[Worker]:
        """Return who computes, each with a replica of the network."""
        workers = list(enumerate(self.devices))
        if losses_follow_forward(self.net):
            # A reader's own layers may not bear to be called side by side
            workers = self.backend.worker_devices(self.devices)
        shards, devices = zip(*workers, strict=True)
        replicas = self.backend.replicas(self.net, devices)
        return list(map(Worker, shards, devices, replicas))

    def step(self, batch: Batch) -> Step:
        """Train on one batch."""
        start = time.perf_counter()
        with self.backend.accumulate_gradients(self.net):
            losses = self.accumulate(batch)
            self.optimizer.step()
        _, devices, replicas = zip(*self.workers, strict=True)
        self.backend.broadcast_parameters(replicas, devices)
        self.num_steps += 1
        self.backend.synchronize()
        mlm_loss, nsp_loss = (
            self.recipe.reported(loss, len(self.devices))
            for loss in self.read(losses)
        )
        return Step(
            mlm_loss, nsp_loss, len(batch.tokens), time.perf_counter() - start
        )

    def accumulate(self, batch: Batch) -> list[tuple[Any, Any]]:
        """Sum the gradients of a batch in those of `net`.

        Returns both losses of each micro-batch, not yet waited for.
        """
        shards = base.shard_slices(len(batch.tokens), len(self.devices))
        weights = self.recipe.loss_weights(batch, shards)
        queues = self.share_out(batch, shards)
        for worker in self.workers:
            self.backend.zero_gradients(worker.net)
        work = partial(self.work, batch, weights)
        with self.backend.side_by_side(len(self.workers)) as worker_map:
            losses = list(worker_map(work, self.workers, queues))
        _, devices, replicas = zip(*self.workers, strict=True)
        self.backend.allreduce_gradients(replicas, devices)
        return list(chain.from_iterable(losses))

    def share_out(
        self, batch: Batch, shards: Sequence[slice]
    ) -> list[list[np.ndarray]]:
        """Return the rows of the micro-batches of each worker."""
        waiting = [
            micro_batches(batch, rows, self.rows_at_a_time(batch))
            for rows in shards
        ]
        queues: list[list[np.ndarray]] = [[] for _ in self.workers]
        while any(waiting):
            for queue, worker in zip(queues, self.workers, strict=True):
                if waiting[worker.shard]:
                    queue.append(waiting[worker.shard].pop(0))
        return queues

    def work(
        self,
        batch: Batch,
        weights: tuple[np.ndarray, np.ndarray],
        worker: Worker,
        queue: Sequence[np.ndarray],
    ) -> list[tuple[Any, Any]]:
        """Add up the gradients of a worker's micro-batches."""
        mlm_weights, nsp_weights = weights
        losses = []
        for rows in queue:
            loss = self.forward(
                worker,
                batch.rows(rows),
                rows,
                mlm_weights[rows],
                nsp_weights[rows],
            )
            self.backend.backward(loss)
            losses.append(loss)
        return losses

    def forward(
        self,
        worker: Worker,
        batch: Batch,
        rows: np.ndarray,
        mlm_weights: np.ndarray,
        nsp_weights: np.ndarray,
    ) -> tuple[Any, Any]:
        """Return both losses of a micro-batch, recorded for `backward`."""
        net, queries = worker.net, None
        if losses_follow_forward(net):
            losses = net.losses
            inputs, queries = loss_inputs(batch, mlm_weights, nsp_weights)
        else:
            losses = partial(losses_of_forward, net)
            inputs = plain_inputs(batch, mlm_weights, nsp_weights)
        arrays = [
            self.backend.tensor(array, worker.device) for array in inputs
        ]
        masks = DropoutMasks(
            self.seed, self.num_steps, rows, batch.valid_lens, queries
        )
        with self.backend.record(net), base.dropout_masks(masks):
            return losses(*arrays)

    def rows_at_a_time(self, batch: Batch) -> int:
        """Return how many rows a micro-batch has."""
        return self.micro_batch or max(
            1, MICRO_BATCH_TOKENS // batch.tokens.shape[1]
        )

    def read(self, losses: Sequence[tuple[Any, Any]]) -> np.ndarray:
        """Wait for the losses of a step's micro-batches and add them up."""
        return np.sum(
            [
                [self.backend.to_numpy(loss).item() for loss in pair]
                for pair in losses
            ],
            axis=0,
        )


def losses_follow_forward(net: Any) -> bool:
    """Say whether `net.losses` is the loss of what `net.forward` returns.

    Of a reader's own `forward`, in the network or in one of these parts,
    nothing is known but what it returns.
    """
    *_, last_blk = net.encoder.blks
    return all(
        type(part).forward is definition.forward
        for part, definition in (
            (net, bert.BERTModel),
            (net.encoder, bert.BERTEncoder),
            (last_blk, bert.TransformerEncoderBlock),
            (net.mlm, bert.MaskLM),
            (net.nsp, bert.NextSentencePred),
        )
    )


def losses_of_forward(
    net: Any,
    tokens: base.Array,
    segments: base.Array,
    valid_lens: base.Array,
    pred_positions: base.Array,
    mlm_labels: base.Array,
    mlm_weights: base.Array,
    nsp_labels: base.Array,
    nsp_weights: base.Array,
) -> tuple[Any, Any]:
    """Return what `BERTModel.losses` does, from the outputs of `forward`.

    The plain way, which holds all logits.
    """
    _, mlm_Y_hat, nsp_Y_hat = net(
        tokens, segments, valid_lens, pred_positions
    )
    cross_entropy = net.backend.cross_entropy
    mlm_l = cross_entropy(
        mlm_Y_hat.reshape((-1, mlm_Y_hat.shape[-1])),
        mlm_labels.reshape((-1,)),
        mlm_weights.reshape((-1,)),
    )
    return mlm_l, cross_entropy(nsp_Y_hat, nsp_labels, nsp_weights)


def plain_inputs(
    batch: Batch, mlm_weights: np.ndarray, nsp_weights: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Return the arguments of `losses_of_forward` for a micro-batch."""
    return (
        *batch[:4],
        batch.mlm_labels,
        mlm_weights,
        batch.nsp_labels,
        nsp_weights,
    )


def micro_batches(
    batch: Batch, shard: slice, num_rows: int
) -> list[np.ndarray]:
    """Return the rows of each micro-batch of a shard, longest rows first.

    Rows of similar length go together, so that little is padding. The
    longest come first because they decide how much memory is needed.
    """
    rows = np.arange(len(batch.tokens))[shard]
    rows = rows[np.argsort(-batch.valid_lens[rows], kind='stable')]
    return [
        rows[start : start + num_rows]
        for start in range(0, len(rows), num_rows)
    ]


def loss_inputs(
    batch: Batch, mlm_weights: np.ndarray, nsp_weights: np.ndarray
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Return the arguments of `BERTModel.losses` for a micro-batch.

    Rows are cut to the longest. Slots that ask the same of the same
    position, as all padding of a row does, become one with the sum of their
    weights, and slots without weight are left out: the loss is the same.
    The second result is the position of each query, `(B, Q)`.
    """
    num_rows, num_tokens = len(batch.tokens), int(batch.valid_lens.max())
    row, slot = np.nonzero(mlm_weights)
    position = batch.pred_positions[row, slot]
    asked, which = np.unique(
        np.stack([row, position, batch.mlm_labels[row, slot]]),
        axis=1,
        return_inverse=True,
    )
    row, position, labels = asked
    weights = np.bincount(which.ravel(), mlm_weights[mlm_weights != 0])
    # Each row's queries are `<cls>` and then the positions asked, in order
    wanted = np.zeros((num_rows, num_tokens), bool)
    wanted[:, 0] = wanted[row, position] = True
    query = wanted.cumsum(axis=1) - 1
    queries = np.zeros((num_rows, query.max() + 1), np.int32)
    queries[np.nonzero(wanted)[0], query[wanted]] = np.nonzero(wanted)[1]
    num_queries = queries.shape[1]
    return (
        batch.tokens[:, :num_tokens],
        batch.segments[:, :num_tokens],
        batch.valid_lens,
        np.arange(num_rows)[:, None] * num_tokens + queries,
        row * num_queries + query[row, position],
        labels,
        weights.astype(np.float32),
        batch.nsp_labels,
        nsp_weights,
    ), queries


def check_positive(**values: float) -> None:
    """Raise `InputError` for a value that is not finite and positive."""
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise InputError(f'{name} = {value}: expected a positive number')
