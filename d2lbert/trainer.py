"""The one training loop.

A step takes a batch, gives each device its share of the rows, cuts each share
into micro-batches of similar length, sums their gradients, updates the
parameters, and reports its losses. The recipe decides how a loss is averaged,
and the backend how arrays are computed. Another task replaces "the task".
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, ClassVar, NamedTuple

import numpy as np

from backends.base import Gradients
from backends.devices import shard_slices
from backends.types import Device, Part
from d2lbert.bert import ZERO_GRADIENT
from d2lbert.data.checks import check_batch
from d2lbert.divergence import check_parameters, check_step
from d2lbert.errors import check_positive, input_errors
from d2lbert.micro_batches import micro_batches, rows_at_a_time
from d2lbert.randomness import DropoutMasks
from d2lbert.recipes import CONSTANT, Recipe, check_lr
from d2lbert.slots import loss_inputs


class Step(NamedTuple):
    """What one training step reports."""

    mlm_loss: float
    nsp_loss: float
    num_pairs: int
    seconds: float


class PendingStep(NamedTuple):
    """A step that was submitted to the device and may still run there."""

    gradients: Gradients
    number: int
    num_pairs: int


class Trainer:
    """Trains a network on batches by a recipe.

    `net`: a `BERTModel` of any tab with its parameters set; `devices`: the
    backend's devices, a shard for each; `schedule`: the share of `lr` that a
    step has, by its number from 1; `micro_batch`: rows that go through the
    network at a time, by default as many as keep the device busy; `seed`: of
    the dropout masks; `checkpoint_blocks`: compute the encoder's blocks
    again in the backward pass; `options`: see `Backend.data_parallel`.
    """

    #: What the network's `losses` are called in errors.
    LOSSES: ClassVar[Sequence[str]] = ('MLM loss', 'NSP loss')

    def __init__(
        self,
        net: Any,
        recipe: Recipe,
        *,
        lr: float,
        devices: Sequence[Device],
        schedule: Callable[[int], float] = CONSTANT,
        micro_batch: int | None = None,
        seed: int = 0,
        checkpoint_blocks: bool = False,
        **options: Any,
    ) -> None:
        check_lr(lr)
        if micro_batch is not None:
            check_positive(micro_batch=micro_batch)
        self.net = net
        self.recipe = recipe
        self.lr = lr
        self.schedule = schedule
        self.micro_batch = micro_batch
        self.seed = seed
        with input_errors():
            self.parallel = net.backend.data_parallel(
                net,
                type(net).losses,
                devices,
                recompute=checkpoint_blocks,
                **options,
            )
        self.optimizer = net.backend.Adam(
            net, lr, recipe.epsilon_inside, ZERO_GRADIENT, recipe.weight_decay
        )
        self.num_steps = 0

    def train(self, batches: Iterable[Any], num_steps: int) -> Iterator[Any]:
        """Take `num_steps` steps, or as many as there are batches.

        Yields what each reports. Where the device is asynchronous a step is
        reported when the next one has been launched, so that the device need
        not wait: until the last report the network is a step ahead. The time
        of a step is that from the caller's request to the report. Raises
        `RunError` for numbers that are not finite, also after the last step.
        """
        lag = int(self.runs_ahead)
        waiting: deque[PendingStep] = deque()
        start = time.perf_counter()
        for batch in islice(batches, num_steps):
            waiting.append(self.launch(batch))
            if len(waiting) > lag:
                yield self.report(waiting.popleft(), start)
                start = time.perf_counter()
        for pending in waiting:
            yield self.report(pending, start)
        # The next step would have noticed what the last update has done
        check_parameters(self.net, self.num_steps, self.lr)

    def step(self, batch: Any) -> Any:
        """Take one step and return what it reports."""
        (step,) = self.train([batch], 1)
        return step

    def close(self) -> None:
        """Leave the network to others; the trainer is of no use any more."""
        self.parallel.close()

    def launch(self, batch: Any) -> PendingStep:
        """Compute a step, and wait for it unless the trainer runs ahead."""
        gradients, number = self.value_and_grad(batch), self.num_steps + 1
        pending = PendingStep(gradients, number, len(batch.tokens))
        if not self.runs_ahead:
            self.check_finite(pending)
        scale = self.recipe.scale(gradients)
        self.optimizer.step(gradients, self.next_lr(), scale)
        self.num_steps += 1
        return pending

    @property
    def runs_ahead(self) -> bool:
        """Whether a step is launched before the last one is finished.

        To clip a gradient its norm must be known.
        """
        return self.parallel.asynchronous and not self.recipe.clips

    def next_lr(self) -> float:
        """Return the learning rate of the next step."""
        return self.lr * self.schedule(self.num_steps + 1)

    def value_and_grad(self, batch: Any) -> Gradients:
        """Return the losses and gradients of a batch for the next step.

        Raises `InputError` for a batch that does not fit the network or the
        devices.
        """
        self.check_batch(batch)
        with input_errors():
            shards = shard_slices(len(batch.tokens), self.parallel.num_shards)
        weights = self.recipe.loss_weights(batch, shards)
        own = [shards[i] for i in self.parallel.own_shards]
        return self.parallel.value_and_grad(
            [self.parts(batch, weights, shard) for shard in own]
        )

    def parts(
        self, batch: Any, weights: Sequence[np.ndarray], shard: slice
    ) -> list[Part]:
        """Return the micro-batches of a shard."""
        parallel = self.parallel
        num_rows = self.micro_batch or rows_at_a_time(
            shard.stop - shard.start,
            batch.tokens.shape[1],
            max(1, parallel.num_workers // parallel.num_shards),
            parallel.least_tokens,
            parallel.tokens_at_a_time,
        )
        parts = []
        for rows in micro_batches(batch, shard, num_rows):
            part = batch.rows(rows)
            inputs = self.loss_inputs(part, [W[rows] for W in weights])
            masks = DropoutMasks(
                self.seed,
                self.num_steps,
                rows,
                part.valid_lens,
                inputs.tokens.shape[1],
                inputs.queries,
            )
            parts.append(Part(inputs, masks, float(part.valid_lens.sum())))
        return parts

    def report(self, pending: PendingStep, start: float) -> Any:
        """Wait for a step and return what it reports.

        `start`: the time at which the caller has asked for it.
        """
        if self.runs_ahead:
            self.check_finite(pending)
        losses = self.losses_of(pending)
        seconds = time.perf_counter() - start
        return self.new_step(losses, pending.num_pairs, seconds)

    def check_finite(self, pending: PendingStep) -> None:
        """Raise `RunError` where a step has numbers that are not finite."""
        check_step(
            self.net,
            dict(zip(self.LOSSES, self.losses_of(pending), strict=True)),
            pending.gradients,
            pending.number,
            self.lr,
            # By now the device may hold the numbers of a later step
            is_newest=pending.number >= self.num_steps,
        )

    # ---- the task ----------------------------------------------------

    def check_batch(self, batch: Any) -> None:
        """Raise `InputError` for a batch that the network cannot take."""
        check_batch(batch, self.net.vocab_size, self.net.max_len)

    def loss_inputs(self, part: Any, weights: Sequence[np.ndarray]) -> Any:
        """Return the arguments of the network's `losses` for some rows.

        `weights`: their part of what `Recipe.loss_weights` returns.
        """
        mlm_weights, nsp_weights = weights
        return loss_inputs(
            part,
            mlm_weights,
            nsp_weights,
            self.parallel.num_lengths,
            self.parallel.skips_slots,
        )

    def losses_of(self, pending: PendingStep) -> list[float]:
        """Return the losses of a step, as the recipe reports them."""
        num_shards = self.parallel.num_shards
        return [
            self.recipe.reported(float(loss), num_shards)
            for loss in pending.gradients.losses()
        ]

    def new_step(
        self, losses: Sequence[float], num_pairs: int, seconds: float
    ) -> Any:
        """Return what a step reports."""
        mlm_loss, nsp_loss = losses
        return Step(mlm_loss, nsp_loss, num_pairs, seconds)
