"""Data parallelism with threads of a processor, shared by two backends.

Two workers of one thread each get more done than one worker whose
operations use two threads. So each core has a worker with a replica of the
network, and takes micro-batches of its own.
"""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from threading import local
from typing import Any, NamedTuple

import numpy as np

from backends import base
from backends.groups import Group
from backends.types import Device, Layer, Net, Part

#: Tokens of a micro-batch on a core. More take more memory, and are not
#: faster.
CPU_TOKENS = 4096

_scratch = local()


def scratch(shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """Return an array in memory that this thread uses again at the next call.

    Its values are arbitrary. To touch new memory for the first time takes
    as long as several passes over it.
    """
    size = math.prod(shape) * dtype.itemsize
    memory = getattr(_scratch, 'memory', None)
    if memory is None or len(memory) < size:
        memory = _scratch.memory = np.empty(size, np.uint8)
    return memory[:size].view(dtype).reshape(shape)


class Threads:
    """The threads in which a framework computes on a processor.

    `start`: is called first in each thread; `one_core`: within this context
    the framework's operations use no threads of their own; `num_cores`:
    returns how many cores the framework may use. The threads stay, because
    MXNet keeps ten megabytes for each thread it has ever seen.
    """

    def __init__(
        self,
        start: Callable[[], None],
        one_core: Callable[[], AbstractContextManager[Any]],
        num_cores: Callable[[], int],
    ) -> None:
        self.start = start
        self.one_core = one_core
        self.num_cores = num_cores
        self.executors: dict[int, ThreadPoolExecutor] = {}
        #: How many cores the process used from which this one was forked.
        self.num_inherited = 0
        if hasattr(os, 'register_at_fork'):
            os.register_at_fork(after_in_child=self.after_fork)

    def after_fork(self) -> None:
        """Forget the threads, of which a forked child has none.

        An operation would wait for ever for those of OpenMP. So this thread
        has to do without them, as those in which the workers compute.
        """
        self.num_inherited = self.num_cores()
        self.executors.clear()
        self.start()

    def map(
        self, num_threads: int, function: Callable[..., Any], *arguments: Any
    ) -> list[Any]:
        """Return what `function` gives for each of its arguments, in order.

        With one thread it runs in the caller's. After an error or Ctrl-C it
        waits until no thread computes any more.
        """
        if num_threads <= 1:
            return list(map(function, *arguments))
        executor = self.executor(num_threads)
        with self.one_core():
            futures = [
                executor.submit(function, *each)
                for each in zip(*arguments, strict=True)
            ]
            try:
                return [future.result() for future in futures]
            finally:
                for future in futures:
                    future.cancel()
                wait(futures)

    def executor(self, num_threads: int) -> ThreadPoolExecutor:
        """Return the executor with so many threads."""
        if num_threads not in self.executors:
            self.executors[num_threads] = ThreadPoolExecutor(
                num_threads, initializer=self.start
            )
        return self.executors[num_threads]


class Worker(NamedTuple):
    """Computes micro-batches of one shard, with a replica of the network.

    `shard`: its number among those of this process.
    """

    shard: int
    device: Device
    net: Layer


class ThreadedDataParallel(base.DataParallel):
    """Workers in threads, each with gradients of its own.

    A subclass says how the replicas get the parameters, how a worker adds
    the gradients of a micro-batch to those of its replica, and how these are
    summed.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        threads: Threads,
        num_threads: int,
        group: Group,
    ) -> None:
        """`num_threads`: in how many threads the workers compute."""
        self.workers = workers
        self.threads = threads
        self.num_threads = num_threads
        self.group = group
        num_own = 1 + max(worker.shard for worker in workers)
        self.own_shards, self.num_shards = group.share(num_own)
        _, self.num_workers = group.share(len(workers))

    @abstractmethod
    def start(self, busy: Sequence[int]) -> None:
        """Copy the parameters to replicas; set their gradients to zero.

        `busy`: the numbers of the workers that will compute.
        """

    @abstractmethod
    def accumulate(self, worker: Worker, part: Part) -> Sequence[Any]:
        """Add the gradients of a micro-batch; return its losses."""

    @abstractmethod
    def reduce(
        self, busy: Sequence[int], losses: Sequence[Sequence[Any]]
    ) -> base.Gradients:
        """Sum the gradients of all workers, and of the group.

        `busy`: the numbers of those that have computed here; `losses`: those
        of each micro-batch.
        """

    def value_and_grad(
        self, parts: Sequence[Sequence[Part]]
    ) -> base.Gradients:
        shares = share_out(parts, [worker.shard for worker in self.workers])
        busy = [i for i, share in enumerate(shares) if share]
        self.start(busy)
        done = self.threads.map(
            self.num_threads,
            self.accumulate_all,
            [self.workers[i] for i in busy],
            [shares[i] for i in busy],
        )
        losses = [losses for share in done for losses in share]
        return self.reduce(busy, losses)

    def accumulate_all(
        self, worker: Worker, share: Sequence[Part]
    ) -> list[Sequence[Any]]:
        """Add the gradients of all micro-batches of a worker."""
        return [self.accumulate(worker, part) for part in share]


def count_workers(
    net: Net, num_devices: int, on_gpu: bool, num_cores: int
) -> tuple[int, int]:
    """Return how many workers each device has, and how many threads compute.

    A GPU has one worker. Where copies of a network may not run at the same
    time, one thread computes for one device after the other.
    """
    if not getattr(net, 'is_replicable', False):
        return 1, 1
    num_each = 1 if on_gpu else max(1, num_cores // num_devices)
    # With more shards than cores, more threads keep all cores busy
    return num_each, min(num_each * num_devices, 2 * num_cores)


def sums(busy: Sequence[int], shards: Sequence[int]) -> list[tuple[int, int]]:
    """Return to which worker's gradients to add which other's, in order.

    `busy`: the workers that have computed; `shards`: the shard of each
    worker. Each shard is summed first, then the shards: rounding is then the
    same where each shard has a process of its own.
    """
    firsts: dict[int, int] = {}
    within = []
    for i in busy:
        first = firsts.setdefault(shards[i], i)
        if first != i:
            within.append((first, i))
    whole, *others = firsts.values()
    return within + [(whole, other) for other in others]


def share_out(
    parts: Sequence[Sequence[Part]], shards: Sequence[int]
) -> list[list[Part]]:
    """Return the micro-batches of each worker.

    `parts`: those of each shard; `shards`: the shard of each worker. The
    next micro-batch goes to the worker with the least work, so that all
    workers of a shard need about as long.
    """
    shares: list[list[Part]] = [[] for _ in shards]
    costs = [0.0] * len(shards)
    for shard, shard_parts in enumerate(parts):
        own = [i for i, other in enumerate(shards) if other == shard]
        for part in shard_parts:
            i = min(own, key=costs.__getitem__)
            shares[i].append(part)
            costs[i] += part.cost
    return shares
