"""Several processes that train or evaluate one run together.

Rank 0 alone locks and writes folders, and speaks. What all processes must
have alike is compared before they begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from backends.groups import TIMEOUT, Group, GroupError, join
from d2lbert.errors import InputError, RunError, Stopped, check_positive
from d2lbert.runs.checkpoint import Checkpoint
from d2lbert.runs.signals import StopSignals


@contextmanager
def joined(timeout: float = TIMEOUT) -> Iterator[Group]:
    """Join the processes that a launcher has started with this one.

    Gives a group of one process where there was no launcher. An error or a
    signal that leaves the block ends the other processes, too.

    Raises `InputError` for variables that cannot be used, and `RunError`,
    which names the process, where one has failed or does not answer for
    four fifths of `timeout` seconds.
    """
    check_positive(timeout=timeout)
    try:
        group = join(timeout)
    except GroupError as error:
        raise RunError(str(error)) from error
    except ValueError as error:
        raise InputError(str(error)) from error
    try:
        yield group
    except BaseException as error:
        if isinstance(error, Stopped) and error.run is not None:
            # All processes have agreed to stop
            group.close()
            raise
        # A launcher ends this process when another one has failed
        with StopSignals():
            reason = '' if isinstance(error, Exception) else group.reason()
            group.fail(GroupError(reason) if reason else error)
        if isinstance(error, GroupError) or reason:
            raise RunError(reason or str(error)) from error
        raise
    try:
        group.close()
    except GroupError as error:
        raise RunError(str(error)) from error


def check_alike(group: Group, about: Mapping[str, Any]) -> None:
    """Raise `InputError` where a process has other values than rank 0.

    `about`: ready for JSON.
    """
    first, *others = group.gather(about)
    for rank, other in enumerate(others, 1):
        faults = [
            f'{name} is {other[name]!r} instead of {value!r}'
            for name, value in first.items()
            if other[name] != value
        ]
        if faults:
            raise InputError(
                f'rank {rank} would compute something else than rank 0: '
                f'{"; ".join(faults)}. Start all ranks with the same '
                'options, corpus and versions'
            )


def from_rank_0(group: Group, checkpoint: Checkpoint | None) -> Checkpoint:
    """Return the checkpoint that rank 0 has read; others have `None`."""
    about: dict[str, Any] = {}
    arrays: Mapping[str, np.ndarray] = {}
    if checkpoint:
        about = {**vars(checkpoint)}
        arrays = about.pop('arrays')
        about['arrays'] = {
            name: (A.shape, A.dtype.str) for name, A in arrays.items()
        }
    about = group.gather(about)[0]
    shapes = about.pop('arrays')
    return Checkpoint(
        **about,
        arrays={
            name: group.broadcast(arrays.get(name, np.empty(shape, dtype)))
            for name, (shape, dtype) in shapes.items()
        },
    )
