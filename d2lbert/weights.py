"""Parameters under names that belong to no framework.

The neutral names are those of the PyTorch tab's state dict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.random import Generator

from backends.flax_names import is_turned, name_of, turned
from backends.parameters import cut_normal
from backends.types import Device
from d2lbert.bert import BERTModel
from d2lbert.errors import RunError
from d2lbert.randomness import generator

Renames = Sequence[tuple[str, str]]
Shapes = Mapping[str, tuple[int, ...]]

#: In the MXNet tab layers have their activations inside, where PyTorch
#: counts them as layers of their own.
MXNET_LAYERS: Renames = (
    ('mlm.mlp.2', 'mlm.mlp.3'),
    ('mlm.mlp.1', 'mlm.mlp.2'),
    ('mlm.mlp.0', 'mlm.mlp.1'),
)
MXNET_NAMES: Renames = (
    ('hidden.', 'hidden.0.'),
    ('mlm.mlp.2.', 'mlm.mlp.3.'),
    ('mlm.mlp.1.gamma', 'mlm.mlp.2.weight'),
    ('mlm.mlp.1.beta', 'mlm.mlp.2.bias'),
    ('.ln.gamma', '.ln.weight'),
    ('.ln.beta', '.ln.bias'),
)
#: What `nn.DataParallel` puts in front of each name.
PARALLEL = 'module.'


def renamed(name: str, pairs: Renames) -> str:
    """Return a name by the first pair with whose left side it begins or ends.

    The right side takes its place.
    """
    for old, new in pairs:
        if name.startswith(old) or name.endswith(old):
            return name.replace(old, new)
    return name


def neutral(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays by neutral names, from the names of any tab."""
    if arrays and all(name.startswith(PARALLEL) for name in arrays):
        arrays = {name[len(PARALLEL) :]: W for name, W in arrays.items()}
    if any(name.endswith('.gamma') for name in arrays):
        return {renamed(name, MXNET_NAMES): W for name, W in arrays.items()}
    paths = {name: name.split('.') for name in arrays}
    if any(map(is_turned, paths.values())):
        return {
            name_of(paths[name]): turned(paths[name], W)
            for name, W in arrays.items()
        }
    return dict(arrays)


def neutral_name(net: BERTModel, name: str) -> str:
    """Return the neutral name of a parameter of `net`."""
    return renamed(name, net.NEUTRAL_NAMES)


def mxnet_name(name: str) -> str:
    """Return what the MXNet tab calls a parameter with a neutral name."""
    return renamed(name, [(new, old) for old, new in MXNET_NAMES])


def neutral_shapes(net: BERTModel) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all parameters by their neutral names."""
    return {
        neutral_name(net, name): shape
        for name, shape in net.backend.parameter_shapes(net).items()
    }


def get_weights(net: BERTModel) -> dict[str, np.ndarray]:
    """Return copies of all parameters by their neutral names."""
    return {
        neutral_name(net, name): array
        for name, array in net.backend.get_parameters(net).items()
    }


def set_weights(
    net: BERTModel,
    arrays: Mapping[str, np.ndarray],
    devices: Sequence[Device] | None = None,
) -> None:
    """Set all parameters of `net` by their neutral names.

    Raises `ValueError`, with nothing changed, where names or shapes differ.
    """
    native = {
        neutral_name(net, name): name
        for name in net.backend.parameter_shapes(net)
    }
    renamed_arrays = {native.get(name, name): W for name, W in arrays.items()}
    net.backend.set_parameters(net, renamed_arrays, devices)


def check_finite(what: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise `RunError` where arrays have numbers that are not finite.

    `what`: what they are, for the error.
    """
    faults = [name for name, A in arrays.items() if not np.isfinite(A).all()]
    if faults:
        more = f' and {len(faults) - 4} more' if len(faults) > 4 else ''
        raise RunError(
            f'{what} not finite ({", ".join(faults[:4])}{more}), as after a '
            'training that diverged: train again with a smaller --lr'
        )


def initial_weights(
    shapes: Shapes, initialization: str, seed: int
) -> dict[str, np.ndarray]:
    """Draw a network's initial weights, float32.

    `shapes`: by neutral names; `initialization`: see `Recipe`.
    """
    rng = generator(seed, 'weights')
    draw = {
        'xavier': xavier,
        'torch': torch_default,
        'truncated_normal': truncated_normal,
    }[initialization]
    # In alphabetical order, which is the same in both frameworks
    return {
        name: _norm(name, shapes[name])
        if '.ln.' in name or name.startswith('mlm.mlp.2.')
        else draw(name, shapes, rng).astype(np.float32)
        for name in sorted(shapes)
    }


def _norm(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Layer normalisation starts as the identity: times 1, plus 0."""
    return np.full(shape, name.endswith('weight'), np.float32)


def xavier(name: str, shapes: Shapes, rng: Generator) -> np.ndarray:
    """Draw as Gluon's `Xavier()`: uniform, scaled by the mean fan.

    Glorot and Bengio, "Understanding the difficulty of training deep
    feedforward neural networks" (2010): U(±√(6 / (fan_in + fan_out))) for
    every array with two axes or more; biases are zero.
    """
    shape = shapes[name]
    if len(shape) < 2:
        return np.zeros(shape)
    fan_out, fan_in, *rest = shape
    bound = np.sqrt(6 / ((fan_in + fan_out) * np.prod(rest)))
    return rng.uniform(-bound, bound, shape)


def torch_default(name: str, shapes: Shapes, rng: Generator) -> np.ndarray:
    """Draw as PyTorch does: embeddings N(0, 1), linear U(±1/√fan_in)."""
    if 'embedding' in name:
        return rng.standard_normal(shapes[name])
    *_, fan_in = shapes[name.replace('.bias', '.weight')]
    bound = 1 / np.sqrt(fan_in)
    return rng.uniform(-bound, bound, shapes[name])


def truncated_normal(name: str, shapes: Shapes, rng: Generator) -> np.ndarray:
    """Draw as BERT does: N(0, 0.02), without what is beyond ±0.04.

    Devlin et al. (2019), for every array with two axes or more; biases are
    zero. What is beyond two standard deviations is drawn again.
    """
    shape = shapes[name]
    if len(shape) < 2:
        return np.zeros(shape)
    return 0.02 * cut_normal(rng, shape)
