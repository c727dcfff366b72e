"""What the two tabs of the chapter compute differently, as data.

The chapter's two printed results differ because of these recipes and not
because of the frameworks: any recipe runs on any backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from d2lbert.data.examples import Batch
from d2lbert.errors import InputError, check_choice

#: An update with a larger one, or one over it, could leave float32, which
#: begins at 1e-38 and ends at 3e38.
MAX_LR = 1e30


@dataclass(frozen=True)
class Recipe:
    """How to start, what to average the loss over, where epsilon goes.

    `initialization`: `'xavier'` (Gluon's Xavier on every matrix, zero
    biases) or `'torch'` (PyTorch's defaults).

    `mlm_average`: the masked language modelling loss is the mean over the
    real `'predictions'`, or over all `'slots'`, padding included.

    `per_shard`: every shard's loss is averaged by itself, their gradients
    are summed and their losses averaged for the report; otherwise the batch
    has one loss, whatever shards it is cut into.

    `epsilon_inside`: Adam's epsilon is added before the bias correction.
    """

    name: str
    initialization: Literal['xavier', 'torch']
    mlm_average: Literal['predictions', 'slots']
    per_shard: bool
    epsilon_inside: bool
    lr: float = 0.01

    def loss_weights(
        self, batch: Batch, shards: Sequence[slice]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what each cross-entropy of a batch counts in its loss.

        The loss that is differentiated is the sum of all cross-entropies
        times these weights: float32 `(B, P)` for the prediction slots and
        `(B,)` for next sentence prediction.
        """
        mlm_weights = np.empty_like(batch.mlm_weights)
        nsp_weights = np.empty(len(batch.tokens), np.float32)
        for rows in shards if self.per_shard else [slice(None)]:
            counted = batch.mlm_weights[rows]
            if self.mlm_average == 'slots':
                counted = np.ones_like(counted)
            # A shard without any prediction has the loss 0, not 0 / 0
            mlm_weights[rows] = counted / max(counted.sum(), 1e-8)
            nsp_weights[rows] = 1 / len(counted)
        return mlm_weights, nsp_weights

    def reported(self, loss: float, num_shards: int) -> float:
        """Return the loss to print for a step, from the summed one."""
        return loss / num_shards if self.per_shard else loss


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            'mxnet',
            initialization='xavier',
            mlm_average='predictions',
            per_shard=True,
            epsilon_inside=True,
        ),
        Recipe(
            'pytorch',
            initialization='torch',
            mlm_average='slots',
            per_shard=False,
            epsilon_inside=False,
        ),
        Recipe(
            'corrected',
            initialization='xavier',
            mlm_average='predictions',
            per_shard=False,
            epsilon_inside=False,
        ),
    )
}


def get_recipe(name: str) -> Recipe:
    """Return a recipe by name. Raises `InputError` for an unknown one."""
    check_choice('recipe', name, RECIPES)
    return RECIPES[name]


def check_lr(lr: float) -> None:
    """Raise `InputError` for a learning rate that cannot be used."""
    if not 1 / MAX_LR <= lr <= MAX_LR:
        raise InputError(
            f'lr = {lr!r}: expected a positive number, from {1 / MAX_LR} '
            f'to {MAX_LR}'
        )
