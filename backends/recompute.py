"""Layers of a thread that the backward pass calls again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import local
from typing import Any

_recompute = local()


@contextmanager
def recomputing(wanted: bool) -> Iterator[list[Any]]:
    """Let `Backend.checkpoint`, called in this thread, keep inputs alone.

    Yields a list in which a backend may note the calls. Where it is not
    `wanted`, and outside of this context, layers are called as usual.
    """
    calls: list[Any] = []
    previous = noted_calls()
    _recompute.calls = calls if wanted else None
    try:
        yield calls
    finally:
        _recompute.calls = previous


def noted_calls() -> list[Any] | None:
    """Return the list of this thread, or `None` outside of the context."""
    return getattr(_recompute, 'calls', None)
