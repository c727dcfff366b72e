"""Check batches before a framework computes with them.

For an index out of range PyTorch raises an error, or on a GPU ends the
process, and MXNet silently takes the nearest row. These checks are the same
for both.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from d2lbert.data.examples import Batch
from d2lbert.errors import InputError

#: B examples of T tokens with P prediction slots: see `Batch`.
AXES = Batch('BT', 'BT', 'B', 'BP', 'BP', 'BP', 'B')  # type: ignore[arg-type]


def check_batch(batch: Batch, vocab_size: int, max_positions: int) -> None:
    """Raise `InputError` for a batch that cannot be trained on.

    `vocab_size`, `max_positions`: how many tokens and positions the network
    has embeddings for. The error names the array, the row, the value and
    what was expected.
    """
    check_shapes(batch)
    words, rows = check_encoder_inputs(batch, vocab_size, max_positions)
    last = batch.tokens.shape[1] - 1
    check_range('pred_positions', batch.pred_positions, 0, last, rows)
    check_range('mlm_labels', batch.mlm_labels, 0, vocab_size - 1, words)
    check_range('nsp_labels', batch.nsp_labels, 0, 1)
    positions, weights = batch.pred_positions, batch.mlm_weights
    beyond = positions >= batch.valid_lens[:, None]
    expected = "a number below the row's valid length"
    refuse('pred_positions', positions, beyond, expected)
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    refuse('mlm_weights', weights, wrong, 'a finite number from 0 up')


def check_encoder_inputs(
    batch: Any, vocab_size: int, max_positions: int
) -> tuple[str, str]:
    """Raise `InputError` for inputs that the encoder cannot take.

    `batch`: of any task, with `tokens`, `segments` and `valid_lens` of
    shapes that fit each other; the others are those of `check_batch`.
    Returns why an index of a token and a position are bounded, in words.
    """
    max_len = batch.tokens.shape[1]
    if max_len > max_positions:
        raise InputError(
            f'tokens has rows of {max_len:,}: expected at most '
            f'{max_positions:,}, the positions of the network; cut the rows'
        )
    words = f'the vocabulary has {vocab_size:,} tokens'
    rows = f'rows have {max_len:,} tokens'
    check_range('tokens', batch.tokens, 0, vocab_size - 1, words)
    check_range('segments', batch.segments, 0, 1)
    check_range('valid_lens', batch.valid_lens, 1, max_len, rows)
    return words, rows


def check_shapes(batch: Batch) -> None:
    """Raise `InputError` unless the shapes of a batch fit each other."""
    sizes: dict[str, int] = {}
    for name, array, axes in zip(Batch._fields, batch, AXES, strict=True):
        shape = array.shape
        if array.ndim == len(axes):
            sizes = dict(zip(axes, shape, strict=True)) | sizes
        if shape != tuple(sizes.get(axis) for axis in axes) or 0 in shape:
            expected = ', '.join(str(sizes.get(axis, axis)) for axis in axes)
            raise InputError(
                f'{name} has shape {shape}: expected ({expected}), for '
                f'{", ".join(Batch._fields)} of the same B examples, one or '
                'more'
            )


def check_range(
    name: str, array: np.ndarray, low: int, high: int, reason: str = ''
) -> None:
    """Raise `InputError` unless an array has integers from `low` to `high`.

    They may be integers of a floating-point type. `reason`: why `high` is
    the highest.
    """
    # Of each batch: the extremes take less time than a mask of all numbers
    in_range = array.size and low <= array.min() and array.max() <= high
    is_integer = array.dtype.kind in 'biu'
    if in_range and (is_integer or (array == np.floor(array)).all()):
        return
    wrong = (array < low) | (array > high) | (array != np.floor(array))
    because = f', because {reason}' if reason else ''
    expected = f'a whole number from {low} to {high}{because}'
    refuse(name, array, wrong, expected)


def to_int32(name: str, array: np.ndarray) -> np.ndarray:
    """Return an array of whole numbers of any type as int32.

    Raises `InputError` where that would change a number.
    """
    bounds = np.iinfo(np.int32)
    check_range(name, array, bounds.min, bounds.max)
    return array.astype(np.int32)


def refuse(
    name: str, array: np.ndarray, wrong: np.ndarray, expected: str
) -> None:
    """Raise `InputError` about the first value that is `wrong`, if any."""
    if wrong.any():
        index = tuple(np.argwhere(wrong)[0].tolist())
        raise InputError(
            f'{name}{list(index)} = {array[index]}: expected {expected} '
            f'(row {index[0]} of a batch of {len(array)}; {wrong.sum()} '
            'values are wrong)'
        )
