"""What is particular to a CUDA card. Skipped where there is none."""

import numpy as np
import pytest

from d2lbert.data.examples import Batch
from d2lbert.recipes import RECIPES
from helpers import (
    check_equal,
    losses_and_gradients,
    make_batch,
    new_trainer,
    train,
)

pytestmark = pytest.mark.gpu


@pytest.fixture
def torch_tab():
    torch = pytest.importorskip('torch')
    if not torch.cuda.is_available():
        pytest.skip('there is no CUDA card')
    from d2lbert import torch as tab

    return tab


@pytest.mark.parametrize('recipe', RECIPES)
@pytest.mark.parametrize('micro_batch', [None, 4])
@pytest.mark.parametrize('dropout', [0, 0.3])
def test_a_card_computes_as_the_processor(
    torch_tab, recipe, micro_batch, dropout
):
    """By replayed graphs without dropout, with shared masks otherwise."""
    options = {
        'dropout': dropout,
        'micro_batch': micro_batch,
        'shared_masks': dropout > 0,
    }
    batch = make_batch(9)
    card = new_trainer(torch_tab, recipe, 'gpu:0', **options)
    processor = new_trainer(torch_tab, recipe, **options)
    for _ in range(2):
        check_equal(
            losses_and_gradients(card, batch),
            losses_and_gradients(processor, batch),
        )


@pytest.mark.parametrize('recipe', RECIPES)
def test_training_on_a_card(torch_tab, recipe):
    """Adam's fused update, and graphs of several shapes."""
    options = {'dropout': 0, 'lr': 1e-4}
    ours, w = train(new_trainer(torch_tab, recipe, 'gpu:0', **options))
    theirs, v = train(new_trainer(torch_tab, recipe, **options))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    for name, array in w.items():
        np.testing.assert_allclose(array, v[name], atol=1e-5, err_msg=name)


def test_dropout_on_a_card_depends_on_the_seed_alone(torch_tab):
    runs = [
        train(new_trainer(torch_tab, devices='gpu:0', seed=seed))[0]
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert abs(runs[0] - runs[2]).max() > 1e-3


def test_a_card_goes_on_where_another_stopped(torch_tab):
    batches = [make_batch(9, seed) for seed in range(4)]
    whole = new_trainer(torch_tab, devices='gpu:0')
    for batch in batches:
        whole.step(batch)
    first = new_trainer(torch_tab, devices='gpu:0')
    for batch in batches[:2]:
        first.step(batch)
    second = new_trainer(torch_tab, devices='gpu:0')
    backend = torch_tab.BACKEND
    backend.set_parameters(second.net, backend.get_parameters(first.net))
    second.optimizer.load_state(first.optimizer.state(), 2)
    second.num_steps = 2
    for batch in batches[2:]:
        second.step(batch)
    expected = backend.get_parameters(whole.net)
    for name, array in backend.get_parameters(second.net).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_reporting_a_step_later_changes_nothing(torch_tab):
    batches = [make_batch(9, seed) for seed in range(4)]
    at_once, later = (
        new_trainer(torch_tab, devices='gpu:0') for _ in range(2)
    )
    assert later.parallel.asynchronous
    expected = [at_once.step(batch)[:3] for batch in batches]
    assert [step[:3] for step in later.train(batches, 4)] == expected


@pytest.mark.parametrize('precision', ['tf32', 'bf16'])
def test_inexact_is_near(torch_tab, precision):
    batch = make_batch(64)
    exact, inexact = (
        new_trainer(torch_tab, devices='gpu:0', dropout=0, precision=name)
        for name in ('float32', precision)
    )
    ours, theirs = (
        np.array(trainer.step(batch)[:2]) for trainer in (inexact, exact)
    )
    np.testing.assert_allclose(ours, theirs, rtol=0.02)


def test_one_row_with_one_prediction(torch_tab):
    batch = Batch(
        *(array[:1] for array in make_batch(2, num_tokens=5, num_slots=1))
    )
    trainer = new_trainer(torch_tab, devices='gpu:0', dropout=0)
    expected = new_trainer(torch_tab, dropout=0)
    check_equal(
        losses_and_gradients(trainer, batch),
        losses_and_gradients(expected, batch),
    )
