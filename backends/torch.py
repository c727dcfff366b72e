"""The PyTorch backend. See `backends.base` for what each function does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from backends import base
from backends.dropout import current_masks, dropout_masks, masks_again
from backends.outputs import named_arrays, to_arrays
from backends.parameters import check_parameters
from backends.recompute import noted_calls
from backends.threads import CPU_TOKENS, scratch
from backends.torch_replicas import to_array
from backends.torch_training import (
    LEAST_TOKENS,
    THREADS,
    Adam,
    DataParallel,
    check_precision,
    mode,
    narrow_products,
    num_cores,
    products_in,
)
from backends.types import Footprint

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
        masks = current_masks()
        if masks is None or not self.training or self.p == 0:
            return super().forward(X)
        keep = torch.from_numpy(masks(tuple(X.shape), self.p))
        return X * keep.to(X.device, X.dtype).div_(1 - self.p)


class LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of a linear layer, a few hundred rows at a time.

    The forward pass computes the gradients too. `dtype`: that of the factors
    of each product; all else has the type of `X`.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type='cuda', cast_inputs=torch.float32)
    def forward(ctx, X, weight, bias, labels, weights, dtype):
        loss = X.new_zeros((), dtype=torch.float64)
        is_narrow = dtype != X.dtype
        dX, dweight = torch.empty_like(X), torch.empty_like(weight)
        dbias = torch.zeros_like(bias)
        chunk_rows = GPU_CHUNK_ROWS if X.is_cuda else CHUNK_ROWS
        if is_narrow:  # as fast, and the copies take less memory
            chunk_rows //= 2
        shape = min(chunk_rows, len(X)), len(weight)
        dtypes = [X.dtype, dtype] if is_narrow else [X.dtype]
        buffer, *narrow_buffer = (
            [X.new_empty(shape)] if X.is_cuda else _scratch(shape, dtypes)
        )
        # In float32 these are what they are made of
        narrow_X, narrow_weight, narrow_bias = (
            A.to(dtype) for A in (X, weight, bias)
        )
        for start in range(0, len(X), chunk_rows):
            rows = slice(start, start + chunk_rows)
            label = labels[rows].unsqueeze(1)
            logits = buffer[: len(label)]
            narrow = narrow_buffer[0][: len(label)] if is_narrow else logits
            torch.addmm(
                narrow_bias, narrow_X[rows], narrow_weight.T, out=narrow
            )
            logits.copy_(narrow)
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
            narrow.copy_(logits)
            dX[rows] = torch.mm(narrow, narrow_weight) * scale
            scaled_X = (X[rows] * scale).to(dtype)
            # The product of the first chunk replaces what is in `dweight`
            if is_narrow:
                product = torch.mm(narrow.T, scaled_X)
                dweight = dweight.add_(product) if start else product.to(X)
            else:
                dweight.addmm_(narrow.T, scaled_X, beta=min(start, 1))
            dbias.addmv_(logits.T, weights[rows])
        ctx.save_for_backward(dX, dweight, dbias)
        return loss.to(X.dtype)

    @staticmethod
    @torch.amp.custom_bwd(device_type='cuda')
    def backward(ctx, grad):
        dX, dweight, dbias = ctx.saved_tensors
        # In place, because new memory for so many would take as long again
        return grad * dX, dweight.mul_(grad), grad * dbias, None, None, None


class TorchBackend(base.Backend):
    name = 'torch'
    Module = Module
    Parallel = DataParallel
    footprint = Footprint(
        hidden=3.7,
        ffn=1.5,
        scores=1.35,
        dropout_hidden=4,
        dropout_scores=1.4,
        working=2.25,
        inputs=1,
        vocabulary=3,
        chunks=0,
        chunk_rows=CHUNK_ROWS,
        workspace=25e6,
        copies=False,
        passing=0,
        kept=0.93,
        least_tokens=LEAST_TOKENS,
        most_tokens=CPU_TOKENS,
    )

    # ---- tensor operations -------------------------------------------

    def tensor(self, data, device=None):
        X = torch.as_tensor(np.asarray(data))
        if not X.is_floating_point():
            X = X.long()
        if device is not None and device.type == 'cuda':
            # From pinned memory the copy does not wait for the GPU
            return X.pin_memory().to(device, non_blocking=True)
        # as_tensor shares memory with NumPy, which the caller may reuse
        return X.to(device, copy=True)

    def to_numpy(self, X):
        return wide(X.detach().cpu()).numpy()

    def matmul(self, A, B, transpose_B=False):
        return A @ (B.transpose(-1, -2) if transpose_B else B)

    def transpose(self, X, axes):
        return X.permute(*axes)

    def gather(self, X, positions):
        num_rows, num_steps, num_hiddens = X.shape
        first = torch.arange(num_rows, device=X.device) * num_steps
        # The gradient of an embedding is faster than that of an index
        return F.embedding(
            first.unsqueeze(1) + positions, X.reshape(-1, num_hiddens)
        )

    def relu(self, X):
        return torch.relu(X)

    def masked_softmax(self, X, valid_lens):
        X = wide(X)
        if valid_lens is None:
            return torch.softmax(X, dim=-1)
        keys = torch.arange(X.shape[-1], device=X.device)
        padded = keys >= valid_lens.reshape(len(X), -1, 1)
        mask = padded.to(X.dtype) * base.MASKED_SCORE
        return torch.softmax(
            X + (mask.unsqueeze(1) if X.dim() == 4 else mask), dim=-1
        )

    def cross_entropy(self, logits, labels, weights):
        losses = F.cross_entropy(wide(logits), labels, reduction='none')
        return (losses * weights).sum()

    def linear_cross_entropy(self, layer, X, labels, weights):
        if type(layer) is nn.Linear and layer.bias is not None:
            weight, bias, dtype = layer.weight, layer.bias, layer.weight.dtype
            X, weights = X.to(dtype), weights.to(dtype)
            if torch.is_autocast_enabled('cpu'):
                dtype = torch.get_autocast_dtype('cpu')
            return LinearCrossEntropy.apply(
                X, weight, bias, labels, weights, dtype
            )
        return self.cross_entropy(layer(X), labels, weights)

    def checkpoint(self, layer, *inputs):
        if noted_calls() is None:
            return layer(*inputs)
        masks = masks_again()
        return checkpoint(
            layer,
            *inputs,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), masks()),
        )

    # ---- layers and their parameters ---------------------------------

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
            native.extend(
                layer if isinstance(layer, nn.Sequential) else [layer]
            )
        return native

    def parameter(self, module, name, shape):
        parameter = nn.Parameter(torch.randn(shape))
        module.register_parameter(name, parameter)
        return parameter

    def value(self, parameter, like):
        return parameter

    def parameter_shapes(self, net):
        return {
            name: tuple(parameter.shape)
            for name, parameter in net.named_parameters()
        }

    def get_parameters(self, net):
        return {
            name: to_array(parameter)
            for name, parameter in net.named_parameters()
        }

    @torch.no_grad()
    def set_parameters(self, net, arrays, devices=None):
        check_parameters(self.parameter_shapes(net), arrays)
        if devices:
            net.to(devices[0])
        for name, parameter in net.named_parameters():
            array = torch.from_numpy(np.array(arrays[name]))
            parameter.data = parameter.data.to(array.dtype)
            parameter.copy_(array)

    # ---- devices -----------------------------------------------------

    def num_cores(self):
        return num_cores()

    def num_gpus(self):
        return torch.cuda.device_count()

    def device(self, kind, index):
        return torch.device(f'cuda:{index}' if kind == 'gpu' else 'cpu')

    def device_of(self, net):
        return next(net.parameters()).device

    # ---- running a network -------------------------------------------

    def evaluate(self, net, batches, precision='float32'):
        device, batches = self.device_of(net), list(batches)
        check_precision(precision, [device])

        def run(batch):
            # Each thread has its own switches for graphs and for products
            with torch.no_grad(), narrow_products(precision, device):
                outputs = net(*(self.tensor(X, device) for X in batch))
            return to_arrays(outputs, self.to_numpy)

        side_by_side = (
            device.type == 'cpu'
            and len(batches) > 1
            and getattr(net, 'is_replicable', False)
        )
        num_threads = num_cores() if side_by_side else 1
        with mode(net, training=False), products_in(precision):
            return THREADS.map(num_threads, run, batches)

    @torch.no_grad()
    def trace(self, net, inputs, masks=None):
        device, outputs = self.device_of(net), {}
        arrays = [X if X is None else self.tensor(X, device) for X in inputs]

        def keep(name):
            def hook(layer, inputs, output):
                if isinstance(output, torch.Tensor):
                    outputs[name] = output

            return hook

        hooks = [
            layer.register_forward_hook(keep(name))
            for name, layer in net.named_modules()
            if name
        ]
        try:
            with mode(net, masks is not None), dropout_masks(masks):
                result = net(*arrays)
        finally:
            for hook in hooks:
                hook.remove()
        return named_arrays(outputs, result, self.to_numpy)

    def Adam(self, net, lr, epsilon_inside, frozen=(), weight_decay=0.0):
        return Adam(net, lr, epsilon_inside, frozen, weight_decay)


def wide(X: torch.Tensor) -> torch.Tensor:
    """Return what a product has given in bfloat16 as float32."""
    return X.float() if X.dtype == torch.bfloat16 else X


def _scratch(
    shape: tuple[int, int], dtypes: Sequence[torch.dtype]
) -> list[torch.Tensor]:
    """Return this thread's scratch memory as a tensor of each type."""
    sizes = [math.prod(shape) * dtype.itemsize for dtype in dtypes]
    memory = torch.from_numpy(scratch((1, sum(sizes)), np.dtype(np.uint8)))
    return [
        part.view(dtype).view(shape)
        for part, dtype in zip(memory[0].split(sizes), dtypes, strict=True)
    ]


BACKEND = TorchBackend()
Module.backend = BACKEND
