"""The comparison of two networks, in any two frameworks.

    from d2lbert import parity
    parity.copy_weights(source, target, mapping)
    parity.assert_forward(source, target, [X], mapping)
    parity.assert_gradients(source, target, losses, mapping)
    parity.assert_training(source, target, losses, batches, mapping)

`source` and `target` are any networks of PyTorch or MXNet whose parameters
correspond; `mapping` gives the name in `target` for a name in `source`
(parameters and layers alike), and what it leaves out has the same name in
both. For the networks of this package no mapping is needed.

A tensor passes when its largest difference is at most `rtol` times the
largest magnitude in the tensor, plus `atol`. (A ratio for each element would
be noise wherever an element is near zero.)

`d2lbert.parity.report.compare_backends` is what the command
`d2lbert parity` does: the chapter's network, in two frameworks, layer by
layer and step by step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import backends
from backends.base import Gradients
from backends.types import Losses, Masks, Part
from d2lbert.weights import renamed

#: The largest difference that passes: for float32 and float64, by kind.
TOLERANCES = {
    'float32': {
        'forward': 1e-6,
        'losses': 1e-6,
        'gradients': 1e-5,
        'step': 1e-6,
        'evaluation': 1e-5,
        'training': 1e-3,
    }
}
TOLERANCES['float64'] = dict.fromkeys(TOLERANCES['float32'], 1e-8)


@dataclass(frozen=True)
class Difference:
    """How far two tensors that should be equal are apart.

    `kind`: what was compared (`'forward'`, `'gradients'`, …); `name`: the
    tensor, by its name in the first network; `max_abs`, `max_rel`: the
    largest difference, and the same over the largest magnitude; `index`:
    where it is; `ours`, `theirs`: both values there; `allowed`: the largest
    difference that passes; `problem`: why the tensors could not be compared,
    which is an infinite difference.
    """

    kind: str
    name: str
    max_abs: float = math.inf
    max_rel: float = math.inf
    index: tuple[int, ...] = ()
    ours: float = math.nan
    theirs: float = math.nan
    allowed: float = 0.0
    problem: str = ''

    @property
    def passed(self) -> bool:
        """Whether the tensors are equal enough; a NaN never is."""
        return self.max_abs <= self.allowed

    @property
    def severity(self) -> float:
        """How many times as large as allowed the difference is."""
        if self.allowed:
            return self.max_abs / self.allowed
        return math.inf if self.max_abs else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON.

        A number that is not finite is `None`: JSON has none such.
        """
        fields = asdict(self) | {'passed': self.passed}
        for name, value in fields.items():
            if isinstance(value, float) and not math.isfinite(value):
                fields[name] = None
        return fields

    def __str__(self) -> str:
        if self.problem:
            return f'{self.kind} of {self.name}: {self.problem}'
        where = f' at {list(self.index)}' if self.index else ''
        return (
            f'{self.kind} of {self.name}: largest difference '
            f'{self.max_abs:.3g}{where} ({self.max_rel:.2g} of the largest '
            f'magnitude), {self.ours:.9g} against {self.theirs:.9g}; allowed '
            f'is {self.allowed:.3g}'
        )


def compare_arrays(
    kind: str,
    name: str,
    ours: Any,
    theirs: Any,
    rtol: float,
    atol: float = 0.0,
) -> Difference:
    """Return how far two arrays are apart."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape:
        problem = f'shapes {a.shape} and {b.shape}'
        return Difference(kind, name, problem=problem)
    if not a.size:
        return Difference(kind, name, 0.0, 0.0)
    # Equal infinities are equal, and a NaN is further off than anything
    with np.errstate(invalid='ignore'):
        gaps = np.where(a == b, 0.0, np.abs(a - b))
    gaps[np.isnan(gaps)] = np.inf
    index = tuple(int(i) for i in np.unravel_index(gaps.argmax(), a.shape))
    largest = float(np.max(np.abs(b[np.isfinite(b)]), initial=0.0))
    gap = float(gaps[index])
    return Difference(
        kind,
        name,
        gap,
        gap / largest if largest else (0.0 if gap == 0 else np.inf),
        index,
        float(a[index]),
        float(b[index]),
        rtol * largest + atol,
    )


def compare_named(
    kind: str,
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    rtol: float,
    atol: float = 0.0,
) -> list[Difference]:
    """Return how far arrays of the same names are apart.

    A name that only one side has is a difference too.
    """
    found = []
    for name in {**ours, **theirs}:
        if name in ours and name in theirs:
            pair = ours[name], theirs[name]
            found.append(compare_arrays(kind, name, *pair, rtol, atol))
        else:
            side = 'first' if name in ours else 'second'
            problem = f'only the {side} one has it'
            found.append(Difference(kind, name, problem=problem))
    return found


# ---- any pair of networks --------------------------------------------


def copy_weights(
    source: Any, target: Any, mapping: Mapping[str, str] | None = None
) -> None:
    """Give `target` the parameters of `source`, initialising it if needed.

    Its sizes have to be fixed, not left to the first input.

    Raises `ValueError`, with nothing changed, that lists every parameter
    without a counterpart or of another shape.
    """
    arrays = backends.of(source).get_parameters(source)
    backend = backends.of(target)
    names = backend.parameter_shapes(target)
    arrays = _renamed(arrays, names, source, target, mapping)
    backend.set_parameters(target, arrays)


def compare_forward(
    source: Any,
    target: Any,
    inputs: Sequence[np.ndarray],
    mapping: Mapping[str, str] | None = None,
    rtol: float = 1e-6,
    atol: float = 0.0,
    draw: Callable[[], Masks] | None = None,
) -> list[Difference]:
    """Compare the outputs of every layer, and of the whole.

    `inputs`: NumPy arrays, the arguments of both networks (`None` is passed
    on). The networks are evaluated; with `draw`, which returns a new source
    of masks for each, they are in training mode and drop by these masks.
    Layers that only one network has are left out, activations being layers
    in one framework and not in the other.
    """
    ours, theirs = (
        backends.of(net).trace(net, inputs, draw() if draw else None)
        for net in (source, target)
    )
    ours = _renamed(ours, theirs, source, target, mapping, 'NEUTRAL_LAYERS')
    ours = {name: Y for name, Y in ours.items() if name in theirs}
    theirs = {name: theirs[name] for name in ours}
    return compare_named('forward', ours, theirs, rtol, atol)


def compare_gradients(
    source: Any,
    target: Any,
    losses: Losses,
    mapping: Mapping[str, str] | None = None,
    rtol: float = 1e-5,
    atol: float = 0.0,
) -> list[Difference]:
    """Compare losses, and the gradient of every parameter.

    `losses(net)` returns scalar arrays of the framework of `net`, whose sum
    is differentiated; `backends.of(net)` helps to write it once for both.
    """
    our_losses, ours = _gradients(source, losses)
    their_losses, theirs = _gradients(target, losses)
    ours = _renamed(ours, theirs, source, target, mapping)
    return [
        *compare_named('losses', our_losses, their_losses, rtol, atol),
        *compare_named('gradients', ours, theirs, rtol, atol),
    ]


def compare_training(
    source: Any,
    target: Any,
    losses: Losses,
    batches: Iterable[Any],
    mapping: Mapping[str, str] | None = None,
    lr: float = 0.01,
    epsilon_inside: bool = False,
    rtol: float = 0.0,
    atol: float = 1e-3,
) -> list[Difference]:
    """Train both networks with Adam and compare losses and parameters.

    `losses(net, batch)` returns scalar arrays; see `compare_gradients`, and
    `backends.base.Backend.Adam` for `epsilon_inside`. Gives a difference
    for each step, and for each parameter at the end.
    """
    batches = list(batches)
    if not batches:
        raise ValueError('batches is empty: give one to compare, or more')
    ours, theirs = (
        list(_train(net, losses, batches, lr, epsilon_inside))
        for net in (source, target)
    )
    W, V = (backends.of(net).get_parameters(net) for net in (source, target))
    W = _renamed(W, V, source, target, mapping)
    return [
        *compare_histories(ours, theirs, rtol, atol),
        *compare_named('weights', W, V, rtol, atol),
    ]


def compare_histories(
    ours: Sequence[Sequence[float]],
    theirs: Sequence[Sequence[float]],
    rtol: float = 0.0,
    atol: float = 1e-3,
) -> list[Difference]:
    """Compare the losses of two trainings step by step."""
    first, second = (
        {f'step {i}': losses for i, losses in enumerate(history, 1)}
        for history in (ours, theirs)
    )
    return compare_named('training', first, second, rtol, atol)


def assert_forward(*args: Any, **kwargs: Any) -> None:
    """Raise `AssertionError` where `compare_forward` finds a difference."""
    assert_all(compare_forward(*args, **kwargs))


def assert_gradients(*args: Any, **kwargs: Any) -> None:
    """Raise `AssertionError` where `compare_gradients` finds a difference."""
    assert_all(compare_gradients(*args, **kwargs))


def assert_training(*args: Any, **kwargs: Any) -> None:
    """Raise `AssertionError` where `compare_training` finds a difference."""
    assert_all(compare_training(*args, **kwargs))


def assert_all(differences: Sequence[Difference]) -> None:
    """Raise `AssertionError` that names every tensor that does not pass."""
    failed = [found for found in differences if not found.passed]
    if not differences:
        raise AssertionError('nothing was compared: no name is shared')
    if failed:
        raise AssertionError(
            f'Not equal to tolerance: {len(failed)} of {len(differences)} '
            'tensors\n' + '\n'.join(map(str, failed))
        )


def _renamed(
    ours: Mapping[str, Any],
    theirs: Iterable[str],
    source: Any,
    target: Any,
    mapping: Mapping[str, str] | None,
    renames: str = 'NEUTRAL_NAMES',
) -> dict[str, Any]:
    """Return arrays of `source` by the names that `target` has for them.

    `theirs`: the names in `target`; `renames`: the attribute of this
    package's own networks that gives their names a form that all share.
    """
    if mapping is None:
        before, after = (
            getattr(net, renames, ()) for net in (source, target)
        )
        native = {renamed(name, after): name for name in theirs}
        neutral = {name: renamed(name, before) for name in ours}
        mapping = {name: native.get(neutral[name], name) for name in ours}
    return {mapping.get(name, name): array for name, array in ours.items()}


@contextmanager
def _value_and_grad(net: Any, losses: Losses) -> Iterator[Gradients]:
    """Give the losses and gradients of a network where it is."""
    backend = backends.of(net)
    parallel = backend.data_parallel(net, losses, [backend.device_of(net)])
    with closing(parallel):
        yield parallel.value_and_grad([[Part(())]])


def _gradients(
    net: Any, losses: Losses
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    with _value_and_grad(net, losses) as gradients:
        values = enumerate(gradients.losses())
        return {f'loss {i}': value for i, value in values}, gradients.arrays()


def _train(
    net: Any,
    losses: Losses,
    batches: Sequence[Any],
    lr: float,
    epsilon_inside: bool,
) -> Iterator[list[float]]:
    optimizer = backends.of(net).Adam(net, lr, epsilon_inside)
    for batch in batches:
        with _value_and_grad(
            net, lambda net, batch=batch: losses(net, batch)
        ) as gradients:
            optimizer.step(gradients)
            yield gradients.losses().tolist()
