"""What a training must not have: numbers that are not finite."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from backends.base import Gradients
from d2lbert.bert import BERTModel
from d2lbert.errors import RunError
from d2lbert.weights import neutral_name


def faults_of_losses(
    names: Sequence[str], losses: Sequence[float]
) -> list[str]:
    """Return in words which of some losses are not finite."""
    return [
        f'the {name} is {loss}'
        for name, loss in zip(names, losses, strict=True)
        if not np.isfinite(loss)
    ]


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


def check_faults(faults: Sequence[str], step: int, lr: float) -> None:
    """Raise `RunError` where a step has faults."""
    if faults:
        more = f' and {len(faults) - 4} more' if len(faults) > 4 else ''
        raise RunError(
            f'the training diverged at step {step}: '
            f'{"; ".join(faults[:4])}{more}. Give a smaller --lr than {lr}'
        )
