"""The MXNet backend. See `backends.base` for what each function does.

MXNet's NumPy operators are slow on a processor where its older ones go
through oneDNN: hence the `nd` operators below, whose arrays share memory
with the `np` ones.
"""

from __future__ import annotations

import itertools
import os
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import numpy
from threadpoolctl import threadpool_limits

from backends import base
from backends.mxnet_import import import_mxnet


def num_cores() -> int:
    """Return how many cores a process may use, as OpenMP counts them."""
    # For threads within threads there can be more numbers after a comma
    wanted = os.environ.get('OMP_NUM_THREADS', '').partition(',')[0].strip()
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def import_mxnet_alone() -> Any:
    """Import MXNet, leaving the thread count of others as it is.

    It sets OpenMP's to one in the thread that imports it, and PyTorch, before
    or after, would go by that.
    """
    num_threads = num_cores()
    if 'torch' in sys.modules:
        num_threads = sys.modules['torch'].get_num_threads()
    mxnet = import_mxnet()
    threadpool_limits(num_threads, user_api='openmp')
    return mxnet


mx: Any = import_mxnet_alone()
autograd: Any = mx.autograd
gluon: Any = mx.gluon
nd: Any = mx.nd
nn: Any = mx.gluon.nn
np: Any = mx.np
npx: Any = mx.npx
npx.set_np()

# How many rows of logits exist at a time: see the PyTorch backend.
CHUNK_ROWS = 512
# Smaller logits, below the greatest, count nothing: exp(−60) is 1e-26. Their
# exponentials would be numbers with which processors are slow.
LEAST_LOGIT = -60


class Module(gluon.Block):
    """A `gluon.Block` that knows its backend."""

    backend: ClassVar[base.Backend]


class Dropout(gluon.Block):
    """Gluon's `Dropout` that can be told which elements to keep."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, X):
        draw = base.dropout_source()
        if draw is None or not autograd.is_training() or self.p == 0:
            return npx.dropout(X, p=self.p)
        return BACKEND.dropout(X, draw(X.shape, self.p), self.p)

    def __repr__(self) -> str:
        return f'Dropout(p = {self.p})'


class LayerNorm(nn.LayerNorm):
    """Gluon's `LayerNorm`, with its gradient in half the time on a processor.

    MXNet's own operator does not go through oneDNN. Batch normalisation of
    the transposed batch does, and so does a product with a diagonal matrix,
    which takes less time than a broadcast product and its gradient.
    """

    def forward(self, X):
        gamma, beta = self.gamma, self.beta
        if (
            gamma._data is None
            or BACKEND.is_gpu(X.ctx)
            or not autograd.is_recording()
        ):
            return super().forward(X)
        num_hiddens = X.shape[-1]
        rows = X.as_nd_ndarray().reshape((1, -1, num_hiddens))
        num_rows = rows.shape[1]
        ones = nd.ones(num_rows, ctx=X.ctx, dtype=X.dtype)
        with autograd.train_mode():
            Y = nd.BatchNorm(
                rows,
                ones,
                nd.zeros_like(ones),
                nd.zeros_like(ones),
                nd.ones_like(ones),
                axis=1,
                eps=self._epsilon,
            )
        scale = nd.eye(num_hiddens, ctx=X.ctx, dtype=X.dtype)
        return npx.fully_connected(
            Y.reshape(X.shape).as_np_ndarray(),
            scale.as_np_ndarray() * gamma.data(X.ctx),
            beta.data(X.ctx),
            num_hidden=num_hiddens,
            flatten=False,
        )


class LinearCrossEntropy(autograd.Function):
    """Cross-entropy of a linear layer, computed in NumPy.

    NumPy's matrix products and exponentials take less than half the time of
    MXNet's on a processor, and oneDNN's `log_softmax` is off by 4e-6. The
    gradients are `nd` arrays: MXNet gives no others to a backward pass.
    """

    def forward(self, X, weight, bias, labels, weights):
        # What overflows becomes a loss that is not finite, as anywhere else
        with numpy.errstate(over='ignore', invalid='ignore'):
            loss, *gradients = linear_cross_entropy(
                *(
                    array.asnumpy()
                    for array in (X, weight, bias, labels, weights)
                )
            )
        self.gradients = [
            nd.array(gradient, ctx=X.ctx, dtype=gradient.dtype)
            for gradient in gradients
        ]
        # Without an axis it would be of unknown shape to `backward`
        return np.array([loss], dtype=X.dtype, ctx=X.ctx)

    def backward(self, grad):
        gradients = self.gradients
        if grad.asscalar() != 1:
            gradients = [gradient * grad for gradient in gradients]
        dX = gradients[0]
        nothing = (
            nd.zeros(len(dX), ctx=dX.ctx, dtype=dX.dtype) for _ in range(2)
        )
        return (*gradients, *nothing)


def linear_cross_entropy(
    X: numpy.ndarray,
    weight: numpy.ndarray,
    bias: numpy.ndarray,
    labels: numpy.ndarray,
    weights: numpy.ndarray,
) -> tuple[float, numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """Return the loss and its gradients for `X`, `weight` and `bias`."""
    # The bias is one more column of the weight, for an input of 1
    X = numpy.pad(X, ((0, 0), (0, 1)), constant_values=1)
    weight = numpy.column_stack([weight, bias])
    loss = 0.0
    dX, dweight = numpy.empty_like(X), numpy.zeros_like(weight)
    buffer = base.scratch((min(CHUNK_ROWS, len(X)), len(weight)), X.dtype)
    for start in range(0, len(X), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        label, row_weights = labels[rows, None], weights[rows, None]
        logits = buffer[: len(label)]
        numpy.matmul(X[rows], weight.T, out=logits)
        logits -= logits.max(axis=1, keepdims=True)
        label_logits = numpy.take_along_axis(logits, label, 1)
        if logits.min() < LEAST_LOGIT:
            numpy.maximum(logits, LEAST_LOGIT, out=logits)
        numpy.exp(logits, out=logits)
        sums = logits.sum(axis=1, keepdims=True)
        losses = (numpy.log(sums) - label_logits) * row_weights
        loss += losses.sum(dtype=numpy.float64)
        # `logits` · scale is from here on its own gradient, softmax −
        # one-hot; scaling the narrower factors of its products is cheaper
        numpy.put_along_axis(
            logits, label, numpy.take_along_axis(logits, label, 1) - sums, 1
        )
        scale = row_weights / sums
        numpy.matmul(logits, weight, out=dX[rows])
        dX[rows] *= scale
        dweight += logits.T @ (X[rows] * scale)
    return loss, dX[:, :-1], dweight[:, :-1], dweight[:, -1]


class MXNetBackend(base.Backend):
    name = 'mxnet'
    Module = Module

    # ---- tensor operations -------------------------------------------

    def tensor(self, data, device=None):
        if isinstance(data, np.ndarray):
            data = data.asnumpy()
        data = numpy.asarray(data)
        dtype = data.dtype if data.dtype.kind == 'f' else numpy.int32
        return np.array(
            data.astype(dtype, copy=False), dtype=dtype, ctx=device
        )

    def to_numpy(self, X):
        return X.asnumpy()

    def arange(self, num, like):
        return np.arange(num, dtype=like.dtype, ctx=like.ctx)

    def transpose(self, X, axes):
        return nd.transpose(X.as_nd_ndarray(), axes).as_np_ndarray()

    def batch_matmul(self, A, B, transpose_B=False):
        product = npx.batch_dot(
            A.reshape((-1, *A.shape[-2:])),
            B.reshape((-1, *B.shape[-2:])),
            transpose_b=transpose_B,
        )
        return product.reshape((*A.shape[:-1], product.shape[-1]))

    def take(self, X, indices):
        return npx.embedding(indices, X, *X.shape, dtype=X.dtype)

    def relu(self, X):
        return npx.relu(X)

    def masked_softmax(self, X, valid_lens):
        if valid_lens is None:
            return npx.softmax(X, axis=-1)
        keys = np.arange(X.shape[-1], dtype='float32', ctx=X.ctx)
        padded = keys >= valid_lens.reshape((len(X), -1, 1)).astype('float32')
        mask = padded.astype(X.dtype) * base.MASKED_SCORE
        if X.ndim == 4:
            mask = np.expand_dims(mask, 1)
        # In full, because the gradient of a broadcast sum is slow
        mask = nd.broadcast_to(mask.as_nd_ndarray(), X.shape)
        scores = X.as_nd_ndarray() + mask
        return npx.softmax(scores.as_np_ndarray(), axis=-1)

    def dropout(self, X, keep, p):
        scale = numpy.multiply(keep, 1 / (1 - p), dtype=X.dtype)
        scale = nd.array(scale, dtype=X.dtype, ctx=X.ctx)
        return (X.as_nd_ndarray() * scale).as_np_ndarray()

    def linear_cross_entropy(self, X, weight, bias, labels, weights):
        # MXNet forgets to add to a gradient where a parameter is the direct
        # input of a function (its `req == 'add'` is never true), and stops
        # at the first input without gradient: hence the views, and the order
        views = (array.reshape(array.shape) for array in (X, weight, bias))
        return LinearCrossEntropy()(*views, labels, weights.astype(X.dtype))[
            0
        ]

    def cross_entropy(self, logits, labels, weights):
        log_probability = npx.pick(npx.log_softmax(logits, axis=-1), labels)
        return -np.sum(log_probability * weights.astype(logits.dtype))

    # ---- layers ------------------------------------------------------

    def Linear(
        self, num_outputs, num_inputs=None, bias=True, activation=None
    ):
        return nn.Dense(
            num_outputs,
            activation,
            use_bias=bias,
            flatten=False,
            in_units=num_inputs or 0,
        )

    def Embedding(self, num_embeddings, num_hiddens):
        return nn.Embedding(num_embeddings, num_hiddens)

    def LayerNorm(self, num_hiddens):
        return LayerNorm(
            epsilon=base.LAYER_NORM_EPSILON, in_channels=num_hiddens or 0
        )

    def Dropout(self, p):
        return Dropout(p)

    def Sequential(self, *layers):
        native = nn.Sequential()
        native.add(*layers)
        return native

    def parameter(self, module, name, shape):
        if hasattr(gluon, 'ParameterDict'):  # MXNet 1
            return module.params.get(name, shape=shape)
        return gluon.Parameter(name, shape=shape)

    def value(self, parameter, like):
        return parameter.data(like.ctx)

    # ---- devices -----------------------------------------------------

    def num_gpus(self):
        return npx.num_gpus()

    def try_gpu(self, i=0):
        return npx.gpu(i) if self.num_gpus() > i else npx.cpu()

    def try_all_gpus(self):
        return [npx.gpu(i) for i in range(self.num_gpus())] or [npx.cpu()]

    def devices(self, spec):
        kind, indices = base.parse_devices(spec)
        if kind == 'all':
            return self.try_all_gpus()
        if kind == 'cpu':
            return [npx.cpu(i) for i in indices]
        base.check_gpus(self, indices)
        return [npx.gpu(i) for i in indices]

    def device_of(self, net):
        return next(iter(_parameters(net).values())).list_ctx()[0]

    def replicas(self, net, devices):
        devices = list(devices)
        if len(set(devices)) < len(devices):
            raise ValueError(
                f'devices = {devices}: one is there twice, and MXNet '
                'keeps parameters once for each; give others, such as '
                'cpu(0) and cpu(1)'
            )
        # One block holds its parameters on any number of devices
        for parameter in _parameters(net).values():
            if parameter.list_ctx() != devices:
                # Of several copies `reset_ctx` would take the mean, which
                # is rounded
                value = parameter.list_data()[0]
                parameter.reset_ctx(devices)
                parameter.set_data(value)
        return [net] * len(devices)

    def release_replicas(self, net, devices):
        self.replicas(net, devices)

    def num_threads(self):
        return num_cores()

    def is_gpu(self, device):
        return device.device_type == 'gpu'

    def seed(self, device, seed):
        mx.random.seed(seed % 2**31, ctx=device)

    def precision(self, name):
        if name != 'float32':
            raise ValueError(
                f'MXNet computes in float32, not in {name}: use '
                "precision='float32', or PyTorch"
            )
        return nullcontext()

    def worker_devices(self, devices):
        workers = super().worker_devices(devices)
        if any(map(self.is_gpu, devices)):
            return workers
        # Contexts of the processor compute side by side, each with its own
        # copy of the parameters
        taken = {device.device_id for device in devices}
        free = (npx.cpu(i) for i in itertools.count() if i not in taken)
        more = self.num_threads() // len(devices) - 1
        return workers + [
            (shard, next(free))
            for _ in range(more)
            for shard in range(len(devices))
        ]

    def one_core_each(self):
        return threadpool_limits(1)

    def start_thread(self):
        # A setting that MXNet keeps by thread
        npx.set_np()

    # ---- parameters and the optimizer step ---------------------------

    def parameters(self, net):
        return {
            name: parameter.list_data()[0].asnumpy()
            for name, parameter in _parameters(net).items()
        }

    def gradients(self, net):
        return {
            name: parameter.list_grad()[0].asnumpy()
            for name, parameter in _parameters(net).items()
        }

    def set_gradients(self, net, arrays):
        base.check_parameters(self.parameter_shapes(net), arrays)
        for name, parameter in _parameters(net).items():
            for grad in parameter.list_grad():
                grad[:] = np.array(
                    arrays[name], dtype=grad.dtype, ctx=grad.ctx
                )

    def total(self, net):
        # NumPy, because MXNet's sums take ten times as long
        arrays = [
            array.asnumpy()
            for parameter in _parameters(net).values()
            for array in (parameter.list_data()[0], parameter.list_grad()[0])
        ]
        with numpy.errstate(over='ignore', invalid='ignore'):
            return np.array(sum(array.sum() for array in arrays))

    def layer_names(self, net):
        return [name for name, _ in _layers(net)]

    @contextmanager
    def layer_outputs(self, net) -> Iterator[dict[str, Any]]:
        outputs: dict[str, Any] = {}

        def keep(name):
            def hook(layer, inputs, output):
                if isinstance(output, np.ndarray):
                    outputs[name] = output

            return hook

        handles = [
            layer.register_forward_hook(keep(name))
            for name, layer in _layers(net)
        ]
        try:
            yield outputs
        finally:
            for handle in handles:
                handle.detach()

    def parameter_shapes(self, net):
        return {
            name: tuple(parameter.shape)
            for name, parameter in _parameters(net).items()
        }

    def load_parameters(self, net, arrays, devices=None):
        base.check_parameters(self.parameter_shapes(net), arrays)
        for name, parameter in _parameters(net).items():
            array = numpy.asarray(arrays[name])
            if parameter.dtype != array.dtype:
                parameter.cast(array.dtype)
            if parameter._data is None:
                parameter.initialize(
                    mx.init.Zero(), ctx=devices or [npx.cpu()]
                )
            elif devices:
                parameter.reset_ctx(list(dict.fromkeys(devices)))
            parameter.set_data(np.array(array, dtype=array.dtype))

    @contextmanager
    def accumulate_gradients(self, net) -> Iterator[None]:
        before = {
            parameter: parameter.grad_req
            for parameter in _parameters(net).values()
        }
        for parameter in before:
            parameter.grad_req = 'add'
        try:
            yield
        finally:
            for parameter, grad_req in before.items():
                parameter.grad_req = grad_req

    def zero_gradients(self, net):
        for parameter in _parameters(net).values():
            for grad in parameter.list_grad():
                grad[:] = 0

    def record(self, net):
        return autograd.record()

    @contextmanager
    def evaluation(self, net) -> Iterator[None]:
        with autograd.pause(train_mode=False):
            yield

    def backward(self, losses):
        autograd.backward(list(losses))

    def allreduce_gradients(self, replicas, devices):
        for parameter in _parameters(replicas[0]).values():
            first, *others = (
                grad.as_nd_ndarray() for grad in parameter.list_grad()
            )
            if others:
                others = [other.as_in_context(first.ctx) for other in others]
                nd.add_n(first, *others, out=first)

    def broadcast_parameters(self, replicas, devices):
        for parameter in _parameters(replicas[0]).values():
            first, *others = parameter.list_data()
            for other in others:
                first.copyto(other)

    def Adam(self, net, lr, epsilon_inside, frozen=()):
        return Adam(net, lr, epsilon_inside, frozen)


def update_in_float64(
    data: Any, grad: Any, m: Any, v: Any, lr: float, epsilon: float
) -> None:
    """Do what `adam_update` does, whose own constants are float32."""
    beta1, beta2 = base.ADAM_BETAS
    g = grad.asnumpy()
    m[:] = new_m = beta1 * m.asnumpy() + (1 - beta1) * g
    v[:] = new_v = beta2 * v.asnumpy() + (1 - beta2) * g**2
    data[:] = data.asnumpy() - lr * new_m / (numpy.sqrt(new_v) + epsilon)


class Adam(base.Optimizer):
    """MXNet's Adam update, with epsilon where the recipe wants it.

    The update operator adds epsilon to √v before the bias of v is
    corrected. Its state is kept by structural name, where Gluon's trainer
    keeps it by the index of an automatic name.
    """

    def __init__(
        self, net: Any, lr: float, epsilon_inside: bool, frozen: Sequence[str]
    ) -> None:
        # One that has several names, because layers share it, is one
        once = {
            parameter: name for name, parameter in _parameters(net).items()
        }
        self.parameters = {
            name: parameter
            for parameter, name in once.items()
            if parameter.grad_req != 'null'
            and not name.endswith(tuple(frozen))
        }
        self.lr = lr
        self.epsilon_inside = epsilon_inside
        self.num_steps = 0
        self.moments = {
            name: (nd.zeros_like(data), nd.zeros_like(data))
            for name, data in self._data()
        }

    def _data(self) -> Iterator[tuple[str, Any]]:
        for name, parameter in self.parameters.items():
            yield name, parameter.list_data()[0].as_nd_ndarray()

    def step(self) -> None:
        self.num_steps += 1
        beta1, beta2 = base.ADAM_BETAS
        root = (1 - beta2**self.num_steps) ** 0.5
        lr = self.lr * root / (1 - beta1**self.num_steps)
        epsilon = base.ADAM_EPSILON * (1 if self.epsilon_inside else root)
        for name, data in self._data():
            grad = self.parameters[name].list_grad()[0].as_nd_ndarray()
            if data.dtype == numpy.float64:
                update_in_float64(
                    data, grad, *self.moments[name], lr, epsilon
                )
                continue
            # The operator's v is smaller by its rounding of 1 − β₂, which is
            # how Gluon's Adam is; PyTorch's, which the other recipes follow,
            # is exact.
            scale = 1.0 if self.epsilon_inside else base.GLUON_ROUNDING
            nd.adam_update(
                data,
                grad,
                *self.moments[name],
                lr=lr * scale,
                beta1=beta1,
                beta2=beta2,
                epsilon=epsilon * scale,
                wd=0,
                lazy_update=False,
                out=data,
            )

    def state(self) -> dict[str, numpy.ndarray]:
        return {
            f'{name}.{short}': moment.asnumpy()
            for name, moments in self.moments.items()
            for short, moment in zip('mv', moments, strict=True)
        }

    def load_state(
        self, arrays: Mapping[str, numpy.ndarray], num_steps: int
    ) -> None:
        base.check_parameters(
            {
                f'{name}.{short}': moment.shape
                for name, moments in self.moments.items()
                for short, moment in zip('mv', moments, strict=True)
            },
            arrays,
        )
        self.num_steps = num_steps
        for name, moments in self.moments.items():
            for short, moment in zip('mv', moments, strict=True):
                moment[:] = arrays[f'{name}.{short}']


def _parameters(net: Any) -> dict[str, Any]:
    """Return the parameters of a block by their structural names."""
    if hasattr(net, '_collect_params_with_prefix'):  # MXNet 1
        return net._collect_params_with_prefix()
    return dict(net.collect_params())


def _layers(block: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Yield all blocks inside of `block` with their structural names."""
    for name, child in block._children.items():
        if isinstance(child, weakref.ref):  # MXNet 2
            child = child()
        yield prefix + name, child
        yield from _layers(child, f'{prefix}{name}.')


BACKEND = MXNetBackend()
Module.backend = BACKEND
