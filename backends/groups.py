"""Processes that train one network together.

A launcher (`torchrun`, or a tracker of MXNet's parameter server) starts the
same command several times. Its environment variables tell each process where
the others are. `join` makes the connection by the framework's own means; all
that a run needs beyond a sum is made of sums here, once for all frameworks.

A process that is gone must be named, and not waited for. So each process
shows the others, now and then, that it is alive, in a place that the
framework keeps: the store of `torchrun`, the keys of a parameter server.
"""

from __future__ import annotations

import json
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, TimeoutError
from contextlib import suppress
from importlib import import_module
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from backends.types import Array

#: Seconds after which a process that does not answer is given up.
TIMEOUT = 60.0
#: What part of them it has for an answer; the rest is for the others' end.
PATIENCE = 0.8
#: The bytes of a text that a process shows the others.
MAX_TEXT = 2048
#: The variables that a launcher sets, and the module that reads them.
LAUNCHERS = (
    ('RANK WORLD_SIZE MASTER_ADDR MASTER_PORT', 'backends.torch_group'),
    ('DMLC_ROLE DMLC_PS_ROOT_URI', 'backends.mxnet_group'),
    ('JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES', 'backends.jax_group'),
)


#: Why a process is given up.
GONE = (
    '{} does not answer: it was killed or stopped, or its machine or the '
    'network is down'
)


class GroupError(RuntimeError):
    """A process is gone, has failed, or cannot be reached."""


class Group:
    """Processes that compute together. This class is a single one.

    `rank`: the number of this process, below `size`; `local_rank`,
    `local_size`: the same among the processes of its machine; `framework`:
    the name of the one that joins them, if any; `is_restarting`: whether the
    launcher starts them again after a failure.

    All processes call the same functions in the same order. Each function
    but `fail` raises `GroupError` that names the process that is gone or has
    failed.
    """

    rank, size = 0, 1
    local_rank, local_size = 0, 1
    framework: str | None = None
    is_restarting = False

    def all_reduce(self, arrays: Sequence[Array | np.ndarray]) -> None:
        """Replace each array by its sum over all processes.

        `arrays`: real numbers, of the framework or of NumPy, of the same
        shapes and types in each process. All get the same bits.
        """

    def fail(self, error: BaseException) -> None:
        """Tell the others why this process ends, without waiting for them."""

    def reason(self) -> str:
        """Return which process has failed and why, or nothing."""
        return ''

    def close(self) -> None:
        """Leave, when all have done their work."""

    # ---- made of sums ------------------------------------------------

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is true in any process."""
        counts = np.array(flags, np.float32)
        self.all_reduce([counts])
        return [count > 0 for count in counts.tolist()]

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.any(False)

    def broadcast(self, X: np.ndarray) -> np.ndarray:
        """Return the array of rank 0, bit for bit.

        `X`: of the same shape and type in each process.
        """
        if self.size == 1:
            return X
        # Each 16 bits as a real number, which a sum with zeros keeps
        halves = np.frombuffer(X.tobytes(), np.uint16).astype(np.float32)
        if self.rank:
            halves[:] = 0
        self.all_reduce([halves])
        data = halves.astype(np.uint16).tobytes()
        return np.frombuffer(data, X.dtype).reshape(X.shape).copy()

    def gather(self, value: Any) -> list[Any]:
        """Return the value of each process, by rank.

        `value`: anything that JSON can hold.
        """
        data = np.frombuffer(json.dumps(value).encode(), np.uint8)
        sizes = np.zeros(self.size, np.float32)
        sizes[self.rank] = len(data)
        self.all_reduce([sizes])
        lengths = sizes.astype(int)
        table = np.zeros((self.size, lengths.max()), np.float32)
        table[self.rank, : len(data)] = data
        self.all_reduce([table])
        return [
            json.loads(row[:length].astype(np.uint8).tobytes())
            for row, length in zip(table, lengths, strict=True)
        ]

    def share(self, num_own: int) -> tuple[range, int]:
        """Number things of which each process has some, rank by rank.

        `num_own`: how many this one has. Returns their numbers, and how many
        things there are in all.
        """
        counts = self.gather(num_own)
        first = sum(counts[: self.rank])
        return range(first, first + num_own), sum(counts)


#: The group of a process that was started alone.
ALONE = Group()


def join(timeout: float = TIMEOUT) -> Group:
    """Join the processes that a launcher has started with this one.

    Returns `ALONE` where there was none. In the other roles of a parameter
    server it serves until the end, and raises `SystemExit`.

    Raises `GroupError` where not all have come within `timeout` seconds, and
    `ValueError` for variables that cannot be used.
    """
    module = launched_by()
    return import_module(module).join(timeout) if module else ALONE


def launched_by() -> str:
    """Return the module that joins the processes of a launcher, if any."""
    for names, module in LAUNCHERS:
        if all(os.environ.get(name) for name in names.split()):
            return module
    return ''


def number_in(name: str, default: int | None = None) -> int:
    """Return the number in a launcher's variable.

    Raises `ValueError` where it is none.
    """
    value = str(os.environ.get(name, default))
    if not (value.isascii() and value.isdecimal()):
        raise ValueError(
            f'the environment variable {name} is {value!r}: expected a '
            'number, as the launcher sets it'
        )
    return int(value)


class Processes(Group, ABC):
    """One of several processes, in a framework that can sum over them.

    The framework's functions, which may wait for ever for a process that is
    gone, run in a thread of their own.
    """

    heart: Heart
    #: Whose process keeps what they show each other.
    keeper: str

    def __init__(self, size: int, timeout: float, framework: str) -> None:
        self.size, self.timeout, self.framework = size, timeout, framework
        self.calls: SimpleQueue[tuple[Future[Any], Any, Any]] = SimpleQueue()
        in_thread(self._serve_calls)

    @abstractmethod
    def sum_over_all(self, arrays: Sequence[Array | np.ndarray]) -> None:
        """Do as `all_reduce`, and wait as long as it takes."""

    @abstractmethod
    def exchange(self, text: str, ranks: Iterable[int]) -> list[str]:
        """Show the others a text; return what some of them show.

        It waits for none of them. `text`: at most `MAX_TEXT` bytes.
        """

    def leave(self) -> None:
        """Close the framework's connection, where it has one."""

    def connect(self, initialize: Callable[[], None]) -> None:
        """Wait for the others, and begin to show that this one is alive.

        `initialize`: sets `rank`, and waits for them as long as it takes.
        """
        try:
            self.submit(initialize).result(timeout=self.timeout)
        except Exception as error:
            text = ' '.join(str(error).split()) or 'time-out'
            raise GroupError(
                f'not all of the {self.size} ranks have come within '
                f'{self.timeout:g} seconds ({text:.300}): start as many, '
                'with the same address and port'
            ) from error
        self.heart = Heart(self)
        self.exchange('', [])
        in_thread(self.heart.beat)
        self.barrier()

    def all_reduce(self, arrays):
        self.call(self.sum_over_all, arrays)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function of the framework gives.

        Unlike the framework's own waiting, this can be interrupted.
        """
        future = self.submit(function, *arguments)
        while True:
            try:
                error = future.exception(timeout=self.heart.seconds)
            except TimeoutError:
                if reason := self.heart.reason():
                    raise GroupError(reason) from None
                continue
            if error is None:
                return future.result()
            raise GroupError(self.heart.find_reason(error)) from error

    def submit(
        self, function: Callable[..., Any], *arguments: Any
    ) -> Future[Any]:
        """Begin to call a function of the framework."""
        future: Future[Any] = Future()
        self.calls.put((future, function, arguments))
        return future

    def _serve_calls(self) -> None:
        while True:
            finish(*self.calls.get())

    def fail(self, error):
        text = ' '.join(str(error).split()) or type(error).__name__
        if not isinstance(error, GroupError):
            text = f'rank {self.rank} has failed: {text}'
        self.heart.failure = text[:500]
        self.heart.wait(2)

    def reason(self):
        self.heart.wait(2)
        return self.heart.reason()

    def close(self):
        self.call(self.leave)
        self.heart.stopped.set()


class Shown(NamedTuple):
    """What a process shows the others: a new number with each beat."""

    num_beats: int = 0
    failure: str = ''
    is_broken: bool = False


class Heart:
    """Shows that a process is alive, and notices which others are not.

    Rank 0 looks at all others, and they look at rank 0, which shows them
    what it has found: so a large group has few messages.
    """

    def __init__(self, group: Processes) -> None:
        self.group = group
        self.seconds = min(max(group.timeout / 60, 0.1), 5)  # of a beat
        self.num_beats = 0
        self.failure = ''
        self.is_broken = False
        self.stopped = threading.Event()
        self.ranks = [0] if group.rank else range(1, group.size)
        self.shown = {rank: Shown() for rank in self.ranks}
        self.last_read = time.monotonic()
        #: When each rank has last shown something new.
        self.times = dict.fromkeys(self.ranks, self.last_read)

    def beat(self) -> None:
        """Do so until the group is closed."""
        while not self.stopped.wait(self.seconds):
            with suppress(Exception):  # `reason` tells where it lasts
                self.exchange()
            if self.group.rank == 0:
                self.failure = self.failure or self.reason()

    def exchange(self) -> None:
        """Show the others that this process is alive, and look at them."""
        shows = Shown(self.num_beats, self.failure, self.is_broken)
        text = json.dumps(shows, ensure_ascii=False)
        texts = self.group.exchange(text, self.ranks)
        self.last_read = time.monotonic()
        for rank, text in zip(self.ranks, texts, strict=True):
            if text and Shown(*json.loads(text)) != self.shown[rank]:
                self.shown[rank] = Shown(*json.loads(text))
                self.times[rank] = self.last_read
        self.num_beats += 1

    def wait(self, num_beats: int) -> None:
        """Wait for some beats, but not for ever."""
        end = self.num_beats + num_beats
        for _ in range(4 * num_beats):
            if self.num_beats >= end or self.stopped.wait(self.seconds / 2):
                return

    def reason(self) -> str:
        """Return which process has failed and why, or nothing."""
        if self.group.rank == 0 and self.failure:
            return self.failure
        for shown in self.shown.values():
            if shown.failure:
                return shown.failure
        patience = PATIENCE * self.group.timeout
        if self.is_broken or any(
            shown.is_broken for shown in self.shown.values()
        ):
            patience = min(patience, 6 * self.seconds)
        now = time.monotonic()
        if now - self.last_read > patience:
            return GONE.format(self.group.keeper)
        for rank, last in self.times.items():
            if now - last > patience:
                return GONE.format(f'rank {rank}')
        return ''

    def find_reason(self, error: BaseException) -> str:
        """Return the reason of an error of the framework.

        A process that is gone closes its connections at once, and is named
        some beats later.
        """
        self.is_broken = True
        for _ in range(30):
            if reason := self.reason():
                return reason
            self.stopped.wait(self.seconds / 2)
        text = ' '.join(str(error).split())
        return (
            f'{self.group.framework} cannot sum over the {self.group.size} '
            f'ranks ({text:.300}): look for the first error of any rank'
        )


def in_thread(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Call a function in a thread that does not keep the process alive."""
    future: Future[Any] = Future()
    threading.Thread(
        target=finish, args=(future, function, arguments), daemon=True
    ).start()
    return future


def finish(
    future: Future[Any],
    function: Callable[..., Any],
    arguments: Sequence[Any],
) -> None:
    """Put what a function gives, or its error, into a future."""
    try:
        future.set_result(function(*arguments))
    except BaseException as error:
        future.set_exception(error)
