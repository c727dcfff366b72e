"""How MXNet trains: gradients on several devices and cores, and Adam.

Contexts of the processor (`cpu(0)`, `cpu(1)`, …) compute side by side, each
with its own copy of the parameters: they are the replicas of a network.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy
from threadpoolctl import ThreadpoolController, threadpool_limits

from backends import adam, base
from backends.cores import num_cores
from backends.dropout import dropout_masks
from backends.groups import Group
from backends.mxnet_import import import_mxnet
from backends.parameters import check_parameters
from backends.recompute import recomputing
from backends.threads import (
    CPU_TOKENS,
    ThreadedDataParallel,
    Threads,
    Worker,
    count_workers,
)
from backends.types import Arrays, Device, Losses


def import_mxnet_alone() -> Any:
    """Import MXNet and keep the thread count of other libraries.

    It sets that of OpenMP to one in the thread that imports it, and PyTorch
    would follow.
    """
    num_threads = num_cores()
    if 'torch' in sys.modules:
        num_threads = sys.modules['torch'].get_num_threads()
    mxnet = import_mxnet()
    threadpool_limits(num_threads, user_api='openmp')
    return mxnet


mx: Any = import_mxnet_alone()
autograd: Any = mx.autograd
nd: Any = mx.nd
np: Any = mx.np
npx: Any = mx.npx


class NumPyMode(threading.local):
    """MXNet's NumPy mode, in which each thread begins.

    MXNet keeps the mode by thread, and a thread begins in the older one: a
    network made in one thread could not be used in another.
    """

    def __init__(self) -> None:
        self.value = mx.util._NumpyArrayScope(True)
        mx.util.set_np_shape(True)


mx.util._NumpyArrayScope._current = NumPyMode()
npx.set_np()


class DataParallel(ThreadedDataParallel):
    """One block, whose parameters live in a context for each worker."""

    tokens_at_a_time = CPU_TOKENS
    # A worker more is a copy of all parameters and of their gradients more
    least_tokens = CPU_TOKENS

    def __init__(
        self,
        backend: base.Backend,
        net: Any,
        losses: Losses,
        devices: Sequence[Device],
        precision: str,
        shared_masks: bool,
        group: Group,
        recompute: bool,
    ) -> None:
        check_precision(precision)
        if len(set(devices)) < len(devices):
            raise ValueError(
                f'devices = {list(devices)}: one is there twice, and MXNet '
                'keeps parameters once for each; give others, such as '
                'cpu(0) and cpu(1)'
            )
        on_gpu = any(device.device_type == 'gpu' for device in devices)
        num_each, num_threads = count_workers(
            net, len(devices), on_gpu, num_cores()
        )
        contexts = [*devices, *free_contexts(devices, num_each - 1)]
        super().__init__(
            [
                Worker(i % len(devices), context, net)
                for i, context in enumerate(contexts)
            ],
            THREADS,
            num_threads,
            group,
        )
        self.backend = backend
        self.net = net
        self.compute_losses = losses
        self.recompute = recompute
        self.devices = list(devices)
        self.learned = {
            parameter: parameter.grad_req
            for parameter in trainable_parameters(net).values()
        }
        move(net, contexts)
        for parameter in parameters_of(net).values():
            # MXNet 2 makes it at the first use, twice where two threads do
            parameter.var()
        # Gradients overwrite each other unless a parameter asks otherwise.
        # To ask makes new gradients, hence once.
        for parameter in self.learned:
            parameter.grad_req = 'add'

    def start(self, busy):
        for parameter in parameters_of(self.net).values():
            data = parameter.list_data()
            for i in busy[1:]:
                data[0].copyto(data[i])
        for parameter in self.learned:
            gradients = parameter.list_grad()
            for i in busy:
                gradients[i][:] = 0

    def accumulate(self, worker, part):
        inputs = [self.backend.tensor(X, worker.device) for X in part.inputs]
        with (
            recomputing(self.recompute) as calls,
            dropout_masks(part.masks),
            autograd.record(),
        ):
            losses = self.compute_losses(self.net, *inputs)
        autograd.backward(list(losses))
        while calls:
            call_again(*calls.pop())
        return losses

    def reduce(self, busy, losses):
        for parameter in self.learned:
            gradients = parameter.list_grad()
            first, *others = (gradients[i].as_nd_ndarray() for i in busy)
            if others:
                others = [other.as_in_context(first.ctx) for other in others]
                nd.add_n(first, *others, out=first)
        total = numpy.sum(
            [[loss.asnumpy().item() for loss in each] for each in losses], 0
        )
        gradients = (parameter.list_grad()[0] for parameter in self.learned)
        self.group.all_reduce([*gradients, total])
        return Gradients(self.net, total)

    def close(self):
        for parameter, grad_req in self.learned.items():
            parameter.grad_req = grad_req
        move(self.net, self.devices)


class Call(NamedTuple):
    """The call of a layer whose output the graph takes as given.

    `masks`: those of the call, as a context.
    """

    layer: Any
    inputs: tuple[Any, ...]
    masks: Callable[[], AbstractContextManager[None]]
    output: Any


def call_again(
    layer: Any,
    inputs: tuple[Any, ...],
    masks: Callable[[], AbstractContextManager[None]],
    output: Any,
) -> None:
    """Add the gradients of a call, from that of its output.

    MXNet 1 recomputes in symbolic graphs only. The arguments are those of
    `Call`.
    """
    # MXNet would begin before the memory of the next layer is free
    output.grad.wait_to_read()
    with masks(), autograd.record():
        again = layer(*inputs)
    autograd.backward([again], [output.grad])


def check_precision(precision: str) -> None:
    """Raise `ValueError` for any precision but float32."""
    if precision != 'float32':
        raise ValueError(
            f'MXNet computes in float32, not in {precision}: use '
            "precision='float32', or PyTorch"
        )


class Gradients(base.Gradients):
    """The gradients that `net` holds, and the losses they are of."""

    def __init__(self, net: Any, losses: numpy.ndarray) -> None:
        """`losses`: the sum of each, float64 `(num_losses,)`."""
        self.net = net
        self.sums = losses

    def losses(self):
        return self.sums

    def norm(self):
        return self.size

    @functools.cached_property
    def size(self) -> float:
        """The norm, which a step may ask for twice."""
        # NumPy, because MXNet's sums take ten times as long
        parameters = parameters_of(self.net).values()
        for X in (
            parameter.list_data()[0].asnumpy() for parameter in parameters
        ):
            if not numpy.isfinite(X).all():
                return math.nan
        squares = 0.0
        # OpenBLAS's threads would go on for a while, on the workers' cores
        with one_core(), numpy.errstate(over='ignore', invalid='ignore'):
            for grad in self.arrays().values():
                squares += float(grad.reshape(-1) @ grad.reshape(-1))
        return math.sqrt(squares)

    def arrays(self):
        return {
            name: parameter.list_grad()[0].asnumpy()
            for name, parameter in trainable_parameters(self.net).items()
        }


def free_contexts(devices: Sequence[Device], num_each: int) -> list[Device]:
    """Return other contexts of the processor, so many for each device."""
    taken = {device.device_id for device in devices}
    free = (npx.cpu(i) for i in itertools.count() if i not in taken)
    return list(itertools.islice(free, len(devices) * num_each))


def move(net: Any, contexts: Sequence[Device]) -> None:
    """Let the parameters of `net` live in these contexts only."""
    for parameter in parameters_of(net).values():
        if parameter.list_ctx() != list(contexts):
            # Of several copies `reset_ctx` would take the mean, which is
            # rounded
            value = parameter.list_data()[0]
            parameter.reset_ctx(list(contexts))
            parameter.set_data(value)


def parameters_of(net: Any) -> dict[str, Any]:
    """Return the parameters of a block by their structural names."""
    if hasattr(net, '_collect_params_with_prefix'):  # MXNet 1
        return net._collect_params_with_prefix()
    return dict(net.collect_params())


# ---- the optimizer step ----------------------------------------------


def update_in_float64(
    data: Any,
    g: numpy.ndarray,
    m: Any,
    v: Any,
    lr: float,
    epsilon: float,
) -> None:
    """Do what `adam_update` does, whose own constants are float32."""
    beta1, beta2 = adam.BETAS
    m[:] = new_m = beta1 * m.asnumpy() + (1 - beta1) * g
    v[:] = new_v = beta2 * v.asnumpy() + (1 - beta2) * g**2
    data[:] = data.asnumpy() - lr * new_m / (numpy.sqrt(new_v) + epsilon)


class Adam(base.Optimizer):
    """MXNet's Adam update, with epsilon where the recipe wants it.

    The update operator adds epsilon to √v before the bias of v is
    corrected. Its state is kept by structural name, where Gluon's trainer
    keeps it by the index of an automatic name.
    """

    def __init__(
        self,
        net: Any,
        lr: float,
        epsilon_inside: bool,
        frozen: Sequence[str],
        weight_decay: float,
    ) -> None:
        self.net = net
        # A parameter that layers share has several names: keep one
        once = {
            parameter: name
            for name, parameter in trainable_parameters(net).items()
        }
        self.parameters = {
            name: parameter
            for parameter, name in once.items()
            if not name.endswith(tuple(frozen))
        }
        self.lr = lr
        self.epsilon_inside = epsilon_inside
        self.weight_decay = weight_decay
        self.num_steps = 0
        self.moments = {
            f'{name}.{moment}': nd.zeros_like(data)
            for name, data in self._data()
            for moment in 'mv'
        }

    def _data(self) -> Iterator[tuple[str, Any]]:
        for name, parameter in self.parameters.items():
            yield name, parameter.list_data()[0].as_nd_ndarray()

    def step(self, gradients, lr=None, scale=1.0):
        if isinstance(gradients, Mapping):
            set_gradients(self.net, gradients)
        rate = self.lr if lr is None else lr
        self.num_steps += 1
        beta1, beta2 = adam.BETAS
        root = (1 - beta2**self.num_steps) ** 0.5
        lr = rate * root / (1 - beta1**self.num_steps)
        epsilon = adam.EPSILON * (1 if self.epsilon_inside else root)
        for name, data in self._data():
            grad = self.parameters[name].list_grad()[0].as_nd_ndarray()
            m, v = self.moments[f'{name}.m'], self.moments[f'{name}.v']
            if self.weight_decay and adam.decays(data.shape):
                data -= (rate * self.weight_decay) * data
            if data.dtype == numpy.float64:
                g = scale * grad.asnumpy()
                update_in_float64(data, g, m, v, lr, epsilon)
                continue
            # The operator rounds 1 − β₂, so that its v is slightly too small.
            # Gluon's Adam has the same error; PyTorch's, which the other
            # recipes follow, has not.
            rounding = 1.0 if self.epsilon_inside else adam.GLUON_ROUNDING
            nd.adam_update(
                data,
                grad,
                m,
                v,
                lr=lr * rounding,
                beta1=beta1,
                beta2=beta2,
                epsilon=epsilon * rounding,
                rescale_grad=scale,
                wd=0,
                lazy_update=False,
                out=data,
            )

    def state(self):
        return {name: X.asnumpy() for name, X in self.moments.items()}

    def load_state(self, arrays, num_steps):
        check_parameters(
            {name: X.shape for name, X in self.moments.items()}, arrays
        )
        self.num_steps = num_steps
        for name, moment in self.moments.items():
            moment[:] = arrays[name]


def set_gradients(net: Any, arrays: Arrays) -> None:
    """Set the gradient of each parameter that is not frozen."""
    learned = trainable_parameters(net)
    check_parameters(
        {name: parameter.shape for name, parameter in learned.items()}, arrays
    )
    for name, parameter in learned.items():
        for grad in parameter.list_grad():
            grad[:] = np.array(arrays[name], dtype=grad.dtype, ctx=grad.ctx)


def trainable_parameters(net: Any) -> dict[str, Any]:
    """Return the parameters that are not frozen, by their names."""
    return {
        name: parameter
        for name, parameter in parameters_of(net).items()
        if parameter.grad_req != 'null'
    }


@functools.cache
def thread_pools() -> ThreadpoolController:
    """Return what sets the threads of OpenMP and OpenBLAS."""
    return ThreadpoolController()


def one_core() -> AbstractContextManager[Any]:
    """Within this context operations use no threads of their own."""
    return thread_pools().limit(limits=1)


THREADS = Threads(npx.set_np, one_core, num_cores)
