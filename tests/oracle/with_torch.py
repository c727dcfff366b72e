"""What is done in PyTorch with the textbook's package, or with ours.

`d2l` is either; both have the names that are used here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from oracle.cases import LEARNING_RATE, Sizes, drawn

SUFFIX = '.npz'


def new_net(d2l: Any, sizes: Sizes) -> nn.Module:
    """Return a network without dropout."""
    *others, max_len = sizes
    return d2l.BERTModel(*others, dropout=0.0, max_len=max_len)


def set_weights(net: nn.Module, arrays: dict[str, np.ndarray]) -> None:
    """Set all parameters by name; a wrong name is an error."""
    net.load_state_dict(
        {name: torch.from_numpy(array) for name, array in arrays.items()},
        strict=True,
    )


def draw_weights(net: nn.Module, inputs: Sequence[np.ndarray]) -> None:
    """Draw all parameters, after inputs that decide their shapes."""
    evaluate(net, inputs)
    shapes = {name: tuple(X.shape) for name, X in net.state_dict().items()}
    set_weights(net, drawn(shapes))


def save(net: nn.Module, path: Path) -> None:
    """Write the state dict."""
    np.savez(
        path,
        **{name: array.numpy() for name, array in net.state_dict().items()},
    )


def load(net: nn.Module, path: Path) -> None:
    """Read a state dict, strictly."""
    with np.load(path) as arrays:
        set_weights(net, dict(arrays))


def native(batch: Iterable[np.ndarray]) -> list[torch.Tensor]:
    """Return a batch in the chapter's types."""
    return [
        torch.from_numpy(
            array if array.dtype.kind == 'f' else array.astype(int)
        )
        for array in batch
    ]


def to_numpy(X: torch.Tensor) -> np.ndarray:
    """Return an array's value."""
    return X.detach().numpy()


def type_name(X: torch.Tensor) -> str:
    """Return what numbers an array has."""
    return str(X.dtype)


def loss(training: str) -> nn.Module:
    """Return the loss that the chapter's cell makes."""
    reduction = 'none' if 'none' in training else 'mean'
    return nn.CrossEntropyLoss(reduction=reduction)


def evaluate(
    net: nn.Module, arrays: Sequence[np.ndarray | None]
) -> tuple[Any, ...]:
    """Return a network's outputs in evaluation mode."""
    net.eval()
    with torch.no_grad():
        return net(*(X if X is None else native([X])[0] for X in arrays))


def gradients(
    d2l: Any, net: nn.Module, sizes: Sizes, batch: Iterable[np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the gradient of the chapter's loss by parameter."""
    net.train()
    net.zero_grad()
    *_, loss = d2l._get_batch_loss_bert(
        net, nn.CrossEntropyLoss(), sizes.vocab_size, *native(batch)
    )
    loss.backward()
    return {
        name: to_numpy(parameter.grad)
        for name, parameter in net.named_parameters()
    }


def chapter_steps(
    d2l: Any,
    net: nn.Module,
    sizes: Sizes,
    batches: Iterable[Any],
    training: str,
) -> Iterator[tuple[float, float]]:
    """Train by the chapter's own loop, yielding both losses of each step."""
    net.train()
    adam = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    for batch in batches:
        adam.zero_grad()
        if training == "reduction='none'":
            mlm_l, nsp_l = masked_losses(net, native(batch))
        else:
            mlm_l, nsp_l, _ = d2l._get_batch_loss_bert(
                net, nn.CrossEntropyLoss(), sizes.vocab_size, *native(batch)
            )
        (mlm_l + nsp_l).backward()
        adam.step()
        yield mlm_l.item(), nsp_l.item()


def masked_losses(
    net: nn.Module, batch: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses that the chapter's text describes.

    With `reduction='none'` the textbook's own function multiplies `(N,)`
    by `(N, 1)`, a matrix, and cannot be trained with.
    """
    *inputs, weights, mlm_Y, nsp_y = batch
    _, mlm_Y_hat, nsp_Y_hat = net(*inputs)
    losses = nn.functional.cross_entropy(
        mlm_Y_hat.flatten(0, 1), mlm_Y.flatten(), reduction='none'
    )
    mlm_l = (losses * weights.flatten()).sum() / weights.sum()
    return mlm_l, nn.functional.cross_entropy(nsp_Y_hat, nsp_y)


def classify(
    net: nn.Module, inputs: Sequence[np.ndarray], W: Any, b: Any
) -> np.ndarray:
    """Return the logits of the section's classifier on a network."""
    net.eval()
    with torch.no_grad():
        encoded_X = net.encoder(*native(inputs))
        logits = nn.functional.linear(
            net.hidden(encoded_X[:, 0, :]), *map(torch.from_numpy, (W, b))
        )
    return to_numpy(logits)
