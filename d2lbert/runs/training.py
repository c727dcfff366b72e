"""The training of a run: the loop, its checkpoints, and how it stops.

Batches, dropout and weights come from addressed streams of random numbers
(`d2lbert.randomness`). A checkpoint therefore needs only the parameters,
Adam's moments and the number of steps to go on bit by bit.

What is here serves each task. A task is a subclass of `Training`, which
replaces the methods under "the task".
"""

from __future__ import annotations

import platform
import shlex
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import cached_property
from itertools import compress, takewhile
from typing import Any, ClassVar

import numpy as np

from backends.groups import Group
from d2lbert.data.batches import Batches
from d2lbert.data.vocab import Vocab
from d2lbert.errors import InputError, Stopped, warn
from d2lbert.runs import display
from d2lbert.runs.checkpoint import (
    STEPS,
    Checkpoint,
    Checkpoints,
    check_arrays,
)
from d2lbert.runs.config import different
from d2lbert.runs.processes import check_alike
from d2lbert.runs.signals import STOP_SIGNALS, StopSignals
from d2lbert.runs.trained import TrainedRun, versions
from d2lbert.weights import (
    get_weights,
    neutral_name,
    neutral_shapes,
    set_weights,
)

WEIGHTS, BEST = 'weights.', 'best.'


class Training(ABC):
    """A run that is being trained: its examples and its trainer.

    `config`: its options; `progress`: show a progress bar; `group`: the
    processes that train it. Without `checkpoints`, as in all of them but
    rank 0, nothing is written.
    """

    #: The classes of its runs and of their options.
    RUN: ClassVar[type[TrainedRun]]
    CONFIG: ClassVar[Any]
    #: The option that says how long to train.
    LENGTH: ClassVar[str]

    #: What `read` sets: the examples to train on, as `Batches` takes them,
    #: and the vocabulary of the network.
    examples: Any
    vocab: Vocab

    def __init__(
        self,
        config: Any,
        progress: bool,
        group: Group,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        if group.framework not in (None, config.backend):
            raise InputError(
                f'backend = {config.backend!r}: a launcher of '
                f'{group.framework!r} has started this process; give that '
                'backend, or start the command alone'
            )
        self.config = config
        self.group = group
        self.progress = progress and group.rank == 0
        self.checkpoints = checkpoints
        self.read()
        if group.size > 1:
            check_alike(group, self.alike())
        self.run = self.new_run()
        self.trainer = self.run.new_trainer(group=group)

    def alike(self) -> dict[str, Any]:
        """Return what all processes must have alike."""
        config = self.config
        about = config.as_dict() | versions(config.backend) | self.data
        return {
            name: value
            for name, value in about.items()
            if name not in (*config.OWN, 'python')
        }

    def train(self, check_held: Callable[[], None] = lambda: None) -> Any:
        """Take the steps that are left; keep the run and its checkpoints.

        `check_held`: see `locked`. A signal in any process stops the training
        of all after the same step. Raises `Stopped` then, at the latest when
        the run is written.
        """
        run, config, checkpoints = self.run, self.config, self.checkpoints
        batches = Batches(self.examples, config.batch_size, config.seed)
        with (
            display.Progress(
                run.framework(),
                self.num_steps,
                len(run.steps),
                self.progress,
            ) as bar,
            StopSignals() as signals,
            closing(self.trainer),
        ):
            until_stopped = takewhile(
                lambda _: not self.received(signals),
                batches.from_step(len(run.steps)),
            )
            while num_steps := self.num_until_pause():
                # A segment ends at an evaluation or a checkpoint. Inside of
                # it a GPU may have computed a step more than was reported;
                # at its end both agree
                for step in self.trainer.train(until_stopped, num_steps):
                    run.steps.append(step)
                    bar.show(**self.shown(step))
                received = self.received(signals)
                is_stopped = received and self.is_unfinished()
                if self.is_evaluation_due():
                    # All processes do so: each would wait for the others
                    bar.note(**self.evaluate())
                if checkpoints and (is_stopped or self.is_checkpoint_due()):
                    check_held()
                    checkpoints.save(self.checkpoint())
                if is_stopped:
                    break
            else:
                if checkpoints:
                    run.write(checkpoints.run_folder, check_held)
            # All have done their part, or one of them has failed
            received = self.received(signals)
        if received:
            raise Stopped(received, self.farewell(received), run)
        # A signal ends the drawing at once: all numbers are written
        if checkpoints:
            run.draw(checkpoints.run_folder, check_held)
        return run

    def received(self, signals: StopSignals) -> int | None:
        """Return the signal that this or another process has received."""
        flags = self.group.any(
            *(signals.received == number for number in STOP_SIGNALS)
        )
        return next(compress(STOP_SIGNALS, flags), None)

    def is_unfinished(self) -> bool:
        """Return whether there are steps left."""
        return len(self.run.steps) < self.num_steps

    def num_until_pause(self) -> int:
        """Return how many steps to take at a time: 0 at the end."""
        num_done = len(self.run.steps)
        pauses = filter(None, (self.config.save_every, self.evaluate_every))
        return min(
            self.num_steps - num_done,
            *(every - num_done % every for every in pauses),
            self.num_steps,
        )

    def is_evaluation_due(self) -> bool:
        """Return whether to evaluate the network after this step."""
        run, num_done = self.run, len(self.run.steps)
        last = run.evaluations[-1]['step'] if run.evaluations else 0
        every = self.evaluate_every
        return every is not None and num_done % every == 0 and num_done > last

    def is_checkpoint_due(self) -> bool:
        """Return whether to write a checkpoint after this step."""
        every = self.config.save_every
        if every and self.is_unfinished():
            return len(self.run.steps) % every == 0
        is_kept = every or (self.checkpoints and self.checkpoints.known)
        return bool(is_kept) and not self.is_unfinished()

    def farewell(self, number: int) -> str:
        """Return the message after a signal."""
        stopped = (
            f'stopped by {signal.Signals(number).name} after step '
            f'{len(self.run.steps)} of {self.num_steps}'
        )
        if self.group.rank:
            return stopped  # rank 0 says more
        if not self.checkpoints:
            return (
                f'{stopped}. Without a folder only this error keeps its run'
            )
        folder = self.checkpoints.run_folder
        if not self.is_unfinished():
            return (
                f'{stopped}. The run is whole in {folder}, without a picture'
            )
        return (
            f'{stopped}. Continue with: d2lbert {self.RUN.COMMAND} --resume '
            f'--out {shlex.quote(str(folder))}'
        )

    # ---- checkpoints -------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """Return the state of the training, by names of no framework."""
        return Checkpoint(
            self.config.as_dict(),
            self.data,
            self.environment(),
            self.arrays(),
            self.run.evaluations,
            self.RUN.COMMAND,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Set the state of the training to that of a checkpoint.

        Raises `RunError`, with nothing changed, where it does not fit.
        Warns where the rest of the run will differ by rounding from an
        uninterrupted one.
        """
        arrays, num_steps = checkpoint.arrays, checkpoint.num_steps
        run, net = self.run, self.run.net
        has_best = any(name.startswith(BEST) for name in arrays)
        best = self.best_arrays(get_weights(net) if has_best else {})
        steps = np.empty((num_steps, len(run.STEP._fields)))
        check_arrays(arrays, self.arrays() | {STEPS: steps} | best)
        changes = different(checkpoint.environment, self.environment())
        if changes:
            warn(
                'the rest of the run may differ from an uninterrupted one by '
                f'rounding: {"; ".join(changes)}'
            )
        names = neutral_shapes(net)
        set_weights(net, {name: arrays[WEIGHTS + name] for name in names})
        # The old trainer may hold copies of the parameters
        self.trainer.close()
        self.trainer = run.new_trainer(group=self.group)
        self.trainer.num_steps = num_steps
        optimizer = self.trainer.optimizer
        moments = {
            name: arrays[self.moment_name(name)] for name in optimizer.state()
        }
        optimizer.load_state(moments, num_steps)
        run.evaluations = checkpoint.evaluations
        run.best_weights = {
            name: arrays[BEST + name] for name in names if best
        }
        found = map(run.STEP._make, arrays[STEPS].tolist())
        run.steps = [
            step._replace(num_pairs=int(step.num_pairs)) for step in found
        ]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that `d2lbert.runs.checkpoint` describes."""
        run = self.run
        weights = get_weights(run.net)
        moments = self.trainer.optimizer.state()
        steps = np.array(run.steps, np.float64)
        return {
            **{WEIGHTS + name: W for name, W in weights.items()},
            **{self.moment_name(name): M for name, M in moments.items()},
            STEPS: steps.reshape(-1, len(run.STEP._fields)),
            **self.best_arrays(run.best_weights),
        }

    def best_arrays(
        self, weights: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Return the best weights by their names in a checkpoint."""
        return {BEST + name: W for name, W in weights.items()}

    def moment_name(self, name: str) -> str:
        """Return what a checkpoint calls one of Adam's moments, `NAME.m`."""
        name, _, moment = name.rpartition('.')
        return f'{moment}.{neutral_name(self.run.net, name)}'

    def environment(self) -> dict[str, Any]:
        """Return everything that rounding depends on."""
        config = self.config
        return {
            'backend': config.backend,
            **versions(config.backend),
            'devices': list(map(str, self.run.devices)),
            'processes': self.group.size,
            'micro_batch': config.micro_batch,
            'workers': self.trainer.parallel.num_workers,
            'machine': platform.machine(),
        }

    # ---- the task ----------------------------------------------------

    @abstractmethod
    def read(self) -> None:
        """Import the framework and read the examples and the vocabulary.

        Raises `InputError` where the devices do not suit them.
        """

    @abstractmethod
    def new_run(self) -> TrainedRun:
        """Return the run before its first step."""

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """How many steps the training takes."""

    @property
    @abstractmethod
    def evaluate_every(self) -> int | None:
        """How many steps there are from one evaluation to the next."""

    @abstractmethod
    def evaluate(self) -> Mapping[str, float]:
        """Evaluate the network, and keep what was found in the run.

        Returns what the progress line shows of it.
        """

    @abstractmethod
    def shown(self, step: Any) -> Mapping[str, float]:
        """Return what the progress line shows of a step."""

    @cached_property
    @abstractmethod
    def data(self) -> dict[str, str]:
        """Checksums of what is trained and evaluated on, without its path."""
