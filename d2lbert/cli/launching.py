"""Commands that a launcher may start as several processes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from d2lbert import errors

if TYPE_CHECKING:
    from backends.groups import Group


@contextmanager
def launched(context: typer.Context, timeout: float) -> Iterator[Group]:
    """Join the processes of a launcher, of which rank 0 alone speaks.

    `timeout`: see `joined`.
    """
    from backends.groups import launched_by
    from d2lbert.runs.processes import joined

    context.obj['is_launched'] = bool(launched_by())
    with joined(timeout) as group:
        context.obj['group'] = group
        if group.rank:
            warnings.simplefilter('ignore', errors.RunWarning)
            logging.disable()
        yield group


def given_options(
    context: typer.Context, options: dict[str, Any]
) -> dict[str, Any]:
    """Return the options that stand on the command line.

    A resumed run keeps the others.
    """
    return {
        name: value
        for name, value in options.items()
        if 'COMMANDLINE' in str(context.get_parameter_source(name))
    }
