"""Numbers that are not finite stop a training before they are used."""

import time

import numpy as np
import pytest

from d2lbert.errors import RunError
from d2lbert.weights import neutral_name
from helpers import make_batch, new_trainer

BAD = [np.nan, np.inf, -np.inf]


def names_of(trainer):
    return trainer.net.backend.parameter_shapes(trainer.net)


def with_one(arrays, name, value):
    """The arrays, with one number replaced."""
    changed = arrays[name].copy()
    changed.flat[changed.size // 2] = value
    return arrays | {name: changed}


def check_nothing_changed(trainer, before):
    after = trainer.net.backend.get_parameters(trainer.net)
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)
    assert trainer.optimizer.num_steps == 0


def test_every_parameter(tab):
    """A NaN in each in turn, also where the loss does not show it."""
    trainer, batch = new_trainer(tab, num_blks=1), make_batch(5)
    backend, net = tab.BACKEND, trainer.net
    clean = backend.get_parameters(net)
    for i, name in enumerate(clean):
        planted = with_one(clean, name, BAD[i % len(BAD)])
        backend.set_parameters(net, planted)
        expected = f'the parameter {neutral_name(net, name)} is not finite'
        with pytest.raises(RunError, match='diverged at step') as caught:
            trainer.step(batch)
        assert 'smaller --lr than 0.01' in str(caught.value)
        assert expected in str(caught.value) or ' more' in str(caught.value)
        check_nothing_changed(trainer, planted)
    backend.set_parameters(net, clean)
    assert np.isfinite(trainer.step(batch)[:2]).all()


def test_every_gradient(tab, monkeypatch):
    """Planted between the backward pass and the update."""
    trainer, batch = new_trainer(tab, num_blks=1), make_batch(5)
    backend, net = tab.BACKEND, trainer.net
    clean = backend.get_parameters(net)
    value_and_grad = trainer.parallel.value_and_grad

    def plant(parts):
        gradients = value_and_grad(parts)
        arrays = with_one(gradients.arrays(), *planted)
        return Planted(gradients.losses(), arrays)

    monkeypatch.setattr(trainer.parallel, 'value_and_grad', plant)
    for i, name in enumerate(names_of(trainer)):
        planted = name, BAD[i % len(BAD)]
        expected = f'the gradient of {neutral_name(net, name)} is not finite'
        with pytest.raises(RunError, match=expected):
            trainer.step(batch)
        check_nothing_changed(trainer, clean)


class Planted:
    """Gradients that are given."""

    def __init__(self, losses, arrays, norm=np.nan):
        self.losses, self.arrays = lambda: losses, lambda: arrays
        self.norm = lambda: norm


def test_a_loss(tab, monkeypatch):
    trainer = new_trainer(tab)
    clean = tab.BACKEND.get_parameters(trainer.net)
    planted = Planted(np.array([np.nan, 0.7]), {}, norm=1.0)
    monkeypatch.setattr(
        trainer.parallel, 'value_and_grad', lambda parts: planted
    )
    with pytest.raises(RunError, match='step 1: the MLM loss is nan'):
        trainer.step(make_batch(5))
    check_nothing_changed(trainer, clean)


def test_a_total_that_overflows_is_no_fault(tab):
    """Numbers so great that their sum is not finite, though they are."""
    trainer = new_trainer(tab)
    backend, net = tab.BACKEND, trainer.net
    arrays = backend.get_parameters(net)
    # The position table has rows that no example reaches
    name = next(name for name in arrays if name.endswith('pos_embedding'))
    arrays[name][:, -2:] = 3e38
    backend.set_parameters(net, arrays)
    assert np.isfinite(trainer.step(make_batch(5, num_tokens=9))[:2]).all()


@pytest.mark.slow
def test_cost(tab):
    """Under 2 % of a step, at the shape of the chapter's network."""
    from d2lbert.data.vocab import Vocab
    from d2lbert.recipes import get_recipe
    from d2lbert.runs.config import Config
    from d2lbert.runs.run import new_net
    from d2lbert.trainer import Trainer

    config = Config(backend=tab.BACKEND.name)
    devices = tab.BACKEND.devices('cpu')
    vocab = Vocab([f'w{i}' for i in range(20_000)])
    net = new_net(tab, config, vocab, devices)
    trainer = Trainer(
        net, get_recipe(config.recipe), lr=0.01, devices=devices
    )
    batch = make_batch(512, num_tokens=64, num_slots=10)
    trainer.step(batch)
    whole = cpu_seconds(lambda: trainer.step(batch))
    gradients = trainer.value_and_grad(batch)
    check = gradients.norm
    if tab.BACKEND.name == 'torch':  # computes the norm when it is made
        import torch

        def check():
            return type(gradients)(gradients.net, torch.zeros(2))

    check = cpu_seconds(check)
    assert check < 0.02 * whole


def cpu_seconds(function):
    """The least of three, of all threads: others may be busy meanwhile."""
    times = []
    for _ in range(3):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)
