"""Pretraining: begin, stop, and go on as if it had never stopped.

Batches, dropout and weights come from addressed streams of random numbers
(`d2lbert.randomness`), so that the parameters, Adam's moments and the number
of steps are all that a checkpoint needs to continue bit by bit.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import signal
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from d2lbert.runs import display
from d2lbert.runs.checkpoint import STEPS, Checkpoint, Checkpoints, check_arrays
from d2lbert.runs.config import Config
from d2lbert.data.batches import Batches
from d2lbert.data.cache import load_cached_examples
from d2lbert.data.corpus import read_lines
from d2lbert.errors import InputError, RunError, RunWarning, Stopped
from d2lbert.data.files import DAMAGE, locked, sha256
from d2lbert.runs.run import (
    RUN_FILE,
    Run,
    check_last_batch,
    check_no_run,
    devices_of,
    load_tab,
    new_net,
    read_run,
    versions,
    vocab_bytes,
)
from d2lbert.runs.signals import StopSignals
from d2lbert.trainer import Step, Trainer
from d2lbert.weights import get_weights, neutral_name, set_weights

WEIGHTS = 'weights.'


def pretrain(
    *,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    **options: Any,
) -> Run:
    """Pretrain BERT as the chapter does.

    `options`: the fields of `Config`, with its defaults: `backend`,
    `recipe`, `corpus`, `steps`, `batch_size`, `max_len`, `num_hiddens`,
    `ffn_num_hiddens`, `num_heads`, `num_blks`, `dropout`, `lr`, `devices`,
    `micro_batch`, `seed`, `save_every`, `keep`, `precision`. `out`: the
    folder in which to keep the run, which must not hold one; `progress`:
    show a progress bar on stderr. `resume`: go on with the run in `out` from
    its newest checkpoint, with its options where none are given; see
    `MAY_CHANGE` for those that may be others.

    Ctrl-C and SIGTERM let the step be finished and a checkpoint be written
    to `out`, and raise `Stopped`; a second one leaves at once.

    Raises `InputError` for an option that cannot be used, `CorpusError` for
    a corpus that cannot be had, `RunError` for a training that diverges or
    cannot be kept, or a damaged run, and `ModuleNotFoundError` for a
    framework that is not installed. Warns with `RunWarning` where a resumed
    run will not equal an uncut one bit by bit.
    """
    if out is None:
        if resume or options.get('save_every') is not None:
            raise InputError(
                'resume and save_every need a folder: give out, too'
            )
        return Pretraining(Config(**options)).train(progress)
    if resume:
        return continue_training(Path(out), options, progress)
    config = Config(**options)
    check_no_run(out)
    training = Pretraining(config)
    with locked(out):
        # Again, because another training may have been faster
        check_no_run(out)
        return training.train(progress, Path(out))


def continue_training(
    out: Path, options: Mapping[str, Any], progress: bool
) -> Run:
    """Go on with a run. See `pretrain`."""
    checkpoints = Checkpoints(out)
    check_resumable(out, checkpoints)
    with locked(out):
        checkpoint = checkpoints.load()
        try:
            saved = Config(**checkpoint.config)
        except (TypeError, InputError) as error:
            raise RunError(
                f'the options in {checkpoints.folder} cannot be used '
                f'({error}): resume with the d2lbert that wrote them'
            ) from error
        config = replace(saved, **options)
        if config.steps < checkpoint.num_steps:
            raise InputError(
                f'steps = {config.steps}: the run in {out} has taken '
                f'{checkpoint.num_steps} already; give more'
            )
        training = Pretraining(config)
        differences = [
            *saved.differences(config),
            *different(checkpoint.data, training.data),
        ]
        if differences:
            raise InputError(
                f'the run in {out} cannot be resumed as another one: '
                f'{"; ".join(differences)}. Leave these options out, or '
                'train without --resume into another folder'
            )
        training.restore(checkpoint)
        return training.train(progress, out, checkpoints)


def check_resumable(out: Path, checkpoints: Checkpoints) -> None:
    """Raise `InputError` where a folder has weights and nothing else."""
    if os.path.exists(out / RUN_FILE) and not checkpoints.find():
        raise InputError(
            f'the run in {out} has weights but no state of the optimizer, '
            'which a training with --save-every keeps: it can be used, but '
            'not resumed. Train with --save-every'
        )
    if not checkpoints.find():
        raise InputError(
            f'{out} holds no checkpoint to resume from, which --save-every '
            'or stopping a training writes: train without --resume'
        )


class Pretraining:
    """A run in the making, and what trains it."""

    def __init__(self, config: Config) -> None:
        tab = load_tab(config.backend)
        devices = devices_of(tab, config)
        self.examples, vocab = load_cached_examples(
            read_lines(config.corpus), config.max_len, config.seed
        )
        num_examples = len(self.examples.tokens)
        check_last_batch(config, num_examples, len(devices))
        if config.batch_size > num_examples:
            warnings.warn(
                f'batch_size = {config.batch_size}: the corpus makes '
                f'{num_examples} examples, and each step takes all of them',
                RunWarning,
                stacklevel=3,
            )
        net = new_net(tab, config, vocab, devices)
        self.run = Run(config, net, vocab, devices)
        self.trainer = self.new_trainer()

    def new_trainer(self) -> Trainer:
        """Return a trainer that begins with the parameters there are."""
        config = self.run.config
        return Trainer(
            self.run.net,
            config.get_recipe(),
            lr=config.learning_rate,
            devices=self.run.devices,
            micro_batch=config.micro_batch,
            seed=config.seed,
            precision=config.precision,
        )

    def train(
        self,
        progress: bool,
        out: Path | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> Run:
        """Take the steps that are left, keeping the run in `out`."""
        run, config = self.run, self.run.config
        if out is not None:
            checkpoints = checkpoints or Checkpoints(out)
            checkpoints.keep = config.keep
        num_steps = config.steps - len(run.steps)
        batches = Batches(self.examples, config.batch_size, config.seed)
        with (
            display.Progress(
                config.backend, config.steps, len(run.steps), progress
            ) as bar,
            StopSignals() as signals,
            closing(self.trainer),
        ):
            for step in self.trainer.train(
                batches.from_step(len(run.steps)), num_steps
            ):
                run.steps.append(step)
                bar.show(mlm=step.mlm_loss, nsp=step.nsp_loss)
                if signals.received:
                    break
                if (
                    checkpoints
                    and config.save_every
                    and len(run.steps) % config.save_every == 0
                ):
                    checkpoints.save(self.checkpoint())
            # What comes later finds a run that is about to be finished
            stopped_by = signals.received
            if checkpoints and (
                stopped_by or config.save_every or checkpoints.known
            ):
                checkpoints.save(self.checkpoint())
            if stopped_by:
                raise Stopped(stopped_by, self.farewell(stopped_by, out))
            if out is not None:
                self.finish(out, num_steps)
        return run

    def finish(self, out: Path, num_steps: int) -> None:
        """Write the run, unless no step was taken and it is there."""
        if num_steps == 0 and steps_of_run(out) == len(self.run.steps):
            warnings.warn(
                f'the run in {out} has taken all of its '
                f'{len(self.run.steps)} steps: there is nothing to do. To '
                'train it further, give more --steps',
                RunWarning,
                stacklevel=2,
            )
        else:
            self.run.write(out)

    def farewell(self, number: int, out: Path | None) -> str:
        """Return what to say after a signal."""
        stopped = (
            f'stopped by {signal.Signals(number).name} after step '
            f'{len(self.run.steps)} of {self.run.config.steps}'
        )
        if out is None:
            return f'{stopped}; nothing is kept, for lack of a folder'
        return (
            f'{stopped}. Continue with: d2lbert pretrain --resume --out '
            + shlex.quote(str(out))
        )

    # ---- checkpoints -------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """Return the state of the training, by names of no framework."""
        return Checkpoint(
            self.run.config.as_dict(),
            self.data,
            self.environment(),
            self.arrays(),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over the state of a training, all of it or none.

        Raises `RunError` where it does not fit; warns where going on will
        differ by rounding from not having stopped.
        """
        num_steps = checkpoint.num_steps
        check_arrays(
            checkpoint.arrays,
            self.arrays() | {STEPS: np.empty((num_steps, len(Step._fields)))},
        )
        changes = different(checkpoint.environment, self.environment())
        if changes:
            warnings.warn(
                'the rest of the run may differ from an uncut one by '
                f'rounding: {"; ".join(changes)}',
                RunWarning,
                stacklevel=3,
            )
        net = self.run.net
        set_weights(
            net,
            {
                name: checkpoint.arrays[WEIGHTS + name]
                for name in get_weights(net)
            },
        )
        # A new one, because a trainer may hold copies of the parameters
        self.trainer = self.new_trainer()
        self.trainer.num_steps = num_steps
        optimizer = self.trainer.optimizer
        optimizer.load_state(
            {
                name: checkpoint.arrays[self.moment_name(name)]
                for name in optimizer.state()
            },
            num_steps,
        )
        self.run.steps = [
            Step(mlm_loss, nsp_loss, int(num_pairs), seconds)
            for mlm_loss, nsp_loss, num_pairs, seconds in checkpoint.arrays[
                STEPS
            ].tolist()
        ]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of a checkpoint. See `d2lbert.runs.checkpoint`."""
        steps = np.array(self.run.steps, np.float64)
        return {
            **{
                WEIGHTS + name: array
                for name, array in get_weights(self.run.net).items()
            },
            **{
                self.moment_name(name): array
                for name, array in self.trainer.optimizer.state().items()
            },
            STEPS: steps.reshape(-1, len(Step._fields)),
        }

    def moment_name(self, name: str) -> str:
        """Return what a checkpoint calls one of Adam's moments, `NAME.m`."""
        name, _, moment = name.rpartition('.')
        return f'{moment}.{neutral_name(self.run.net, name)}'

    @cached_property
    def data(self) -> dict[str, str]:
        """Checksums of what is trained on, wherever it was read."""
        return {
            'vocabulary': sha256(vocab_bytes(self.run.vocab)),
            'examples': checksum(self.examples),
        }

    def environment(self) -> dict[str, Any]:
        """Return all that rounding depends on."""
        config = self.run.config
        found = versions(config.backend)
        return {
            'backend': f'{config.backend} {found.pop(config.backend)}',
            **found,
            'devices': list(map(str, self.run.devices)),
            'micro_batch': config.micro_batch,
            'workers': self.trainer.parallel.num_workers,
            'machine': platform.machine(),
        }


def different(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return in words where two mappings differ."""
    return [
        f'{name} is {now.get(name)!r}, was {before.get(name)!r}'
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]


def checksum(arrays: Sequence[np.ndarray]) -> str:
    """Return the checksum of some arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def steps_of_run(folder: Path) -> int | None:
    """Return how many steps a whole run has, `None` of any other."""
    try:
        _, _, steps, _ = read_run(folder)
    except (RunError, *DAMAGE):
        return None
    return len(steps)
