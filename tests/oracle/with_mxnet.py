"""What is done in MXNet with the textbook's package, or with ours.

`d2l` is either; both have the names that are used here. Ours has to be
imported first: it is what lets MXNet be imported beside today's NumPy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
from mxnet import autograd, gluon, init, np, npx

from oracle.cases import LEARNING_RATE, Sizes, drawn

npx.set_np()
SUFFIX = '.params'


def new_net(d2l: Any, sizes: Sizes) -> Any:
    """Return a network without dropout."""
    *others, max_len = sizes
    return d2l.BERTModel(*others, dropout=0.0, max_len=max_len)


def set_weights(net: Any, arrays: dict[str, numpy.ndarray]) -> None:
    """Set all parameters by name; a wrong name is an error."""
    parameters = net._collect_params_with_prefix()
    if set(parameters) != set(arrays):
        raise KeyError(f'not in both: {set(parameters) ^ set(arrays)}')
    for name, parameter in parameters.items():
        # The textbook leaves sizes to the first input
        parameter.shape = arrays[name].shape
        parameter.initialize(init.Zero(), ctx=npx.cpu())
        parameter.set_data(np.array(arrays[name]))


def draw_weights(net: Any, inputs: Sequence[numpy.ndarray]) -> None:
    """Draw all parameters, after inputs that decide their shapes."""
    net.initialize()
    evaluate(net, inputs)
    parameters = net._collect_params_with_prefix()
    set_weights(net, drawn({name: X.shape for name, X in parameters.items()}))


def save(net: Any, path: Path) -> None:
    """Write a file of parameters."""
    net.save_parameters(str(path))


def load(net: Any, path: Path) -> None:
    """Read a file of parameters; none may be missing or left over."""
    net.load_parameters(str(path), ctx=npx.cpu())


def native(batch: Iterable[numpy.ndarray], device: Any = None) -> list[Any]:
    """Return a batch in the chapter's types."""
    return [np.array(X, dtype=X.dtype, ctx=device) for X in batch]


def to_numpy(X: Any) -> numpy.ndarray:
    """Return an array's value."""
    return X.asnumpy()


def type_name(X: Any) -> str:
    """Return what numbers an array has."""
    return numpy.dtype(X.dtype).name


def loss(training: str) -> Any:
    """Return the loss that the chapter's cell makes."""
    return gluon.loss.SoftmaxCELoss()


def evaluate(
    net: Any, arrays: Sequence[numpy.ndarray | None]
) -> tuple[Any, ...]:
    """Return a network's outputs; outside of `record` that is evaluation."""
    return net(*(X if X is None else native([X])[0] for X in arrays))


def gradients(
    d2l: Any, net: Any, sizes: Sizes, batch: Iterable[numpy.ndarray]
) -> dict[str, numpy.ndarray]:
    """Return the gradient of the chapter's loss by parameter."""
    with autograd.record():
        *_, losses = d2l._get_batch_loss_bert(
            net,
            gluon.loss.SoftmaxCELoss(),
            sizes.vocab_size,
            *([X] for X in native(batch)),
        )
    losses[0].backward()
    return {
        name: to_numpy(parameter.grad())
        for name, parameter in net._collect_params_with_prefix().items()
    }


def chapter_steps(
    d2l: Any,
    net: Any,
    sizes: Sizes,
    batches: Iterable[Any],
    training: str,
) -> Iterator[tuple[float, float]]:
    """Train by the chapter's own loop, yielding both losses of each step."""
    devices = [npx.cpu(i) for i in range(int(training.split()[0]))]
    net.collect_params().reset_ctx(devices)
    trainer = gluon.Trainer(
        net.collect_params(), 'adam', {'learning_rate': LEARNING_RATE}
    )
    for batch in batches:
        shards = [
            gluon.utils.split_and_load(X, devices, even_split=False)
            for X in native(batch)
        ]
        with autograd.record():
            mlm_ls, nsp_ls, losses = d2l._get_batch_loss_bert(
                net, gluon.loss.SoftmaxCELoss(), sizes.vocab_size, *shards
            )
        for loss in losses:
            loss.backward()
        trainer.step(1)
        yield mean(mlm_ls), mean(nsp_ls)


def mean(losses: Sequence[Any]) -> float:
    """Return the mean over the shards, which the chapter reports."""
    return sum(float(loss) for loss in losses) / len(losses)


def classify(
    net: Any, inputs: Sequence[np.ndarray], W: Any, b: Any
) -> np.ndarray:
    """Return the logits of the section's classifier on a network."""
    encoded_X = net.encoder(*native(inputs))
    hidden = net.hidden(encoded_X[:, 0, :])
    return to_numpy(hidden) @ W.T + b
