"""The tools for holding two networks against each other."""

import json

import numpy as np
import pytest

import backends
from d2lbert import parity
from d2lbert.errors import InputError
from d2lbert.parity.report import compare_backends
from d2lbert.recipes import RECIPES

rng = np.random.default_rng(0)
X = rng.standard_normal((5, 4)).astype(np.float32)
TINY = {
    'steps': 3,
    'batch_size': 21,
    'max_len': 32,
    'num_hiddens': 16,
    'ffn_num_hiddens': 24,
    'progress': False,
}


def mlp(backend):
    net = backend.Sequential(
        backend.Linear(6, 4, activation='relu'), backend.Linear(3, 6)
    )
    shapes = backend.parameter_shapes(net)
    draw = np.random.default_rng(1)
    backend.set_parameters(
        net,
        {
            name: draw.standard_normal(shape).astype(np.float32)
            for name, shape in shapes.items()
        },
    )
    return net


@pytest.fixture
def pair(both_tabs):
    """A small network in MXNet and in PyTorch, and how names correspond."""
    source, target = (mlp(tab.BACKEND) for tab in both_tabs)
    names = [
        list(backends.of(net).parameter_shapes(net))
        for net in (source, target)
    ]
    # Gluon's first layer has the activation inside
    layers = {'0': '1', '1': '2'}
    return source, target, dict(zip(*names, strict=True)) | layers


def losses(net, batch=X):
    backend = backends.of(net)
    Y = net(backend.tensor(batch))
    return [(Y * Y).sum(), Y.sum()]


# ---- any pair --------------------------------------------------------


def test_equal_networks_pass(pair):
    source, target, mapping = pair
    parity.copy_weights(source, target, mapping)
    parity.assert_forward(source, target, [X], mapping)
    parity.assert_gradients(source, target, losses, mapping)
    parity.assert_training(source, target, losses, [X, -X], mapping)


def test_no_batches_compare_nothing(pair):
    source, target, mapping = pair
    with pytest.raises(ValueError, match='batches is empty'):
        parity.assert_training(source, target, losses, iter([]), mapping)


def test_the_other_direction(pair):
    target, source, mapping = pair
    mapping = {theirs: ours for ours, theirs in mapping.items()}
    parity.copy_weights(source, target, mapping)
    parity.assert_forward(source, target, [X], mapping)


def test_a_difference_is_named(pair):
    source, target, mapping = pair
    backend = backends.of(target)
    arrays = backend.get_parameters(target)
    arrays['2.bias'][1] += 0.5
    backend.set_parameters(target, arrays)
    with pytest.raises(AssertionError) as caught:
        parity.assert_forward(source, target, [X], mapping)
    message = str(caught.value)
    assert 'Not equal to tolerance: 2 of 3 tensors' in message
    assert 'forward of 2: largest difference 0.5 at [' in message
    with pytest.raises(AssertionError, match=r'gradients of 2\.bias'):
        parity.assert_gradients(source, target, losses, mapping)
    with pytest.raises(AssertionError, match='training of step 1'):
        parity.assert_training(source, target, losses, [X], mapping)


def test_names_without_counterpart(pair):
    source, target, _ = pair
    with pytest.raises(ValueError, match=r'2\.weight is missing'):
        parity.copy_weights(source, target)
    found = parity.compare_gradients(source, target, losses)
    problems = {d.name: d.problem for d in found if d.problem}
    assert problems['1.weight'] == 'only the first one has it'
    assert problems['2.weight'] == 'only the second one has it'


def test_nothing_shared_is_a_failure(pair):
    with pytest.raises(AssertionError, match='nothing was compared'):
        parity.assert_all([])


@pytest.mark.parametrize(
    ('ours', 'theirs', 'passed'),
    [
        ([1, 2], [1, 2], True),
        ([1, 2], [1, 2.001], False),
        ([1, np.nan], [1, np.nan], False),
        ([1, np.inf], [1, np.inf], True),
        ([1, np.inf], [1, -np.inf], False),
        ([1, 2], [1, 2, 3], False),
        ([], [], True),
        (3, 3, True),
        ([0, 0], [0, 0], True),
        ([0, 1e-30], [0, 0], False),
    ],
)
def test_compare_arrays(ours, theirs, passed):
    found = parity.compare_arrays('x', 'x', ours, theirs, rtol=1e-6)
    assert found.passed == passed
    assert str(found).startswith('x of x: ')


def test_where_the_largest_difference_is():
    a, b = np.zeros((2, 3)), np.zeros((2, 3))
    a[1, 2], b[0, 0] = 4, 8
    found = parity.compare_arrays('x', 'x', a, b, rtol=0.5)
    assert (found.index, found.ours, found.theirs) == ((0, 0), 0, 8)
    assert (found.max_abs, found.max_rel, found.allowed) == (8, 1, 4)


# ---- the chapter's network -------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('recipe', RECIPES)
@pytest.mark.parametrize('devices', ['cpu', 'cpu:2'])
def test_the_chapters_network(both_tabs, recipe, devices):
    report = compare_backends(recipe=recipe, devices=devices, **TINY)
    assert report.passed, report.failures
    kinds = {found.kind for found in report.differences}
    one_step = {'forward', 'losses', 'gradients', 'step', 'evaluation'}
    assert kinds == one_step | {'training'}


@pytest.mark.slow
@pytest.mark.parametrize('recipe', RECIPES)
def test_in_float64(both_tabs, recipe):
    report = compare_backends(recipe=recipe, dtype='float64', **TINY)
    assert report.passed, report.failures
    assert max(d.max_rel for d in report.differences) < 1e-9


def test_a_backend_with_itself(backend_name):
    report = compare_backends((backend_name, backend_name), **TINY)
    assert report.passed
    assert max(d.max_abs for d in report.differences) == 0


def test_report(both_tabs, tmp_path):
    report = compare_backends(**TINY)
    lines = report.table().splitlines()
    assert len(lines) == 7
    assert all(line.endswith('pass') for line in lines[1:])
    picture = report.save(tmp_path / 'parity')
    assert picture.stat().st_size > 10_000
    saved = json.loads((tmp_path / 'parity' / 'parity.json').read_text())
    assert saved['passed'] is True
    assert len(saved['differences']) == len(report.differences)
    assert len(saved['histories']['torch']) == 3


def test_bad_arguments():
    with pytest.raises(InputError, match='expected two'):
        compare_backends(['torch'])
    with pytest.raises(InputError, match='float16'):
        compare_backends(dtype='float16')
