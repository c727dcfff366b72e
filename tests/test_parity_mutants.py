"""Who guards the guard: ten planted faults, and parity must see each.

Every fault is small, is in one framework only, and is of the kind that a
training survives without a word.
"""

import contextlib
import importlib

import numpy as np
import pytest

from d2lbert import trainer
from d2lbert.parity.report import NUM_ATTEMPTS, compare_backends
from d2lbert.trainer import Trainer

SIZES = {
    'steps': 1,
    'batch_size': 13,
    'max_len': 24,
    'num_hiddens': 16,
    'ffn_num_hiddens': 24,
    'num_blks': 1,
    'progress': False,
}


def torch_training():
    return importlib.import_module('backends.torch_training')


@pytest.fixture
def wrap(both_tabs, monkeypatch):
    """Puts a function around a method of the PyTorch backend."""
    backend = type(both_tabs[1].BACKEND)

    def wrap(name, around, cls=backend):
        original = getattr(cls, name)
        monkeypatch.setattr(
            cls,
            name,
            lambda *args, **kwargs: around(original, *args, **kwargs),
        )

    return wrap


def caught(**options):
    """Return what differs, as (kind, name), worst of each kind first."""
    report = compare_backends(**SIZES | options)
    assert not report.passed
    return [(found.kind, found.name) for found in report.failures]


def kinds(found):
    return {kind for kind, _ in found}


def test_without_a_fault(both_tabs):
    for options in ({}, {'devices': 'cpu:2'}, {'recipe': 'mxnet'}):
        report = compare_backends(**SIZES | options)
        assert report.passed, report.failures_text()


@pytest.mark.parametrize('num_attempts', [NUM_ATTEMPTS - 1, NUM_ATTEMPTS])
def test_a_gradient_that_differs_for_some_weights_is_at_a_kink(
    wrap, num_attempts
):
    name = 'encoder.blks.0.ffn.dense1.weight'
    calls = iter(range(num_attempts))

    def of_one_unit(arrays_of, self):
        arrays = arrays_of(self)
        if next(calls, None) is not None:
            arrays[name][5] *= 1.01
        return arrays

    wrap('arrays', of_one_unit, torch_training().Gradients)
    report = compare_backends(**SIZES)
    is_fault = num_attempts == NUM_ATTEMPTS
    assert report.passed is not is_fault
    named = report.failures if is_fault else report.kinks
    assert {(d.kind, d.name, d.index[0]) for d in named} == {
        ('gradients', name, 5)
    }
    assert len(named) == (1 if is_fault else num_attempts)
    assert ('(weights at a kink)' in report.table()) is not is_fault
    assert len(report.as_dict()['kinks']) == len(report.kinks)


@pytest.mark.parametrize('recipe', ['mxnet', 'pytorch'])
def test_epsilon_in_the_wrong_place(wrap, recipe):
    def flip(Adam, self, net, lr, epsilon_inside, *others):
        return Adam(self, net, lr, not epsilon_inside, *others)

    wrap('Adam', flip)
    assert kinds(caught(recipe=recipe)) == {'step'}


def test_mask_off_by_one(wrap):
    def longer(masked_softmax, self, X, valid_lens):
        return masked_softmax(self, X, valid_lens + 1)

    wrap('masked_softmax', longer)
    found = caught()
    assert ('forward', 'encoder.blks.0.attention.attention') in found
    assert ('forward', 'encoder.blks.0.attention.W_q') not in found


def test_a_transposed_weight(wrap):
    def transposed(set_parameters, self, net, arrays, devices=None):
        flipped = {
            name: W.T if name.endswith('W_q.weight') else W
            for name, W in arrays.items()
        }
        set_parameters(self, net, flipped, devices)

    wrap('set_parameters', transposed)
    found = caught()
    assert ('forward', 'encoder.blks.0.attention.W_q') in found
    assert ('forward', 'encoder.blks.0.attention.W_k') not in found


def test_mean_for_sum_over_shards(wrap):
    def mean(reduce, self, busy, losses):
        gradients = reduce(self, busy, losses)
        for parameter in gradients.net.parameters():
            parameter.grad /= self.num_shards
        return gradients

    wrap('reduce', mean, torch_training().DataParallel)
    found = caught(devices='cpu:2')
    assert ('gradients', 'nsp.output.weight') in found
    assert not {'forward', 'losses', 'step'} & kinds(found)


def test_dropout_without_its_scale(wrap):
    def unscaled(dropout, self, X):
        return dropout(self, X * (1 - self.p))

    wrap(
        'forward', unscaled, importlib.import_module('backends.torch').Dropout
    )
    found = caught()
    assert ('forward', 'encoder.blks.0.attention.attention.dropout') in found
    assert ('forward', 'encoder.blks.0.attention.W_v') not in found


def test_wrong_segment(both_tabs, monkeypatch):
    encoder = both_tabs[1].BERTEncoder
    forward = encoder.forward
    monkeypatch.setattr(
        encoder,
        'forward',
        lambda self, tokens, segments, valid_lens=None: forward(
            self, tokens, 1 - segments, valid_lens
        ),
    )
    found = caught()
    assert ('forward', 'encoder.segment_embedding') in found
    assert ('forward', 'encoder.token_embedding') not in found
    assert ('gradients', 'encoder.segment_embedding.weight') in found


def test_epsilon_of_layer_norm(wrap):
    def tiny(LayerNorm, self, num_hiddens):
        layer = LayerNorm(self, num_hiddens)
        layer.eps = 1e-12
        return layer

    wrap('LayerNorm', tiny)
    found = caught()
    assert ('forward', 'encoder.blks.0.addnorm1.ln') in found
    assert ('forward', 'encoder.blks.0.attention.W_o') not in found


def test_labels_shifted_by_one(wrap):
    def shifted(loss, self, layer, X, labels, weights):
        labels = (labels + 1) % layer.out_features
        return loss(self, layer, X, labels, weights)

    wrap('linear_cross_entropy', shifted)
    found = caught()
    assert {('losses', 'mlm'), ('losses', 'nsp')} <= set(found)
    assert 'forward' not in kinds(found)


@pytest.mark.parametrize('layer', ['ffn.dense1', 'attention.W_o'])
def test_a_bias_dropped(wrap, layer):
    def without(set_parameters, self, net, arrays, devices=None):
        kept = {
            name: np.zeros_like(W) if name.endswith(f'{layer}.bias') else W
            for name, W in arrays.items()
        }
        set_parameters(self, net, kept, devices)

    wrap('set_parameters', without)
    assert ('forward', f'encoder.blks.0.{layer}') in caught()


@pytest.mark.parametrize('devices', ['cpu:2', 'cpu:3'])
def test_uneven_shards_the_wrong_way(both_tabs, monkeypatch, devices):
    value_and_grad, right = Trainer.value_and_grad, trainer.shard_slices

    def last_is_longest(num_rows, num_shards):
        return [
            slice(num_rows - rows.stop, num_rows - rows.start)
            for rows in right(num_rows, num_shards)[::-1]
        ]

    def wrong_in_torch(self, batch):
        with contextlib.ExitStack() as undo:
            if self.net.backend.name == 'torch':
                patch = undo.enter_context(monkeypatch.context())
                patch.setattr(trainer, 'shard_slices', last_is_longest)
            return value_and_grad(self, batch)

    monkeypatch.setattr(Trainer, 'value_and_grad', wrong_in_torch)
    found = caught(recipe='mxnet', devices=devices)
    assert {'losses', 'gradients', 'training'} <= kinds(found)
    assert not {'forward', 'step'} & kinds(found)
