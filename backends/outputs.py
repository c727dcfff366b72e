"""The outputs of a network, in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from backends.types import Array


def to_arrays(outputs: Any, to_numpy: Callable[[Array], np.ndarray]) -> Any:
    """Return an output in NumPy, or a tuple of several; `None` stays."""
    if isinstance(outputs, (tuple, list)):
        return tuple(Y if Y is None else to_numpy(Y) for Y in outputs)
    return to_numpy(outputs)


def named_arrays(
    layers: Mapping[str, Array],
    outputs: Any,
    to_numpy: Callable[[Array], np.ndarray],
) -> dict[str, np.ndarray]:
    """Return what `Backend.trace` does.

    `layers`: what each layer has returned, by its name; `outputs`: what the
    network has returned.
    """
    several = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    named = {f'output {i}': Y for i, Y in enumerate(several)}
    return {
        name: to_numpy(Y)
        for name, Y in {**layers, **named}.items()
        if Y is not None
    }
