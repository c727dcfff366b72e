"""Both backends implement the interface, and compute what NumPy does."""

import contextlib
import inspect
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import backends
from backends import base, groups, threads
from backends.devices import parse_devices, shard_slices
from backends.types import Part
from d2lbert.errors import RunError
from d2lbert.pytest_plugin import require

rng = np.random.default_rng(0)


def close(X, expected, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(X, expected, rtol, atol)


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def public(cls):
    return {name for name in dir(cls) if not name.startswith('_')}


# ---- the interface ---------------------------------------------------


def test_the_interface_is_thin():
    classes = (
        *(base.Backend, base.DataParallel, base.Gradients, base.Optimizer),
        groups.Processes,
    )
    assert sum(len(cls.__abstractmethods__) for cls in classes) <= 36


def test_names_are_those_of_the_interface(backend):
    """A backend may have helpers of its own beside them."""
    assert public(type(backend)) >= public(base.Backend) | {'name', 'Module'}


def test_signatures_are_those_of_the_interface(backend):
    for name, function in inspect.getmembers(
        base.Backend, inspect.isfunction
    ):
        ours = inspect.signature(getattr(type(backend), name)).parameters
        theirs = inspect.signature(function).parameters
        assert list(ours) == list(theirs), name
        assert [p.default for p in ours.values()] == [
            p.default for p in theirs.values()
        ], name


def test_every_function_has_its_docstring(backend):
    for name in public(base.Backend):
        assert inspect.getdoc(getattr(type(backend), name)), name


def test_optimizers_have_the_interface_too(backend):
    optimizer = backend.Adam(linear(backend), 0.1, False)
    assert isinstance(optimizer, base.Optimizer)


def test_importing_imports_no_framework():
    code = (
        'import sys, backends, backends.base, d2lbert, d2lbert.bert,'
        'd2lbert.trainer, d2lbert.runs.run, d2lbert.cli,'
        'd2lbert.representation\n'
        'assert not {"torch", "mxnet", "matplotlib"} & set(sys.modules)'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_unknown_backend():
    with pytest.raises(ValueError, match=r"'numpy'.*'jax', 'mxnet', 'torch'"):
        backends.load('numpy')


def test_backend_that_is_not_installed():
    code = """
import sys
sys.modules['torch'] = None
import backends
try:
    backends.load('torch')
except ModuleNotFoundError as error:
    assert "pip install '.[torch]'" in str(error), error
    assert isinstance(error.__cause__, ModuleNotFoundError)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, '-c', code], check=True)


def test_backend_of_a_network(backend):
    assert backends.of(backend.Linear(2, 3)) is backend


def test_backend_of_something_else():
    with pytest.raises(ValueError, match='dict'):
        backends.of({})


# ---- tensor operations -----------------------------------------------


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_tensor_keeps_reals(backend, dtype):
    X = rng.standard_normal((2, 3)).astype(dtype)
    copied = backend.to_numpy(backend.tensor(X))
    assert copied.dtype == dtype
    np.testing.assert_array_equal(copied, X)


@pytest.mark.parametrize('dtype', ['int32', 'int64', 'bool'])
def test_tensor_makes_indices(backend, dtype):
    X = rng.integers(0, 2, (2, 3)).astype(dtype)
    copied = backend.to_numpy(backend.tensor(X))
    assert copied.dtype == ('int64' if backend.name == 'torch' else 'int32')
    np.testing.assert_array_equal(copied, X)


def test_tensor_is_a_copy(backend):
    X = np.zeros(3, np.float32)
    copied = backend.tensor(X)
    X[:] = 1
    assert not backend.to_numpy(copied).any()


def test_transpose(backend):
    X = normal(2, 3, 4, 5)
    Y = backend.transpose(backend.tensor(X), (0, 2, 1, 3))
    close(backend.to_numpy(Y), X.transpose(0, 2, 1, 3))


@pytest.mark.parametrize('transpose_B', [False, True])
@pytest.mark.parametrize('batch', [(3,), (2, 3)])
def test_matmul(backend, batch, transpose_B):
    A, B = normal(*batch, 4, 5), normal(*batch, 5, 6)
    given = B.swapaxes(-1, -2).copy() if transpose_B else B
    C = backend.matmul(backend.tensor(A), backend.tensor(given), transpose_B)
    close(backend.to_numpy(C), A @ B, atol=1e-5)


def test_gather(backend):
    X, positions = normal(2, 7, 4), rng.integers(0, 7, (2, 3))
    Y = backend.gather(backend.tensor(X), backend.tensor(positions))
    close(backend.to_numpy(Y), np.take_along_axis(X, positions[..., None], 1))


def test_relu(backend):
    X = normal(3, 4)
    close(backend.to_numpy(backend.relu(backend.tensor(X))), np.maximum(X, 0))


def softmax(X):
    E = np.exp(X - X.max(-1, keepdims=True))
    return E / E.sum(-1, keepdims=True)


@pytest.mark.parametrize('shape', [(3, 4, 5), (3, 2, 4, 5)])
@pytest.mark.parametrize('lens', [None, [1, 5, 3], 'queries'])
def test_masked_softmax(backend, shape, lens):
    X, masked = normal(*shape), np.zeros(shape, bool)
    if lens == 'queries':
        lens = rng.integers(1, 6, (3, 4))
    if lens is not None:
        lens = np.asarray(lens, np.float32)
        padded = np.arange(5) >= lens.reshape(3, -1, 1)
        masked |= padded if X.ndim == 3 else padded[:, None]
    Y = backend.to_numpy(
        backend.masked_softmax(
            backend.tensor(X), None if lens is None else backend.tensor(lens)
        )
    )
    close(Y, softmax(np.where(masked, -np.inf, X)))
    assert not Y[masked].any()


def softmax_and_gradient(logits, labels, weights):
    """A weighted cross-entropy and its gradient for the logits."""
    P, rows = softmax(logits.astype(np.float64)), np.arange(len(labels))
    loss = -(weights * np.log(P[rows, labels])).sum()
    P[rows, labels] -= 1
    return loss, P * weights[:, None]


@pytest.mark.parametrize('factor', [1, 2])
@pytest.mark.parametrize('num_rows', [1, 5, 700])
@pytest.mark.parametrize('bias', [True, False])
def test_linear_cross_entropy(backend, num_rows, factor, bias):
    """Without a bias it is computed the plain way."""
    num_classes, num_hiddens = 11, 6
    X, weights = normal(num_rows, num_hiddens), rng.random(num_rows)
    labels = rng.integers(0, num_classes, num_rows)
    # The first layer gives X, so that its gradient is that of X
    net = backend.Sequential(
        backend.Linear(num_hiddens, num_rows, bias=False),
        backend.Linear(num_classes, num_hiddens, bias=bias),
    )
    arrays = {
        name: normal(*shape)
        for name, shape in backend.parameter_shapes(net).items()
    } | {'0.weight': X.T}
    backend.set_parameters(net, arrays)

    def losses(net, identity, labels, weights):
        source, layer = net
        loss = backend.linear_cross_entropy(
            layer, source(identity), labels, weights
        )
        assert loss.shape == ()
        return [factor * loss]

    found = value_and_grad(
        backend, net, losses, np.eye(num_rows), labels, weights
    )
    logits = X @ arrays['1.weight'].T + arrays.get('1.bias', 0)
    loss, dZ = softmax_and_gradient(logits, labels, factor * weights)
    gradients = found.arrays()
    close(found.losses(), [loss])
    close(gradients['0.weight'], (dZ @ arrays['1.weight']).T, 1e-4, 1e-4)
    close(gradients['1.weight'], dZ.T @ X, 1e-4, 1e-4)
    if bias:
        close(gradients['1.bias'], dZ.sum(0), 1e-4, 1e-5)


def test_linear_cross_entropy_of_impossible_labels_is_exact(backend):
    layer = backend.Linear(2, 2)
    W, b = np.eye(2, dtype=np.float32), np.zeros(2, np.float32)
    backend.set_parameters(layer, {'weight': W, 'bias': b})
    loss = backend.linear_cross_entropy(
        layer,
        backend.tensor(np.eye(2, dtype=np.float32) * 200),
        backend.tensor(np.array([1, 0])),
        backend.tensor(np.ones(2, np.float32)),
    )
    assert backend.to_numpy(loss) == 400


def test_scratch_memory_is_used_again_by_its_thread_only():
    first = threads.scratch((3, 4), np.dtype('float32'))
    first[:] = 1
    again = threads.scratch((2, 3), np.dtype('float64'))
    assert again.shape == (2, 3) and again.dtype == np.float64
    assert np.shares_memory(first, again)
    assert threads.scratch((9, 9), np.dtype('float32')).shape == (9, 9)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(threads.scratch, (3, 4), np.dtype('float32'))
        assert not np.shares_memory(first, other.result())
    assert (first == 1).all()


# ---- layers ----------------------------------------------------------


def forward(backend, layer, arrays, X):
    backend.set_parameters(layer, arrays)
    (Y,) = backend.evaluate(layer, [[X]])
    return Y


def weights_first(backend, net):
    """The names of the parameters, layer by layer, biases last."""

    def place(name):
        layer, _, word = name.rpartition('.')
        return layer, word in ('bias', 'beta')

    return sorted(backend.parameter_shapes(net), key=place)


ACTIVATIONS = {
    None: lambda X: X,
    'relu': lambda X: np.maximum(X, 0),
    'tanh': np.tanh,
}


@pytest.mark.parametrize('activation', ACTIVATIONS)
@pytest.mark.parametrize('bias', [False, True])
def test_linear(backend, activation, bias):
    layer = backend.Linear(3, 4, bias, activation)
    names = weights_first(backend, layer)
    W, *b = normal(3, 4), *([normal(3)] if bias else [])
    arrays = dict(zip(names, (W, *b), strict=True))
    X = normal(2, 5, 4)
    expected = ACTIVATIONS[activation](X @ W.T + (b[0] if b else 0))
    close(forward(backend, layer, arrays, X), expected, atol=1e-5)


def test_linear_takes_its_size_from_the_first_input(backend):
    if backend.name == 'jax':
        with pytest.raises(ValueError, match='give the size of its inputs'):
            backend.Linear(3)
        return
    layer = backend.Linear(3)
    if backend.name == 'mxnet':
        layer.initialize()
    X = backend.tensor(normal(2, 5, 4))
    assert layer(X).shape == (2, 5, 3)
    assert backend.parameter_shapes(layer)['weight'] == (3, 4)


def test_embedding(backend):
    table, indices = normal(5, 3), rng.integers(0, 5, (2, 4))
    close(
        forward(backend, backend.Embedding(5, 3), {'weight': table}, indices),
        table[indices],
    )


def test_layer_norm(backend):
    X, scale, shift = normal(2, 3, 4), normal(4), normal(4)
    layer = backend.LayerNorm(4)
    names = weights_first(backend, layer)
    Y = forward(
        backend, layer, dict(zip(names, (scale, shift), strict=True)), X
    )
    deviation = X - X.mean(-1, keepdims=True)
    variance = (deviation**2).mean(-1, keepdims=True)
    close(Y, deviation / np.sqrt(variance + 1e-5) * scale + shift, 1e-4)


def test_sequential(backend):
    net = backend.Sequential(
        backend.Linear(3, 4, activation='relu'), backend.Linear(2, 3)
    )
    W1, b1, W2, b2 = arrays = normal(3, 4), normal(3), normal(2, 3), normal(2)
    names = weights_first(backend, net)
    X = normal(5, 4)
    Y = forward(backend, net, dict(zip(names, arrays, strict=True)), X)
    close(Y, np.maximum(X @ W1.T + b1, 0) @ W2.T + b2, 1e-4, 1e-5)
    assert len(list(net)) in (2, 3)


class FixedMasks:
    """The same masks at each call, of the share that the layers ask for."""

    device_seed = 0

    def __init__(self, seed=0):
        self.seed = seed

    def __call__(self, shape, p):
        return np.random.default_rng(self.seed).random(shape) >= p


def two_layers(backend, p=0.25):
    """A linear layer, which has the device, and dropout."""
    net = backend.Sequential(backend.Linear(5, 5), backend.Dropout(p))
    arrays = {'0.weight': np.eye(5), '0.bias': np.zeros(5)}
    backend.set_parameters(
        net, {name: W.astype(np.float32) for name, W in arrays.items()}
    )
    return net


def test_dropout_layer_follows_the_masks(backend):
    X, masks = normal(4, 5), FixedMasks()
    traced = backend.trace(two_layers(backend), [X], masks)
    close(traced['output 0'], X * masks((4, 5), 0.25) / 0.75)


def test_dropout_layer_by_itself(backend):
    """In training without masks it draws its own; evaluated it passes on."""
    net, X = two_layers(backend), np.ones((2000, 5), np.float32)

    def losses(net, X):
        Y = net(X)
        # These agree where each element is 0 or 1 / 0.75
        return [Y.sum(), (Y * Y).sum()]

    total, squares = value_and_grad(backend, net, losses, X).losses()
    close(squares, total / 0.75, rtol=1e-5)
    assert 0.7 < total * 0.75 / X.size < 0.8
    (Y,) = backend.evaluate(net, [[X]])
    assert (Y == 1).all()


def test_parameter(backend):
    net = backend.Module()
    net.table = backend.parameter(net, 'table', (2, 3))
    table = normal(2, 3)
    backend.set_parameters(net, {'table': table})
    X = backend.tensor(normal(1))
    close(backend.to_numpy(backend.value(net.table, X)), table)


# ---- devices ---------------------------------------------------------


@pytest.mark.parametrize(
    ('spec', 'expected'),
    [
        ('all', ('all', ())),
        ('cpu', ('cpu', (0,))),
        ('cpu:3', ('cpu', (0, 1, 2))),
        ('gpu:0', ('gpu', (0,))),
        ('gpu:2,0', ('gpu', (2, 0))),
    ],
)
def test_parse_devices(spec, expected):
    assert parse_devices(spec) == expected


@pytest.mark.parametrize(
    'spec',
    ['', 'gpu', 'cpu:0', 'cpu:', 'cpu:-1', 'gpu:', 'gpu:-1', 'gpu:0,0',
     'gpu:x', 'tpu', 'all:1', 'cpu:1,2', 'CPU', 'cpu:1025'],
)  # fmt: skip
def test_parse_devices_refuses(spec):
    with pytest.raises(ValueError, match='unknown devices'):
        parse_devices(spec)


@given(st.integers(1, 300), st.integers(1, 20))
def test_shards_are_those_of_array_split(num_rows, num_shards):
    if num_rows < num_shards:
        with pytest.raises(ValueError, match='cannot be split'):
            shard_slices(num_rows, num_shards)
        return
    rows = np.arange(num_rows)
    for part, expected in zip(
        shard_slices(num_rows, num_shards),
        np.array_split(rows, num_shards),
        strict=True,
    ):
        np.testing.assert_array_equal(rows[part], expected)


def test_devices(backend):
    assert len(backend.devices('cpu:3')) == 3
    assert backend.devices('all') == backend.try_all_gpus()
    if not backend.num_gpus():
        assert backend.try_all_gpus() == [backend.try_gpu(0)]
        assert 'cpu' in str(backend.try_gpu()).lower()


def test_gpu_that_is_not_there(backend):
    missing = backend.num_gpus()
    with pytest.raises(ValueError, match=f'no GPU {missing}'):
        backend.devices(f'gpu:{missing}')


@pytest.mark.mxnet
def test_mxnet_shards_live_in_contexts_of_their_own(both_tabs):
    mxnet = both_tabs[0].BACKEND
    devices = mxnet.devices('cpu:2')
    arrays = [mxnet.tensor(normal(2), device) for device in devices]
    assert [str(X.ctx) for X in arrays] == ['cpu(0)', 'cpu(1)']


# ---- parameters and the optimizer step -------------------------------


def linear(backend):
    layer = backend.Linear(2, 3)
    backend.set_parameters(
        layer,
        {'weight': np.arange(6, dtype=np.float32).reshape(2, 3) / 10,
         'bias': np.zeros(2, np.float32)},
    )  # fmt: skip
    return layer


def test_load_parameters_lists_every_fault(backend):
    layer = linear(backend)
    before = backend.get_parameters(layer)
    with pytest.raises(ValueError) as caught:
        backend.set_parameters(layer, {'weight': normal(2, 2), 'x': normal()})
    for fault in ('bias is missing', 'x is not', r'(2, 2) instead of (2, 3)'):
        assert fault in str(caught.value)
    close(backend.get_parameters(layer)['weight'], before['weight'])


def sum_of_outputs(net, X):
    return [net(X).sum()]


def value_and_grad(backend, net, losses, *inputs):
    """The losses and gradients of one micro-batch, on the processor."""
    parallel = backend.data_parallel(net, losses, backend.devices('cpu'))
    inputs = [
        X.astype(np.float32) if X.dtype.kind == 'f' else X for X in inputs
    ]
    gradients = parallel.value_and_grad([[Part(inputs)]])
    result = Found(gradients.losses(), gradients.norm(), gradients.arrays())
    parallel.close()
    return result


class Found:
    def __init__(self, losses, norm, arrays):
        self.losses, self.arrays = lambda: losses, lambda: arrays
        self.norm = lambda: norm


@pytest.mark.parametrize('spec', ['cpu', 'cpu:2'])
def test_gradients_add_up_over_micro_batches_and_shards(backend, spec):
    layer, X = linear(backend), normal(4, 3)
    devices = backend.devices(spec)
    parallel = backend.data_parallel(layer, sum_of_outputs, devices)
    assert parallel.num_shards == len(parallel.own_shards) == len(devices)
    for _ in range(2):  # nothing is left of the first time
        found = parallel.value_and_grad(
            [
                [Part([X[rows]]), Part([X[rows][:1]])]
                for rows in shard_slices(4, len(devices))
            ]
        )
        once_more = sum(X[rows][:1] for rows in shard_slices(4, len(devices)))
        expected = X.sum(0) + once_more[0]
        close(found.arrays()['weight'], np.stack([expected] * 2), 1e-4, 1e-5)
        close(found.arrays()['bias'], [4.0 + len(devices)] * 2)
        flat = np.concatenate([g.ravel() for g in found.arrays().values()])
        close(found.norm(), np.linalg.norm(flat))
    parallel.close()


def test_the_parameters_are_those_of_now(backend):
    """Replicas follow a step, and whatever else changes the network."""
    layer, X = linear(backend), normal(2, 3)
    parallel = backend.data_parallel(
        layer, squares_of_outputs, backend.devices('cpu:2')
    )
    parts = [[Part([X[:1]])], [Part([X[1:]])]]
    first = parallel.value_and_grad(parts).losses()
    arrays = backend.get_parameters(layer)
    backend.Adam(layer, 0.1, False).step(arrays)
    changed = backend.get_parameters(layer)
    second = parallel.value_and_grad(parts).losses()
    parallel.close()
    expected = ((X @ changed['weight'].T + changed['bias']) ** 2).sum()
    close(second, [expected], 1e-4)
    assert abs(second - first) > 1e-3


def squares_of_outputs(net, X):
    Y = net(X)
    return [(Y * Y).sum()]


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('where', ['parameter', 'gradient'])
def test_the_norm_tells_what_is_not_finite(backend, value, where):
    layer, X = linear(backend), normal(2, 3)
    if where == 'gradient':
        X[0, 1] = value
    else:
        arrays = backend.get_parameters(layer)
        arrays['bias'][1] = value
        backend.set_parameters(layer, arrays)
    found = value_and_grad(backend, layer, sum_of_outputs, X)
    assert not np.isfinite(found.norm())


def adam(parameters, gradients, num_steps, lr, inside):
    """Adam by its paper, in float64."""
    b1, b2, epsilon = 0.9, 0.999, 1e-8
    w, m, v = np.array(parameters, float), 0, 0
    for t in range(1, num_steps + 1):
        m = b1 * m + (1 - b1) * gradients
        v = b2 * v + (1 - b2) * gradients**2
        root = np.sqrt(1 - b2**t)
        denominator = np.sqrt(v) + epsilon * (1 if inside else root)
        w = w - lr * root / (1 - b1**t) * m / denominator
    return w


def take_steps(backend, layer, optimizer, num_steps, scale):
    dtype = next(iter(backend.get_parameters(layer).values())).dtype
    X = np.full((1, 3), scale, dtype)
    parallel = backend.data_parallel(
        layer, sum_of_outputs, backend.devices('cpu')
    )
    for _ in range(num_steps):
        optimizer.step(parallel.value_and_grad([[Part([X])]]))
    parallel.close()


@pytest.mark.parametrize('inside', [False, True])
@pytest.mark.parametrize('scale', [1, 1e-7])
def test_adam(backend, inside, scale):
    layer = linear(backend)
    before = backend.get_parameters(layer)['weight']
    optimizer = backend.Adam(layer, 0.01, inside)
    take_steps(backend, layer, optimizer, 3, scale)
    expected = adam(before, np.float64(scale), 3, 0.01, inside)
    close(backend.get_parameters(layer)['weight'], expected, 1e-4, 1e-6)


def test_where_epsilon_goes_matters(backend):
    a, b = (adam(0, np.float64(1e-7), 3, 0.01, i) for i in (False, True))
    assert abs(a - b) > 1e-3


def test_frozen_parameters_stay(backend):
    layer = linear(backend)
    optimizer = backend.Adam(layer, 0.1, False, frozen=('bias',))
    take_steps(backend, layer, optimizer, 2, 1)
    assert not backend.get_parameters(layer)['bias'].any()
    assert 'bias.m' not in optimizer.state()


@pytest.mark.parametrize('inside', [False, True])
def test_optimizer_state_continues(backend, inside):
    straight, cut = linear(backend), linear(backend)
    take_steps(backend, straight, backend.Adam(straight, 0.1, inside), 5, 1)
    first = backend.Adam(cut, 0.1, inside)
    take_steps(backend, cut, first, 3, 1)
    second = backend.Adam(cut, 0.1, inside)
    second.load_state(first.state(), 3)
    take_steps(backend, cut, second, 2, 1)
    for name, array in backend.get_parameters(straight).items():
        np.testing.assert_array_equal(
            backend.get_parameters(cut)[name], array
        )


def test_tensor_of_the_frameworks_own_array(backend):
    X = backend.tensor(np.array([0.5, -2.9], np.float32))
    close(backend.to_numpy(backend.tensor(X)), [0.5, -2.9])


def test_a_shared_parameter_takes_one_step(backend):
    layer = linear(backend)
    twice = backend.Sequential(layer, layer)
    before = backend.get_parameters(layer)
    names = backend.parameter_shapes(twice)
    optimizer = backend.Adam(twice, 0.01, False)
    optimizer.step(
        {name: np.ones(shape, np.float32) for name, shape in names.items()}
    )
    for name, W in backend.get_parameters(layer).items():
        close(W, before[name] - 0.01, 1e-5, 1e-6)


def test_nobody_computes_after_an_error():
    done, started = [], threading.Event()

    def work(number):
        if number == 0:
            assert started.wait(10)
            raise RunError('a worker failed')
        started.set()
        time.sleep(0.3)
        done.append(number)

    with pytest.raises(RunError, match='a worker failed'):
        two_threads().map(2, work, [0, 1])
    assert done == [1]


def two_threads():
    return threads.Threads(lambda: None, contextlib.nullcontext, lambda: 2)


@pytest.mark.parametrize(
    'name',
    [
        pytest.param('mxnet', marks=pytest.mark.mxnet),
        pytest.param('torch', marks=pytest.mark.torch),
    ],
)
def test_evaluation_restores_the_mode(name):
    """In JAX a network is not evaluated while its losses are compiled."""
    require(name)
    backend = backends.load(name)
    net, X = two_layers(backend, 0.5), np.ones((50, 5), np.float32)

    def losses(net, X):
        (Y,) = backend.evaluate(net, [[backend.to_numpy(X)]])
        assert (Y == 1).all()
        Y = net(X)
        assert (backend.to_numpy(Y) != 1).any()
        return [Y.sum()]

    value_and_grad(backend, net, losses, X)


@pytest.mark.torch
def test_each_part_gets_its_own_mode_back():
    require('torch')
    backend = backends.load('torch')
    net = two_layers(backend)
    net[1].eval()
    X = normal(2, 5)
    for run in (
        lambda: backend.evaluate(net, [[X]]),
        lambda: backend.trace(net, [X], FixedMasks()),
        lambda: value_and_grad(backend, net, sum_of_outputs, X),
    ):
        run()
        assert [part.training for part in net] == [True, False]


@pytest.mark.torch
def test_tf32_is_on_for_all_workers_and_off_afterwards(monkeypatch):
    """The switch belongs to the process: no worker may turn it."""
    require('torch')
    import torch

    backend, seen = backends.load('torch'), []
    layer = linear(backend)
    layer.is_replicable = True

    def losses(net, X, seconds):
        time.sleep(float(seconds))
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return [net(X).sum()]

    monkeypatch.setattr('backends.torch_training.num_cores', lambda: 2)
    parallel = backend.data_parallel(layer, losses, backend.devices('cpu'))
    parallel.precision = 'tf32'  # refused where there is no card
    # The first to begin is the last to end
    parts = [Part([normal(1, 3), np.array(s)]) for s in (0.2, 0.0, 0.1, 0.1)]
    assert not torch.backends.cuda.matmul.allow_tf32
    parallel.value_and_grad([parts])
    assert parallel.num_workers == 2
    assert seen == [True] * 4
    assert not torch.backends.cuda.matmul.allow_tf32


def test_a_precision_that_cannot_be_had(backend):
    layer, devices = linear(backend), backend.devices('cpu')
    for name in ('tf32', 'float16'):
        with pytest.raises(ValueError, match=name):
            backend.data_parallel(
                layer, sum_of_outputs, devices, precision=name
            )


def test_steps_with_arrays_that_do_not_fit(backend):
    layer = linear(backend)
    optimizer = backend.Adam(layer, 0.1, False)
    with pytest.raises(ValueError, match='bias is missing'):
        optimizer.step({'weight': normal(2, 3)})


def test_trace(backend):
    net = backend.Sequential(backend.Linear(3, 4), backend.LayerNorm(3))
    for layer in net:
        shapes = backend.parameter_shapes(layer)
        backend.set_parameters(
            layer, {key: normal(*shape) for key, shape in shapes.items()}
        )
    X = normal(2, 4)
    outputs = backend.trace(net, [X])
    assert list(outputs) == ['0', '1', 'output 0']
    assert outputs['0'].shape == (2, 3)
    close(outputs['1'], backend.evaluate(net, [[X]])[0])
    close(outputs['1'], outputs['output 0'])


def test_evaluate_keeps_the_order(backend):
    layer = linear(backend)
    W = backend.get_parameters(layer)['weight']
    batches = [normal(size, 3) for size in (1, 40, 2, 7, 3)]
    found = backend.evaluate(layer, ([X] for X in batches))
    for X, Y in zip(batches, found, strict=True):
        close(Y, X @ W.T, 1e-4, 1e-5)
    assert backend.evaluate(layer, []) == []


@pytest.mark.parametrize('num_classes', [2, 50])
def test_cross_entropy(backend, num_classes):
    logits, weights = normal(9, num_classes), rng.random(9, np.float32)
    labels = rng.integers(0, num_classes, 9)
    loss = backend.cross_entropy(
        *map(backend.tensor, (logits, labels, weights))
    )
    P = softmax(logits.astype(np.float64))
    expected = -(weights * np.log(P[np.arange(9), labels])).sum()
    close(backend.to_numpy(loss), expected, 1e-5)


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_parameters_take_over_the_type(backend, dtype):
    layer = linear(backend)
    arrays = {
        name: array.astype(dtype)
        for name, array in backend.get_parameters(layer).items()
    }
    backend.set_parameters(layer, arrays)
    assert {a.dtype for a in backend.get_parameters(layer).values()} == {
        np.dtype(dtype)
    }
    take_steps(backend, layer, backend.Adam(layer, 0.01, False), 1, 1)


def test_workers_compute_at_the_same_time():
    """Each waits for the other: one thread would wait forever."""
    barrier = threading.Barrier(2, timeout=20)
    arrived = two_threads().map(2, lambda _: barrier.wait(), range(2))
    assert sorted(arrived) == [0, 1]


def test_workers_leave_the_number_of_threads_as_it_was(backend):
    from threadpoolctl import threadpool_info

    def counts():
        return {
            one['filepath']: one['num_threads'] for one in threadpool_info()
        }

    layer = linear(backend)
    layer.is_replicable = True
    before = counts()
    value_and_grad(backend, layer, sum_of_outputs, normal(2, 3))
    assert counts() == before


@pytest.mark.parametrize(
    ('costs', 'shards', 'expected'),
    [
        ([[5, 4, 3, 2]], [0, 0], [[5, 2], [4, 3]]),
        ([[1], [1, 1]], [0, 1], [[1], [1, 1]]),
        ([[1, 1, 1], [2, 1]], [0, 1, 0, 1], [[1, 1], [2], [1], [1]]),
    ],
)
def test_micro_batches_are_shared_out(costs, shards, expected):
    parts = [[Part((), None, cost) for cost in shard] for shard in costs]
    shares = threads.share_out(parts, shards)
    assert [[part.cost for part in share] for share in shares] == expected
