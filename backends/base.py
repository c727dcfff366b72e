"""The interface that a framework implements, with all its docstrings.

Three groups of names, and no more than the model and the trainer need:

* tensor operations, and the layers made of them;
* devices, and how a network runs on them: evaluated, traced, or
  differentiated for a batch that is split over them;
* the optimizer step.

What the arrays of all frameworks spell alike (arithmetic, `reshape`,
`shape`, `sum`, indexing) is used directly and is not here.

An *array* is the framework's own: `torch.Tensor` or `mxnet.np.ndarray`. Real
numbers are float32 unless said otherwise; indices are int32 in NumPy and
become the framework's index type (int64 in PyTorch, int32 in MXNet).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from backends.cores import num_cores
from backends.devices import Devices
from backends.groups import ALONE, Group
from backends.types import (
    Array,
    Arrays,
    Batches,
    Device,
    Footprint,
    Layer,
    Losses,
    Masks,
    Net,
    Part,
)

#: What is added to the scores of padded keys, the textbook's own figure.
MASKED_SCORE = -1e6
PRECISIONS = ('float32', 'tf32', 'bf16')
#: 1e-5 as float32 has it: MXNet knows no other, even in float64.
LAYER_NORM_EPSILON = float(np.float32(1e-5))


class Backend(Devices):
    """What the chapter needs of a framework."""

    #: The framework's name, that of its package.
    name: str

    #: The base class of every network: `gluon.Block`, `torch.nn.Module` or
    #: `nnx.Module`, with an attribute `backend` that is this object. Where
    #: its attribute `is_replicable` is true, copies of a network may run at
    #: the same time.
    Module: type
    #: The class of what `data_parallel` returns.
    Parallel: type[Any]
    #: Whether it compiles each shape of inputs, so that few are faster.
    compiles: bool = False
    #: The memory of a training on a processor, where it was measured.
    footprint: Footprint | None = None

    # ---- tensor operations -------------------------------------------

    @abstractmethod
    def tensor(self, data: Any, device: Device = None) -> Array:
        """Copy a NumPy array (or a nested list) to a device.

        Real numbers keep their width; integers and booleans become the
        framework's index type.
        """

    @abstractmethod
    def to_numpy(self, X: Array) -> np.ndarray:
        """Wait for an array and return it in NumPy.

        It may share the memory of `X`.
        """

    @abstractmethod
    def matmul(self, A: Array, B: Array, transpose_B: bool = False) -> Array:
        """Multiply matrices pairwise: (…, n, k) by (…, k, m) to (…, n, m).

        With `transpose_B`, `B` has shape (…, m, k).
        """

    @abstractmethod
    def transpose(self, X: Array, axes: Sequence[int]) -> Array:
        """Permute the axes of `X` as `numpy.transpose` does."""

    @abstractmethod
    def gather(self, X: Array, positions: Array) -> Array:
        """Return the vectors of each row at its positions.

        `X`: `(B, T, H)`; `positions`: indices `(B, P)` below T. Returns
        `(B, P, H)`, `X[b, positions[b, p]]`, with a gradient for `X`.
        """

    @abstractmethod
    def relu(self, X: Array) -> Array:
        """Return max(X, 0), elementwise."""

    @abstractmethod
    def masked_softmax(self, X: Array, valid_lens: Array | None) -> Array:
        """Return the softmax over the last axis, without padded keys.

        `X`: scores `(batch_size, num_heads, num_queries, num_keys)`, or
        without the axis of heads. `valid_lens`: `None`, or how many keys
        count, `(batch_size,)` or `(batch_size, num_queries)`. −10⁶ is added
        to the scores of the others, whose probability is then exactly 0.
        """

    @abstractmethod
    def cross_entropy(
        self, logits: Array, labels: Array, weights: Array
    ) -> Array:
        """Return the weighted sum of cross-entropies, a scalar.

        Σᵢ `weights[i]` · (logsumexp(`logits[i]`) − `logits[i, labels[i]]`).
        `logits`: `(num_rows, num_classes)`; `labels`, `weights`:
        `(num_rows,)`.
        """

    @abstractmethod
    def linear_cross_entropy(
        self, layer: Layer, X: Array, labels: Array, weights: Array
    ) -> Array:
        """Return `cross_entropy(layer(X), labels, weights)`.

        Of a `Linear` with a bias only a few hundred rows of logits exist at
        a time. `X`: `(num_rows, num_hiddens)`; `weights` get no gradient.
        """

    @abstractmethod
    def checkpoint(self, layer: Layer, *inputs: Any) -> Array:
        """Return `layer(*inputs)`, an array.

        Within a `DataParallel` with `recompute` only the inputs are kept,
        and the backward pass calls the layer again, with the same dropout.
        Of the inputs those that have a gradient are arrays.
        """

    # ---- layers and their parameters ---------------------------------

    @abstractmethod
    def Linear(
        self,
        num_outputs: int,
        num_inputs: int | None = None,
        bias: bool = True,
        activation: str | None = None,
    ) -> Layer:
        """Return a fully connected layer over the last axis.

        `activation` is `None`, `'relu'` or `'tanh'`. Without `num_inputs`
        the first input fixes it.
        """

    @abstractmethod
    def Embedding(self, num_embeddings: int, num_hiddens: int) -> Layer:
        """Return a table that maps indices to vectors."""

    @abstractmethod
    def LayerNorm(self, num_hiddens: int | None) -> Layer:
        """Return layer normalisation over the last axis, epsilon 1e-5.

        In MXNet `None` leaves the size to the first input.
        """

    @abstractmethod
    def Dropout(self, p: float) -> Layer:
        """Return a layer that zeroes elements of its input in training.

        Each is zeroed with probability `p`, the others are divided by
        1 − p. See `dropout_masks` for where its random numbers come from.
        """

    @abstractmethod
    def Sequential(self, *layers: Layer) -> Layer:
        """Return a network that calls its layers one after the other.

        The layers have the numbers of the framework's edition of the
        textbook: in PyTorch an activation counts as a layer.
        """

    @abstractmethod
    def parameter(
        self, module: Layer, name: str, shape: tuple[int, ...]
    ) -> Any:
        """Register a parameter of `module` and return it."""

    @abstractmethod
    def value(self, parameter: Any, like: Array) -> Array:
        """Return a parameter's array on the device of `like`."""

    @abstractmethod
    def parameter_shapes(self, net: Net) -> dict[str, tuple[int, ...]]:
        """Return the shape of each parameter by its structural name."""

    @abstractmethod
    def get_parameters(self, net: Net) -> dict[str, np.ndarray]:
        """Return copies of all parameters by their structural names."""

    @abstractmethod
    def set_parameters(
        self,
        net: Net,
        arrays: Arrays,
        devices: Sequence[Device] | None = None,
    ) -> None:
        """Set each parameter of `net`, and initialise it where needed.

        `devices`: where the parameters shall live, by default where they
        are, or the processor. `net` takes over the arrays' type, float32 or
        float64.

        Raises `ValueError`, before anything is changed, that lists each
        name that is missing, unknown or of another shape.
        """

    # ---- devices -----------------------------------------------------

    def num_cores(self) -> int:
        """Return how many cores of the processor compute."""
        return num_cores()

    @abstractmethod
    def device_of(self, net: Net) -> Device:
        """Return the (first) device on which the parameters live."""

    # ---- running a network -------------------------------------------

    @abstractmethod
    def evaluate(
        self, net: Net, batches: Batches, precision: str = 'float32'
    ) -> list[Any]:
        """Return the outputs of `net` for each batch, in order, in NumPy.

        The network runs without dropout and without a graph, on its device
        and on all cores of a processor; its own mode is restored.
        `batches`: the inputs of each. An output that is a tuple stays one.
        `precision`: see `data_parallel`, also for the error.
        """

    @abstractmethod
    def trace(
        self,
        net: Net,
        inputs: Sequence[np.ndarray | None],
        masks: Masks | None = None,
    ) -> dict[str, np.ndarray]:
        """Return what each layer gives for some inputs, by its name.

        The outputs of `net` itself are `'output 0'`, `'output 1'`, …; a
        layer that is called twice leaves its last output. The network is in
        evaluation mode; with `masks` it is in training mode with these.
        """

    def data_parallel(
        self,
        net: Net,
        losses: Losses,
        devices: Sequence[Device],
        *,
        precision: str = 'float32',
        shared_masks: bool = False,
        group: Group = ALONE,
        recompute: bool = False,
    ) -> DataParallel:
        """Return an object that computes losses and gradients of `net`.

        `devices`: a shard of each batch for each; the parameters of `net`
        move to them. `precision`: one of `PRECISIONS`, of which `'tf32'` and
        `'bf16'` are inexact. `shared_masks`: a GPU too uses the dropout masks
        of the parts; otherwise it draws its own, which is faster. `group`:
        the processes that compute other shards of the same batches.
        `recompute`: less memory and more work, see `checkpoint`.

        Raises `ValueError` for a device that is given twice where it cannot
        serve two shards, and for a precision that is not supported.
        """
        options = precision, shared_masks, group, recompute
        return self.Parallel(self, net, losses, devices, *options)

    @abstractmethod
    def Adam(
        self,
        net: Net,
        lr: float,
        epsilon_inside: bool,
        frozen: Sequence[str] = (),
        weight_decay: float = 0.0,
    ) -> Optimizer:
        """Return an Adam optimizer for `net`, β = (0.9, 0.999), ε = 1e-8.

        Kingma and Ba, "Adam: a method for stochastic optimization" (2015).
        `epsilon_inside`: ε is added to √v before v's bias is corrected
        (the last formula of their section 2, as in Gluon) instead of after
        (their algorithm 1, as in PyTorch). Parameters whose names end in
        one of `frozen` are left as they are. Before a step at the rate lr,
        lr · `weight_decay` · W is subtracted from each W of two axes or more.
        """


class DataParallel(ABC):
    """Losses and gradients of one network, for batches that are split.

    `num_shards`: into how many shards all processes split a batch;
    `own_shards`: those of this one; `num_workers`: how many compute side by
    side in all, which decides how sums are rounded; `tokens_at_a_time`: how
    many keep one busy; `least_tokens`: fewer are not worth one more;
    `num_lengths`: where each shape is compiled or recorded, how many lengths
    rows shall have, 0 for any; `skips_slots`: the last slots cost nothing
    where they have no weight; `asynchronous`: calls do not wait.
    """

    num_shards: int
    own_shards: Sequence[int]
    num_workers: int
    tokens_at_a_time: int
    least_tokens: int = 0
    num_lengths: int = 0
    skips_slots: bool = False
    asynchronous: bool = False

    @abstractmethod
    def value_and_grad(self, parts: Sequence[Sequence[Part]]) -> Gradients:
        """Return losses and gradients, summed over all processes.

        `parts`: the micro-batches of each own shard. The parameters are
        those that `net` has now. The gradients are valid until the next
        call.
        """

    def close(self) -> None:
        """Leave `net` to others, without gradients of this object."""
        return


class Gradients(ABC):
    """The losses of a batch and the gradients of their sum.

    Each function waits for its device.
    """

    @abstractmethod
    def losses(self) -> np.ndarray:
        """Return the sum of each loss, float64 `(num_losses,)`."""

    @abstractmethod
    def norm(self) -> float:
        """Return the norm of the gradient, over all parameters together.

        It is not finite where a gradient or a parameter is not, nor where
        the sum of the squares overflows.
        """

    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """Return copies of the gradients by the parameters' names.

        Parameters that the reader has frozen have none.
        """


class Optimizer(ABC):
    """Updates the parameters of a network from their gradients."""

    num_steps: int

    @abstractmethod
    def step(
        self,
        gradients: Gradients | Arrays,
        lr: float | None = None,
        scale: float = 1.0,
    ) -> None:
        """Apply one update, without waiting for the device.

        `gradients`: of a `DataParallel` of the same network, or arrays by
        the parameters' names. `lr`: the rate of this step, by default the
        optimizer's; `scale`: what the gradients are multiplied by, perhaps
        in place. Raises `ValueError` where the gradients do not fit.
        """

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """Return copies of the moments, as `NAME.m` and `NAME.v`."""

    @abstractmethod
    def load_state(self, arrays: Arrays, num_steps: int) -> None:
        """Set the moments after `num_steps` updates.

        Raises `ValueError` where names or shapes differ.
        """
