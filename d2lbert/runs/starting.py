"""Begin a run, or go on with one as if it had never stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from backends.groups import Group
from d2lbert.errors import InputError, RunError, warn
from d2lbert.runs.checkpoint import FOLDER, Checkpoints
from d2lbert.runs.config import different
from d2lbert.runs.folder import locked
from d2lbert.runs.processes import from_rank_0, joined
from d2lbert.runs.trained import check_no_run, config_of
from d2lbert.runs.training import Training


def train_run(
    Task: type[Training],
    options: Mapping[str, Any],
    out: str | Path | None,
    resume: bool,
    progress: bool,
    group: Group | None,
) -> Any:
    """Train a run of a task, or go on with one. See `pretrain`."""
    if group is None:
        with joined() as group:
            return train_run(Task, options, out, resume, progress, group)
    if out is None:
        if resume or options.get('save_every') is not None:
            raise InputError(
                'resume and save_every need a folder: give out, too'
            )
        return Task(Task.CONFIG(**options), progress, group).train()
    if resume and group.is_restarting:
        # The launcher repeats the command of the first start
        (resume,) = group.any(
            not group.rank and bool(Checkpoints(out).find())
        )
    if resume:
        return continue_training(Task, Path(out), options, progress, group)
    config = Task.CONFIG(**options)
    if group.rank:
        return Task(config, progress, group).train()
    check_no_run(out)
    training = Task(config, progress, group, Checkpoints(out, config.keep))
    with locked(out) as check_held:
        # Again, because another training may have begun meanwhile
        check_no_run(out)
        return training.train(check_held)


def continue_training(
    Task: type[Training],
    out: Path,
    options: Mapping[str, Any],
    progress: bool,
    group: Group,
) -> Any:
    """Go on with a run. See `pretrain`."""
    if group.rank:
        return continue_from(Task, None, out, options, progress, group)
    checkpoints = Checkpoints(out)
    if not checkpoints.find():
        raise InputError(
            f'{out} holds no checkpoint to resume from: there is no state of '
            'the optimizer, which --save-every or stopping a training '
            'writes. Train without --resume'
        )
    with locked(out) as check_held:
        return continue_from(
            Task, checkpoints, out, options, progress, group, check_held
        )


def continue_from(
    Task: type[Training],
    checkpoints: Checkpoints | None,
    out: Path,
    options: Mapping[str, Any],
    progress: bool,
    group: Group,
    check_held: Callable[[], None] = lambda: None,
) -> Any:
    """Go on from the checkpoint that rank 0 reads. See `pretrain`."""
    checkpoint = from_rank_0(
        group, checkpoints.load() if checkpoints else None
    )
    if checkpoint.command != Task.RUN.COMMAND:
        raise InputError(
            f'the run in {out} is one of d2lbert {checkpoint.command}: '
            'resume it with that command'
        )
    saved = config_of(Task.CONFIG, checkpoint.config, out / FOLDER)
    config = replace(saved, **options)
    training = Task(config, progress, group, checkpoints)
    # Held-out text that is read no more, or was not, is not compared
    data = checkpoint.data | training.data
    differences = saved.differences(config)
    differences += different(
        checkpoint.data, {name: data[name] for name in checkpoint.data}
    )
    if differences:
        raise InputError(
            f'the run in {out} cannot be resumed as another one: '
            f'{"; ".join(differences)}. Leave these options out, or '
            'train without --resume into another folder'
        )
    if training.num_steps < checkpoint.num_steps:
        raise InputError(
            f'{Task.LENGTH} = {getattr(config, Task.LENGTH)}: the run in '
            f'{out} has taken {checkpoint.num_steps} steps already; give more'
        )
    training.data = data
    finished = None
    if checkpoints and training.num_steps == checkpoint.num_steps:
        # The run is written again where it is damaged or not there
        with suppress(InputError, RunError):
            finished = finished_run(training, out)
    (is_finished,) = group.any(finished is not None)
    if finished:
        return finished
    training.restore(checkpoint)
    if is_finished:
        return training.run
    if checkpoints:
        checkpoints.keep = config.keep
    return training.train(check_held)


def finished_run(training: Training, out: Path) -> Any:
    """Return the run in `out`, with a warning that it needs no training.

    Raises `InputError` or `RunError` where it is not whole or has another
    number of steps.
    """
    run = training.RUN.load(out, training.config.backend)
    if len(run.steps) != training.num_steps:
        raise RunError(f'the run in {out} has {len(run.steps)} steps')
    warn(
        f'the run in {out} has taken all of its {training.num_steps} steps: '
        'there is nothing to do. To train it further, give more '
        f'--{training.LENGTH}'
    )
    return run
