"""Where the dropout layers of a thread take their masks from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from threading import local

from backends.types import Masks

_dropout = local()


@contextmanager
def dropout_masks(masks: Masks | None) -> Iterator[None]:
    """Let each `Dropout` layer called in this thread take its mask here.

    With `None`, and outside of this context, a `Dropout` layer uses random
    numbers of its framework.
    """
    previous = current_masks()
    _dropout.masks = masks
    try:
        yield
    finally:
        _dropout.masks = previous


def current_masks() -> Masks | None:
    """Return the dropout masks of this thread, if it has any."""
    return getattr(_dropout, 'masks', None)


def masks_again() -> Callable[[], AbstractContextManager[None]]:
    """Return what gives the masks from here on once more, as a context."""
    masks = deepcopy(current_masks())
    return lambda: dropout_masks(masks)
