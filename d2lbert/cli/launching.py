"""Commands that a launcher may start as several processes."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from d2lbert import errors
from d2lbert.frameworks import FRAMEWORKS

if TYPE_CHECKING:
    from backends.groups import Group


@contextmanager
def launched(
    context: typer.Context, timeout: float, backend: str | None = None
) -> Iterator[Group]:
    """Join the processes of a launcher, of which rank 0 alone speaks.

    `timeout`: see `joined`; `backend`: the framework that will train, if
    one will.
    """
    if backend in FRAMEWORKS:
        begin_with(FRAMEWORKS[backend].environment)
    from backends.groups import launched_by
    from d2lbert.runs.processes import joined

    context.obj['is_launched'] = bool(launched_by())
    with joined(timeout) as group:
        context.obj['group'] = group
        if group.rank:
            warnings.simplefilter('ignore', errors.RunWarning)
            logging.disable()
        yield group


def begin_with(variables: Sequence[str]) -> None:
    """Begin this process again, with variables that it has not.

    The C library reads them only when a process begins. Each is
    `NAME=value`; a value that the user has set stays.
    """
    pairs = (variable.split('=', 1) for variable in variables)
    missing = {name: value for name, value in pairs if name not in os.environ}
    words = sys.argv[1:]
    # Not where another program has called the command
    is_command = sys.orig_argv[len(sys.orig_argv) - len(words) :] == words
    if missing and is_command and sys.platform == 'linux':
        os.environ.update(missing)
        arguments = [sys.executable, *sys.orig_argv[1:]]
        os.execv(sys.executable, arguments)  # noqa: S606 (the same program)


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
