"""The one training loop.

A step takes a batch, gives each device its share of the rows, cuts each
share into micro-batches of similar length, adds up their gradients, updates
the parameters once, and reports both losses. How a loss is normalised is
the recipe's business, how arrays are computed the backend's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from backends import base
from d2lbert import bert
from d2lbert.data.checks import check_batch
from d2lbert.data.examples import Batch
from d2lbert.errors import InputError, RunError, input_errors
from d2lbert.randomness import DropoutMasks, device_seed
from d2lbert.recipes import Recipe, check_lr
from d2lbert.weights import neutral_name

# Few enough shapes for a GPU to record each, and little done in vain
TOKENS, SLOTS = 8, 256


#: What waits for both losses of a micro-batch.
Later = tuple[Callable[[], np.ndarray], ...]


class Step(NamedTuple):
    """What one training step reports."""

    mlm_loss: float
    nsp_loss: float
    num_pairs: int
    seconds: float


class Worker(NamedTuple):
    """Who computes: for which shard, on which device, with which network.

    `gradients` adds those of its arguments to the network's and returns the
    losses.
    """

    shard: int
    device: base.Device
    net: Any
    gradients: Callable[..., tuple[Any, Any]]


class Launched(NamedTuple):
    """A step whose losses may still be on their way."""

    losses: list[Later]
    total: Callable[[], np.ndarray]
    number: int
    num_pairs: int
    start: float


class Trainer:
    """Trains a network on batches by a recipe.

    `net`: a `BERTModel` of either tab with its parameters set; `devices`:
    the backend's devices, a shard for each; `micro_batch`: how many rows go
    through the network at a time, by default as many as keep the device
    busy; `seed`: decides the dropout masks. `precision`: `'tf32'` and
    `'bf16'` are faster and inexact, and for PyTorch on CUDA cards only.
    `shared_masks`: draw the dropout masks that any framework would draw, as
    is done on a processor anyway, also on a GPU, where they take longer
    than all the rest.
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
        precision: str = 'float32',
        shared_masks: bool = False,
    ) -> None:
        check_lr(lr)
        with input_errors(), net.backend.precision(precision):
            pass
        if micro_batch is not None:
            check_positive(micro_batch=micro_batch)
        self.net = net
        self.backend = net.backend
        self.recipe = recipe
        self.devices = devices
        self.micro_batch = micro_batch
        self.lr = lr
        self.seed = seed
        self.precision = precision
        self.shared_masks = shared_masks
        self.on_gpu = any(map(self.backend.is_gpu, devices))
        #: Otherwise nothing is known of the network but what it returns.
        self.is_ours = losses_follow_forward(net)
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

    def train_ahead(
        self, batches: Iterable[Batch], num_steps: int
    ) -> Iterator[Step]:
        """Do as `train`, reporting a step when the next one is launched.

        A GPU then need not wait. The network is one step ahead of what has
        been reported, and a step's time is that from report to report.
        """
        start, waiting = time.perf_counter(), None
        with self.backend.accumulate_gradients(self.net):
            for _, batch in zip(range(num_steps), batches, strict=False):
                launched = self.launch(batch)
                if waiting:
                    yield self.report(waiting._replace(start=start))
                    start = time.perf_counter()
                waiting = launched
            if waiting:
                yield self.report(waiting._replace(start=start))

    def new_workers(self) -> list[Worker]:
        """Return who computes, each with a replica of the network."""
        workers = list(enumerate(self.devices))
        if self.is_ours:
            # A reader's own layers may not bear to be called side by side
            workers = self.backend.worker_devices(self.devices)
        shards, devices = zip(*workers, strict=True)
        with input_errors():
            replicas = self.backend.replicas(self.net, devices)
        return [
            Worker(shard, device, net, self.gradients_of(net, device))
            for shard, device, net in zip(
                shards, devices, replicas, strict=True
            )
        ]

    def close(self) -> None:
        """Leave the network on the devices that were given, for others.

        The trainer cannot be used any more.
        """
        self.backend.release_replicas(self.net, self.devices)

    def gradients_of(
        self, net: Any, device: base.Device
    ) -> Callable[..., tuple[Any, Any]]:
        """Return the function of a worker's inputs to its losses."""
        losses_of = (
            net.losses if self.is_ours else partial(losses_of_forward, net)
        )

        def gradients(*inputs: base.Array) -> tuple[Any, Any]:
            with (
                self.backend.precision(self.precision),
                self.backend.record(net),
            ):
                losses = losses_of(*inputs)
            self.backend.backward(losses)
            return losses

        # CUDA records one graph at a time in a process, for one card
        if (
            self.is_ours
            and self.draws_masks(device)
            and len(self.devices) == 1
        ):
            return self.backend.replayed(gradients, net, device)
        return gradients

    def draws_masks(self, device: base.Device) -> bool:
        """Say whether a device draws its dropout masks itself."""
        return self.backend.is_gpu(device) and not self.shared_masks

    def step(self, batch: Batch) -> Step:
        """Train on one batch."""
        return self.report(self.launch(batch))

    def launch(self, batch: Batch) -> Launched:
        """Train on one batch, without waiting for a GPU."""
        start = time.perf_counter()
        check_batch(batch, *self.num_embeddings())
        with self.backend.accumulate_gradients(self.net):
            losses = self.accumulate(batch)
            launched = Launched(
                losses,
                self.backend.to_numpy_later(self.backend.total(self.net)),
                self.num_steps + 1,
                len(batch.tokens),
                start,
            )
            if not self.on_gpu:
                # Before the update; what a GPU finds comes with its losses
                self.check_finite(launched)
            self.optimizer.step()
            self.num_steps += 1
        self.backend.broadcast_parameters(*self.replicas())
        return launched

    def num_embeddings(self) -> tuple[int, int]:
        """Return how many tokens and positions the network knows."""
        encoder = self.net.encoder
        _, num_positions, _ = encoder.pos_embedding.shape
        return encoder.token_embedding.weight.shape[0], num_positions

    def report(self, launched: Launched) -> Step:
        """Wait for a step and return what it reports."""
        if self.on_gpu:
            self.check_finite(launched)
        mlm_loss, nsp_loss = self.losses_of(launched)
        seconds = time.perf_counter() - launched.start
        return Step(mlm_loss, nsp_loss, launched.num_pairs, seconds)

    def losses_of(self, launched: Launched) -> list[float]:
        """Wait for both losses of a step, as the recipe reports them."""
        return [
            self.recipe.reported(loss, len(self.devices))
            for loss in self.read(launched.losses)
        ]

    def check_finite(self, launched: Launched) -> None:
        """Raise `RunError` where a step has numbers that are not finite."""
        losses = self.losses_of(launched)
        if np.isfinite([*losses, launched.total().item()]).all():
            return
        faults = [
            f'the {task} loss is {loss}'
            for task, loss in zip(('MLM', 'NSP'), losses, strict=True)
            if not np.isfinite(loss)
        ]
        faults += [
            f'{kind} {neutral_name(self.net, name)} is not finite'
            for kind, arrays in (
                ('the parameter', self.backend.parameters(self.net)),
                ('the gradient of', self.backend.gradients(self.net)),
            )
            for name, array in arrays.items()
            if not np.isfinite(array).all()
        ]
        if faults:
            more = f' and {len(faults) - 4} more' if len(faults) > 4 else ''
            raise RunError(
                f'the training diverged at step {launched.number}: '
                f'{"; ".join(faults[:4])}{more}. Give a smaller --lr than '
                f'{self.lr}'
            )

    def accumulate(self, batch: Batch) -> list[Later]:
        """Sum the gradients of a batch in those of `net`.

        Returns the losses of each micro-batch, not yet waited for.
        """
        shards = base.shard_slices(len(batch.tokens), len(self.devices))
        weights = self.recipe.loss_weights(batch, shards)
        queues = self.share_out(batch, shards)
        nets, devices = self.replicas()
        for net in dict.fromkeys(nets):  # in MXNet all are one
            self.backend.zero_gradients(net)
        work = partial(self.work, batch, weights)
        with self.backend.side_by_side(len(self.workers)) as worker_map:
            losses = list(worker_map(work, self.workers, queues))
        self.backend.allreduce_gradients(nets, devices)
        return [
            tuple(map(self.backend.to_numpy_later, pair))
            for pair in chain.from_iterable(losses)
        ]

    def replicas(self) -> tuple[list[Any], list[base.Device]]:
        """Return the networks of all workers, and where each is."""
        return (
            [worker.net for worker in self.workers],
            [worker.device for worker in self.workers],
        )

    def share_out(
        self, batch: Batch, shards: Sequence[slice]
    ) -> list[list[np.ndarray]]:
        """Return the rows of the micro-batches of each worker.

        The next goes to who has the fewest tokens yet: all workers of a
        shard then need about as long.
        """
        queues: list[list[np.ndarray]] = [[] for _ in self.workers]
        num_tokens = [0] * len(self.workers)
        for shard, shard_rows in enumerate(shards):
            own = [i for i, w in enumerate(self.workers) if w.shard == shard]
            for rows in micro_batches(
                batch, shard_rows, self.rows_at_a_time(batch)
            ):
                i = min(own, key=num_tokens.__getitem__)
                queues[i].append(rows)
                num_tokens[i] += batch.valid_lens[rows].sum()
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
            part = batch.rows(rows)
            inputs, queries = self.inputs_for(worker)(
                part, mlm_weights[rows], nsp_weights[rows]
            )
            arrays = [
                self.backend.tensor(array, worker.device) for array in inputs
            ]
            with self.dropout(worker, rows, part.valid_lens, queries):
                losses.append(worker.gradients(*arrays))
        return losses

    def inputs_for(
        self, worker: Worker
    ) -> Callable[..., tuple[tuple[np.ndarray, ...], np.ndarray | None]]:
        """Return what makes the arguments of a worker's gradients."""
        if not self.is_ours:
            return plain_inputs
        return partial(
            loss_inputs, few_shapes=self.draws_masks(worker.device)
        )

    def dropout(
        self,
        worker: Worker,
        rows: np.ndarray,
        lens: np.ndarray,
        queries: np.ndarray | None,
    ) -> AbstractContextManager[None]:
        """Within this context dropout is that of some rows of this step."""
        if self.draws_masks(worker.device):
            self.backend.seed(
                worker.device,
                device_seed(self.seed, self.num_steps, rows[0]),
            )
            return nullcontext()
        return base.dropout_masks(
            DropoutMasks(self.seed, self.num_steps, rows, lens, queries)
        )

    def rows_at_a_time(self, batch: Batch) -> int:
        """Return how many rows a micro-batch has."""
        num_tokens = max(map(self.backend.tokens_at_a_time, self.devices))
        return self.micro_batch or max(1, num_tokens // batch.tokens.shape[1])

    def read(self, losses: Sequence[Later]) -> np.ndarray:
        """Wait for the losses of a step's micro-batches and add them up."""
        return np.sum(
            [[wait().item() for wait in pair] for pair in losses], axis=0
        )


def losses_follow_forward(net: Any) -> bool:
    """Say whether `net.losses` is the loss of what `net.forward` returns.

    Of a reader's own `forward`, in the network or in one of these parts,
    nothing is known but what it returns; the same holds where a head ends
    in anything but a linear layer with a bias.
    """
    *_, last_blk = net.encoder.blks
    if any(
        getattr(layer, 'bias', None) is None
        for layer in (net.mlm.mlp[-1], net.nsp.output)
    ):
        return False
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
) -> tuple[tuple[np.ndarray, ...], None]:
    """Return the arguments of `losses_of_forward` for a micro-batch."""
    return (
        *batch[:4],
        batch.mlm_labels,
        mlm_weights,
        batch.nsp_labels,
        nsp_weights,
    ), None


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
    batch: Batch,
    mlm_weights: np.ndarray,
    nsp_weights: np.ndarray,
    few_shapes: bool = False,
) -> tuple[tuple[np.ndarray, ...], np.ndarray | None]:
    """Return the arguments of `BERTModel.losses` for a micro-batch.

    Rows are cut to the longest. Slots that ask the same of the same
    position, as all padding of a row does, become one with the sum of their
    weights, and slots without weight are left out: the loss is the same.
    With `few_shapes`, for what is to be replayed, rows are cut to a multiple
    of `TOKENS`, and slots of no weight make theirs a multiple of `SLOTS`.
    There is always one, for MXNet has no empty arrays.
    The second result is the position of each query, `(B, Q)`, or `None`
    where every token is one.
    """
    num_rows, max_len = batch.tokens.shape
    num_tokens = int(batch.valid_lens.max())
    if few_shapes:
        num_tokens = min(max_len, num_tokens + -num_tokens % TOKENS)
    row, slot = np.nonzero(mlm_weights)
    position = batch.pred_positions[row, slot]
    label = batch.mlm_labels[row, slot]
    # One number a question, because NumPy sorts numbers faster than columns
    num_labels = label.max(initial=0) + 1
    question = (row * num_tokens + position) * num_labels + label
    asked, which = np.unique(question, return_inverse=True)
    flat_position, labels = np.divmod(asked, num_labels)
    row, position = np.divmod(flat_position, num_tokens)
    weights = np.bincount(which.ravel(), mlm_weights[mlm_weights != 0])
    # Each row's queries are `<cls>` and then the positions asked, in order
    wanted = np.zeros((num_rows, num_tokens), bool)
    wanted[:, 0] = wanted[row, position] = True
    if wanted.all(axis=1).any():
        wanted[:] = True
    query = wanted.cumsum(axis=1) - 1
    num_queries = query.max() + 1
    if few_shapes:
        num_queries = batch.pred_positions.shape[1] + 1
    queries = np.zeros((num_rows, num_queries), np.int32)
    queries[np.nonzero(wanted)[0], query[wanted]] = np.nonzero(wanted)[1]
    slots = row * num_queries + query[row, position]
    num_slots = max(1, len(slots))
    if few_shapes:
        num_slots += -num_slots % SLOTS
    more = (0, num_slots - len(slots))
    slots, labels = np.pad(slots, more), np.pad(labels, more)
    weights = np.pad(weights, more)
    return (
        batch.tokens[:, :num_tokens],
        batch.segments[:, :num_tokens],
        batch.valid_lens,
        np.arange(num_rows)[:, None] * num_tokens + queries,
        slots,
        labels,
        weights.astype(np.float32),
        batch.nsp_labels,
        nsp_weights,
    ), None if wanted.all() else queries


def check_positive(**values: float) -> None:
    """Raise `InputError` for a value that is not finite and positive."""
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise InputError(f'{name} = {value}: expected a positive number')
