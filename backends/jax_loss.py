"""The cross-entropy of a linear layer in JAX, without all of its logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from backends.jax_products import is_narrow, product, to_bf16

# How many rows of logits exist at a time
CHUNK_ROWS = 128


@jax.custom_vjp
def linear_cross_entropy(X, kernel, bias, labels, weights):
    """Return Σᵢ `weights[i]` · the cross-entropy of row i of X·kernel + bias.

    `CHUNK_ROWS` rows of logits exist at a time, and none after the last row
    that has a weight.
    """
    return with_gradients(X, kernel, bias, labels, weights)[0]


def with_gradients(X, kernel, bias, labels, weights):
    """Return the loss, and its gradients with respect to X, kernel, bias."""
    num_rows = len(X)
    chunk = min(CHUNK_ROWS, num_rows)
    counted = jnp.where(weights != 0, jnp.arange(1, num_rows + 1), 0).max()
    X, labels, weights = (
        jnp.pad(A, [(0, -num_rows % chunk)] + [(0, 0)] * (A.ndim - 1))
        for A in (X, labels, weights)
    )
    # Transposed here, and not at each chunk. XLA would undo that for a single
    # chunk, and has no product of bfloat16 then
    narrow = is_narrow() and len(X) > chunk
    if narrow:
        X_T, narrow_kernel = X.T, to_bf16(kernel)
        narrow_kernel_T = narrow_kernel.T

    def add_chunk(i, sums):
        loss, dX, dkernel, dbias = sums
        x, label, weight = (
            jax.lax.dynamic_slice_in_dim(A, i * chunk, chunk)
            for A in (X, labels, weights)
        )
        if narrow:
            logits = product(to_bf16(x), narrow_kernel) + bias
        else:
            logits = x @ kernel + bias
        # Below the greatest, so that no exponential is infinite
        logits -= logits.max(-1, keepdims=True)
        at_label = jnp.take_along_axis(logits, label[:, None], 1)[:, 0]
        exps = jnp.exp(logits)
        total = exps.sum(-1)
        loss += ((jnp.log(total) - at_label) * weight).sum()
        # `exps` · scale is from here on the gradient of the logits, softmax −
        # one-hot; scaling the narrower factors of its products is cheaper
        exps = exps.at[jnp.arange(chunk), label].add(-total)
        scale = weight / total
        if narrow:
            x_T = jax.lax.dynamic_slice_in_dim(X_T, i * chunk, chunk, 1)
            narrow_exps = to_bf16(exps)
            dx = product(narrow_exps, narrow_kernel_T)
            dkernel += product(to_bf16(x_T * scale), narrow_exps)
        else:
            dx = exps @ kernel.T
            dkernel += (x * scale[:, None]).T @ exps
        dx *= scale[:, None]
        dX = jax.lax.dynamic_update_slice_in_dim(dX, dx, i * chunk, 0)
        return loss, dX, dkernel, dbias + scale @ exps

    loss, dX, *others = jax.lax.fori_loop(
        0,
        -(-counted // chunk),
        add_chunk,
        (jnp.zeros((), X.dtype), *map(jnp.zeros_like, (X, kernel, bias))),
    )
    return loss, (dX[:num_rows], *others)


def backward(gradients, scale):
    """Return the gradients of `scale` · the loss; labels have none."""
    return (*(scale * gradient for gradient in gradients), None, None)


linear_cross_entropy.defvjp(with_gradients, backward)
