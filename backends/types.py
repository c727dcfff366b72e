"""The types of the interface, for readers and for the type checker."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

#: A framework's own object for a device: hashable, with a readable `str`.
Device = Any
#: A layer, a parameter or a network of a framework.
Layer = Any
#: The name of each parameter, or moment, and its value.
Arrays = Mapping[str, np.ndarray]
#: The inputs of a network for each batch, in NumPy.
Batches = Iterable[Sequence[np.ndarray]]


class Array(Protocol):
    """What the model uses of a framework's arrays."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""

    def reshape(self, shape: tuple[int, ...], /) -> Any:
        """Return the same numbers in another shape."""

    def __getitem__(self, index: Any, /) -> Any: ...
    def __add__(self, other: Any, /) -> Any: ...
    def __truediv__(self, other: Any, /) -> Any: ...


class Net(Protocol):
    """A native network: a `torch.nn.Module`, a `gluon.Block`."""

    def __call__(self, *inputs: Any) -> Any: ...


class Masks(Protocol):
    """The dropout masks of one micro-batch.

    A deep copy goes on with the masks that are next. `device_seed`: seeds a
    device that draws its masks itself.
    """

    @property
    def device_seed(self) -> int:
        """A number from 0 to 2⁶³ − 1."""

    def __call__(self, shape: tuple[int, ...], p: float) -> np.ndarray:
        """Return a boolean array of this shape, true for what is kept."""


#: Takes a network and the inputs of a micro-batch; returns its losses, which
#: are scalar arrays.
Losses = Callable[..., Sequence[Any]]


class Part(NamedTuple):
    """A micro-batch: rows of one shard that are computed together.

    `inputs`: the NumPy arguments of the losses, after the network; `masks`:
    those of its dropout layers in the order of their calls, `None` for
    random numbers of the framework's own; `cost`: its work, in any unit.
    """

    inputs: Sequence[np.ndarray]
    masks: Masks | None = None
    cost: float = 1.0


class Footprint(NamedTuple):
    """What a framework takes of a processor's memory while it trains.

    Fitted to measurements (docs/scaling.md). For each token of a block, until
    the backward pass: `hidden` vectors of hidden units, `ffn` of those of the
    feed-forward network, `scores` numbers for each head and token that it
    attends to; and with dropout so many more. `working`: how many blocks the
    arrays of the moment are worth; `inputs`: vectors that recomputation keeps
    of each token and block. For each worker: `vocabulary` arrays as large as
    the weight of the output layer, `chunks` of logits beside the one that it
    computes, of `chunk_rows` rows each, and `workspace` bytes. `copies`: each
    worker has the parameters, too; `passing`: how many more copies of all
    parameters a step has for a moment. `kept`: the part of a step's memory
    that the process keeps after it. `least_tokens`: see `DataParallel`, and
    `most_tokens` its `tokens_at_a_time`. `side_by_side`: where the parameters
    take fewer bytes each core is a worker; else all cores of a shard compute
    one micro-batch together.
    """

    hidden: float
    ffn: float
    scores: float
    dropout_hidden: float
    dropout_scores: float
    working: float
    inputs: int
    vocabulary: float
    chunks: float
    chunk_rows: int
    workspace: float
    copies: bool
    passing: float
    kept: float
    least_tokens: int
    most_tokens: int
    side_by_side: float = math.inf
