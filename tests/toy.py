"""A third framework, as small as the interface allows.

NumPy arrays in float64, networks that are plain objects, and gradients by
central differences: slow, and enough for a network of a few hundred numbers.
It keeps the interface thin: what the trainer asks for beyond this is too
much. `tests/test_toy.py` trains it beside PyTorch.
"""

from __future__ import annotations

import numpy as np

from backends import adam, base
from backends.dropout import current_masks, dropout_masks
from backends.parameters import check_parameters
from d2lbert import bert

H = 1e-6  # the step of the differences


class Module:
    """A network, whose parts are its attributes."""

    def __call__(self, *inputs):
        return self.forward(*inputs)


class Layer(Module):
    """A function of an input and of parameters, which are NumPy arrays."""

    def __init__(self, function, **parameters):
        self.function = function
        vars(self).update(parameters)

    def forward(self, X):
        function, *parameters = vars(self).values()
        return function(X, *parameters)


class Sequential(Module):
    """Its layers are the attributes `0`, `1`, …"""

    def __init__(self, layers):
        for layer in layers:
            for part in layer if isinstance(layer, Sequential) else [layer]:
                setattr(self, str(len(vars(self))), part)

    def __getitem__(self, index):
        return list(vars(self).values())[index]

    def forward(self, X):
        for layer in self:
            X = layer(X)
        return X


def layer_norm(X, weight, bias):
    variance = X.var(-1, keepdims=True) + base.LAYER_NORM_EPSILON
    return weight * (X - X.mean(-1, keepdims=True)) / variance**0.5 + bias


def parameters(net, prefix=''):
    """Return the parameters of a network by their structural names."""
    found = {}
    for name, part in vars(net).items():
        if isinstance(part, np.ndarray):
            found[prefix + name] = part
        elif isinstance(part, Module):
            found |= parameters(part, f'{prefix}{name}.')
    return found


def unused(self, *args, **kwargs):
    raise NotImplementedError('the trainer does not ask for it')


class ToyBackend(base.Backend):
    name = 'toy'
    Module = Module

    def tensor(self, data, device=None):
        X = np.array(data)
        return X.astype(np.float64 if X.dtype.kind == 'f' else np.int64)

    def to_numpy(self, X):
        return X

    def matmul(self, A, B, transpose_B=False):
        return A @ (B.swapaxes(-1, -2) if transpose_B else B)

    def transpose(self, X, axes):
        return X.transpose(axes)

    def gather(self, X, positions):
        return np.take_along_axis(X, positions[..., None], 1)

    def relu(self, X):
        return np.maximum(X, 0)

    def masked_softmax(self, X, valid_lens):
        padded = np.arange(X.shape[-1]) >= valid_lens.reshape(-1, 1, 1, 1)
        E = np.exp(X - X.max(-1, keepdims=True) + base.MASKED_SCORE * padded)
        return E / E.sum(-1, keepdims=True)

    def cross_entropy(self, logits, labels, weights):
        losses = np.logaddexp.reduce(logits, -1)
        losses = losses - logits[range(len(labels)), labels]
        return (weights * losses).sum()

    def linear_cross_entropy(self, layer, X, labels, weights):
        return self.cross_entropy(layer(X), labels, weights)

    def checkpoint(self, layer, *inputs):
        return layer(*inputs)

    def Linear(
        self, num_outputs, num_inputs=None, bias=True, activation=None
    ):
        parameters = {'weight': np.zeros((num_outputs, num_inputs))}
        if bias:
            parameters['bias'] = np.zeros(num_outputs)
        linear = Layer(lambda X, W, b=0.0: X @ W.T + b, **parameters)
        if activation is None:
            return linear
        activations = {'relu': self.relu, 'tanh': np.tanh}
        return Sequential([linear, Layer(activations[activation])])

    def Embedding(self, num_embeddings, num_hiddens):
        weight = np.zeros((num_embeddings, num_hiddens))
        return Layer(lambda X, W: W[X], weight=weight)

    def LayerNorm(self, num_hiddens):
        weight, bias = np.zeros((2, num_hiddens))
        return Layer(layer_norm, weight=weight, bias=bias)

    def Dropout(self, p):
        return Layer(lambda X: X * current_masks()(X.shape, p) / (1 - p))

    def Sequential(self, *layers):
        return Sequential(layers)

    def parameter(self, module, name, shape):
        return np.zeros(shape)

    def value(self, parameter, like):
        return parameter

    def parameter_shapes(self, net):
        return {name: W.shape for name, W in parameters(net).items()}

    def get_parameters(self, net):
        return {name: W.copy() for name, W in parameters(net).items()}

    def set_parameters(self, net, arrays, devices=None):
        check_parameters(self.parameter_shapes(net), arrays)
        for name, W in parameters(net).items():
            W[...] = arrays[name]

    def device(self, kind, index):
        return f'{kind}:{index}'

    num_gpus = device_of = unused

    evaluate = trace = unused

    def data_parallel(self, net, losses, devices, **options):
        return DataParallel(net, losses, devices)

    def Adam(self, net, lr, epsilon_inside, frozen=(), weight_decay=0.0):
        return Adam(net, lr, epsilon_inside, tuple(frozen), weight_decay)


class DataParallel(base.DataParallel):
    num_workers = 1
    tokens_at_a_time = 32

    def __init__(self, net, losses, devices):
        self.net, self.compute_losses = net, losses
        self.num_shards = len(devices)
        self.own_shards = range(len(devices))

    def losses(self, parts):
        """Return the sum of each loss; the masks of a part are new ones."""
        total = np.zeros(2)
        for part in parts:
            inputs = map(BACKEND.tensor, part.inputs)
            # The streams of the masks begin anew
            vars(part.masks).pop('streams', None)
            with dropout_masks(part.masks):
                total += self.compute_losses(self.net, *inputs)
        return total

    def value_and_grad(self, parts):
        parts = [part for shard in parts for part in shard]
        arrays = {}
        for name, W in parameters(self.net).items():
            arrays[name] = np.empty(W.shape)
            for i, value in np.ndenumerate(W.copy()):
                sides = []
                for W[i] in (value - H, value + H):
                    sides.append(self.losses(parts).sum())
                W[i] = value
                arrays[name][i] = (sides[1] - sides[0]) / (2 * H)
        return Gradients(self.losses(parts), arrays)


class Gradients(base.Gradients):
    def __init__(self, losses, arrays):
        self.values, self.named = losses, arrays

    def losses(self):
        return self.values

    def arrays(self):
        return self.named

    def norm(self):
        return sum((G**2).sum() for G in self.named.values()) ** 0.5


class Adam(base.Optimizer):
    def __init__(self, net, lr, epsilon_inside, frozen, weight_decay):
        self.net, self.inside, self.decay = net, epsilon_inside, weight_decay
        self.num_steps = 0
        self.moments = {
            name: np.zeros((2, *W.shape))
            for name, W in parameters(net).items()
            if not name.endswith(frozen)
        }

    def step(self, gradients, lr, scale):
        self.num_steps += 1
        beta1, beta2 = adam.BETAS
        root = (1 - beta2**self.num_steps) ** 0.5
        rate = lr * root / (1 - beta1**self.num_steps)
        epsilon = adam.EPSILON * (1 if self.inside else root)
        for name, (m, v) in self.moments.items():
            G, W = (
                scale * gradients.arrays()[name],
                parameters(self.net)[name],
            )
            m += (1 - beta1) * (G - m)
            v += (1 - beta2) * (G**2 - v)
            if adam.decays(W.shape):
                W *= 1 - lr * self.decay
            W -= rate * m / (v**0.5 + epsilon)

    state = load_state = unused


BACKEND = ToyBackend()
Module.backend = BACKEND


# ---- the tab ---------------------------------------------------------


class Attention(bert.DotProductAttention, Module): ...


class MultiHeadAttention(bert.MultiHeadAttention, Module):
    Attention = Attention


class FFN(bert.PositionWiseFFN, Module): ...


class AddNorm(bert.AddNorm, Module): ...


class Block(bert.TransformerEncoderBlock, Module):
    Attention, FFN, AddNorm = MultiHeadAttention, FFN, AddNorm


class Encoder(bert.BERTEncoder, Module):
    Block = Block


class MaskLM(bert.MaskLM, Module): ...


class NextSentencePred(bert.NextSentencePred, Module): ...


class BERTModel(bert.BERTModel, Module):
    Encoder, MaskLM, NextSentencePred = Encoder, MaskLM, NextSentencePred
