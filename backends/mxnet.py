"""The MXNet backend. See `backends.base` for what each function does.

MXNet's NumPy operators are slow on a processor where its older ones go
through oneDNN: hence the `nd` operators below, whose arrays share memory
with the `np` ones.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, ClassVar

import numpy

from backends import base
from backends.dropout import current_masks, dropout_masks, masks_again
from backends.mxnet_training import (
    Adam,
    Call,
    DataParallel,
    check_precision,
    mx,
    parameters_of,
)
from backends.outputs import named_arrays, to_arrays
from backends.parameters import check_parameters
from backends.recompute import noted_calls
from backends.threads import CPU_TOKENS, scratch
from backends.types import Footprint

autograd: Any = mx.autograd
gluon: Any = mx.gluon
nd: Any = mx.nd
nn: Any = mx.gluon.nn
np: Any = mx.np
npx: Any = mx.npx

# How many rows of logits exist at a time: see the PyTorch backend.
CHUNK_ROWS = 512
# Smaller logits, below the greatest, count nothing: exp(−60) is 1e-26. Their
# exponentials would be numbers with which processors are slow.
LEAST_LOGIT = -60


def shut_down() -> None:
    """Let MXNet end without the error of an operation that has failed."""
    with suppress(mx.MXNetError):
        mx.base._notify_shutdown()


atexit.unregister(mx.base._notify_shutdown)
atexit.register(shut_down)


class Module(gluon.Block):
    """A `gluon.Block` that knows its backend."""

    backend: ClassVar[base.Backend]


class Dropout(gluon.Block):
    """Gluon's `Dropout` that can be told which elements to keep."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, X):
        masks = current_masks()
        if masks is None or not autograd.is_training() or self.p == 0:
            return npx.dropout(X, p=self.p)
        keep = masks(X.shape, self.p)
        scale = numpy.multiply(keep, 1 / (1 - self.p), dtype=X.dtype)
        scale = nd.array(scale, dtype=X.dtype, ctx=X.ctx)
        return (X.as_nd_ndarray() * scale).as_np_ndarray()

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
            or X.ctx.device_type == 'gpu'
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
            no_bias=False,  # in MXNet 2 the default is True
            flatten=False,
        )


class LinearCrossEntropy(autograd.Function):
    """Cross-entropy of a linear layer, computed in NumPy.

    NumPy's matrix products and exponentials take less than half the time of
    MXNet's on a processor, and oneDNN's `log_softmax` is off by 4e-6. In a
    backward pass MXNet 1 gives and takes `nd` arrays, MXNet 2 `np` ones.
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
        scale = grad.asnumpy().item()
        gradients = self.gradients
        if scale != 1:
            gradients = [gradient * scale for gradient in gradients]
        dX = gradients[0]
        nothing = [
            nd.zeros(len(dX), ctx=dX.ctx, dtype=dX.dtype) for _ in range(2)
        ]
        arrays = [*gradients, *nothing]
        if isinstance(grad, np.ndarray):  # MXNet 2
            arrays = [array.as_np_ndarray() for array in arrays]
        return tuple(arrays)


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
    buffer = scratch((min(CHUNK_ROWS, len(X)), len(weight)), X.dtype)
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
    Parallel = DataParallel
    footprint = Footprint(
        hidden=1.5,
        ffn=2,
        scores=3.9,
        dropout_hidden=0,
        dropout_scores=0,
        working=3,
        inputs=2,
        vocabulary=4.5,
        chunks=3,
        chunk_rows=CHUNK_ROWS,
        workspace=59e6,
        copies=True,
        passing=0.16,
        kept=0.85,
        least_tokens=DataParallel.least_tokens,
        most_tokens=CPU_TOKENS,
    )

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

    def matmul(self, A, B, transpose_B=False):
        product = npx.batch_dot(
            A.reshape((-1, *A.shape[-2:])),
            B.reshape((-1, *B.shape[-2:])),
            transpose_b=transpose_B,
        )
        return product.reshape((*A.shape[:-1], product.shape[-1]))

    def transpose(self, X, axes):
        return nd.transpose(X.as_nd_ndarray(), axes).as_np_ndarray()

    def gather(self, X, positions):
        num_rows, num_steps, num_hiddens = X.shape
        first = np.arange(num_rows, dtype=positions.dtype, ctx=X.ctx)
        flat = positions + first.reshape((-1, 1)) * num_steps
        X = X.reshape((-1, num_hiddens))
        # MXNet 2 takes the name of a type only
        dtype = numpy.dtype(X.dtype).name
        return npx.embedding(flat, X, *X.shape, dtype=dtype)

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

    def cross_entropy(self, logits, labels, weights):
        log_probability = npx.pick(npx.log_softmax(logits, axis=-1), labels)
        return -np.sum(log_probability * weights.astype(logits.dtype))

    def linear_cross_entropy(self, layer, X, labels, weights):
        if type(layer) is not nn.Dense or layer.bias is None or layer.act:
            return self.cross_entropy(layer(X), labels, weights)
        # MXNet forgets to add to a gradient where a parameter is the direct
        # input of a function (its `req == 'add'` is never true), and stops
        # at the first input without gradient: hence the views, and the order
        weight, bias = layer.weight.data(X.ctx), layer.bias.data(X.ctx)
        views = (array.reshape(array.shape) for array in (X, weight, bias))
        return LinearCrossEntropy()(*views, labels, weights.astype(X.dtype))[
            0
        ]

    def checkpoint(self, layer, *inputs):
        calls = noted_calls()
        if calls is None:
            return layer(*inputs)
        masks = masks_again()
        # Without a graph, which would keep what the layer computes
        output = layer(*inputs).detach()
        output.attach_grad('add')
        calls.append(Call(layer, inputs, masks, output))
        return output

    # ---- layers and their parameters ---------------------------------

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

    def parameter_shapes(self, net):
        return {
            name: tuple(parameter.shape)
            for name, parameter in parameters_of(net).items()
        }

    def get_parameters(self, net):
        return {
            name: parameter.list_data()[0].asnumpy()
            for name, parameter in parameters_of(net).items()
        }

    def set_parameters(self, net, arrays, devices=None):
        check_parameters(self.parameter_shapes(net), arrays)
        for name, parameter in parameters_of(net).items():
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

    # ---- devices -----------------------------------------------------

    def num_gpus(self):
        return npx.num_gpus()

    def device(self, kind, index):
        return npx.gpu(index) if kind == 'gpu' else npx.cpu(index)

    def device_of(self, net):
        return next(iter(parameters_of(net).values())).list_ctx()[0]

    # ---- running a network -------------------------------------------

    def evaluate(self, net, batches, precision='float32'):
        check_precision(precision)
        device = self.device_of(net)

        def run(batch):
            outputs = net(*(self.tensor(X, device) for X in batch))
            return to_arrays(outputs, self.to_numpy)

        with autograd.pause(train_mode=False):
            return list(map(run, batches))

    def trace(self, net, inputs, masks=None):
        device, outputs = self.device_of(net), {}
        arrays = [X if X is None else self.tensor(X, device) for X in inputs]

        def keep(name):
            def hook(layer, inputs, output):
                if isinstance(output, np.ndarray):
                    outputs[name] = output

            return hook

        hooks = [
            layer.register_forward_hook(keep(name))
            for name, layer in _layers(net)
        ]
        mode = autograd.pause() if masks is None else autograd.record()
        try:
            with mode, dropout_masks(masks):
                result = net(*arrays)
        finally:
            for hook in hooks:
                hook.detach()
        return named_arrays(outputs, result, self.to_numpy)

    def Adam(self, net, lr, epsilon_inside, frozen=(), weight_decay=0.0):
        return Adam(net, lr, epsilon_inside, frozen, weight_decay)


def _layers(block: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Yield all blocks inside of `block` with their structural names."""
    for name, child in block._children.items():
        if isinstance(child, weakref.ref):  # MXNet 2
            child = child()
        yield prefix + name, child
        yield from _layers(child, f'{prefix}{name}.')


BACKEND = MXNetBackend()
Module.backend = BACKEND
