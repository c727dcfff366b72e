"""What a recipe adds to a step: its rate, its decay, its clipping."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest

from d2lbert.errors import InputError
from d2lbert.recipes import CONSTANT, RECIPES, Recipe, Schedule
from d2lbert.runs.config import RECIPE_FIELDS, Config
from d2lbert.trainer import Trainer
from d2lbert.weights import get_weights, initial_weights, neutral_shapes
from helpers import make_batch, new_net, new_trainer

BERT = RECIPES['bert']


def is_matrix(name):
    """Whether a parameter is neither a bias nor of a layer norm."""
    is_norm = '.ln.' in name or name.startswith('mlm.mlp.2.')
    return not (name.endswith('bias') or is_norm)


# ---- the learning rate -----------------------------------------------


@pytest.mark.parametrize(
    ('schedule', 'expected'),
    [
        (CONSTANT, [1, 1, 1, 1, 1]),
        (Schedule(warmup=2), [0.5, 1, 1, 1, 1]),
        (Schedule(num_steps=4), [1, 0.75, 0.5, 0.25, 0]),
        (Schedule(2, 5), [0.5, 1, 0.75, 0.5, 0.25, 0, 0]),
        (Schedule(4, 4), [0.25, 0.5, 0.75, 1, 0]),
        (Schedule(1, 1), [1, 0]),
    ],
)
def test_the_share_of_each_step(schedule, expected):
    steps = range(1, len(expected) + 1)
    np.testing.assert_allclose([schedule(step) for step in steps], expected)


def test_a_step_has_its_own_rate(tab):
    """Adam's first step has the size of the rate."""
    trainer = new_trainer(tab, lr=0.1)
    trainer.schedule = Schedule(warmup=100)
    before = get_weights(trainer.net)
    trainer.step(make_batch(5))
    after = get_weights(trainer.net)
    change = max(abs(after[name] - before[name]).max() for name in after)
    assert change == pytest.approx(0.001, rel=1e-3)


# ---- decay and clipping ----------------------------------------------


def test_decay_is_not_of_biases_and_layer_norms(tab):
    net, backend = new_net(tab), tab.BACKEND
    optimizer = backend.Adam(net, 0.5, False, (), 0.5)
    before = get_weights(net)
    zeros = backend.get_parameters(net)
    optimizer.step({name: np.zeros_like(W) for name, W in zeros.items()})
    for name, W in get_weights(net).items():
        share = 0.75 if is_matrix(name) else 1
        np.testing.assert_allclose(W, share * before[name], err_msg=name)


def test_decay_is_that_of_pytorch():
    torch = pytest.importorskip('torch')
    from d2lbert import torch as tab

    ours, theirs = (new_net(tab) for _ in range(2))
    matrices, others = [], []
    for name, parameter in theirs.named_parameters():
        (matrices if is_matrix(name) else others).append(parameter)
    groups = [
        {'params': matrices, 'weight_decay': 0.3},
        {'params': others, 'weight_decay': 0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.1)
    optimizer = tab.BACKEND.Adam(ours, 0.1, False, (), 0.3)
    rng = np.random.default_rng(0)
    for _ in range(3):
        gradients = {
            name: rng.standard_normal(W.shape).astype(np.float32)
            for name, W in get_weights(ours).items()
        }
        for name, parameter in theirs.named_parameters():
            parameter.grad = torch.tensor(gradients[name])
        adamw.step()
        optimizer.step(gradients)
    for name, W in get_weights(theirs).items():
        np.testing.assert_allclose(
            get_weights(ours)[name], W, atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize(
    ('norm', 'expected'), [(0, 1), (0.5, 1), (1, 1), (4, 0.25)]
)
def test_a_norm_above_the_largest_is_scaled_to_it(norm, expected):
    gradients = SimpleNamespace(norm=lambda: norm)
    assert BERT.scale(gradients) == expected


def test_a_clipped_step_is_that_of_the_scaled_gradient(tab):
    """In Adam's moments: its first steps hardly depend on the scale."""
    trainer, batch = new_trainer(tab, 'bert'), make_batch(5)
    trainer.recipe = dataclasses.replace(BERT, clip_norm=1e-3)
    gradients = trainer.value_and_grad(batch)
    norm, arrays = gradients.norm(), gradients.arrays()
    assert norm > 1e-3
    trainer.step(batch)
    state = trainer.optimizer.state()
    for name, gradient in arrays.items():
        if f'{name}.m' in state:
            np.testing.assert_allclose(
                state[f'{name}.m'], 0.1 * 1e-3 / norm * gradient,
                rtol=1e-4, atol=1e-10, err_msg=name,
            )  # fmt: skip


@pytest.mark.parametrize('name', RECIPES)
def test_only_clipping_waits_for_the_device(tab, name):
    trainer, asked = new_trainer(tab, name), []
    trainer.parallel.asynchronous = True
    value_and_grad = trainer.parallel.value_and_grad

    def watched(parts):
        gradients = value_and_grad(parts)
        norm = gradients.norm
        gradients.norm = lambda: asked.append('norm') or norm()
        return gradients

    trainer.parallel.value_and_grad = watched
    trainer.launch(make_batch(4))
    assert bool(asked) == (name == 'bert')


# ---- the initial weights ---------------------------------------------


def test_weights_are_normal_and_truncated(tab):
    shapes = neutral_shapes(new_net(tab, num_hiddens=36))
    weights = initial_weights(shapes, 'truncated_normal', seed=1)
    drawn = np.concatenate(
        [W.ravel() for name, W in weights.items() if is_matrix(name)]
    )
    assert abs(drawn).max() <= np.float32(0.04)
    # The standard deviation of a normal that is cut at two of its own
    density = math.exp(-2) / math.sqrt(2 * math.pi)
    variance = 1 - 4 * density / math.erf(math.sqrt(2))
    assert drawn.std() == pytest.approx(0.02 * variance**0.5, rel=0.02)
    assert abs(drawn.mean()) < 0.001
    for name, W in weights.items():
        if not is_matrix(name):
            assert (name.endswith('weight') == W).all(), name


# ---- options ---------------------------------------------------------


def test_the_other_recipes_are_neutral():
    plain = Recipe('plain', 'xavier', 'predictions', False, False)
    for recipe in RECIPES.values():
        if recipe.name != 'bert':
            for name in ('schedule', 'warmup', 'weight_decay', 'clip_norm'):
                assert getattr(recipe, name) == getattr(plain, name)
            assert not recipe.clips


def test_options_replace_what_the_recipe_has():
    config = Config(recipe='bert', steps=40)
    assert config.own_recipe() == BERT and config.lr == BERT.lr == 0.001
    assert config.own_schedule() == Schedule(4, 40)
    config = Config(
        recipe='corrected', warmup=3, weight_decay=0.1, clip_norm=2
    )
    assert config.own_schedule() == Schedule(3, None)
    assert config.own_recipe() == dataclasses.replace(
        RECIPES['corrected'], weight_decay=0.1, clip_norm=2
    )
    config = Config(recipe='bert', schedule='constant', clip_norm=0)
    assert config.own_schedule() == Schedule(5, None)
    assert not config.own_recipe().clips
    assert set(RECIPE_FIELDS) <= {f.name for f in dataclasses.fields(Recipe)}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'recipe': 'bert', 'warmup': 51}, r'warmup = 51: .* the 50 steps'),
        (
            {'recipe': 'bert', 'schedule_steps': 9},
            r'steps = 50: .* zero after the 9 steps',
        ),
        ({'schedule_steps': 90}, r'schedule_steps = 90: .*no end'),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(InputError, match=message):
        Config(**options)


def test_a_trainer_takes_any_schedule(tab):
    net = new_net(tab)
    trainer = Trainer(
        net, BERT, lr=0.1, devices=tab.BACKEND.devices('cpu'),
        schedule=lambda step: 1 / step,
    )  # fmt: skip
    assert trainer.next_lr() == 0.1
    trainer.step(make_batch(3))
    assert trainer.next_lr() == 0.05
