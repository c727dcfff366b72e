"""The guard of the interface: the trainer runs on the toy backend."""

import numpy as np
import pytest

import toy
from d2lbert.frameworks import load_tab
from d2lbert.pytest_plugin import require
from d2lbert.recipes import RECIPES
from d2lbert.trainer import Trainer
from d2lbert.weights import get_weights, set_weights
from helpers import make_batch

SIZES = {
    'vocab_size': 9,
    'num_hiddens': 4,
    'ffn_num_hiddens': 3,
    'num_heads': 2,
    'num_blks': 1,
    'dropout': 0.25,
    'max_len': 6,
}


def weights():
    net, rng = toy.BERTModel(**SIZES), np.random.default_rng(3)
    return {
        name: 0.5 * rng.standard_normal(shape)
        for name, shape in toy.BACKEND.parameter_shapes(net).items()
    }


def two_steps(tab, backend, recipe, devices):
    """The losses of two steps and the weights after them, in float64."""
    net = tab.BERTModel(**SIZES)
    devices = backend.devices(devices)
    set_weights(net, weights(), devices)
    trainer = Trainer(
        net, RECIPES[recipe], lr=0.01, devices=devices, micro_batch=2, seed=7
    )
    batches = [
        make_batch(5, seed, num_tokens=6, num_slots=3, vocab_size=9)
        for seed in range(2)
    ]
    losses = [step[:2] for step in trainer.train(batches, 2)]
    trainer.close()
    return losses, get_weights(net)


@pytest.mark.torch
@pytest.mark.parametrize(
    ('recipe', 'devices'),
    [
        ('mxnet', 'cpu:2'),
        pytest.param('pytorch', 'cpu', marks=pytest.mark.slow),
        pytest.param('corrected', 'cpu:2', marks=pytest.mark.slow),
        pytest.param('bert', 'cpu', marks=pytest.mark.slow),
    ],
)
def test_two_steps_are_those_of_pytorch(recipe, devices):
    require('torch')
    tab = load_tab('torch')
    ours, w = two_steps(toy, toy.BACKEND, recipe, devices)
    theirs, v = two_steps(tab, tab.BACKEND, recipe, devices)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert list(w) and set(w) == set(v)
    for name, array in w.items():
        np.testing.assert_allclose(array, v[name], atol=1e-5, err_msg=name)
