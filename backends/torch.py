"""The PyTorch backend. See `backends.base` for what each function does."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from backends import base

# How many rows of logits exist at a time: enough for a fast matrix product,
# few enough to stay in reach of the caches.
CHUNK_ROWS = 512
GPU_CHUNK_ROWS = 8192
ACTIVATIONS = {'relu': nn.ReLU, 'tanh': nn.Tanh}


class Module(nn.Module):
    """A `torch.nn.Module` that knows its backend."""

    backend: ClassVar[base.Backend]


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` that can be told which elements to keep."""

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        draw = base.dropout_source()
        if draw is None or not self.training or self.p == 0:
            return super().forward(X)
        return BACKEND.dropout(X, draw(tuple(X.shape), self.p), self.p)


class LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of a linear layer, a few hundred rows at a time."""

    @staticmethod
    @torch.amp.custom_fwd(device_type='cuda', cast_inputs=torch.float32)
    def forward(ctx, X, weight, bias, labels, weights):
        loss = X.new_zeros((), dtype=torch.float64)
        dX, dweight = torch.empty_like(X), torch.empty_like(weight)
        dbias = torch.zeros_like(bias)
        chunk_rows = GPU_CHUNK_ROWS if X.is_cuda else CHUNK_ROWS
        shape = min(chunk_rows, len(X)), len(weight)
        buffer = X.new_empty(shape) if X.is_cuda else scratch(shape, X)
        for start in range(0, len(X), chunk_rows):
            rows = slice(start, start + chunk_rows)
            label = labels[rows].unsqueeze(1)
            logits = buffer[: len(label)]
            torch.addmm(bias, X[rows], weight.T, out=logits)
            below_top = logits.amax(1) - logits.gather(1, label).squeeze(1)
            torch.softmax(logits, dim=1, out=logits)
            # From the greatest probability, which no rounding makes 0
            losses = below_top - logits.amax(1).log()
            loss += (losses * weights[rows]).sum(dtype=torch.float64)
            # `logits` · scale is from here on its own gradient, softmax −
            # one-hot; scaling the narrower factors of its products is
            # cheaper
            logits.scatter_add_(1, label, logits.new_full(label.shape, -1))
            scale = weights[rows].unsqueeze(1)
            dX[rows] = torch.mm(logits, weight).mul_(scale)
            # Of the first chunk it becomes the product, whatever it was
            dweight.addmm_(logits.T, X[rows] * scale, beta=min(start, 1))
            dbias.addmv_(logits.T, weights[rows])
        ctx.save_for_backward(dX, dweight, dbias)
        return loss.to(X.dtype)

    @staticmethod
    @torch.amp.custom_bwd(device_type='cuda')
    def backward(ctx, grad):
        dX, dweight, dbias = ctx.saved_tensors
        # In place, because new memory for so many would take as long again
        return grad * dX, dweight.mul_(grad), grad * dbias, None, None


def scratch(shape: tuple[int, int], X: torch.Tensor) -> torch.Tensor:
    """Return `base.scratch` as a tensor of the type of `X`."""
    return torch.from_numpy(base.scratch(shape, X.detach().numpy().dtype))


class TorchBackend(base.Backend):
    name = 'torch'
    Module = Module

    # ---- tensor operations -------------------------------------------

    def tensor(self, data, device=None):
        X = torch.as_tensor(np.asarray(data))
        if not X.is_floating_point():
            X = X.long()
        if device is not None and self.is_gpu(device):
            # From pinned memory the copy does not wait for the GPU
            return X.pin_memory().to(device, non_blocking=True)
        # as_tensor shares memory with NumPy, which the caller may reuse
        return X.to(device, copy=True)

    def to_numpy(self, X):
        return X.detach().cpu().numpy()

    def to_numpy_later(self, X):
        if not X.is_cuda:
            return super().to_numpy_later(X)
        copied = torch.empty_like(X, device='cpu', pin_memory=True)
        copied.copy_(X.detach(), non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(X.device))

        def wait():
            event.synchronize()
            return copied.numpy()

        return wait

    def arange(self, num, like):
        return torch.arange(num, dtype=like.dtype, device=like.device)

    def transpose(self, X, axes):
        return X.permute(*axes)

    def batch_matmul(self, A, B, transpose_B=False):
        return A @ (B.transpose(-1, -2) if transpose_B else B)

    def take(self, X, indices):
        return F.embedding(indices, X)

    def relu(self, X):
        return torch.relu(X)

    def masked_softmax(self, X, valid_lens):
        if valid_lens is None:
            return torch.softmax(X, dim=-1)
        keys = torch.arange(X.shape[-1], device=X.device)
        padded = keys >= valid_lens.reshape(len(X), -1, 1)
        mask = padded.to(X.dtype) * base.MASKED_SCORE
        return torch.softmax(
            X + (mask.unsqueeze(1) if X.dim() == 4 else mask), dim=-1
        )

    def dropout(self, X, keep, p):
        scale = torch.from_numpy(keep).to(X.device, X.dtype)
        return X * scale.div_(1 - p)

    def linear_cross_entropy(self, X, weight, bias, labels, weights):
        return LinearCrossEntropy.apply(
            X, weight, bias, labels, weights.to(X.dtype)
        )

    def cross_entropy(self, logits, labels, weights):
        losses = F.cross_entropy(logits, labels, reduction='none')
        return (losses * weights).sum()

    # ---- layers ------------------------------------------------------

    def Linear(
        self, num_outputs, num_inputs=None, bias=True, activation=None
    ):
        layer = (
            nn.LazyLinear(num_outputs, bias=bias)
            if num_inputs is None
            else nn.Linear(num_inputs, num_outputs, bias=bias)
        )
        if activation is None:
            return layer
        return nn.Sequential(layer, ACTIVATIONS[activation]())

    def Embedding(self, num_embeddings, num_hiddens):
        return nn.Embedding(num_embeddings, num_hiddens)

    def LayerNorm(self, num_hiddens):
        return nn.LayerNorm(num_hiddens, eps=base.LAYER_NORM_EPSILON)

    def Dropout(self, p):
        return Dropout(p)

    def Sequential(self, *layers):
        native = nn.Sequential()
        for layer in layers:
            # A linear layer with its activation is two layers here
            for part in (
                layer if isinstance(layer, nn.Sequential) else [layer]
            ):
                native.append(part)
        return native

    def parameter(self, module, name, shape):
        parameter = nn.Parameter(torch.randn(shape))
        module.register_parameter(name, parameter)
        return parameter

    def value(self, parameter, like):
        return parameter

    # ---- devices -----------------------------------------------------

    def num_gpus(self):
        return torch.cuda.device_count()

    def try_gpu(self, i=0):
        if self.num_gpus() > i:
            return torch.device(f'cuda:{i}')
        return torch.device('cpu')

    def try_all_gpus(self):
        return [
            torch.device(f'cuda:{i}') for i in range(self.num_gpus())
        ] or [torch.device('cpu')]

    def devices(self, spec):
        kind, indices = base.parse_devices(spec)
        if kind == 'all':
            return self.try_all_gpus()
        if kind == 'cpu':
            return [torch.device('cpu') for _ in indices]
        base.check_gpus(self, indices)
        return [torch.device(f'cuda:{i}') for i in indices]

    def device_of(self, net):
        return next(net.parameters()).device

    def replicas(self, net, devices):
        replicas = [net.to(devices[0])]
        for i, device in enumerate(devices[1:], 1):
            if device not in devices[:i]:
                replicas.append(copy.deepcopy(net).to(device))
                continue
            twin = replicas[devices.index(device)]
            replicas.append(_with_shared_values(twin))
        return replicas

    def num_threads(self):
        return torch.get_num_threads()

    def is_gpu(self, device):
        return device.type == 'cuda'

    def replayed(self, function, net, device):
        return Replayed(function, net, device)

    def seed(self, device, seed):
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)

    @contextmanager
    def precision(self, name) -> Iterator[None]:
        if name not in base.PRECISIONS:
            raise ValueError(
                f'precision = {name!r}: expected one of '
                + ', '.join(base.PRECISIONS)
            )
        if name == 'float32':
            yield
            return
        if not torch.cuda.is_available():
            raise ValueError(
                f'precision = {name!r} is for CUDA cards, and there is none: '
                "use 'float32'"
            )
        matmul = torch.backends.cuda.matmul
        before, matmul.allow_tf32 = matmul.allow_tf32, True
        try:
            with torch.autocast('cuda', torch.bfloat16, name == 'bf16'):
                yield
        finally:
            matmul.allow_tf32 = before

    def worker_devices(self, devices):
        workers = super().worker_devices(devices)
        if not any(map(self.is_gpu, devices)):
            workers *= max(1, self.num_threads() // len(devices))
        return workers

    @contextmanager
    def one_core_each(self) -> Iterator[None]:
        num_threads = self.num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(num_threads)

    def start_thread(self):
        torch.set_num_threads(1)
        # Probabilities below 1e-38, of which a network that is sure of
        # itself has many, would make products several times slower
        torch.set_flush_denormal(True)

    # ---- parameters and the optimizer step ---------------------------

    def parameters(self, net):
        return {
            name: parameter.detach().cpu().numpy().copy()
            for name, parameter in net.named_parameters()
        }

    def gradients(self, net):
        return {
            name: parameter.grad.detach().cpu().numpy().copy()
            for name, parameter in net.named_parameters()
        }

    @torch.no_grad()
    def set_gradients(self, net, arrays):
        base.check_parameters(self.parameter_shapes(net), arrays)
        for name, parameter in net.named_parameters():
            parameter.grad = torch.from_numpy(arrays[name].copy()).to(
                parameter.device
            )

    @torch.no_grad()
    def total(self, net):
        parameters = list(net.parameters())
        gradients = [parameter.grad for parameter in parameters]
        return torch.stack(torch._foreach_norm(parameters + gradients)).sum()

    def layer_names(self, net):
        return [name for name, _ in net.named_modules() if name]

    @contextmanager
    def layer_outputs(self, net) -> Iterator[dict[str, torch.Tensor]]:
        outputs: dict[str, torch.Tensor] = {}

        def keep(name):
            def hook(layer, inputs, output):
                if isinstance(output, torch.Tensor):
                    outputs[name] = output.detach()

            return hook

        handles = [
            layer.register_forward_hook(keep(name))
            for name, layer in net.named_modules()
            if name
        ]
        try:
            yield outputs
        finally:
            for handle in handles:
                handle.remove()

    def parameter_shapes(self, net):
        return {
            name: tuple(parameter.shape)
            for name, parameter in net.named_parameters()
        }

    @torch.no_grad()
    def load_parameters(self, net, arrays, devices=None):
        base.check_parameters(self.parameter_shapes(net), arrays)
        if devices:
            net.to(devices[0])
        for name, parameter in net.named_parameters():
            array = torch.from_numpy(np.array(arrays[name]))
            parameter.data = parameter.data.to(array.dtype)
            parameter.copy_(array)

    def accumulate_gradients(self, net):
        return nullcontext()  # PyTorch's gradients always add up

    def zero_gradients(self, net):
        parameters = list(net.parameters())
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        torch._foreach_zero_([parameter.grad for parameter in parameters])

    @contextmanager
    def record(self, net) -> Iterator[None]:
        with _mode(net, training=True), torch.enable_grad():
            yield

    @contextmanager
    def evaluation(self, net) -> Iterator[None]:
        with _mode(net, training=False), torch.no_grad():
            yield

    def backward(self, losses):
        torch.autograd.backward(list(losses))

    @torch.no_grad()
    def allreduce_gradients(self, replicas, devices):
        first, *others = replicas
        for other in others:
            for target, source in zip(
                first.parameters(), other.parameters(), strict=True
            ):
                target.grad += source.grad.to(target.device)

    @torch.no_grad()
    def broadcast_parameters(self, replicas, devices):
        first, *others = replicas
        for other in others:
            for source, target in zip(
                first.parameters(), other.parameters(), strict=True
            ):
                if target.data_ptr() != source.data_ptr():
                    target.copy_(source)

    def Adam(self, net, lr, epsilon_inside, frozen=()):
        return Adam(net, lr, epsilon_inside, frozen)


class Replayed:
    """A function that is recorded once and then replayed as a CUDA graph.

    For the chapter's network a GPU has less to do than the processor that
    launches its kernels one by one.
    """

    def __init__(self, function, net: nn.Module, device: torch.device):
        self.function, self.net, self.device = function, net, device
        self.graphs: dict[tuple[torch.Size, ...], Any] = {}

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shapes = tuple(X.shape for X in inputs)
        if shapes not in self.graphs:
            self.graphs[shapes] = self.record(inputs)
        graph, own_inputs, outputs = self.graphs[shapes]
        for own, given in zip(own_inputs, inputs, strict=True):
            own.copy_(given)
        graph.replay()
        return tuple(output.clone() for output in outputs)

    def record(self, inputs: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        """Return a graph, the inputs that it reads and what it returns."""
        gradients = [parameter.grad for parameter in self.net.parameters()]
        before = [gradient.clone() for gradient in gradients]
        with torch.cuda.device(self.device):
            state = torch.cuda.get_rng_state()
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                # What is set up at the first call cannot be recorded
                self.function(*inputs)
            torch.cuda.current_stream().wait_stream(stream)
            own_inputs = [X.clone() for X in inputs]
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = [X.detach() for X in self.function(*own_inputs)]
            torch.cuda.set_rng_state(state)
        torch._foreach_copy_(gradients, before)
        return graph, own_inputs, outputs


class Adam(base.Optimizer):
    """`torch.optim.Adam`, with epsilon where the recipe wants it."""

    def __init__(
        self,
        net: nn.Module,
        lr: float,
        epsilon_inside: bool,
        frozen: Sequence[str],
    ) -> None:
        self.parameters = {
            name: parameter
            for name, parameter in net.named_parameters()
            if parameter.requires_grad and not name.endswith(tuple(frozen))
        }
        self.adam = torch.optim.Adam(
            self.parameters.values(),
            lr,
            betas=base.ADAM_BETAS,
            eps=base.ADAM_EPSILON,
            fused=next(net.parameters()).is_cuda,
        )
        self.lr = lr
        self.epsilon_inside = epsilon_inside
        single = next(net.parameters()).dtype == torch.float32
        self.rounding = base.GLUON_ROUNDING if single else 1.0
        self.num_steps = 0

    def step(self) -> None:
        self.num_steps += 1
        if self.epsilon_inside:
            # PyTorch divides √v by this root before it adds epsilon
            root = math.sqrt(1 - base.ADAM_BETAS[1] ** self.num_steps)
            self.adam.param_groups[0].update(
                lr=self.lr / self.rounding,
                eps=base.ADAM_EPSILON / (root * self.rounding),
            )
        self.adam.step()

    def state(self) -> dict[str, np.ndarray]:
        return {
            f'{name}.{short}': self._state(parameter)[key]
            .detach()
            .cpu()
            .numpy()
            .copy()
            for name, parameter in self.parameters.items()
            for short, key in (('m', 'exp_avg'), ('v', 'exp_avg_sq'))
        }

    def _state(self, parameter: torch.Tensor) -> Mapping[str, Any]:
        zeros = torch.zeros_like(parameter)
        return self.adam.state.get(parameter) or {
            'exp_avg': zeros,
            'exp_avg_sq': zeros,
        }

    def load_state(
        self, arrays: Mapping[str, np.ndarray], num_steps: int
    ) -> None:
        base.check_parameters(
            {
                f'{name}.{moment}': tuple(parameter.shape)
                for name, parameter in self.parameters.items()
                for moment in 'mv'
            },
            arrays,
        )
        self.num_steps = num_steps
        for name, parameter in self.parameters.items():
            # The fused update wants its counts where the parameters are
            device = parameter.device if parameter.is_cuda else None
            self.adam.state[parameter] = {
                'step': torch.tensor(float(num_steps), device=device),
                'exp_avg': torch.from_numpy(arrays[f'{name}.m'].copy()).to(
                    parameter.device
                ),
                'exp_avg_sq': torch.from_numpy(arrays[f'{name}.v'].copy()).to(
                    parameter.device
                ),
            }


def _with_shared_values(net: nn.Module) -> nn.Module:
    """Copy a network that keeps its values, not its gradients, in common."""
    shared: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.data)
        for parameter in net.parameters()
    }
    shared |= {id(buffer): buffer for buffer in net.buffers()}
    return copy.deepcopy(net, shared)


@contextmanager
def _mode(net: nn.Module, training: bool) -> Iterator[None]:
    """Put every part of `net` in one mode, and back into its own after."""
    before = {module: module.training for module in net.modules()}
    # To set an attribute of a module takes long, even to what it is
    if not all(mode == training for mode in before.values()):
        net.train(training)
    try:
        yield
    finally:
        for module, mode in before.items():
            if module.training != mode:
                module.training = mode


BACKEND = TorchBackend()
Module.backend = BACKEND
