"""How JAX trains: compiled steps on several devices, and Adam."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import zip_longest
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from backends import adam, base
from backends.cores import num_cores
from backends.dropout import dropout_masks
from backends.flax_names import name_of
from backends.groups import Group
from backends.jax_arrays import (
    current_rngs,
    named,
    parameters_of,
    shapes_of,
    state_of,
    to_device,
    width_of,
    zeros_like,
)
from backends.jax_products import check_precision, products_in
from backends.jax_programs import make_room, told
from backends.parameters import check_parameters
from backends.recompute import recomputing
from backends.threads import count_workers
from backends.types import Losses, Part

CPU_TOKENS, GPU_TOKENS = 8192, 32768
# Programs of a larger network use all cores, and need much memory
SIDE_BY_SIDE_BYTES = 64e6


class DataParallel(base.DataParallel):
    """Compiled steps on devices, each with a copy of the parameters."""

    num_lengths = 8
    skips_slots = True

    def __init__(
        self,
        backend: base.Backend,
        net: nnx.Module,
        losses: Losses,
        devices: Sequence[jax.Device],
        precision: str,
        shared_masks: bool,
        group: Group,
        recompute: bool,
    ) -> None:
        on_gpu = devices[0].platform == 'gpu'
        check_precision(precision, devices)
        self.net, self.devices = net, list(devices)
        self.group = group
        self.own_shards, self.num_shards = group.share(len(self.devices))
        parameters = jax.tree.leaves(parameters_of(net))
        is_small = sum(W.nbytes for W in parameters) < SIDE_BY_SIDE_BYTES
        cores = num_cores() if is_small else 1
        num_each, _ = count_workers(net, len(devices), on_gpu, cores)
        self.workers = workers_of(self.devices, num_each)
        _, self.num_workers = group.share(len(self.workers))
        self.tokens_at_a_time = GPU_TOKENS if on_gpu else CPU_TOKENS
        # A program uses all cores: small ones side by side would be slower
        self.least_tokens = self.tokens_at_a_time
        self.asynchronous = on_gpu
        self.draws_masks = on_gpu and not shared_masks
        self.rngs = current_rngs()
        nnx.update(net, jax.device_put(parameters_of(net), self.devices[0]))
        graph, _, self.others = nnx.split(net, nnx.Param, ...)
        self.program = graph, losses, precision, recompute
        self.places: dict[Any, int] = {}
        self.num_tokens = [0] * len(self.workers)
        self.asked: dict[Any, list[tuple[tuple[int, ...], float]]] = {}

    def value_and_grad(self, parts):
        parameters = parameters_of(self.net)
        shares = self.shares(parts)
        busy = [i for i, share in enumerate(shares) if share]
        devices = [self.workers[i].device for i in busy]
        with width_of(parameters):
            # New ones for each, because several may share a device
            sums = [
                jax.device_put(zeros_like(parameters), device)
                for device in devices
            ]
            copies = [
                jax.device_put((parameters, self.others), device)
                for device in devices
            ]
            losses, spent = [], []
            # The workers take turns, because a call does not wait
            for turn in zip_longest(*(shares[i] for i in busy)):
                for i, part in enumerate(turn):
                    if part is not None:
                        # To let go of them would wait for the worker
                        spent.append(sums[i])
                        sums[i], each = self.add_part(
                            sums[i], copies[i], part, devices[i]
                        )
                        losses.append(each)
            total, *others = jax.device_put(sums, self.devices[0])
            for other in others:
                total = added(total, other)
            summed = np.array(jax.device_get(losses), np.float64).sum(0)
            if self.group.size > 1:
                total = self.sum_over_all(total, summed)
            return Gradients(parameters, total, summed)

    def shares(self, parts: Sequence[Sequence[Part]]) -> list[list[Part]]:
        """Return the micro-batches of each worker.

        Those of one shape stay with one worker, because each device compiles
        programs of its own. A new shape goes to the worker of the shard that
        has the fewest tokens so far.
        """
        shares: list[list[Part]] = [[] for _ in self.workers]
        for shard, own in enumerate(parts):
            own_workers = [
                i for i, worker in enumerate(self.workers)
                if worker.shard == shard
            ]  # fmt: skip
            for part in own:
                shape = part.inputs[0].shape
                if (shard, shape) not in self.places:
                    i = min(own_workers, key=self.num_tokens.__getitem__)
                    self.places[shard, shape] = i
                    self.num_tokens[i] += math.prod(shape)
                shares[self.places[shard, shape]].append(part)
        return shares

    def sum_over_all(
        self, gradients: nnx.State, losses: np.ndarray
    ) -> nnx.State:
        """Return the gradients of all processes; add their losses."""
        leaves, tree = jax.tree.flatten(gradients)
        arrays = [np.array(X) for X in leaves]
        self.group.all_reduce([*arrays, losses])
        return jax.tree.unflatten(
            tree, [to_device(X, self.devices[0]) for X in arrays]
        )

    def add_part(
        self,
        sums: nnx.State,
        copy: tuple[nnx.State, nnx.State],
        part: Part,
        device: jax.Device,
    ) -> tuple[nnx.State, jax.Array]:
        """Add the gradients of a micro-batch to `sums`; return its losses."""
        inputs = [to_device(X, device) for X in part.inputs]
        shapes = tuple(X.shape for X in inputs)
        compiling: AbstractContextManager[None] = nullcontext()
        if shapes not in self.asked:
            make_room()
            self.asked[shapes] = masks_asked(*self.program, *copy, inputs)
            compiling = told(shapes[0], len(jax.tree.leaves(sums)))
        if part.masks is None:
            masks = self.rngs.dropout()
        elif self.draws_masks:
            masks = jax.random.key(part.masks.device_seed % 2**32)
        else:
            masks = [part.masks(*each) for each in self.asked[shapes]]
        arguments = *self.program, sums, *copy, inputs, masks
        again = self.program[-1] and device.platform == 'cpu'
        with compiling:
            return (add_again if again else add_gradients)(*arguments)


class Worker(NamedTuple):
    """Computes micro-batches of one shard, on a device of its own.

    `shard`: its number among those of this process.
    """

    shard: int
    device: jax.Device


def workers_of(devices: Sequence[jax.Device], num_each: int) -> list[Worker]:
    """Return `num_each` workers for each device, the first of them on it.

    A program runs some of its parts on one core. So several programs run
    side by side on a processor, on further devices of it, if it has as many.
    """
    workers = [Worker(i, device) for i, device in enumerate(devices)]
    if num_each > 1:
        others = [
            device
            for device in jax.local_devices(backend='cpu')
            if device not in devices
        ]
        num_more = min(num_each - 1, len(others) // len(devices))
        for k in range(num_more * len(devices)):
            workers.append(Worker(k % len(devices), others[k]))
    return workers


@partial(jax.jit, donate_argnums=0)
def added(gradients: nnx.State, others: nnx.State) -> nnx.State:
    """Return the sum of the gradients of two shards, by one program."""
    return jax.tree.map(jnp.add, gradients, others)


def sums_with_gradients(
    graph: Any,
    compute_losses: Losses,
    precision: str,
    recompute: bool,
    sums: nnx.State,
    parameters: nnx.State,
    others: nnx.State,
    inputs: Sequence[jax.Array],
    masks: Any,
) -> tuple[nnx.State, jax.Array]:
    """Return `sums` with the gradients of a micro-batch, and its losses.

    `masks`: arrays, or a key to draw them with.
    """
    take: Any = DrawnMasks(masks)
    if isinstance(masks, list):
        given = iter(masks)

        def take(shape, p):
            return next(given)

    (_, losses), gradients = jax.value_and_grad(
        partial(
            sum_of_losses, graph, compute_losses, precision, recompute, take
        ),
        has_aux=True,
    )(parameters, others, inputs)
    return jax.tree.map(jnp.add, sums, gradients), losses


# Compiled for each network, loss and shape, and for all that train it
compiled = partial(
    jax.jit,
    sums_with_gradients,
    static_argnums=(0, 1, 2, 3),
    donate_argnums=4,
)
add_gradients = compiled()
# For a processor this pass of XLA lets what is computed again be kept after
# all: it removes what separates the second computation from the first
add_again = compiled(
    compiler_options={'xla_disable_hlo_passes': 'cse_barrier_expander'}
)


def sum_of_losses(
    graph,
    compute_losses,
    precision,
    recompute,
    masks,
    parameters,
    others,
    inputs,
):
    """Return the sum of the losses of a micro-batch, and each of them."""
    net = nnx.merge(graph, parameters, others)
    net.train()
    with (
        dropout_masks(masks),
        recomputing(recompute),
        products_in(precision),
    ):
        losses = jnp.stack(compute_losses(net, *inputs))
    return losses.sum(), losses


def masks_asked(graph, compute_losses, precision, recompute, *arguments):
    """Return the shape and the p of each mask, in the order of the calls.

    `arguments`: the last three of `sum_of_losses`.
    """
    asked = []

    def ask(shape, p):
        asked.append((shape, p))
        return jnp.ones(shape, bool)

    jax.eval_shape(
        partial(
            sum_of_losses, graph, compute_losses, precision, recompute, ask
        ),
        *arguments,
    )
    return asked


class DrawnMasks:
    """Dropout masks that the device draws itself, from a key."""

    def __init__(self, key: jax.Array) -> None:
        self.key = key
        self.num_drawn = 0

    def __call__(self, shape: tuple[int, ...], p: float) -> jax.Array:
        """Return a boolean array of this shape, true for what is kept."""
        self.num_drawn += 1
        key = jax.random.fold_in(self.key, self.num_drawn)
        return jax.random.bernoulli(key, 1 - p, shape)


class Gradients(base.Gradients):
    """Gradients on the first device, and the losses they are of."""

    def __init__(
        self,
        parameters: nnx.State,
        gradients: nnx.State,
        losses: np.ndarray,
    ) -> None:
        """`losses`: the sum of each, float64 `(num_losses,)`."""
        self.gradients, self.summed = gradients, losses
        with width_of(parameters):
            self.size = norm_of(parameters, gradients)

    def losses(self):
        return self.summed

    def norm(self):
        return float(self.size)

    def arrays(self):
        return named(self.gradients)


@jax.jit
def norm_of(parameters: nnx.State, gradients: nnx.State) -> jax.Array:
    """Return what `Gradients.norm` does."""
    squares = sum((g**2).sum() for g in jax.tree.leaves(gradients))
    # A parameter that is not finite makes the sum NaN
    zeros = sum(0 * W.sum() for W in jax.tree.leaves(parameters))
    return jnp.sqrt(squares) + zeros


# ---- the optimizer step ----------------------------------------------


class Adam(base.Optimizer):
    """Adam, with epsilon where the recipe wants it.

    `optax.adam` has no epsilon before the bias correction.
    """

    def __init__(
        self,
        net: nnx.Module,
        lr: float,
        epsilon_inside: bool,
        frozen: tuple[str, ...],
        weight_decay: float,
    ) -> None:
        self.net, self.lr, self.epsilon_inside = net, lr, epsilon_inside
        self.weight_decay = weight_decay

        def is_learned(path: Any, _: Any) -> bool:
            return not name_of(path).endswith(frozen)

        self.learned = nnx.All(nnx.Param, is_learned)
        parameters = nnx.state(net, self.learned)
        with width_of(parameters):
            self.m, self.v = (zeros_like(parameters) for _ in 'mv')
        single = jax.tree.leaves(parameters)[0].dtype == jnp.float32
        self.rounding = adam.GLUON_ROUNDING if single else 1.0
        self.num_steps = 0

    def step(self, gradients, lr=None, scale=1.0):
        if isinstance(gradients, Mapping):
            parameters = parameters_of(self.net)
            check_parameters(shapes_of(parameters), gradients)
            given = state_of(parameters, gradients)
        else:
            given = gradients.gradients
        rate = self.lr if lr is None else lr
        self.num_steps += 1
        beta1, beta2 = adam.BETAS
        root = math.sqrt(1 - beta2**self.num_steps)
        lr = rate * root / (1 - beta1**self.num_steps)
        rounding = self.rounding if self.epsilon_inside else 1.0
        epsilon = adam.EPSILON * (1 if self.epsilon_inside else root)
        parameters = nnx.state(self.net, self.learned)
        with width_of(parameters):
            parameters, self.m, self.v = updated(
                parameters,
                nnx.filter_state(given, self.learned),
                self.m,
                self.v,
                lr / rounding,
                epsilon / rounding,
                None if scale == 1 else scale,
                rate * self.weight_decay if self.weight_decay else None,
            )
        nnx.update(self.net, parameters)

    def state(self):
        return named(self.m, '.m') | named(self.v, '.v')

    def load_state(self, arrays, num_steps):
        shapes = {
            f'{name}.{moment}': shape
            for name, shape in shapes_of(self.m).items()
            for moment in 'mv'
        }
        check_parameters(shapes, arrays)
        self.num_steps = num_steps
        self.m = state_of(self.m, arrays, '.m')
        self.v = state_of(self.v, arrays, '.v')


@partial(jax.jit, donate_argnums=(2, 3))
def updated(parameters, gradients, m, v, lr, epsilon, scale, decay):
    """Return parameters and moments after an update.

    Without `scale` and `decay` they are no part of the program.
    """
    beta1, beta2 = adam.BETAS
    tree = jax.tree
    if scale is not None:
        gradients = tree.map(lambda g: scale * g, gradients)
    m = tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, m, gradients)
    v = tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, v, gradients)

    def new(W, m, v):
        change = lr * m / (jnp.sqrt(v) + epsilon)
        if decay is not None and adam.decays(W.shape):
            W = W - decay * W
        return W - change

    return tree.map(new, parameters, m, v), m, v
