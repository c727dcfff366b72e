"""What Flax calls a parameter, and what the interface does, without JAX.

A path in Flax's state is a sequence of words and numbers. The interface has
PyTorch's words, and the `weight` of a linear layer is the transpose of its
`kernel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: Flax's words for `weight`: that of a linear layer, of a table, and of
#: layer normalisation.
KERNEL, EMBEDDING, SCALE = WEIGHTS = ('kernel', 'embedding', 'scale')


def words_of(path: Sequence[Any]) -> list[str]:
    """Return the words of a structural name; `layers` is Flax's own."""
    return [str(key) for key in path if key != 'layers']


def name_of(path: Sequence[Any]) -> str:
    """Return the structural name of a parameter."""
    *others, last = path
    last = 'weight' if last in WEIGHTS else last
    return '.'.join([*words_of(others), last])


def path_of(name: str, num_axes: int) -> list[str]:
    """Return the path of a parameter of the chapter's network.

    `name`: structural; `num_axes`: of its array.
    """
    path: list[str] = []
    for word in name.split('.'):
        path += ['layers', word] if word.isdigit() else [word]
    if path[-1] == 'weight':
        path[-1] = KERNEL if num_axes == 2 else SCALE
        if path[-2].endswith('embedding'):
            path[-1] = EMBEDDING
    return path


def is_turned(path: Sequence[Any]) -> bool:
    """Return whether Flax has the axes of a parameter the other way round."""
    return path[-1] == KERNEL


def turned(path: Sequence[Any], X: Any) -> Any:
    """Turn a parameter from Flax's axes to the interface's, or back."""
    return X.T if is_turned(path) else X
