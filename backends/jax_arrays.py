"""Parameters of JAX by name, arrays and random numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from threading import local
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import experimental

from backends.flax_names import is_turned, name_of, turned
from backends.parameters import cut_normal
from backends.types import Arrays, Device

PROCESS = os.getpid()

#: The standard deviation of N(0, 1) without what is beyond ±2.
CUT_DEVIATION = 0.87962566103423978

#: A context whose arrays may have 64 bits. In JAX 0.7 it is elsewhere.
enable_x64 = (jax if hasattr(jax, 'enable_x64') else experimental).enable_x64

_thread = local()


# ---- parameters by name ----------------------------------------------


def parameters_of(net: nnx.Module) -> nnx.State:
    """Return the parameters of a network."""
    return nnx.state(net, nnx.Param)


def shapes_of(state: nnx.State) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array by its parameter's name."""
    return {
        name_of(path): shape[::-1] if is_turned(path) else shape
        for path, variable in nnx.to_flat_state(state)
        for shape in [array_of(variable).shape]
    }


def array_of(variable: Any) -> jax.Array:
    """Return the array of one variable, in old versions of Flax too."""
    (X,) = jax.tree.leaves(variable)
    return X


# With its argument the result is on the same device
@partial(jax.jit, keep_unused=True)
def zeros_like(state: nnx.State) -> nnx.State:
    """Return zeros for parameters, all of them by one program."""
    return jax.tree.map(jnp.zeros_like, state)


def named(state: nnx.State, ending: str = '') -> dict[str, np.ndarray]:
    """Return copies of arrays by the parameters' names and an ending."""
    return {
        name_of(path) + ending: np.array(
            turned(path, np.asarray(array_of(variable))), order='C'
        )
        for path, variable in nnx.to_flat_state(state)
    }


def state_of(
    like: nnx.State,
    arrays: Arrays,
    ending: str = '',
    device: Device = None,
) -> nnx.State:
    """Return arrays as a state; the inverse of `named`.

    `like`: has the paths; `device`: by default that of `like`.
    """
    return nnx.from_flat_state(
        (
            path,
            variable.replace(
                to_device(
                    turned(path, arrays[name_of(path) + ending]),
                    device or array_of(variable).device,
                )
            ),
        )
        for path, variable in nnx.to_flat_state(like)
    )


def width_of(state: nnx.State) -> AbstractContextManager[Any]:
    """Within this context JAX computes in the width of some parameters."""
    return enable_x64(jax.tree.leaves(state)[0].dtype == jnp.float64)


# ---- arrays and random numbers ---------------------------------------


def check_process() -> None:
    """Raise `RuntimeError` in a forked process, where JAX would hang."""
    if os.getpid() != PROCESS:
        raise RuntimeError(
            'JAX was imported before this process was forked, and would wait '
            'for ever for threads that it has not: start a new process '
            "instead of a fork (multiprocessing.get_context('spawn'))"
        )


def to_device(data: Any, device: Device = None) -> jax.Array:
    """Copy a NumPy array to a device: see `Backend.tensor`."""
    check_process()
    X = np.asarray(data)
    # A copy, because on a processor JAX may go on using its memory
    X = X.astype(X.dtype if X.dtype.kind == 'f' else np.int32)
    with enable_x64(X.dtype == np.float64):
        return jax.device_put(X, device)


@contextmanager
def random_numbers(rngs: nnx.Rngs | None) -> Iterator[None]:
    """Within this context new layers draw their parameters from `rngs`.

    `None` changes nothing; outside of the context it is `nnx.Rngs(0)`.
    """
    before = getattr(_thread, 'rngs', None)
    _thread.rngs = rngs or current_rngs()
    try:
        yield
    finally:
        _thread.rngs = before


def current_rngs() -> nnx.Rngs:
    """Return the random numbers of new layers."""
    check_process()
    return getattr(_thread, 'rngs', None) or nnx.Rngs(0)


# Flax's own initialisers are functions inside of functions, which cannot be
# pickled, and JAX compiles a program for each shape
def kernel_init(key, shape, dtype, **options):
    """Draw as `nnx.Linear` does: N(0, 1 / inputs), cut at two deviations."""
    if isinstance(key, jax.core.Tracer):
        return nnx.initializers.lecun_normal()(key, shape, dtype, **options)
    X = cut_normal(generator_of(key), shape)
    X /= CUT_DEVIATION * shape[0] ** 0.5
    return jnp.asarray(X.astype(dtype))


def embedding_init(key, shape, dtype, **options):
    """Draw from N(0, 1)."""
    if isinstance(key, jax.core.Tracer):
        return nnx.initializers.normal(1.0)(key, shape, dtype, **options)
    X = generator_of(key).standard_normal(shape)
    return jnp.asarray(X.astype(dtype))


def generator_of(key: jax.Array) -> np.random.Generator:
    """Return NumPy's generator with the numbers of a key as its seed."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))
