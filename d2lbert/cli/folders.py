"""The folder or the file that a subcommand writes to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from d2lbert import errors

Result = TypeVar('Result')


def into_folder(
    out: Path | None, name: str, work: Callable[[Path], Result]
) -> tuple[Path, Result]:
    """Do some work for the folder `out`, or for a new one under `runs/`.

    `name`: of the new folder, which gets a number where it is taken. Where
    another process takes it meanwhile, the work is done for the next one.
    Returns the folder and what the work returns.
    """
    if out:
        return out, work(out)
    while True:
        folder, number = Path('runs') / name, 1
        while os.path.lexists(folder):
            number += 1
            folder = folder.with_name(f'{name}-{number}')
        try:
            return folder, work(folder)
        except errors.FolderTaken:
            if not os.path.lexists(folder):
                raise


def check_resume(resume: bool, out: Path | None) -> None:
    """Raise `InputError` where `--resume` lacks the folder of the run."""
    if resume and out is None:
        raise errors.InputError(
            '--resume needs the folder of the run: give --out'
        )


def save_file(path: Path, data: bytes, option: str, force: bool) -> None:
    """Write a file, under exactly this name.

    `option`: what the name was given for; `force`: replace a file. Raises
    `InputError` for a name that is taken or cannot be written.
    """
    from d2lbert.data.files import check_new_file, output_errors, write_file

    check_new_file(path, option, force)
    with output_errors(path, option):
        write_file(path, data)
