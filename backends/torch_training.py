"""How PyTorch trains: gradients on several devices and cores, and Adam."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    contextmanager,
    nullcontext,
)
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.adam import adam as update

from backends import adam, base
from backends.cores import available_cores
from backends.dropout import dropout_masks
from backends.groups import Group
from backends.parameters import check_parameters
from backends.processor import check_bf16
from backends.recompute import recomputing
from backends.threads import (
    CPU_TOKENS,
    ThreadedDataParallel,
    Threads,
    Worker,
    count_workers,
    sums,
)
from backends.torch_replicas import (
    gradients_of,
    new_gradients,
    replicas_of,
    set_gradients,
    to_array,
    trainable_parameters,
)
from backends.types import Losses

# A GPU wants more work at a time than a core
GPU_TOKENS = 32768
# For fewer the sum of the gradients takes longer than a worker saves
LEAST_TOKENS = 1024
# So many lengths of rows have CUDA graphs of their own
GRAPH_LENGTHS = 8


class DataParallel(ThreadedDataParallel):
    """Replicas on the cores of a processor, or one on each GPU."""

    def __init__(
        self,
        backend: base.Backend,
        net: nn.Module,
        losses: Losses,
        devices: Sequence[torch.device],
        precision: str,
        shared_masks: bool,
        group: Group,
        recompute: bool,
    ) -> None:
        check_precision(precision, devices)
        cards = [device for device in devices if device.type == 'cuda']
        on_gpu = bool(cards)
        if len(set(cards)) < len(cards):
            raise ValueError(
                f'devices = {list(devices)}: a card is there twice; give '
                'each once'
            )
        num_each, num_threads = count_workers(
            net, len(devices), on_gpu, num_cores()
        )
        replicas = replicas_of(net, [*devices] * num_each)
        shards = [*range(len(devices))] * num_each
        super().__init__(
            [
                Worker(shard, devices[shard], replica)
                for shard, replica in zip(shards, replicas, strict=True)
            ],
            THREADS,
            num_threads,
            group,
        )
        self.backend = backend
        self.compute_losses = losses
        self.precision = precision
        self.recompute = recompute
        self.draws_masks = on_gpu and not shared_masks
        self.asynchronous = on_gpu
        # CUDA records one graph at a time in a process, for one card, and
        # cannot draw masks again within it
        self.records = (
            self.draws_masks
            and not recompute
            and getattr(net, 'is_replicable', False)
            and len(devices) == 1
        )
        self.num_lengths = GRAPH_LENGTHS if self.records else 0
        self.tokens_at_a_time = GPU_TOKENS if on_gpu else CPU_TOKENS
        self.least_tokens = LEAST_TOKENS
        self.graphs: dict[tuple[torch.Size, ...], Graph] = {}
        # Kept, because a CUDA graph holds their addresses
        self.buffers, self.gradients = zip(
            *map(new_gradients, replicas), strict=True
        )

    def value_and_grad(self, parts):
        # OpenMP's threads do not sleep while they wait for work: they would
        # take the cores from the workers
        threads = one_core() if len(self.workers) > 1 else nullcontext()
        with threads, products_in(self.precision):
            return super().value_and_grad(parts)

    @torch.no_grad()
    def start(self, busy):
        first = self.workers[0].net
        for i in busy:
            net, gradients = self.workers[i].net, self.gradients[i]
            for source, target in zip(
                first.parameters(), net.parameters(), strict=True
            ):
                if target.data_ptr() != source.data_ptr():
                    target.copy_(source)
            for parameter, gradient in zip(
                trainable_parameters(net).values(), gradients, strict=True
            ):
                parameter.grad = gradient
            torch._foreach_zero_(self.buffers[i])

    def accumulate(self, worker, part):
        inputs = [self.backend.tensor(X, worker.device) for X in part.inputs]
        if part.masks is not None and self.draws_masks:
            with torch.cuda.device(worker.device):
                torch.cuda.manual_seed(part.masks.device_seed)
            if self.records:
                return self.replay(worker, inputs)
            return self.differentiate(worker, inputs)
        with dropout_masks(part.masks):
            return self.differentiate(worker, inputs)

    def differentiate(
        self, worker: Worker, inputs: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Add the gradients of some inputs; return their losses."""
        products = narrow_products(self.precision, worker.device)
        with mode(worker.net, training=True):
            with torch.enable_grad(), recomputing(self.recompute), products:
                losses = self.compute_losses(worker.net, *inputs)
            torch.autograd.backward(list(losses))
        return [loss.detach() for loss in losses]

    def replay(
        self, worker: Worker, inputs: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Do as `differentiate`, by a graph for inputs of these shapes."""
        shapes = tuple(X.shape for X in inputs)
        if shapes not in self.graphs:
            self.graphs[shapes] = Graph(self, worker, inputs)
        return self.graphs[shapes].replay(inputs)

    @torch.no_grad()
    def reduce(self, busy, losses):
        device = self.workers[0].device
        for i, other in sums(busy, [worker.shard for worker in self.workers]):
            torch._foreach_add_(
                self.buffers[i],
                [
                    buffer.to(self.workers[i].device)
                    for buffer in self.buffers[other]
                ],
            )
        total = torch.stack(
            [
                torch.stack([loss.to(device) for loss in each])
                for each in losses
            ]
        )
        total = total.double().sum(0)
        self.group.all_reduce([*self.buffers[0], total])
        return Gradients(self.workers[0].net, total)

    def close(self):
        self.graphs.clear()
        for parameter in trainable_parameters(self.workers[0].net).values():
            parameter.grad = None
        self.workers, self.buffers, self.gradients = [], (), ()


class Graph:
    """The gradients of inputs of certain shapes, as a CUDA graph.

    For the chapter's network a GPU has less to do than the processor that
    launches its kernels one by one. The graph is recorded once and replayed.
    """

    def __init__(
        self,
        parallel: DataParallel,
        worker: Worker,
        inputs: Sequence[torch.Tensor],
    ) -> None:
        gradients = gradients_of(worker.net)
        before = [gradient.clone() for gradient in gradients]
        with torch.cuda.device(worker.device):
            state = torch.cuda.get_rng_state()
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                # What is set up at the first call cannot be recorded
                parallel.differentiate(worker, inputs)
            torch.cuda.current_stream().wait_stream(stream)
            self.inputs = [X.clone() for X in inputs]
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.losses = parallel.differentiate(worker, self.inputs)
            torch.cuda.set_rng_state(state)
        torch._foreach_copy_(gradients, before)

    def replay(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Add the gradients of some inputs; return their losses."""
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        return [loss.clone() for loss in self.losses]


class Gradients(base.Gradients):
    """The gradients that `net` holds, and the losses they are of."""

    def __init__(self, net: nn.Module, losses: torch.Tensor) -> None:
        """`losses`: the sum of each, float64 `(num_losses,)`."""
        self.net = net
        parameters = [parameter.detach() for parameter in net.parameters()]
        norms = torch.stack(torch._foreach_norm(gradients_of(net)))
        sizes = torch.stack(torch._foreach_norm(parameters))
        # A parameter that is not finite makes the norm NaN
        norm = norms.double().norm() + 0 * sizes.double().sum()
        numbers = torch.cat([losses, norm.reshape(1)])
        self.numbers = numbers
        if numbers.is_cuda:
            self.numbers = torch.empty_like(
                numbers, device='cpu', pin_memory=True
            )
            self.numbers.copy_(numbers, non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record(torch.cuda.current_stream(numbers.device))

    def read(self) -> np.ndarray:
        """Wait for the losses and the norm, and not for later steps."""
        if hasattr(self, 'copied'):
            self.copied.synchronize()
        return self.numbers.numpy()

    def losses(self):
        return self.read()[:-1]

    def norm(self):
        return float(self.read()[-1])

    def arrays(self):
        return {
            name: to_array(parameter.grad)
            for name, parameter in trainable_parameters(self.net).items()
        }


@contextmanager
def mode(net: nn.Module, training: bool) -> Iterator[None]:
    """Put each part of `net` in one mode, and back into its own after."""
    before = {module: module.training for module in net.modules()}
    # To set an attribute of a module is slow, even where nothing changes
    if not all(was == training for was in before.values()):
        net.train(training)
    try:
        yield
    finally:
        for module, was in before.items():
            if module.training != was:
                module.training = was


def check_precision(precision: str, devices: Sequence[torch.device]) -> None:
    """Raise `ValueError` for a precision that devices do not have."""
    if precision == 'float32' or all(one.type == 'cuda' for one in devices):
        return
    if precision != 'bf16':
        raise ValueError(
            f'precision = {precision!r} is for CUDA cards, and devices = '
            f"{list(devices)}: use 'float32'"
        )
    check_bf16()


def narrow_products(
    precision: str, device: torch.device
) -> AbstractContextManager[Any]:
    """Within this context products of this thread take and give bfloat16.

    That is with `precision = 'bf16'`; otherwise it changes nothing.
    """
    if precision != 'bf16':
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Within this context a card's products of float32 have a precision.

    The switch is one for the whole process: worker threads must not change
    it.
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = before or precision != 'float32'
    try:
        yield
    finally:
        matmul.allow_tf32 = before


def num_cores() -> int:
    """Return how many cores PyTorch may use."""
    return min(
        max(torch.get_num_threads(), THREADS.num_inherited), available_cores()
    )


@contextmanager
def one_core() -> Iterator[None]:
    """Within this context operations use no threads of their own."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def start_thread() -> None:
    """Prepare a new thread for PyTorch."""
    torch.set_num_threads(1)
    # Probabilities below 1e-38, of which a network that is sure of itself
    # has many, would make products several times slower
    torch.set_flush_denormal(True)


# ---- the optimizer step ----------------------------------------------


class Adam(base.Optimizer):
    """PyTorch's fused Adam, with epsilon where the recipe wants it.

    The function under `torch.optim.Adam`: the class itself imports
    PyTorch's compiler, which takes two seconds.
    """

    def __init__(
        self,
        net: nn.Module,
        lr: float,
        epsilon_inside: bool,
        frozen: Sequence[str],
        weight_decay: float,
    ) -> None:
        self.net = net
        self.parameters = {
            name: parameter
            for name, parameter in trainable_parameters(net).items()
            if not name.endswith(tuple(frozen))
        }
        parameters = self.parameters.values()
        self.m, self.v = ([*map(torch.zeros_like, parameters)] for _ in 'mv')
        # The fused update wants its count where the parameter is
        self.counts = [torch.zeros((), device=p.device) for p in parameters]
        self.lr = lr
        self.epsilon_inside = epsilon_inside
        self.weight_decay = weight_decay
        self.decayed = [p for p in parameters if adam.decays(p.shape)]
        single = next(net.parameters()).dtype == torch.float32
        self.rounding = adam.GLUON_ROUNDING if single else 1.0
        self.num_steps = 0

    @torch.no_grad()
    def step(self, gradients, lr=None, scale=1.0):
        if isinstance(gradients, Mapping):
            set_gradients(self.net, gradients)
        lr = self.lr if lr is None else lr
        self.num_steps += 1
        beta1, beta2 = adam.BETAS
        epsilon, rounding = adam.EPSILON, 1.0
        if self.epsilon_inside:
            # PyTorch divides √v by this root before it adds epsilon
            root = math.sqrt(1 - beta2**self.num_steps)
            rounding = self.rounding
            epsilon /= root * rounding
        # See `DataParallel.value_and_grad`
        with one_core():
            if scale != 1:
                torch._foreach_mul_(gradients_of(self.net), scale)
            if self.weight_decay:
                torch._foreach_add_(
                    self.decayed, self.decayed, alpha=-lr * self.weight_decay
                )
            parameters = [*self.parameters.values()]
            update(
                parameters,
                [p.grad for p in parameters],
                self.m,
                self.v,
                [],
                self.counts,
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=lr / rounding,
                weight_decay=0.0,
                eps=epsilon,
                maximize=False,
            )

    def moments(self) -> dict[str, torch.Tensor]:
        """Return both moments of each parameter by their names."""
        return {
            f'{name}.{moment}': X
            for moment, values in (('m', self.m), ('v', self.v))
            for name, X in zip(self.parameters, values, strict=True)
        }

    def state(self):
        return {name: to_array(X) for name, X in self.moments().items()}

    def load_state(self, arrays, num_steps):
        moments = self.moments()
        check_parameters(
            {name: tuple(X.shape) for name, X in moments.items()}, arrays
        )
        self.num_steps = num_steps
        for name, moment in moments.items():
            moment.copy_(torch.from_numpy(arrays[name]))
        for count in self.counts:
            count.fill_(num_steps)


THREADS = Threads(start_thread, one_core, num_cores)
