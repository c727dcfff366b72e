"""What a training must not have: numbers that are not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from backends.base import Gradients
from d2lbert.bert import BERTModel
from d2lbert.errors import RunError
from d2lbert.weights import neutral_name


def check_step(
    net: BERTModel,
    losses: Mapping[str, float],
    gradients: Gradients,
    step: int,
    lr: float,
    is_newest: bool = True,
) -> None:
    """Raise `RunError` where a step has numbers that are not finite.

    `losses`: by their names; `is_newest`: whether the arrays of `net` and
    `gradients` are still those of this step.
    """
    if np.isfinite([*losses.values(), gradients.norm()]).all():
        return
    faults = [
        f'the {name} is {loss}'
        for name, loss in losses.items()
        if not np.isfinite(loss)
    ]
    if is_newest:
        faults += faults_of_arrays(net, gradients)
    else:
        faults = faults or ['a gradient or a parameter is not finite']
    # None where only the sum of the squares has overflowed
    raise_faults(faults, step, lr)


def check_parameters(net: BERTModel, step: int, lr: float) -> None:
    """Raise `RunError` where parameters are not finite after a step."""
    raise_faults(faults_of_arrays(net), step, lr)


def faults_of_arrays(
    net: BERTModel, gradients: Gradients | None = None
) -> list[str]:
    """Return in words which parameters and gradients are not finite."""
    kinds = {
        'the parameter': net.backend.get_parameters(net),
        'the gradient of': gradients.arrays() if gradients else {},
    }
    return [
        f'{kind} {neutral_name(net, name)} is not finite'
        for kind, arrays in kinds.items()
        for name, array in arrays.items()
        if not np.isfinite(array).all()
    ]


def raise_faults(faults: Sequence[str], step: int, lr: float) -> None:
    """Raise `RunError` where a step has faults."""
    if faults:
        more = f' and {len(faults) - 4} more' if len(faults) > 4 else ''
        raise RunError(
            f'the training diverged at step {step}: '
            f'{"; ".join(faults[:4])}{more}. Give a smaller --lr than {lr}'
        )
