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


class Parameter:
    def __init__(self, *shape):
        self.data = np.zeros(shape)


class Layer(Module):
    """A function of an input and of parameters of given shapes."""

    def __init__(self, function, **shapes):
        self.function = function
        for name, shape in shapes.items():
            setattr(self, name, Parameter(*shape))

    def forward(self, X):
        _, *parameters = vars(self).values()
        return self.function(X, *(p.data for p in parameters))


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


class Dropout(Module):
    def __init__(self, p):
        self.p = p

    def forward(self, X):
        return X * current_masks()(X.shape, self.p) / (1 - self.p)


def layer_norm(X, weight, bias):
    deviation = X - X.mean(-1, keepdims=True)
    variance = (deviation**2).mean(-1, keepdims=True)
    return (
        deviation / np.sqrt(variance + base.LAYER_NORM_EPSILON) * weight
        + bias
    )


def parameters(net, prefix=''):
    """Return the parameters of a network by their structural names."""
    found = {}
    for name, part in vars(net).items():
        if isinstance(part, Parameter):
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
        top = logits.max(-1, keepdims=True)
        logsumexp = np.log(np.exp(logits - top).sum(-1)) + top[:, 0]
        return (
            (logsumexp - logits[range(len(labels)), labels]) * weights
        ).sum()

    def linear_cross_entropy(self, layer, X, labels, weights):
        return self.cross_entropy(layer(X), labels, weights)

    def checkpoint(self, layer, *inputs):
        return layer(*inputs)

    def Linear(
        self, num_outputs, num_inputs=None, bias=True, activation=None
    ):
        linear = Layer(
            lambda X, W, b=0.0: X @ W.T + b,
            weight=(num_outputs, num_inputs),
            **({'bias': (num_outputs,)} if bias else {}),
        )
        if activation is None:
            return linear
        return Sequential(
            [linear, Layer({'relu': self.relu, 'tanh': np.tanh}[activation])]
        )

    def Embedding(self, num_embeddings, num_hiddens):
        return Layer(lambda X, W: W[X], weight=(num_embeddings, num_hiddens))

    def LayerNorm(self, num_hiddens):
        return Layer(layer_norm, weight=(num_hiddens,), bias=(num_hiddens,))

    def Dropout(self, p):
        return Dropout(p)

    def Sequential(self, *layers):
        return Sequential(layers)

    def parameter(self, module, name, shape):
        return Parameter(*shape)

    def value(self, parameter, like):
        return parameter.data

    def parameter_shapes(self, net):
        return {name: p.data.shape for name, p in parameters(net).items()}

    def get_parameters(self, net):
        return {name: p.data.copy() for name, p in parameters(net).items()}

    def set_parameters(self, net, arrays, devices=None):
        check_parameters(self.parameter_shapes(net), arrays)
        for name, parameter in parameters(net).items():
            parameter.data = arrays[name].astype(np.float64)

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
        for name, parameter in parameters(self.net).items():
            gradient = arrays[name] = np.empty(parameter.data.shape)
            flat = parameter.data.reshape(-1)
            for i, value in enumerate(flat.tolist()):
                sides = []
                for flat[i] in (value - H, value + H):
                    sides.append(self.losses(parts).sum())
                flat[i] = value
                gradient.flat[i] = (sides[1] - sides[0]) / (2 * H)
        return Gradients(self.losses(parts), arrays)


class Gradients(base.Gradients):
    def __init__(self, losses, arrays):
        self.values, self.named = losses, arrays

    def losses(self):
        return self.values

    def arrays(self):
        return self.named

    def norm(self):
        return float(np.sqrt(sum((g**2).sum() for g in self.named.values())))


class Adam(base.Optimizer):
    def __init__(self, net, lr, epsilon_inside, frozen, weight_decay):
        self.net, self.inside, self.decay = net, epsilon_inside, weight_decay
        self.num_steps = 0
        self.moments = {
            name: [np.zeros(shape), np.zeros(shape)]
            for name, shape in BACKEND.parameter_shapes(net).items()
            if not name.endswith(frozen)
        }

    def step(self, gradients, lr, scale):
        self.num_steps += 1
        b1, b2 = adam.BETAS
        root = np.sqrt(1 - b2**self.num_steps)
        for name, (m, v) in self.moments.items():
            gradient = scale * gradients.arrays()[name]
            m += (1 - b1) * (gradient - m)
            v += (1 - b2) * (gradient**2 - v)
            epsilon = adam.EPSILON * (1 if self.inside else root)
            data = parameters(self.net)[name].data
            if adam.decays(data.shape):
                data *= 1 - lr * self.decay
            rate = lr * root / (1 - b1**self.num_steps)
            data -= rate * m / (np.sqrt(v) + epsilon)

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
