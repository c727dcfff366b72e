"""Checkpoints: all that a training needs to go on where it stopped.

A run's folder keeps them in `checkpoints/`, two files each:

* `step-000040.safetensors`: arrays by names of no framework, the
  parameters `weights.NAME`, Adam's moments `m.NAME` and `v.NAME`, and
  `steps`, what each step from the first has reported;
* `step-000040.json`: their manifest, with the options of the run and what
  it was trained on and with.

A checkpoint is whole or does not count, at any moment at which its writer
may be killed, and one that was changed afterwards is passed over for the
one before it. Nothing here knows of a framework.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d2lbert.runs.config import MIN_KEEP
from d2lbert.errors import InputError, RunError, RunWarning
from d2lbert.data.files import (
    DAMAGE,
    describe_error,
    describe_file,
    load_arrays,
    read_file,
    read_manifest,
    sync_folder,
    to_manifest,
    write_file,
)

FOLDER = 'checkpoints'
STEPS = 'steps'
#: Every file that is ever written there, finished or not.
FILE_NAME = re.compile(r'step-(\d{6,})\.(json|safetensors)(\.part)?')


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after some steps.

    `config`: the options; `data`: checksums of what is trained on;
    `environment`: what is trained with; `arrays`: see above.
    """

    config: dict[str, Any]
    data: dict[str, str]
    environment: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def num_steps(self) -> int:
        """How many steps the training has taken."""
        return len(self.arrays[STEPS])


class Checkpoints:
    """The checkpoints in a run's folder.

    `keep`: how many of them; the older ones are removed.
    """

    def __init__(self, folder: str | Path, keep: int = MIN_KEEP) -> None:
        self.folder = Path(folder) / FOLDER
        self.keep = keep
        #: The steps of those that were written or read, oldest first.
        self.known: list[int] = []

    def paths(self, step: int) -> tuple[Path, Path]:
        """Return the paths of a checkpoint's manifest and arrays."""
        return (
            self.folder / f'step-{step:06}.json',
            self.folder / f'step-{step:06}.safetensors',
        )

    def find(self) -> list[int]:
        """Return the steps of which there are manifests, newest first.

        Raises `InputError` where the folder cannot be read.
        """
        if not os.path.isdir(self.folder):
            return []
        try:
            names = {path.name for path in self._files()}
        except OSError as error:
            raise InputError(
                f'{self.folder} cannot be read ({describe_error(error)}): '
                'give another folder'
            ) from error
        found = map(FILE_NAME.fullmatch, names)
        steps = {int(match[1]) for match in found if match}
        return sorted(
            (step for step in steps if self.paths(step)[0].name in names),
            reverse=True,
        )

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then remove what it makes superfluous.

        Raises `RunError` where that fails; older ones are then untouched.
        """
        from safetensors.numpy import save

        step = checkpoint.num_steps
        if step in self.known:
            return
        manifest_path, arrays_path = self.paths(step)
        data = save(checkpoint.arrays)
        about = {
            name: value
            for name, value in vars(checkpoint).items()
            if name != 'arrays'
        }
        manifest = to_manifest(
            {**about, 'files': {arrays_path.name: describe_file(data)}}
        )
        try:
            if not os.path.isdir(self.folder):
                self.folder.mkdir()
                sync_folder(self.folder.parent)
            write_file(arrays_path, data)
            write_file(manifest_path, manifest)
            self.known.append(step)
            self._clean()
        except OSError as error:
            raise RunError(
                f'the checkpoint of step {step} could not be written to '
                f'{self.folder}: {describe_error(error)}. Older ones are '
                'kept: make room and continue with --resume'
            ) from error

    def load(self) -> Checkpoint:
        """Read the newest checkpoint that is not damaged.

        Warns of damaged ones. Raises `RunError` where all are damaged or
        one has a newer format.
        """
        found = self.find()
        faults = []
        for step in found:
            try:
                checkpoint = self.read(step)
            except DAMAGE as error:
                reason = error if str(error) else type(error).__name__
                faults.append(f'step {step} ({reason})')
                continue
            if faults:
                warnings.warn(
                    f'damaged checkpoints in {self.folder}: '
                    f'{"; ".join(faults)}. Going on from step {step}',
                    RunWarning,
                    stacklevel=2,
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
        manifest_path, arrays_path = self.paths(step)
        about = read_manifest(manifest_path)
        files = about.pop('files')
        checkpoint = Checkpoint(
            arrays=load_arrays(
                read_file(arrays_path, files[arrays_path.name])
            ),
            **about,
        )
        if checkpoint.num_steps != step:
            raise ValueError(
                f'{arrays_path.name} has {checkpoint.num_steps} steps'
            )
        return checkpoint

    def _clean(self) -> None:
        """Remove all but the newest, and what killed saves have left."""
        self.known = self.known[-self.keep :]
        kept = [path for step in self.known for path in self.paths(step)]
        # Manifests first: without one the arrays do not count
        for path in sorted(self._files(), key=lambda p: p.suffix != '.json'):
            if FILE_NAME.fullmatch(path.name) and path not in kept:
                path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return list(self.folder.iterdir())


def check_arrays(
    arrays: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> None:
    """Raise `RunError` with all that is wrong with a checkpoint's arrays.

    `expected`: arrays of the names, shapes and types that there should be.
    """
    faults = [f'{name} is missing' for name in expected if name not in arrays]
    for name, array in arrays.items():
        if name not in expected:
            faults.append(f'{name} does not belong')
            continue
        found, wanted = (
            (A.shape, A.dtype.name) for A in (array, expected[name])
        )
        if found != wanted:
            faults.append(f'{name} is {found} instead of {wanted}')
    if faults:
        raise RunError(
            f'the checkpoint does not fit the network: {"; ".join(faults)}. '
            'Nothing of it is used: resume with the d2lbert that wrote it'
        )
