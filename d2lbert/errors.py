"""The errors that d2lbert raises on purpose.

Each message is one paragraph: what was given, what was expected, what to
do next.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any


class D2LBertError(Exception):
    """The base of every error that d2lbert raises on purpose."""


class InputError(D2LBertError, ValueError):
    """An argument, option or path that cannot be used."""


class FolderTaken(InputError):
    """A folder that is in use, or that holds what would be replaced."""


class BackendsError(D2LBertError, ImportError):
    """Python finds another package `backends` instead of d2lbert's own."""


class CorpusError(D2LBertError):
    """A corpus that is damaged, has no examples or cannot be fetched."""


class RunError(D2LBertError):
    """A training that failed, or a folder whose run is damaged."""


class RunWarning(UserWarning):
    """Something about a run that its user should know."""


class Stopped(BaseException):
    """Ctrl-C or SIGTERM stopped the program.

    `number`: the number of the signal; `run`: where a training was stopped,
    the `Run` with its steps until then.
    """

    def __init__(self, number: int, message: str, run: Any = None) -> None:
        super().__init__(message)
        self.number = number
        self.run = run


def warn(message: str) -> None:
    """Warn with a `RunWarning`, at the line that has called the caller."""
    warnings.warn(message, RunWarning, stacklevel=3)


def check_positive(**values: float) -> None:
    """Raise `InputError` for a value that is not finite and positive."""
    for name, value in values.items():
        if not (isfinite(value) and value > 0):
            raise InputError(f'{name} = {value}: expected a positive number')


def check_choice(what: str, given: object, known: Iterable[str]) -> None:
    """Raise `InputError` unless `given` is one of the `known` names."""
    known = tuple(known)
    if given not in known:
        raise InputError(
            f'unknown {what} {given!r}: expected one of '
            + ', '.join(map(repr, known))
        )


def expand_home(path: str, given: str = '') -> str:
    """Replace a `~` or `~USER` that a path begins with by the home folder.

    `given`: what precedes the path in the error. Raises `InputError` where
    no such folder is known: a folder named `~` would be made.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith('~'):
        raise InputError(
            f'{given}{path}: the home folder of {path.partition("/")[0]} is '
            'not known: give the path in full, or ./~… for a name that '
            'begins with ~'
        )
    return expanded


@contextmanager
def input_errors() -> Iterator[None]:
    """Turn the `ValueError` of a backend into an `InputError`."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from error
