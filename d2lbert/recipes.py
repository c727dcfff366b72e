"""What the two tabs of the chapter compute differently, as data.

The chapter's two printed results differ because of these recipes and not
because of the frameworks: any recipe runs on any backend. The recipe `bert`
trains as Devlin et al., "BERT: pre-training of deep bidirectional
transformers for language understanding" (2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from backends.base import Gradients
from d2lbert.data.examples import Batch
from d2lbert.errors import InputError, check_choice

Initialization = Literal['xavier', 'torch', 'truncated_normal']
AfterWarmup = Literal['constant', 'linear']
INITIALIZATIONS, SCHEDULES = get_args(Initialization), get_args(AfterWarmup)

#: An update with a larger one, or one over it, could leave float32, which
#: begins at 1e-38 and ends at 3e38.
MAX_LR = 1e30


@dataclass(frozen=True)
class Recipe:
    """How to start, what to average the loss over, how to step.

    `initialization`: `'xavier'` (Gluon's Xavier on every matrix, zero
    biases), `'torch'` (PyTorch's defaults) or `'truncated_normal'` (that of
    BERT, zero biases).

    `mlm_average`: the masked language modelling loss is the mean over the
    real `'predictions'`, or over all `'slots'`, padding included.

    `per_shard`: every shard's loss is averaged by itself, their gradients
    are summed and their losses averaged for the report; otherwise the batch
    has one loss, whatever shards it is cut into.

    `epsilon_inside`: Adam's epsilon is added before the bias correction.

    `lr`: the learning rate, unless another is given; `schedule`: after the
    warm-up it is `'constant'`, or it falls to zero on a line, see
    `Schedule`; `warmup`: the warm-up's share of the steps.

    `weight_decay`: see `Backend.Adam`; `clip_norm`: the largest norm of the
    gradient, a larger one is scaled to it. 0 is for neither.

    Raises `InputError` for a value that cannot be used.
    """

    name: str
    initialization: Initialization
    mlm_average: Literal['predictions', 'slots']
    per_shard: bool
    epsilon_inside: bool
    lr: float = 0.01
    schedule: AfterWarmup = 'constant'
    warmup: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        check_choice('initialization', self.initialization, INITIALIZATIONS)
        check_choice('schedule', self.schedule, SCHEDULES)
        if not 0 <= self.weight_decay <= 1:
            raise InputError(
                f'weight_decay = {self.weight_decay!r}: expected from 0 to 1'
            )
        if self.clip_norm != 0 and not 1 / MAX_LR <= self.clip_norm <= MAX_LR:
            raise InputError(
                f'clip_norm = {self.clip_norm!r}: expected 0, which clips '
                f'nothing, or from {1 / MAX_LR} to {MAX_LR}'
            )

    @property
    def clips(self) -> bool:
        """Whether a step depends on the norm of the gradient."""
        return self.clip_norm > 0

    def scale(self, gradients: Gradients) -> float:
        """Return what the gradients of a step are multiplied by."""
        norm = gradients.norm() if self.clips else 0.0
        return min(1.0, self.clip_norm / norm) if norm > 0 else 1.0

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


@dataclass(frozen=True)
class Schedule:
    """Which share of the learning rate each step has, counted from 1.

    It grows on a line to 1, which it reaches after `warmup` steps. With
    `num_steps` it then falls on a line, to zero for the step after these;
    else it stays. Raises `InputError` for a longer warm-up.
    """

    warmup: int = 0
    num_steps: int | None = None

    def __post_init__(self) -> None:
        if self.num_steps is not None and self.warmup > self.num_steps:
            raise InputError(
                f'warmup = {self.warmup}: expected at most the '
                f'{self.num_steps} steps of the schedule'
            )

    def __call__(self, step: int) -> float:
        """Return the share of a step."""
        top = max(self.warmup, 1)
        share = min(1.0, step / top)
        if self.num_steps is not None:
            left = self.num_steps + 1 - step
            share = min(share, max(left, 0) / (self.num_steps + 1 - top))
        return share


CONSTANT = Schedule()

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
        Recipe(
            'bert',
            initialization='truncated_normal',
            mlm_average='predictions',
            per_shard=False,
            epsilon_inside=False,
            lr=0.001,
            schedule='linear',
            warmup=0.1,
            weight_decay=0.01,
            clip_norm=1.0,
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
