"""Replicas of a PyTorch network, and the gradients of their parameters."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from backends.parameters import check_parameters
from backends.types import Arrays


def replicas_of(
    net: nn.Module, devices: Sequence[torch.device]
) -> list[nn.Module]:
    """Return a network for each device, each with its own gradients.

    `net` is the first one. Those on one device share their values.
    """
    replicas = [net.to(devices[0])]
    for i, device in enumerate(devices[1:], 1):
        if device not in devices[:i]:
            replicas.append(copy.deepcopy(net).to(device))
            continue
        twin = replicas[devices.index(device)]
        shared: dict[int, Any] = {
            id(parameter): nn.Parameter(
                parameter.data, requires_grad=parameter.requires_grad
            )
            for parameter in twin.parameters()
        }
        shared |= {id(buffer): buffer for buffer in twin.buffers()}
        replicas.append(copy.deepcopy(twin, shared))
    return replicas


def trainable_parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are not frozen, by their names."""
    return {
        name: parameter
        for name, parameter in net.named_parameters()
        if parameter.requires_grad
    }


def new_gradients(
    net: nn.Module,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return buffers, and in them a gradient for each learned parameter.

    There is one buffer for each type: what is done to all gradients is done
    to few arrays.
    """
    parameters = list(trainable_parameters(net).values())
    buffers: dict[torch.dtype, torch.Tensor] = {}
    ends: Counter[torch.dtype] = Counter()
    starts = []
    for parameter in parameters:
        starts.append(ends[parameter.dtype])
        # Vector instructions are faster at multiples of 64 bytes
        ends[parameter.dtype] += -(-parameter.numel() // 16) * 16
    for dtype, size in ends.items():
        device = parameters[0].device
        buffers[dtype] = torch.zeros(size, dtype=dtype, device=device)
    gradients = [
        buffers[parameter.dtype][start : start + parameter.numel()].view(
            parameter.shape
        )
        for parameter, start in zip(parameters, starts, strict=True)
    ]
    return list(buffers.values()), gradients


def gradients_of(net: nn.Module) -> list[torch.Tensor]:
    """Return the gradients of all parameters that are not frozen."""
    return [
        parameter.grad for parameter in trainable_parameters(net).values()
    ]


def set_gradients(net: nn.Module, arrays: Arrays) -> None:
    """Set the gradient of each parameter that is not frozen."""
    learned = trainable_parameters(net)
    check_parameters(
        {name: tuple(parameter.shape) for name, parameter in learned.items()},
        arrays,
    )
    for name, parameter in learned.items():
        parameter.grad = torch.tensor(arrays[name]).to(parameter)


def to_array(X: torch.Tensor) -> np.ndarray:
    """Return a copy in NumPy."""
    return X.detach().cpu().numpy().copy()
