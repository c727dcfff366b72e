"""The interface that a framework must implement, and all its docstrings.

Three groups of names, and no more than the model and the trainer need:

* tensor operations, and the layers made of them;
* devices: parse them, split a batch over them, copy a network to them;
* the optimizer step: record, go backward, sum gradients, update.

What the arrays of both frameworks already spell alike (arithmetic,
`reshape`, `shape`, `sum`, indexing) is used directly and is not here.

An *array* below is the framework's own: `torch.Tensor` or
`mxnet.np.ndarray`. Real numbers are float32 unless said otherwise; indices
are stored as int32 in NumPy and become the framework's index type (int64 in
PyTorch, int32 in MXNet) in `tensor`.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from threading import local
from typing import Any

import numpy as np

Array = Any
Device = Any
Net = Any
DropoutMask = Callable[[tuple[int, ...], float], np.ndarray]

# What is added to the scores of padded keys before the softmax: the
# textbook's own figure.
MASKED_SCORE = -1e6
# A micro-batch of so many tokens keeps a processor and its caches busy, and
# larger ones only take more memory; a GPU wants more work at a time.
CPU_TOKENS, GPU_TOKENS = 4096, 32768
PRECISIONS = ('float32', 'tf32', 'bf16')
#: More shards on one processor than this are a mistake.
MAX_SHARDS = 1024
#: 1e-5 as float32 has it: MXNet knows no other, even in float64.
LAYER_NORM_EPSILON = float(np.float32(1e-5))
ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
#: By how much Gluon's √v in float32 differs from its formula: it has 1 − β₂
#: in float32, where that is off by 1e-5.
GLUON_ROUNDING = math.sqrt(
    float(1 - np.float32(ADAM_BETAS[1])) / (1 - ADAM_BETAS[1])
)
#: malloc.h of glibc: from which size arrays are not kept, at most 32 MiB,
#: and how many free bytes are.
M_MMAP_THRESHOLD, KEPT_ARRAY = -3, 32 << 20
M_TRIM_THRESHOLD, KEPT_MEMORY = -1, 512 << 20

_dropout = local()
_scratch = local()


@contextmanager
def dropout_masks(draw: DropoutMask) -> Iterator[None]:
    """Let every `Dropout` layer called in this thread take its mask here.

    `draw(shape, p)` returns a boolean NumPy array of that shape, true where
    the element is kept. Outside of this context a `Dropout` layer uses its
    framework's own random numbers.
    """
    previous = dropout_source()
    _dropout.draw = draw
    try:
        yield
    finally:
        _dropout.draw = previous


def dropout_source() -> DropoutMask | None:
    """Return what draws this thread's dropout masks, if anything does."""
    return getattr(_dropout, 'draw', None)


def scratch(shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """Return an array whose memory this thread uses again at the next call.

    It holds anything. To touch new memory for the first time takes as long
    as several passes over it.
    """
    size = math.prod(shape) * dtype.itemsize
    memory = getattr(_scratch, 'memory', None)
    if memory is None or len(memory) < size:
        memory = _scratch.memory = np.empty(size, np.uint8)
    return memory[:size].view(dtype).reshape(shape)


def parse_devices(spec: str) -> tuple[str, tuple[int, ...]]:
    """Read a device specification: its kind and the indices meant.

    `'cpu'` is `('cpu', (0,))`, `'cpu:2'` (two shards on the processor) is
    `('cpu', (0, 1))`, `'gpu:0,1'` is `('gpu', (0, 1))` and `'all'`, every
    GPU or else the processor, is `('all', ())`.

    Raises `ValueError` for anything else.
    """
    kind, colon, numbers = spec.partition(':')
    try:
        if kind == 'all' and not colon:
            return 'all', ()
        if kind == 'cpu':
            num_shards = int(numbers) if colon else 1
            if 1 <= num_shards <= MAX_SHARDS:
                return 'cpu', tuple(range(num_shards))
        if kind == 'gpu':
            indices = tuple(int(i) for i in numbers.split(','))
            if min(indices) >= 0 and len(set(indices)) == len(indices):
                return 'gpu', indices
    except ValueError:
        pass
    raise ValueError(
        f"unknown devices {spec!r}: expected 'cpu', 'cpu:N' for N (at most "
        f'{MAX_SHARDS}) shards on '
        "the processor, 'gpu:I,J' for those GPUs, or 'all'"
    )


def shard_slices(
    num_rows: int, num_shards: int, even_split: bool = False
) -> list[slice]:
    """Return which rows of a batch each shard takes.

    The first `num_rows % num_shards` shards get one row more, as in
    `numpy.array_split`, `torch.tensor_split` and Gluon's `split_data`: 5
    rows over 4 shards are 2, 1, 1, 1.

    Raises `ValueError` where a shard would get no row, and with
    `even_split` where the rows do not divide evenly.
    """
    if num_rows < num_shards:
        raise ValueError(
            f'a batch of {num_rows} rows cannot be split over '
            f'{num_shards} devices: use at most {num_rows}'
        )
    if even_split and num_rows % num_shards:
        raise ValueError(
            f'a batch of {num_rows} rows does not divide evenly over '
            f'{num_shards} devices: use a multiple, or even_split=False'
        )
    small, extra = divmod(num_rows, num_shards)
    ends = [small * (i + 1) + min(i + 1, extra) for i in range(num_shards)]
    return [
        slice(start, end)
        for start, end in zip([0, *ends], ends, strict=False)
    ]


class Backend(ABC):
    """What the chapter needs of a framework."""

    #: The framework's name: `'mxnet'` or `'torch'`.
    name: str

    #: The base class of every network: `gluon.Block` or `torch.nn.Module`,
    #: with an attribute `backend` that is this object.
    Module: type

    # ---- tensor operations -------------------------------------------

    @abstractmethod
    def tensor(self, data: Any, device: Device = None) -> Array:
        """Copy a NumPy array (or nested list) to a device.

        Real numbers keep their width; integers and booleans become the
        framework's index type.
        """

    @abstractmethod
    def to_numpy(self, X: Array) -> np.ndarray:
        """Return an array in NumPy, waiting for its value.

        It may share the memory of `X`.
        """

    def to_numpy_later(self, X: Array) -> Callable[[], np.ndarray]:
        """Begin to copy an array to NumPy; return what waits for it.

        It waits for nothing that was launched after this.
        """
        return lambda: self.to_numpy(X)

    @abstractmethod
    def arange(self, num: int, like: Array) -> Array:
        """Return 0, …, `num` − 1, shape `(num,)`, of the type of `like`."""

    @abstractmethod
    def transpose(self, X: Array, axes: Sequence[int]) -> Array:
        """Permute the axes of `X` as `numpy.transpose` does."""

    @abstractmethod
    def batch_matmul(
        self, A: Array, B: Array, transpose_B: bool = False
    ) -> Array:
        """Multiply matrices pairwise: (…, n, k) by (…, k, m) to (…, n, m).

        With `transpose_B`, `B` has shape (…, m, k).
        """

    @abstractmethod
    def take(self, X: Array, indices: Array) -> Array:
        """Return the rows `X[indices]` of a matrix, with a gradient.

        `X`: `(num_rows, num_hiddens)`; `indices`: any shape, in range.
        Returns the shape of `indices` with `num_hiddens` appended.
        """

    @abstractmethod
    def relu(self, X: Array) -> Array:
        """Return max(X, 0), elementwise."""

    @abstractmethod
    def masked_softmax(self, X: Array, valid_lens: Array | None) -> Array:
        """Softmax over the last axis, leaving padded keys out.

        `X`: scores `(batch_size, num_heads, num_queries, num_keys)`, or
        without the axis of heads. `valid_lens`: `None`, or how many keys
        count, `(batch_size,)` or `(batch_size, num_queries)`. −10⁶ is added
        to the scores of the others, whose probability is then exactly 0.
        """

    @abstractmethod
    def dropout(self, X: Array, keep: np.ndarray, p: float) -> Array:
        """Return `X / (1 - p)` where `keep` is true, and 0 elsewhere.

        `keep`: boolean NumPy array of the shape of `X`.
        """

    @abstractmethod
    def linear_cross_entropy(
        self,
        X: Array,
        weight: Array,
        bias: Array,
        labels: Array,
        weights: Array,
    ) -> Array:
        """Weighted sum of the cross-entropies of a linear classifier.

        Σᵢ `weights[i]` · (logsumexp(zᵢ) − zᵢ[`labels[i]`]) with logits
        zᵢ = `weight` · `X[i]` + `bias`, as a scalar. The logits of only a
        few hundred rows exist at a time; gradients for `X`, `weight` and
        `bias` are computed on the way forward.

        `X`: `(num_rows, num_hiddens)`, one row or more; `weight`:
        `(num_classes, num_hiddens)`; `bias`: `(num_classes,)`; `labels`:
        `(num_rows,)`; `weights`: `(num_rows,)`, which get no gradient.
        """

    @abstractmethod
    def cross_entropy(
        self, logits: Array, labels: Array, weights: Array
    ) -> Array:
        """Weighted sum of the cross-entropies of given logits, a scalar.

        `logits`: `(num_rows, num_classes)`; `labels`, `weights`:
        `(num_rows,)`.
        """

    # ---- layers ------------------------------------------------------

    @abstractmethod
    def Linear(
        self,
        num_outputs: int,
        num_inputs: int | None = None,
        bias: bool = True,
        activation: str | None = None,
    ) -> Net:
        """Return a fully connected layer over the last axis.

        `activation` is `None`, `'relu'` or `'tanh'`. Without `num_inputs`
        the first input fixes it.
        """

    @abstractmethod
    def Embedding(self, num_embeddings: int, num_hiddens: int) -> Net:
        """Return a table that maps indices to vectors."""

    @abstractmethod
    def LayerNorm(self, num_hiddens: int | None) -> Net:
        """Return layer normalisation over the last axis, epsilon 1e-5.

        In MXNet `None` leaves the size to the first input.
        """

    @abstractmethod
    def Dropout(self, p: float) -> Net:
        """Return a layer that in training zeroes elements of its input.

        Each is zeroed with probability `p`, the others are divided by
        1 − p. See `dropout_masks` for where its random numbers come from.
        """

    @abstractmethod
    def Sequential(self, *layers: Net) -> Net:
        """Return a network that calls its layers one after the other.

        Layers are numbered as the framework's edition of the textbook
        numbers them: in PyTorch an activation counts as a layer.
        """

    @abstractmethod
    def parameter(
        self, module: Net, name: str, shape: tuple[int, ...]
    ) -> Any:
        """Register a parameter of `module` and return it."""

    @abstractmethod
    def value(self, parameter: Any, like: Array) -> Array:
        """Return a parameter's array on the device of `like`."""

    # ---- devices -----------------------------------------------------

    @abstractmethod
    def num_gpus(self) -> int:
        """Return how many GPUs the framework can use."""

    @abstractmethod
    def try_gpu(self, i: int = 0) -> Device:
        """Return GPU `i` if there is one, else the processor."""

    @abstractmethod
    def try_all_gpus(self) -> list[Device]:
        """Return all GPUs, or `[cpu]` where there is none."""

    @abstractmethod
    def devices(self, spec: str) -> list[Device]:
        """Return the devices that a specification names.

        See `parse_devices` for its form. Raises `ValueError` for a
        malformed one and for a GPU that is not there.
        """

    def split_and_load(
        self,
        data: np.ndarray,
        devices: Sequence[Device],
        even_split: bool = False,
    ) -> list[Array]:
        """Split a batch by rows and copy each shard to its device.

        `data`: `(num_rows, …)`. See `shard_slices` for who gets what.
        """
        slices = shard_slices(len(data), len(devices), even_split)
        return [
            self.tensor(data[rows], device)
            for rows, device in zip(slices, devices, strict=True)
        ]

    @abstractmethod
    def device_of(self, net: Net) -> Device:
        """Return the (first) device on which the parameters live."""

    @abstractmethod
    def replicas(self, net: Net, devices: Sequence[Device]) -> list[Net]:
        """Return one network a device, all with the parameters of `net`.

        Each has gradients of its own. Entries may be the same object where
        a network can serve several devices. `net` itself is moved to the
        first device. Raises `ValueError` for devices that cannot have one
        each.
        """

    def release_replicas(  # noqa: B027
        self, net: Net, devices: Sequence[Device]
    ) -> None:
        """Leave `net` on `devices` only, with the values of the first.

        For frameworks whose replicas are not networks of their own.
        """

    @abstractmethod
    def num_threads(self) -> int:
        """Return how many processor cores the framework may use."""

    @abstractmethod
    def is_gpu(self, device: Device) -> bool:
        """Say whether a device is a GPU."""

    def tokens_at_a_time(self, device: Device) -> int:
        """Return how many tokens a micro-batch had best have."""
        return GPU_TOKENS if self.is_gpu(device) else CPU_TOKENS

    def replayed(
        self, function: Callable[..., Any], net: Net, device: Device
    ) -> Callable[..., Any]:
        """Return a function that does the same, in less time if it can.

        `function` is of arrays of few different shapes on `device`, and
        changes nothing but the gradients of `net`.
        """
        return function

    @abstractmethod
    def seed(self, device: Device, seed: int) -> None:
        """Seed the framework's own random numbers on a GPU."""

    @abstractmethod
    def precision(self, name: str) -> AbstractContextManager[Any]:
        """Within this context compute in one of `PRECISIONS`.

        Raises `ValueError` where the framework or the machine cannot.
        """

    def worker_devices(
        self, devices: Sequence[Device]
    ) -> list[tuple[int, Device]]:
        """Return who computes side by side: a shard and a device for each.

        A GPU has one worker. The threads of the processor are shared out
        among its shards, because two workers of one thread each get more
        done than one worker of two threads.
        """
        return list(enumerate(devices))

    @contextmanager
    def side_by_side(self, num_workers: int) -> Iterator[Callable[..., Any]]:
        """Within this context let workers compute at the same time.

        Gives a `map` that calls a function for each worker in threads that
        use one core each; for one worker it is Python's.
        """
        if num_workers == 1:
            yield map
            return
        # More than cores, so that none idles while others have a worker left
        threads = _threads(self, min(num_workers, 2 * self.num_threads()))
        futures: list[Future[Any]] = []

        def worker_map(function, *arguments):
            started = [
                threads.submit(function, *each)
                for each in zip(*arguments, strict=True)
            ]
            futures.extend(started)
            return (future.result() for future in started)

        with self.one_core_each():
            try:
                yield worker_map
            finally:
                # After an error or Ctrl-C nobody may still be computing
                for future in futures:
                    future.cancel()
                wait(futures)

    @abstractmethod
    def one_core_each(self) -> AbstractContextManager[Any]:
        """Within this context operations use no threads of their own."""

    @abstractmethod
    def start_thread(self) -> None:
        """Prepare a new thread for the framework."""

    # ---- parameters and the optimizer step ---------------------------

    @abstractmethod
    def parameters(self, net: Net) -> dict[str, np.ndarray]:
        """Return copies of all parameters by their structural names."""

    @abstractmethod
    def gradients(self, net: Net) -> dict[str, np.ndarray]:
        """Return copies of all gradients by their structural names."""

    @abstractmethod
    def set_gradients(
        self, net: Net, arrays: Mapping[str, np.ndarray]
    ) -> None:
        """Set every gradient of `net`. Raises as `load_parameters` does."""

    @abstractmethod
    def total(self, net: Net) -> Array:
        """Return a number that is finite where all of `net` is.

        From all parameters and gradients, shape `()`. It may overflow where
        they are finite: what is not finite remains to be looked for.
        """

    @abstractmethod
    def layer_names(self, net: Net) -> list[str]:
        """Return the structural names of all layers inside of `net`."""

    @abstractmethod
    def layer_outputs(
        self, net: Net
    ) -> AbstractContextManager[dict[str, Array]]:
        """Within this context keep what each layer returns when called.

        Gives a dictionary that fills with the arrays by the layers'
        structural names; a layer called twice leaves its last one.
        """

    @abstractmethod
    def parameter_shapes(self, net: Net) -> dict[str, tuple[int, ...]]:
        """Return the shape of each parameter, in the order of `net`."""

    @abstractmethod
    def load_parameters(
        self,
        net: Net,
        arrays: Mapping[str, np.ndarray],
        devices: Sequence[Device] | None = None,
    ) -> None:
        """Set every parameter of `net`, initialising it where needed.

        `devices`: where the parameters shall live; without it they stay
        where they are, or go to the processor.

        `net` takes over the arrays' type, float32 or float64.

        Raises `ValueError`, before anything is changed, that lists every
        name missing, unknown or of another shape.
        """

    @abstractmethod
    def accumulate_gradients(self, net: Net) -> AbstractContextManager[None]:
        """Within this context gradients add up over `backward` calls."""

    @abstractmethod
    def zero_gradients(self, net: Net) -> None:
        """Set every gradient of `net` to zero."""

    @abstractmethod
    def record(self, net: Net) -> AbstractContextManager[None]:
        """Within this context `net` trains: dropout on, graph recorded."""

    @abstractmethod
    def evaluation(self, net: Net) -> AbstractContextManager[None]:
        """Within this context `net` is evaluated: no dropout, no graph.

        The mode that it was in is restored afterwards.
        """

    @abstractmethod
    def backward(self, losses: Sequence[Array]) -> None:
        """Add the gradients of the sum of scalar losses.

        The losses may live on different devices.
        """

    @abstractmethod
    def allreduce_gradients(
        self, replicas: Sequence[Net], devices: Sequence[Device]
    ) -> None:
        """Sum the gradients of all replicas into the first one."""

    @abstractmethod
    def broadcast_parameters(
        self, replicas: Sequence[Net], devices: Sequence[Device]
    ) -> None:
        """Copy the first replica's parameters to all others."""

    @abstractmethod
    def Adam(
        self,
        net: Net,
        lr: float,
        epsilon_inside: bool,
        frozen: Sequence[str] = (),
    ) -> Optimizer:
        """Return an Adam optimizer for `net`, β = (0.9, 0.999), ε = 1e-8.

        Kingma and Ba, "Adam: a method for stochastic optimization" (2015).
        `epsilon_inside`: ε is added to √v before v's bias is corrected
        (the last formula of their section 2, as in Gluon) instead of after
        (their algorithm 1, as in PyTorch). Parameters whose names end in
        one of `frozen` are left as they are.
        """


class Optimizer(ABC):
    """Updates the parameters of a network from their gradients."""

    @abstractmethod
    def step(self) -> None:
        """Apply one update with the gradients that are there now."""

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """Return copies of the moments, as `NAME.m` and `NAME.v`."""

    @abstractmethod
    def load_state(
        self, arrays: Mapping[str, np.ndarray], num_steps: int
    ) -> None:
        """Set the moments after `num_steps` updates."""


def keep_freed_memory() -> None:
    """Let glibc, if this is it, keep freed memory for what comes next.

    It gives large arrays back to the system and asks for them again, and
    new memory takes as long to touch as several passes over it.
    """
    if platform.libc_ver()[0] == 'glibc':
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, KEPT_ARRAY)
        mallopt(M_TRIM_THRESHOLD, KEPT_MEMORY)


@functools.cache
def _threads(backend: Backend, num_threads: int) -> ThreadPoolExecutor:
    """Return threads that stay: MXNet keeps ten megabytes for each it saw."""
    keep_freed_memory()
    return ThreadPoolExecutor(num_threads, initializer=backend.start_thread)


# A forked child has none of its parent's threads
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_threads.cache_clear)


def check_gpus(backend: Backend, indices: Sequence[int]) -> None:
    """Raise `ValueError` unless the framework sees all these GPUs."""
    num_gpus = backend.num_gpus()
    if max(indices) >= num_gpus:
        raise ValueError(
            f'there is no GPU {max(indices)}: {backend.name} '
            f"sees {num_gpus}; use fewer, 'cpu' or 'all'"
        )


def check_parameters(
    expected: Mapping[str, tuple[int, ...]], arrays: Mapping[str, np.ndarray]
) -> None:
    """Raise `ValueError` unless names and shapes of `arrays` are right."""
    faults = [f'{name} is missing' for name in expected if name not in arrays]
    faults += [
        f'{name} is not a parameter of this network'
        for name in arrays
        if name not in expected
    ]
    faults += [
        f'{name} has shape {arrays[name].shape} instead of {shape}'
        for name, shape in expected.items()
        if name in arrays and tuple(arrays[name].shape) != shape
    ]
    if faults:
        raise ValueError(
            'the arrays do not fit this network: ' + '; '.join(faults)
        )
