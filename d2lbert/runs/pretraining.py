"""Pretraining: begin, stop, and go on as if it had never stopped.

Batches, dropout and weights come from addressed streams of random numbers
(`d2lbert.randomness`). A checkpoint therefore needs only the parameters,
Adam's moments and the number of steps to go on bit by bit.
"""

from __future__ import annotations

import platform
import shlex
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import cached_property
from itertools import compress, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from backends.groups import ALONE, Group
from backends.types import Device
from d2lbert.data.batches import Batches
from d2lbert.data.examples import Examples, column_blocks
from d2lbert.data.files import sha256, sha256_of
from d2lbert.data.vocab import Vocab
from d2lbert.errors import InputError, RunError, Stopped, warn
from d2lbert.evaluation.evaluate import Evaluator
from d2lbert.evaluation.levels import count_frequencies
from d2lbert.frameworks import label_of, load_tab
from d2lbert.runs import display
from d2lbert.runs.checkpoint import (
    FOLDER,
    STEPS,
    Checkpoint,
    Checkpoints,
    check_arrays,
)
from d2lbert.runs.config import Config, different
from d2lbert.runs.evaluating import load_split
from d2lbert.runs.folder import locked
from d2lbert.runs.memory import LARGE, Memory, predict
from d2lbert.runs.processes import check_alike, from_rank_0, joined
from d2lbert.runs.run import (
    Run,
    check_no_run,
    check_shards,
    config_of,
    devices_of,
    load_examples,
    load_run,
    new_net,
    text_file,
    versions,
)
from d2lbert.runs.signals import STOP_SIGNALS, StopSignals
from d2lbert.trainer import Step
from d2lbert.weights import (
    get_weights,
    neutral_name,
    neutral_shapes,
    set_weights,
)

WEIGHTS, BEST = 'weights.', 'best.'


def pretrain(
    *,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    group: Group | None = None,
    **options: Any,
) -> Run:
    """Pretrain BERT as the chapter does.

    `options`: the fields of `Config`, with its defaults: `backend`,
    `recipe`, `corpus`, `tokenizer`, `vocab_size`, `steps`, `batch_size`,
    `preset`, `max_len`, `num_hiddens`, `ffn_num_hiddens`, `num_heads`,
    `num_blks`, `dropout`, `lr`, `schedule`, `schedule_steps`, `warmup`,
    `weight_decay`, `clip_norm`, `initialization`, `devices`, `micro_batch`,
    `checkpoint_blocks`, `seed`, `save_every`, `keep`, `evaluate_every`,
    `split`, `precision`. `out`:
    the folder for the run, which must not hold one; `progress`: show a
    progress bar on stderr. `resume`: go on with the run in `out` from its
    newest checkpoint, with its own options where none are given;
    `MAY_CHANGE` lists those that may differ. `group`: the processes that
    train together, by default those that a launcher has started with this
    one; rank 0 alone uses `out`.

    After Ctrl-C or SIGTERM the training finishes its step, writes a
    checkpoint to `out` and raises `Stopped`; after the last step it writes
    the whole run first. The error's `run` is the run so far, also without
    `out`. A second signal ends the process at once.

    Raises `InputError` for an option that cannot be used, `CorpusError` for
    a corpus that cannot be read, `RunError` for a training that diverges or
    cannot be written, or a damaged run, and `ModuleNotFoundError` for a
    framework that is not installed. Warns with `RunWarning` where a resumed
    run will not equal an uninterrupted one bit by bit.
    """
    if group is None:
        with joined() as group:
            return pretrain(
                out=out,
                resume=resume,
                progress=progress,
                group=group,
                **options,
            )
    if out is None:
        if resume or options.get('save_every') is not None:
            raise InputError(
                'resume and save_every need a folder: give out, too'
            )
        return Pretraining(Config(**options), progress, group).train()
    if resume and group.is_restarting:
        # The launcher repeats the command of the first start
        (resume,) = group.any(
            not group.rank and bool(Checkpoints(out).find())
        )
    if resume:
        return continue_training(Path(out), options, progress, group)
    config = Config(**options)
    if group.rank:
        return Pretraining(config, progress, group).train()
    check_no_run(out)
    checkpoints = Checkpoints(out, config.keep)
    training = Pretraining(config, progress, group, checkpoints)
    with locked(out) as check_held:
        # Again, because another training may have begun meanwhile
        check_no_run(out)
        return training.train(check_held)


def dry_run(**options: Any) -> Memory:
    """Return the memory that a training would take, without training.

    `options`: see `pretrain`. Raises its errors, and `InputError` where the
    memory of a training cannot be predicted.
    """
    config = Config(**options)
    data = prepare(config, progress=False, group=ALONE)
    memory = predict(data.tab.BACKEND, config, data.examples, len(data.vocab))
    if memory is None:
        raise InputError(
            f'the memory of {label_of(config.backend)} on '
            f'{list(map(str, data.devices))} was not measured: leave '
            '--dry-run out, or give --devices cpu'
        )
    return memory


def continue_training(
    out: Path, options: Mapping[str, Any], progress: bool, group: Group
) -> Run:
    """Go on with a run. See `pretrain`."""
    if group.rank:
        return continue_from(None, out, options, progress, group)
    checkpoints = Checkpoints(out)
    if not checkpoints.find():
        raise InputError(
            f'{out} holds no checkpoint to resume from: there is no state of '
            'the optimizer, which --save-every or stopping a training '
            'writes. Train without --resume'
        )
    with locked(out) as check_held:
        return continue_from(
            checkpoints, out, options, progress, group, check_held
        )


def continue_from(
    checkpoints: Checkpoints | None,
    out: Path,
    options: Mapping[str, Any],
    progress: bool,
    group: Group,
    check_held: Callable[[], None] = lambda: None,
) -> Run:
    """Go on from the checkpoint that rank 0 reads. See `pretrain`."""
    checkpoint = from_rank_0(
        group, checkpoints.load() if checkpoints else None
    )
    saved = config_of(checkpoint.config, out / FOLDER)
    config = replace(saved, **options)
    if config.steps < checkpoint.num_steps:
        raise InputError(
            f'steps = {config.steps}: the run in {out} has taken '
            f'{checkpoint.num_steps} already; give more'
        )
    training = Pretraining(config, progress, group, checkpoints)
    differences = saved.differences(config)
    differences += different(checkpoint.data, training.data)
    if differences:
        raise InputError(
            f'the run in {out} cannot be resumed as another one: '
            f'{"; ".join(differences)}. Leave these options out, or '
            'train without --resume into another folder'
        )
    finished = None
    if checkpoints and config.steps == checkpoint.num_steps:
        # The run is written again where it is damaged or not there
        with suppress(InputError, RunError):
            finished = finished_run(out, config)
    (is_finished,) = group.any(finished is not None)
    if finished:
        return finished
    training.restore(checkpoint)
    if is_finished:
        return training.run
    if checkpoints:
        checkpoints.keep = config.keep
    return training.train(check_held)


def finished_run(out: Path, config: Config) -> Run:
    """Return the run in `out`, with a warning that it needs no training.

    Raises `InputError` or `RunError` where it is not whole or has another
    number of steps.
    """
    run = load_run(out, config.backend)
    if len(run.steps) != config.steps:
        raise RunError(f'the run in {out} has {len(run.steps)} steps')
    warn(
        f'the run in {out} has taken all of its {config.steps} steps: there '
        'is nothing to do. To train it further, give more --steps'
    )
    return run


class Prepared(NamedTuple):
    """What a training needs before its network."""

    tab: Any
    devices: Sequence[Device]
    examples: Examples
    vocab: Vocab


def prepare(config: Config, progress: bool, group: Group) -> Prepared:
    """Import the framework and read the corpus. Raises `InputError`."""
    tab = load_tab(config.backend)
    devices = devices_of(tab, config, group)
    examples, vocab = load_examples(config, progress)
    _, num_shards = group.share(len(devices))
    check_shards(config, examples.num_examples, num_shards)
    return Prepared(tab, devices, examples, vocab)


class Pretraining:
    """A run that is being trained: its examples and its trainer.

    `progress`: show a progress bar; `group`: the processes that train it.
    Without `checkpoints`, as in all of them but rank 0, nothing is written.
    """

    def __init__(
        self,
        config: Config,
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
        self.group = group
        self.progress = progress and group.rank == 0
        self.checkpoints = checkpoints
        tab, devices, self.examples, self.vocab = prepare(
            config, self.progress, group
        )
        num_examples = self.examples.num_examples
        if group.size > 1:
            check_alike(group, self.alike(config))
        if config.batch_size > num_examples:
            warn(
                f'batch_size = {config.batch_size}: the corpus makes '
                f'{num_examples} examples, and each step takes all of them'
            )
        memory = predict(tab.BACKEND, config, self.examples, len(self.vocab))
        if memory:
            memory.check()
        if self.progress and memory and memory.total >= LARGE:
            display.note(f'{memory.line()}; --dry-run lists its parts')
        net = new_net(tab, config, self.vocab, devices)
        self.run = Run(config, net, self.vocab, devices, group.size)
        self.evaluator = None
        if config.evaluate_every:
            self.evaluator = self.new_evaluator()
        self.trainer = self.run.new_trainer(group=group)

    def new_evaluator(self) -> Evaluator:
        """Read the text to evaluate on."""
        config = self.run.config
        return Evaluator(
            load_split(self.run, config.split, config.corpus, self.progress),
            self.vocab,
            count_frequencies(self.examples, self.vocab),
            config.split,
        )

    def alike(self, config: Config) -> dict[str, Any]:
        """Return what all processes must have alike."""
        about = config.as_dict() | versions(config.backend) | self.data
        # They may run and find the same corpus at different places
        return {
            name: value
            for name, value in about.items()
            if name not in ('corpus', 'devices', 'python')
        }

    def train(self, check_held: Callable[[], None] = lambda: None) -> Run:
        """Take the steps that are left; keep the run and its checkpoints.

        `check_held`: see `locked`. A signal in any process stops the training
        of all after the same step. Raises `Stopped` then, at the latest when
        the run is written.
        """
        run, config, checkpoints = self.run, self.run.config, self.checkpoints
        batches = Batches(self.examples, config.batch_size, config.seed)
        with (
            display.Progress(
                config.backend, config.steps, len(run.steps), self.progress
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
                    bar.show(mlm=step.mlm_loss, nsp=step.nsp_loss)
                received = self.received(signals)
                is_stopped = received and self.is_unfinished()
                self.evaluate_if_due(bar)
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
        return len(self.run.steps) < self.run.config.steps

    def num_until_pause(self) -> int:
        """Return how many steps to take at a time: 0 at the end."""
        config, num_done = self.run.config, len(self.run.steps)
        pauses = filter(None, (config.save_every, config.evaluate_every))
        return min(
            config.steps - num_done,
            *(every - num_done % every for every in pauses),
            config.steps,
        )

    def is_checkpoint_due(self) -> bool:
        """Return whether to write a checkpoint after this step."""
        every = self.run.config.save_every
        if every and self.is_unfinished():
            return len(self.run.steps) % every == 0
        is_kept = every or (self.checkpoints and self.checkpoints.known)
        return bool(is_kept) and not self.is_unfinished()

    def evaluate_if_due(self, bar: display.Progress) -> None:
        """Evaluate the network where it is time, and show its loss.

        All processes do so: each would wait for the one that does.
        """
        run, num_done = self.run, len(self.run.steps)
        every = run.config.evaluate_every
        last = run.evaluations[-1]['step'] if run.evaluations else 0
        if not (self.evaluator and every):
            return
        if num_done % every == 0 and num_done > last:
            found = self.evaluator.evaluate(run.net)
            run.add_evaluation(found.as_dict())
            bar.note(valid=found.network['mlm_loss'])

    def farewell(self, number: int) -> str:
        """Return the message after a signal."""
        stopped = (
            f'stopped by {signal.Signals(number).name} after step '
            f'{len(self.run.steps)} of {self.run.config.steps}'
        )
        if self.group.rank:
            return stopped  # rank 0 says more
        if not self.checkpoints:
            return (
                f'{stopped}. Without a folder only this error keeps its run'
            )
        if not self.is_unfinished():
            folder = self.checkpoints.run_folder
            return (
                f'{stopped}. The run is whole in {folder}, without a picture'
            )
        return (
            f'{stopped}. Continue with: d2lbert pretrain --resume --out '
            + shlex.quote(str(self.checkpoints.run_folder))
        )

    # ---- checkpoints -------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """Return the state of the training, by names of no framework."""
        return Checkpoint(
            self.run.config.as_dict(),
            self.data,
            self.environment(),
            self.arrays(),
            self.run.evaluations,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Set the state of the training to that of a checkpoint.

        Raises `RunError`, with nothing changed, where it does not fit.
        Warns where the rest of the run will differ by rounding from an
        uninterrupted one.
        """
        arrays, num_steps = checkpoint.arrays, checkpoint.num_steps
        steps = np.empty((num_steps, len(Step._fields)))
        best = self.best_arrays(
            get_weights(self.run.net) if checkpoint.evaluations else {}
        )
        check_arrays(arrays, self.arrays() | {STEPS: steps} | best)
        changes = different(checkpoint.environment, self.environment())
        if changes:
            warn(
                'the rest of the run may differ from an uninterrupted one by '
                f'rounding: {"; ".join(changes)}'
            )
        net = self.run.net
        names = neutral_shapes(net)
        set_weights(net, {name: arrays[WEIGHTS + name] for name in names})
        # The old trainer may hold copies of the parameters
        self.trainer.close()
        self.trainer = self.run.new_trainer(group=self.group)
        self.trainer.num_steps = num_steps
        optimizer = self.trainer.optimizer
        moments = {
            name: arrays[self.moment_name(name)] for name in optimizer.state()
        }
        optimizer.load_state(moments, num_steps)
        self.run.evaluations = checkpoint.evaluations
        self.run.best_weights = {
            name: arrays[BEST + name] for name in names if best
        }
        self.run.steps = [
            Step(mlm, nsp, int(num_pairs), seconds)
            for mlm, nsp, num_pairs, seconds in arrays[STEPS].tolist()
        ]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that `d2lbert.runs.checkpoint` describes."""
        weights = get_weights(self.run.net)
        moments = self.trainer.optimizer.state()
        steps = np.array(self.run.steps, np.float64)
        return {
            **{WEIGHTS + name: W for name, W in weights.items()},
            **{self.moment_name(name): M for name, M in moments.items()},
            STEPS: steps.reshape(-1, len(Step._fields)),
            **self.best_arrays(self.run.best_weights),
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

    @cached_property
    def data(self) -> dict[str, str]:
        """Checksums of what is trained on, without its path."""
        return {
            'vocabulary': sha256(text_file(self.vocab.idx_to_token)),
            'examples': sha256_of(column_blocks(self.examples)),
        }

    def environment(self) -> dict[str, Any]:
        """Return everything that rounding depends on."""
        config = self.run.config
        return {
            'backend': config.backend,
            **versions(config.backend),
            'devices': list(map(str, self.run.devices)),
            'processes': self.group.size,
            'micro_batch': config.micro_batch,
            'workers': self.trainer.parallel.num_workers,
            'machine': platform.machine(),
        }
