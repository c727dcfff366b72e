"""The JAX backend. See `backends.base` for what each function does.

Networks are modules of `flax.nnx`. The interface calls a parameter by its
path in the network, with PyTorch's words: the `weight` of a linear layer is
the transpose of its `kernel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from threading import local
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from backends import base
from backends.cores import num_cores
from backends.dropout import current_masks, dropout_masks
from backends.flax_names import words_of
from backends.jax_arrays import (
    current_rngs,
    embedding_init,
    kernel_init,
    named,
    parameters_of,
    shapes_of,
    state_of,
    to_device,
    width_of,
)
from backends.jax_loss import CHUNK_ROWS, linear_cross_entropy
from backends.jax_products import (
    check_precision,
    dot_general,
    products_in,
)
from backends.jax_programs import make_room
from backends.jax_training import (
    CPU_TOKENS,
    SIDE_BY_SIDE_BYTES,
    Adam,
    DataParallel,
)
from backends.outputs import named_arrays, to_arrays
from backends.parameters import check_parameters
from backends.recompute import noted_calls
from backends.types import Footprint

LEAST_CPU_DEVICES = 8
ACTIVATIONS = {'relu': jax.nn.relu, 'tanh': jnp.tanh}

_thread = local()


# Shards of a processor compute side by side on host devices, whose number
# is fixed when JAX is used first; a reader may have done so
if jax.config.jax_num_cpu_devices < 1:
    with suppress(RuntimeError):
        num_devices = max(num_cores(), LEAST_CPU_DEVICES)
        jax.config.update('jax_num_cpu_devices', num_devices)


# ---- layers ----------------------------------------------------------


class Traced:
    """A layer whose output `Backend.trace` sees."""

    def __call__(self, *inputs: Any) -> Any:
        output = super().__call__(*inputs)  # type: ignore[misc]
        if isinstance(output, jax.Array):
            getattr(_thread, 'outputs', {})[id(self)] = output
        return output


class Forward(nnx.Module):
    """Calls `forward`."""

    def __call__(self, *inputs):
        return self.forward(*inputs)


class Module(Traced, Forward):
    """An `nnx.Module` that knows its backend.

    A subclass replaces `forward`, or `__call__` as in Flax.
    """

    backend: ClassVar[base.Backend]

    def __init__(self, **unknown: Any) -> None:
        for name in unknown:
            raise TypeError(
                f'{type(self).__name__} got an unexpected keyword argument '
                f'{name!r}'
            )

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if '__call__' in vars(cls):
            # The definitions ask which module `forward` is from
            def forward(self, *inputs):
                return super(cls, self).forward(*inputs)

            forward.__module__ = cls.__module__
            cls.forward = forward


class Flat(nnx.Linear):
    """`nnx.Linear`, whose gradient takes half the time on a processor."""

    def __call__(self, X):
        Y = super().__call__(X.reshape((-1, X.shape[-1])))
        return Y.reshape((*X.shape[:-1], -1))


class Linear(Traced, Flat):
    """`nnx.Linear`, traced."""


class Embed(Traced, nnx.Embed):
    """`nnx.Embed`, traced."""


class LayerNorm(Traced, nnx.LayerNorm):
    """`nnx.LayerNorm`, traced."""


class Activation(Traced, Forward):
    """`'relu'` or `'tanh'` as a layer."""

    def __init__(self, name: str) -> None:
        self.name = name

    def forward(self, X):
        return ACTIVATIONS[self.name](X)


class Dropout(Traced, nnx.Dropout):
    """`nnx.Dropout` that can be told which elements to keep."""

    def __call__(self, X):
        masks = current_masks()
        if masks is None or self.deterministic or self.rate == 0:
            return super().__call__(X)
        return jnp.where(masks(X.shape, self.rate), X / (1 - self.rate), 0)


class Sequential(Traced, nnx.Sequential):
    """`nnx.Sequential` that can be indexed."""

    def __iter__(self):
        return iter(self.layers)

    def __len__(self):
        return len(self.layers)

    def __getitem__(self, index):
        return self.layers[index]


# ---- the interface ---------------------------------------------------


class JaxBackend(base.Backend):
    name = 'jax'
    compiles = True
    Module = Module
    Parallel = DataParallel
    # Peaks of a process that has compiled, too
    footprint = Footprint(
        hidden=2.24,
        ffn=1.8,
        scores=0.75,
        dropout_hidden=2,
        dropout_scores=1,
        working=3.07,
        inputs=1,
        vocabulary=1.6,
        chunks=1,
        chunk_rows=CHUNK_ROWS,
        workspace=110e6,
        copies=True,
        passing=1,
        kept=0.9,
        least_tokens=CPU_TOKENS,
        most_tokens=CPU_TOKENS,
        side_by_side=SIDE_BY_SIDE_BYTES,
    )

    # ---- tensor operations -------------------------------------------

    def tensor(self, data, device=None):
        return to_device(data, device)

    def to_numpy(self, X):
        return np.asarray(X)

    def matmul(self, A, B, transpose_B=False):
        return A @ (B.swapaxes(-1, -2) if transpose_B else B)

    def transpose(self, X, axes):
        return X.transpose(axes)

    def gather(self, X, positions):
        return jnp.take_along_axis(X, positions[..., None], 1)

    def relu(self, X):
        return jax.nn.relu(X)

    def masked_softmax(self, X, valid_lens):
        if valid_lens is None:
            return jax.nn.softmax(X)
        padded = jnp.arange(X.shape[-1]) >= valid_lens.reshape(len(X), -1, 1)
        mask = padded * jnp.asarray(base.MASKED_SCORE, X.dtype)
        return jax.nn.softmax(X + (mask[:, None] if X.ndim == 4 else mask))

    def cross_entropy(self, logits, labels, weights):
        at_label = jnp.take_along_axis(logits, labels[:, None], -1)[:, 0]
        return ((jax.nn.logsumexp(logits, -1) - at_label) * weights).sum()

    def linear_cross_entropy(self, layer, X, labels, weights):
        if type(layer) is Linear and layer.bias is not None:
            kernel, bias = layer.kernel[...], layer.bias[...]
            weights = weights.astype(X.dtype)
            return linear_cross_entropy(X, kernel, bias, labels, weights)
        return self.cross_entropy(layer(X), labels, weights)

    def checkpoint(self, layer, *inputs):
        if noted_calls() is None:
            return layer(*inputs)
        return jax.checkpoint(lambda *inputs: layer(*inputs))(*inputs)

    # ---- layers and their parameters ---------------------------------

    def Linear(
        self, num_outputs, num_inputs=None, bias=True, activation=None
    ):
        if num_inputs is None:
            raise ValueError(
                'JAX makes the parameters of a layer at once: give the size '
                'of its inputs, num_inputs'
            )
        layer = Linear(
            num_inputs,
            num_outputs,
            use_bias=bias,
            dot_general=dot_general,
            kernel_init=kernel_init,
            rngs=current_rngs(),
        )
        if activation is None:
            return layer
        return Sequential(layer, Activation(activation))

    def Embedding(self, num_embeddings, num_hiddens):
        return Embed(
            num_embeddings,
            num_hiddens,
            embedding_init=embedding_init,
            rngs=current_rngs(),
        )

    def LayerNorm(self, num_hiddens):
        return LayerNorm(
            num_hiddens,
            epsilon=base.LAYER_NORM_EPSILON,
            use_fast_variance=False,
            rngs=current_rngs(),
        )

    def Dropout(self, p):
        return Dropout(p, rngs=current_rngs())

    def Sequential(self, *layers):
        # A linear layer with its activation is two layers here
        parts = [
            layer if isinstance(layer, Sequential) else [layer]
            for layer in layers
        ]
        return Sequential(*(layer for part in parts for layer in part))

    def parameter(self, module, name, shape):
        key = current_rngs().params()
        setattr(module, name, nnx.Param(jax.random.normal(key, shape)))
        return getattr(module, name)

    def value(self, parameter, like):
        return parameter[...]

    def parameter_shapes(self, net):
        return shapes_of(parameters_of(net))

    def get_parameters(self, net):
        return named(parameters_of(net))

    def set_parameters(self, net, arrays, devices=None):
        check_parameters(self.parameter_shapes(net), arrays)
        device = devices[0] if devices else self.device_of(net)
        nnx.update(net, state_of(parameters_of(net), arrays, device=device))

    # ---- devices -----------------------------------------------------

    def num_gpus(self):
        try:
            return len(jax.local_devices(backend='gpu'))
        except RuntimeError:  # a JAX for processors does not know the word
            return 0

    def device(self, kind, index):
        devices = jax.local_devices(backend=kind)
        # Where there are more shards of a processor, they take turns
        return devices[index % len(devices) if kind == 'cpu' else index]

    def device_of(self, net):
        return jax.tree.leaves(parameters_of(net))[0].device

    # ---- running a network -------------------------------------------

    def evaluate(self, net, batches, precision='float32'):
        device = self.device_of(net)
        check_precision(precision, [device])
        graph, state = nnx.split(net)
        outputs = []
        make_room()
        with width_of(state):
            for batch in batches:
                inputs = [self.tensor(X, device) for X in batch]
                outputs.append(evaluated(graph, precision, state, inputs))
        return [to_arrays(Y, self.to_numpy) for Y in outputs]

    def trace(self, net, inputs, masks=None):
        device = self.device_of(net)
        arrays = [X if X is None else self.tensor(X, device) for X in inputs]
        graph, state = nnx.split(net)

        @jax.jit
        def run(state, arrays):
            twin = nnx.merge(graph, state)
            (twin.eval if masks is None else twin.train)()
            _thread.outputs = {}
            try:
                with dropout_masks(masks):
                    result = twin(*arrays)
                return outputs_by_name(twin), result
            finally:
                del _thread.outputs

        with width_of(state):
            outputs, result = run(state, arrays)
            return named_arrays(outputs, result, self.to_numpy)

    def Adam(self, net, lr, epsilon_inside, frozen=(), weight_decay=0.0):
        return Adam(net, lr, epsilon_inside, tuple(frozen), weight_decay)


@partial(jax.jit, static_argnums=(0, 1))
def evaluated(
    graph: Any, precision: str, state: Any, inputs: Sequence[jax.Array]
) -> Any:
    """Return the outputs of a network in evaluation mode."""
    net = nnx.merge(graph, state)
    net.eval()
    with products_in(precision):
        return net(*inputs)


def outputs_by_name(net: nnx.Module) -> dict[str, jax.Array]:
    """Return what the parts of a network have returned in this thread."""
    return {
        '.'.join(words_of(path)): _thread.outputs[id(part)]
        for path, part in nnx.iter_graph(net)
        if path and id(part) in _thread.outputs
    }


BACKEND = JaxBackend()
Module.backend = BACKEND
