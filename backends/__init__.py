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

#: The package of each backend's networks, by the backend's name.
_PACKAGES = {'jax': 'flax', 'mxnet': 'mxnet', 'torch': 'torch'}
_NAMES = tuple(_PACKAGES)


def names() -> tuple[str, ...]:
    """Return the names of the known backends."""
    return _NAMES


def installed() -> tuple[str, ...]:
    """Return the names of the backends whose framework is installed.

    This imports nothing, so an installed framework may still be broken.
    """
    return tuple(
        name
        for name, package in _PACKAGES.items()
        if all(map(importlib.util.find_spec, {name, package}))
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
        if error.name not in (name, _PACKAGES[name]):
            raise
        raise ModuleNotFoundError(
            f'the backend {name!r} needs {error.name}, which is not '
            f"installed: in a clone of d2lbert run pip install '.[{name}]'",
            name=error.name,
        ) from error
    return module.BACKEND


def of(net: Any) -> Backend:
    """Return the backend of the framework that `net` belongs to.

    Raises `ValueError` for an object of no known framework.
    """
    for cls in type(net).__mro__:
        top = cls.__module__.partition('.')[0]
        for name, package in _PACKAGES.items():
            if top == package:
                return load(name)
    raise ValueError(
        f'expected a network of {" or ".join(_NAMES)}, got '
        f'an object of {type(net).__module__}.'
        f'{type(net).__qualname__}'
    )
