"""Checkpoints: all that a training needs to go on where it stopped.

A run's folder keeps each in a sealed safetensors file,
`checkpoints/step-000040.safetensors`. Its arrays have names of no
framework: the parameters `weights.NAME`, Adam's moments `m.NAME` and
`v.NAME`, and `steps`, what each step from the first has reported; and for a
run that is evaluated its best weights so far, `best.NAME`. Its manifest has
the options of the run, what it was trained on and with, and what the
evaluations have found.

A checkpoint is whole or not there, whenever its writer is killed. One that
was changed afterwards is passed over for the one before it. This module
knows of no framework.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from d2lbert.data.files import (
    DAMAGE,
    describe_error,
    read_arrays,
    remove_unfinished,
    sync_folder,
    write_arrays,
)
from d2lbert.errors import InputError, RunError, warn
from d2lbert.runs.config import MIN_KEEP

FOLDER = 'checkpoints'
STEPS = 'steps'
#: A file that `save` writes.
FILE_NAME = re.compile(r'step-([0-9]{6}|[1-9][0-9]{6,})\.safetensors')


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after some steps.

    `config`: the options; `data`: checksums of what is trained on;
    `environment`: what is trained with; `arrays`: see this module;
    `evaluations`: those of the run; `command`: the subcommand that trains
    it.
    """

    config: dict[str, Any]
    data: dict[str, str]
    environment: dict[str, Any]
    arrays: dict[str, np.ndarray]
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    command: str = 'pretrain'

    @property
    def num_steps(self) -> int:
        """How many steps the training has taken."""
        return len(self.arrays[STEPS])


class Checkpoints:
    """The checkpoints in a run's folder.

    `keep`: how many stay; `save` removes the older ones.
    """

    def __init__(self, folder: str | Path, keep: int = MIN_KEEP) -> None:
        self.run_folder = Path(folder)
        self.folder = self.run_folder / FOLDER
        self.keep = keep
        #: The steps that were saved, or found by `load`, oldest first.
        self.known: list[int] = []

    def path(self, step: int) -> Path:
        """Return the path of a checkpoint."""
        return self.folder / f'step-{step:06}.safetensors'

    def find(self) -> list[int]:
        """Return the steps of all checkpoints, newest first.

        Raises `InputError` where the folder cannot be read.
        """
        if not os.path.isdir(self.folder):
            return []
        try:
            names = os.listdir(self.folder)
        except OSError as error:
            raise InputError(
                f'{self.folder} cannot be read ({describe_error(error)}): '
                'give another folder'
            ) from error
        found = filter(None, map(FILE_NAME.fullmatch, names))
        return sorted((int(match[1]) for match in found), reverse=True)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then remove older ones and unfinished files.

        A step that is known is not written again. Raises `RunError` for
        numbers that are not finite, and where writing fails; older
        checkpoints are then untouched. Warns where they cannot be removed.
        """
        step = checkpoint.num_steps
        if step in self.known:
            return
        about = vars(checkpoint).copy()
        arrays = about.pop('arrays')
        faults = not_possible(arrays)
        if faults:
            raise RunError(
                f'the checkpoint of step {step} is not written: '
                f'{"; ".join(faults[:4])}. Older ones are kept: train with a '
                'smaller --lr into another folder'
            )
        try:
            if not os.path.isdir(self.folder):
                self.folder.mkdir()
                sync_folder(self.folder.parent)
            write_arrays(self.path(step), arrays, about)
        except OSError as error:
            raise RunError(
                f'the checkpoint of step {step} could not be written to '
                f'{self.folder}: {describe_error(error)}. Older ones are '
                'kept: make room and continue with --resume'
            ) from error
        self.known = [*self.known, step][-self.keep :]
        if faults := self._clean():
            warn(
                f'old checkpoints in {self.folder} could not be removed: '
                f'{"; ".join(faults[:4])}. The next save tries again'
            )

    def load(self) -> Checkpoint:
        """Read the newest checkpoint that is not damaged.

        Warns of damaged ones. Raises `RunError` where all are damaged, one
        has another format, or one cannot be read now: what is taken for
        damaged is removed by the next save.
        """
        found = self.find()
        faults = []
        for step in found:
            try:
                checkpoint = self.read(step)
            except DAMAGE as error:
                if is_passing(error):
                    raise RunError(
                        f'{self.path(step)} cannot be read now '
                        f'({describe_error(error)}): make it readable and '
                        'try again, or move it away to go on from an older '
                        'one'
                    ) from error
                faults.append(
                    f'{self.path(step).name} ({describe_error(error)})'
                )
                continue
            if faults:
                warn(
                    f'damaged checkpoints in {self.folder}: '
                    f'{"; ".join(faults)}. Going on from step {step}'
                )
            self.known = sorted(old for old in found if old <= step)
            return checkpoint
        raise RunError(
            f'all checkpoints in {self.folder} are damaged: '
            f'{"; ".join(faults)}. Copy them again from where they came, or '
            'train again into another folder'
        )

    def read(self, step: int) -> Checkpoint:
        """Read one checkpoint. Raises one of `DAMAGE` for a damaged one."""
        arrays, about = read_arrays(self.path(step))
        checkpoint = Checkpoint(arrays=arrays, **about)
        if checkpoint.num_steps != step:
            raise ValueError(f'it has {checkpoint.num_steps} steps')
        if faults := not_possible(arrays):
            raise ValueError(', '.join(faults[:4]))
        return checkpoint

    def _clean(self) -> list[str]:
        """Remove every checkpoint that is not known, and unfinished files.

        Returns in words what could not be removed.
        """
        faults = []
        kept = {self.path(step).name for step in self.known}
        try:
            remove_unfinished(self.folder, 0)
            names = os.listdir(self.folder)
        except OSError as error:
            return [describe_error(error)]
        for name in names:
            if FILE_NAME.fullmatch(name) and name not in kept:
                try:
                    (self.folder / name).unlink(missing_ok=True)
                except OSError as error:
                    faults.append(f'{name} ({describe_error(error)})')
        return faults


def is_passing(error: BaseException) -> bool:
    """Return whether reading may fail for another reason than damage.

    Of the system's errors, two tell of the file itself: it is not there, or
    it is no regular file.
    """
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError)
        and error.errno not in (errno.ENOENT, errno.EINVAL)
    )


def not_possible(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Return in words which arrays have numbers that no training has."""
    faults = []
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            faults.append(f'{name} is not finite')
        elif name.startswith('v.') and (array < 0).any():
            faults.append(f'{name} is negative')
    return faults


def check_arrays(
    arrays: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> None:
    """Raise `RunError` with every fault of a checkpoint's arrays.

    `expected`: arrays with the right names, shapes and types.
    """
    found, wanted = (
        {name: (A.shape, A.dtype.name) for name, A in group.items()}
        for group in (arrays, expected)
    )
    faults = [
        f'{name} is {found.get(name, "missing")} instead of '
        f'{wanted.get(name, "not there")}'
        for name in {**wanted, **found}
        if found.get(name) != wanted.get(name)
    ]
    if faults:
        raise RunError(
            f'the checkpoint does not fit the network: {"; ".join(faults)}. '
            'Nothing of it is used: resume with the d2lbert that wrote it'
        )
