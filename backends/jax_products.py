"""Matrix products of JAX whose factors are bfloat16.

They sum in float32. On a processor XLA makes them faster than those of
float32 only where no factor is transposed: its products in the backward pass
of a linear layer are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import local
from typing import Any

import jax
import jax.numpy as jnp

from backends.processor import check_bf16

_products = local()


def check_precision(precision: str, devices: Sequence[jax.Device]) -> None:
    """Raise `ValueError` for a precision that devices do not have."""
    if precision == 'float32':
        return
    if precision != 'bf16' or devices[0].platform != 'cpu':
        raise ValueError(
            f'JAX computes in float32 on {devices[0]}, not in {precision}: '
            "use precision='float32', or PyTorch"
        )
    check_bf16()


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Within this context what this thread traces has a precision."""
    before = is_narrow()
    _products.is_narrow = precision == 'bf16'
    try:
        yield
    finally:
        _products.is_narrow = before


def is_narrow() -> bool:
    """Return whether the factors of products are bfloat16 in this thread."""
    return getattr(_products, 'is_narrow', False)


def to_bf16(X: jax.Array) -> jax.Array:
    """Return a factor of `product`."""
    return X.astype(jnp.bfloat16)


def product(A: jax.Array, B: jax.Array) -> jax.Array:
    """Return the product of two factors of bfloat16, in float32."""
    return jnp.matmul(A, B, preferred_element_type=jnp.float32)


def dot_general(
    X: jax.Array, kernel: jax.Array, *about: Any, **options: Any
) -> jax.Array:
    """Multiply as `nnx.Linear` asks `jax.lax.dot_general` to."""
    if is_narrow():
        return narrow_forward(X, kernel)
    return jax.lax.dot_general(X, kernel, *about, **options)


@jax.custom_vjp
def narrow_forward(X: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return X · kernel by narrow factors; the gradients are float32."""
    return product(to_bf16(X), to_bf16(kernel))


def forward(X: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    """Return the product, and what `backward` needs of it."""
    return narrow_forward(X, kernel), (X, kernel)


def backward(factors: Any, dY: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of both factors."""
    X, kernel = factors
    return dY @ kernel.T, X.T @ dY


narrow_forward.defvjp(forward, backward)
