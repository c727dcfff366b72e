"""Both backends implement the interface, and compute what NumPy does."""

import inspect
import platform
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
from backends import base
from d2lbert.errors import RunError

rng = np.random.default_rng(0)


def close(X, expected, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(X, expected, rtol, atol)


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def public(cls):
    return {name for name in dir(cls) if not name.startswith('_')}


# ---- the interface ---------------------------------------------------


def test_names_are_those_of_the_interface(backend):
    assert public(type(backend)) == public(base.Backend) | {'name', 'Module'}


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
    with pytest.raises(ValueError, match=r"'jax'.*'mxnet', 'torch'"):
        backends.load('jax')


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
    assert copied.dtype == {'torch': 'int64', 'mxnet': 'int32'}[backend.name]
    np.testing.assert_array_equal(copied, X)


def test_tensor_is_a_copy(backend):
    X = np.zeros(3, np.float32)
    copied = backend.tensor(X)
    X[:] = 1
    assert not backend.to_numpy(copied).any()


def test_arange(backend):
    like = backend.tensor(np.zeros(2, np.int32))
    assert backend.to_numpy(backend.arange(4, like)).tolist() == [0, 1, 2, 3]


def test_transpose(backend):
    X = normal(2, 3, 4, 5)
    Y = backend.transpose(backend.tensor(X), (0, 2, 1, 3))
    close(backend.to_numpy(Y), X.transpose(0, 2, 1, 3))


@pytest.mark.parametrize('transpose_B', [False, True])
@pytest.mark.parametrize('batch', [(3,), (2, 3)])
def test_batch_matmul(backend, batch, transpose_B):
    A, B = normal(*batch, 4, 5), normal(*batch, 5, 6)
    given = B.swapaxes(-1, -2).copy() if transpose_B else B
    C = backend.batch_matmul(
        backend.tensor(A), backend.tensor(given), transpose_B
    )
    close(backend.to_numpy(C), A @ B, atol=1e-5)


@pytest.mark.parametrize('shape', [(3,), (2, 2)])
def test_take(backend, shape):
    X, indices = normal(7, 4), rng.integers(0, 7, shape)
    Y = backend.take(backend.tensor(X), backend.tensor(indices))
    close(backend.to_numpy(Y), X[indices])


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


def test_dropout(backend):
    X, keep = normal(3, 4), rng.random((3, 4)) < 0.7
    Y = backend.dropout(backend.tensor(X), keep, 0.2)
    close(backend.to_numpy(Y), X * keep / 0.8)


@pytest.mark.parametrize('factor', [1, 2])
@pytest.mark.parametrize('num_rows', [1, 5, 700])
def test_linear_cross_entropy(backend, num_rows, factor):
    num_classes, num_hiddens = 11, 6
    X, W = normal(num_rows, num_hiddens), normal(num_classes, num_hiddens)
    b, weights = normal(num_classes), rng.random(num_rows, np.float32)
    labels = rng.integers(0, num_classes, num_rows)
    layer = backend.Linear(num_classes, num_hiddens)
    source = backend.Linear(num_hiddens, num_rows, bias=False)
    backend.load_parameters(layer, {'weight': W, 'bias': b})
    backend.load_parameters(source, {'weight': X.T})
    identity = backend.tensor(np.eye(num_rows, dtype=np.float32))
    with backend.accumulate_gradients(layer):
        backend.zero_gradients(layer)
        backend.zero_gradients(source)
        with backend.record(layer):
            loss = backend.linear_cross_entropy(
                source(identity),
                backend.value(layer.weight, identity),
                backend.value(layer.bias, identity),
                backend.tensor(labels),
                backend.tensor(weights),
            )
            loss = factor * loss
        backend.backward([loss])
        gradients = backend.gradients(layer)

    P = softmax((X @ W.T + b).astype(np.float64))
    rows = np.arange(num_rows)
    assert loss.shape == ()
    weights *= factor
    close(backend.to_numpy(loss), -(weights * np.log(P[rows, labels])).sum())
    P[rows, labels] -= 1
    dZ = P * weights[:, None]
    close(gradients['weight'], dZ.T @ X, 1e-4, 1e-5)
    close(gradients['bias'], dZ.sum(0), 1e-4, 1e-5)
    close(backend.gradients(source)['weight'], (dZ @ W).T, 1e-4, 1e-5)


def test_linear_cross_entropy_of_impossible_labels_is_exact(backend):
    X = backend.tensor(np.eye(2, dtype=np.float32) * 200)
    W, b = np.eye(2, dtype=np.float32), np.zeros(2, np.float32)
    loss = backend.linear_cross_entropy(
        X,
        backend.tensor(W),
        backend.tensor(b),
        backend.tensor(np.array([1, 0])),
        backend.tensor(np.ones(2, np.float32)),
    )
    assert backend.to_numpy(loss) == 400


def test_scratch_memory_is_used_again_by_its_thread_only():
    first = base.scratch((3, 4), np.dtype('float32'))
    first[:] = 1
    again = base.scratch((2, 3), np.dtype('float64'))
    assert again.shape == (2, 3) and again.dtype == np.float64
    assert np.shares_memory(first, again)
    assert base.scratch((9, 9), np.dtype('float32')).shape == (9, 9)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(base.scratch, (3, 4), np.dtype('float32'))
        assert not np.shares_memory(first, other.result())
    assert (first == 1).all()


@pytest.mark.skipif(
    platform.libc_ver()[0] != 'glibc', reason='is for the GNU C library'
)
def test_freed_memory_is_kept():
    """In a process of its own, because it holds for the whole process."""
    code = """if True:
        from resource import RUSAGE_SELF, getrusage
        import numpy as np
        from backends import base
        base.keep_freed_memory()
        for _ in range(3):
            before = getrusage(RUSAGE_SELF).ru_minflt
            arrays = [np.ones(2_500_000) for _ in range(3)]
            del arrays
            print(getrusage(RUSAGE_SELF).ru_minflt - before)
    """
    done = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        check=True,
    )
    first, *later = map(int, done.stdout.split())
    assert first > 100
    assert max(later) < 50


# ---- layers ----------------------------------------------------------


def forward(backend, layer, arrays, X):
    backend.load_parameters(layer, arrays)
    with backend.evaluation(layer):
        return backend.to_numpy(layer(backend.tensor(X)))


ACTIVATIONS = {
    None: lambda X: X,
    'relu': lambda X: np.maximum(X, 0),
    'tanh': np.tanh,
}


@pytest.mark.parametrize('activation', ACTIVATIONS)
@pytest.mark.parametrize('bias', [False, True])
def test_linear(backend, activation, bias):
    layer = backend.Linear(3, 4, bias, activation)
    arrays = {
        name: normal(*shape)
        for name, shape in backend.parameter_shapes(layer).items()
    }
    X, (W, *b) = normal(2, 5, 4), arrays.values()
    expected = ACTIVATIONS[activation](X @ W.T + (b[0] if b else 0))
    close(forward(backend, layer, arrays, X), expected, atol=1e-5)


def test_linear_takes_its_size_from_the_first_input(backend):
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
    names = backend.parameter_shapes(layer)
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
    names = backend.parameter_shapes(net)
    X = normal(5, 4)
    Y = forward(backend, net, dict(zip(names, arrays, strict=True)), X)
    close(Y, np.maximum(X @ W1.T + b1, 0) @ W2.T + b2, 1e-4, 1e-5)
    assert len(list(net)) in (2, 3)


def test_dropout_layer_follows_the_masks(backend):
    layer, X = backend.Dropout(0.25), normal(4, 5)
    keep = rng.random((4, 5)) < 0.75
    with (
        backend.record(layer),
        base.dropout_masks(lambda shape, p: keep.reshape(shape)),
    ):
        Y = layer(backend.tensor(X))
    close(backend.to_numpy(Y), X * keep / 0.75)


def test_dropout_layer_by_itself(backend):
    layer = backend.Dropout(0.25)
    X = backend.tensor(np.ones((100, 100), np.float32))
    with backend.record(layer):
        Y = backend.to_numpy(layer(X))
    assert set(np.unique(Y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert 0.7 < (Y > 0).mean() < 0.8
    with backend.evaluation(layer):
        assert (backend.to_numpy(layer(X)) == 1).all()


def test_parameter(backend):
    net = backend.Module()
    net.table = backend.parameter(net, 'table', (2, 3))
    table = normal(2, 3)
    backend.load_parameters(net, {'table': table})
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
    assert base.parse_devices(spec) == expected


@pytest.mark.parametrize(
    'spec',
    ['', 'gpu', 'cpu:0', 'cpu:', 'cpu:-1', 'gpu:', 'gpu:-1', 'gpu:0,0',
     'gpu:x', 'tpu', 'all:1', 'cpu:1,2', 'CPU', 'cpu:1025'],
)  # fmt: skip
def test_parse_devices_refuses(spec):
    with pytest.raises(ValueError, match='unknown devices'):
        base.parse_devices(spec)


@given(st.integers(1, 300), st.integers(1, 20))
def test_shards_are_those_of_array_split(num_rows, num_shards):
    if num_rows < num_shards:
        with pytest.raises(ValueError, match='cannot be split'):
            base.shard_slices(num_rows, num_shards)
        return
    rows = np.arange(num_rows)
    for part, expected in zip(
        base.shard_slices(num_rows, num_shards),
        np.array_split(rows, num_shards),
        strict=True,
    ):
        np.testing.assert_array_equal(rows[part], expected)


def test_five_rows_over_four_devices(backend):
    X = normal(5, 2)
    shards = backend.split_and_load(X, backend.devices('cpu:4'))
    assert [len(shard) for shard in shards] == [2, 1, 1, 1]
    close(np.concatenate([backend.to_numpy(X) for X in shards]), X)


def test_uneven_split_refused(backend):
    with pytest.raises(ValueError, match='evenly'):
        backend.split_and_load(
            normal(5, 2), backend.devices('cpu:4'), even_split=True
        )


def test_devices(backend):
    assert len(backend.devices('cpu:3')) == 3
    assert backend.devices('all') == backend.try_all_gpus()
    if not backend.num_gpus():
        assert backend.try_all_gpus() == [backend.try_gpu(0)]
        assert 'cpu' in str(backend.try_gpu())


def test_gpu_that_is_not_there(backend):
    missing = backend.num_gpus()
    with pytest.raises(ValueError, match=f'no GPU {missing}'):
        backend.devices(f'gpu:{missing}')


@pytest.mark.mxnet
def test_mxnet_shards_live_in_contexts_of_their_own(both_tabs):
    mxnet = both_tabs[0].BACKEND
    shards = mxnet.split_and_load(normal(4, 2), mxnet.devices('cpu:2'))
    assert [str(shard.ctx) for shard in shards] == ['cpu(0)', 'cpu(1)']


# ---- parameters and the optimizer step -------------------------------


def linear(backend):
    layer = backend.Linear(2, 3)
    backend.load_parameters(
        layer,
        {'weight': np.arange(6, dtype=np.float32).reshape(2, 3) / 10,
         'bias': np.zeros(2, np.float32)},
    )  # fmt: skip
    return layer


def test_load_parameters_lists_every_fault(backend):
    layer = linear(backend)
    before = backend.parameters(layer)
    with pytest.raises(ValueError) as caught:
        backend.load_parameters(
            layer, {'weight': normal(2, 2), 'x': normal()}
        )
    for fault in ('bias is missing', 'x is not', r'(2, 2) instead of (2, 3)'):
        assert fault in str(caught.value)
    close(backend.parameters(layer)['weight'], before['weight'])


@pytest.mark.parametrize('devices', ['cpu', 'cpu:2'])
def test_gradients_add_up_over_micro_batches_and_shards(backend, devices):
    layer, X = linear(backend), normal(4, 3)
    devices = backend.devices(devices)
    replicas = backend.replicas(layer, devices)
    with backend.accumulate_gradients(layer):
        for replica in replicas:
            backend.zero_gradients(replica)
        for half in (X[:2], X[2:]):
            shards = backend.split_and_load(half, devices)
            with backend.record(layer):
                losses = [
                    replica(shard).sum()
                    for replica, shard in zip(replicas, shards, strict=True)
                ]
            backend.backward(losses)
        backend.allreduce_gradients(replicas, devices)
        gradients = backend.gradients(layer)
    close(gradients['weight'], np.stack([X.sum(0)] * 2), 1e-4, 1e-5)
    close(gradients['bias'], [4, 4])


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
    dtype = next(iter(backend.parameters(layer).values())).dtype
    X = backend.tensor(np.full((1, 3), scale, dtype))
    with backend.accumulate_gradients(layer):
        for _ in range(num_steps):
            backend.zero_gradients(layer)
            with backend.record(layer):
                loss = layer(X).sum()
            backend.backward([loss])
            optimizer.step()


@pytest.mark.parametrize('inside', [False, True])
@pytest.mark.parametrize('scale', [1, 1e-7])
def test_adam(backend, inside, scale):
    layer = linear(backend)
    before = backend.parameters(layer)['weight']
    optimizer = backend.Adam(layer, 0.01, inside)
    take_steps(backend, layer, optimizer, 3, scale)
    expected = adam(before, np.float64(scale), 3, 0.01, inside)
    close(backend.parameters(layer)['weight'], expected, 1e-4, 1e-6)


def test_where_epsilon_goes_matters(backend):
    a, b = (adam(0, np.float64(1e-7), 3, 0.01, i) for i in (False, True))
    assert abs(a - b) > 1e-3


def test_frozen_parameters_stay(backend):
    layer = linear(backend)
    optimizer = backend.Adam(layer, 0.1, False, frozen=('bias',))
    take_steps(backend, layer, optimizer, 2, 1)
    assert not backend.parameters(layer)['bias'].any()
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
    for name, array in backend.parameters(straight).items():
        np.testing.assert_array_equal(backend.parameters(cut)[name], array)


def test_tensor_of_the_frameworks_own_array(backend):
    X = backend.tensor(np.array([0.5, -2.9], np.float32))
    close(backend.to_numpy(backend.tensor(X)), [0.5, -2.9])


def test_a_shared_parameter_takes_one_step(backend):
    layer = linear(backend)
    twice = backend.Sequential(layer, layer)
    before = backend.parameters(layer)
    optimizer = backend.Adam(twice, 0.01, False)
    with backend.accumulate_gradients(layer):
        backend.zero_gradients(layer)
        ones = {name: np.ones_like(W) for name, W in before.items()}
        backend.set_gradients(layer, ones)
        optimizer.step()
    for name, W in backend.parameters(layer).items():
        close(W, before[name] - 0.01, 1e-5, 1e-6)


def test_nobody_computes_after_an_error(backend):
    done, started = [], threading.Event()

    def work(number):
        if number == 0:
            assert started.wait(10)
            raise RunError('a worker failed')
        started.set()
        time.sleep(0.3)
        done.append(number)

    with (
        pytest.raises(RunError, match='a worker failed'),
        backend.side_by_side(2) as worker_map,
    ):
        list(worker_map(work, [0, 1]))
    assert done == [1]


def test_evaluation_restores_the_mode(backend):
    layer = backend.Dropout(0.5)
    X = backend.tensor(np.ones((50, 50), np.float32))
    with backend.record(layer):
        with backend.evaluation(layer):
            assert (backend.to_numpy(layer(X)) == 1).all()
        assert (backend.to_numpy(layer(X)) != 1).any()


@pytest.mark.torch
def test_each_part_gets_its_own_mode_back():
    backend = backends.load('torch')
    net = backend.Sequential(backend.Dropout(0.5), backend.Dropout(0.5))
    net[1].eval()
    for mode in (backend.evaluation, backend.record):
        with mode(net):
            pass
        assert [part.training for part in net] == [True, False]


def test_set_gradients(backend):
    layer = linear(backend)
    gradients = {'weight': normal(2, 3), 'bias': normal(2)}
    with backend.accumulate_gradients(layer):
        backend.zero_gradients(layer)
        backend.set_gradients(layer, gradients)
        for name, array in backend.gradients(layer).items():
            close(array, gradients[name])
        with pytest.raises(ValueError, match='bias is missing'):
            backend.set_gradients(layer, {'weight': gradients['weight']})


def test_layer_outputs(backend):
    net = backend.Sequential(backend.Linear(3, 4), backend.LayerNorm(3))
    for name, layer in zip(backend.layer_names(net), list(net), strict=True):
        shapes = backend.parameter_shapes(layer)
        backend.load_parameters(
            layer, {key: normal(*shape) for key, shape in shapes.items()}
        )
        assert name in ('0', '1')
    X = backend.tensor(normal(2, 4))
    with backend.evaluation(net), backend.layer_outputs(net) as outputs:
        Y = backend.to_numpy(net(X))
    assert list(outputs) == ['0', '1']
    assert outputs['0'].shape == (2, 3)
    close(backend.to_numpy(outputs['1']), Y)
    with backend.evaluation(net):
        net(X)
    assert len(outputs) == 2


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
        for name, array in backend.parameters(layer).items()
    }
    backend.load_parameters(layer, arrays)
    assert {a.dtype for a in backend.parameters(layer).values()} == {
        np.dtype(dtype)
    }
    take_steps(backend, layer, backend.Adam(layer, 0.01, False), 1, 1)


def test_workers_compute_at_the_same_time(backend):
    """Each waits for the other: one thread would wait forever."""
    if backend.num_threads() < 2:
        pytest.skip('one core')
    barrier = threading.Barrier(2, timeout=20)
    before = backend.num_threads()
    with backend.side_by_side(2) as worker_map:
        arrived = list(worker_map(lambda _: barrier.wait(), range(2)))
    assert sorted(arrived) == [0, 1]
    assert backend.num_threads() == before


@pytest.mark.mxnet
@pytest.mark.parametrize(
    ('wanted', 'expected'),
    [('3', 3), ('3,2', 3), (' 2 ', 2), ('', None), ('0', None), ('x', None)],
)
def test_how_many_cores_mxnet_may_use(
    both_tabs, monkeypatch, wanted, expected
):
    from backends.mxnet import num_cores

    monkeypatch.setenv('OMP_NUM_THREADS', wanted)
    monkeypatch.setattr(
        'os.sched_getaffinity', lambda pid: {0, 5}, raising=False
    )
    assert num_cores() == (expected or 2)
