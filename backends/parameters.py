"""Parameters by name: do they fit a network? And a way to draw them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from backends.types import Arrays


def check_parameters(
    expected: Mapping[str, tuple[int, ...]], arrays: Arrays
) -> None:
    """Raise `ValueError` unless `arrays` can be the parameters."""
    faults = [f'{name} is missing' for name in expected if name not in arrays]
    faults += [
        f'{name} is not a parameter of this network'
        for name in arrays
        if name not in expected
    ]
    faults += [
        f'{name} has shape {arrays[name].shape} instead of {shape}'
        for name, shape in expected.items()
        if name in arrays and tuple(arrays[name].shape) != shape
    ]
    faults += [
        f'{name} has type {arrays[name].dtype} instead of a type of floats'
        for name in expected
        if name in arrays and arrays[name].dtype.kind != 'f'
    ]
    if faults:
        raise ValueError(
            'the arrays do not fit this network: ' + '; '.join(faults)
        )


def cut_normal(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Return numbers from N(0, 1), drawn again beyond ±2; float64."""
    Z = rng.standard_normal(shape)
    while (beyond := abs(Z) > 2).any():
        Z[beyond] = rng.standard_normal(np.count_nonzero(beyond))
    return Z
