"""However a batch is cut, `corrected` trains alike; a tab, as its tab does.

More of the same is in test_trainer.py.
"""

import numpy as np
import pytest

from backends.devices import shard_slices
from d2lbert.recipes import RECIPES
from d2lbert.trainer import Trainer
from d2lbert.weights import get_weights, set_weights
from helpers import make_batch, new_trainer, train

# The last batch is smaller, and no size divides by 2, 3 and 5
BATCHES = (9, 9, 9, 7)
CUTS = [
    (3, 2),
    *(
        pytest.param(*cut, marks=pytest.mark.slow)
        for cut in [(1, 4), (2, 1), (2, 3), (3, None), (5, 1)]
    ),
]


def trainer_in_float64(tab, **options):
    trainer = new_trainer(tab, **options)
    weights = get_weights(trainer.net)
    set_weights(
        trainer.net,
        {name: W.astype(np.float64) for name, W in weights.items()},
    )
    trainer.close()
    # Adam's moments have the type that the weights have when it is made
    return Trainer(
        trainer.net,
        trainer.recipe,
        lr=0.01,
        devices=tab.BACKEND.devices(options.get('devices', 'cpu')),
        micro_batch=trainer.micro_batch,
    )


@pytest.mark.slow
@pytest.mark.parametrize(('num_shards', 'micro_batch'), CUTS)
def test_one_curve(tab, num_shards, micro_batch):
    whole, _ = train(new_trainer(tab), BATCHES)
    cut, _ = train(
        new_trainer(
            tab, devices=f'cpu:{num_shards}', micro_batch=micro_batch
        ),
        BATCHES,
    )
    np.testing.assert_allclose(cut, whole, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(('num_shards', 'micro_batch'), CUTS)
def test_one_curve_to_the_last_digits(tab, num_shards, micro_batch):
    """What is left in float32 is rounding: float64 has none of it."""
    whole, w = train(trainer_in_float64(tab), BATCHES * 3)
    cut, v = train(
        trainer_in_float64(
            tab, devices=f'cpu:{num_shards}', micro_batch=micro_batch
        ),
        BATCHES * 3,
    )
    # JAX was measured to differ by 1e-9
    limit = 1e-8 if tab.BACKEND.name == 'jax' else 1e-10
    np.testing.assert_allclose(cut, whole, rtol=0, atol=limit)
    for name, W in w.items():
        assert W.dtype == np.float64
        np.testing.assert_allclose(v[name], W, atol=10 * limit, err_msg=name)


def gradients_of(tab, recipe, batch, num_shards):
    trainer = new_trainer(tab, recipe, f'cpu:{num_shards}', dropout=0)
    return trainer.value_and_grad(batch).arrays()


@pytest.mark.parametrize('recipe', RECIPES)
@pytest.mark.parametrize(
    'num_shards',
    [
        3,
        pytest.param(2, marks=pytest.mark.slow),
        pytest.param(5, marks=pytest.mark.slow),
    ],
)
def test_gradients_are_those_of_the_recipe(tab, recipe, num_shards):
    """MXNet's tab adds up what each shard by itself would give."""
    batch = make_batch(7)
    found = gradients_of(tab, recipe, batch, num_shards)
    parts = [batch]
    if recipe == 'mxnet':
        parts = [batch.rows(rows) for rows in shard_slices(7, num_shards)]
    alone = [gradients_of(tab, recipe, part, 1) for part in parts]
    for name, dW in found.items():
        np.testing.assert_allclose(
            dW, sum(part[name] for part in alone), atol=2e-6, err_msg=name
        )
