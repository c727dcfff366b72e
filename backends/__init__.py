"""Several frameworks behind one small interface.

`backends.load(name)` returns the implementation of `backends.base.Backend`
in a framework. Importing this package imports no framework.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backends.base import Backend

__all__ = ['installed', 'load', 'names', 'of']

_NAMES = ('mxnet', 'torch')


def names() -> tuple[str, ...]:
    """Return the names of the known backends."""
    return _NAMES


def installed() -> tuple[str, ...]:
    """Return the names of the backends whose framework is installed.

    This imports nothing, so an installed framework may still be broken.
    """
    return tuple(
        name for name in _NAMES if importlib.util.find_spec(name) is not None
    )


def load(name: str) -> Backend:
    """Import a framework and return its backend.

    Raises `ValueError` for an unknown name, and `ModuleNotFoundError`, with
    the command that installs it, for a framework that is not installed. A
    framework that is installed but broken raises its own error.
    """
    if name not in _NAMES:
        raise ValueError(
            f'unknown backend {name!r}: expected one of '
            + ', '.join(map(repr, _NAMES))
        )
    try:
        module = importlib.import_module(f'backends.{name}')
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ModuleNotFoundError(
            f'the backend {name!r} needs {name}, which is not installed: '
            f"in a clone of d2lbert run pip install '.[{name}]'",
            name=name,
        ) from error
    return module.BACKEND


def of(net: Any) -> Backend:
    """Return the backend of the framework that `net` belongs to.

    Raises `ValueError` for an object of no known framework.
    """
    for cls in type(net).__mro__:
        framework = cls.__module__.partition('.')[0]
        if framework in _NAMES:
            return load(framework)
    raise ValueError(
        f'expected a network of {" or ".join(_NAMES)}, got '
        f'an object of {type(net).__module__}.'
        f'{type(net).__qualname__}'
    )
