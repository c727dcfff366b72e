"""Several processes in MXNet: workers, and a parameter server between them.

MXNet's launchers start the same command in every role, with variables
`DMLC_…`. The scheduler and the servers serve until the workers are done.
MXNet alone would do so inside of `import mxnet`, and its server would
unpickle what the network sends it. Here it is imported as by a worker, and
serves afterwards: a server takes numbers, and a text that ends it.
"""

from __future__ import annotations

import ctypes
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from typing import Any

import numpy as np

from backends import groups
from backends.groups import number_in

#: What MXNet numbers its processes by: servers are 8, 10, …
SCHEDULER, FIRST_SERVER, FIRST_WORKER = 1, 8, 9
#: The command of a worker that a server passes on to Python.
TO_PYTHON = 0


def join(timeout: float) -> groups.Group:
    """Join the workers, or serve. See `backends.groups.join`."""
    role = os.environ['DMLC_ROLE']
    if role not in ('worker', 'server', 'scheduler'):
        raise ValueError(
            f'the environment variable DMLC_ROLE is {role!r}: expected '
            "'worker', 'server' or 'scheduler'"
        )
    os.environ.setdefault('PS_HEARTBEAT_INTERVAL', '1')
    with imported_as_a_worker():
        from backends.mxnet_training import mx
    if role != 'worker':
        Server(mx, role, timeout).run()
        raise SystemExit
    group = MXNetGroup(mx, timeout)
    group.connect(group.initialize)
    return group


@contextmanager
def imported_as_a_worker() -> Iterator[None]:
    """Within this context the process has the role of a worker."""
    role = os.environ['DMLC_ROLE']
    os.environ['DMLC_ROLE'] = 'worker'
    try:
        yield
    finally:
        os.environ['DMLC_ROLE'] = role


class MXNetGroup(groups.Processes):
    """A worker of MXNet's parameter server.

    Without an optimizer the server sums what all workers push to a key. A
    key to which one worker alone pushes, as many times as there are workers,
    shows the others what that worker says.
    """

    keeper = 'the parameter server'

    def __init__(self, mx: Any, timeout: float) -> None:
        super().__init__(number_in('DMLC_NUM_WORKER'), timeout, 'mxnet')
        self.nd, self.create = mx.nd, mx.kv.create
        self.keys: set[str] = set()

    def initialize(self):
        self.store = self.create('dist_sync')
        self.rank = self.store.rank
        for rank in range(self.size):
            self.store.init(f'rank {rank}', self.text_array(''))

    def sum_over_all(self, arrays):
        sums = [
            self.nd.array(X, dtype=X.dtype)
            if isinstance(X, np.ndarray)
            else X.as_nd_ndarray()
            for X in arrays
        ]
        keys = [f'{i} {X.dtype} {X.shape}' for i, X in enumerate(sums)]
        for key, X in zip(keys, sums, strict=True):
            if key not in self.keys:
                self.store.init(key, X)
                self.keys.add(key)
        self.store.push(keys, sums)
        self.store.pull(keys, sums)
        for X, total in zip(arrays, sums, strict=True):
            total.wait_to_read()
            if isinstance(X, np.ndarray):
                X[...] = total.asnumpy()

    def exchange(self, text, ranks):
        shown = [self.text_array(text)]
        shown += [self.text_array('')] * (self.size - 1)
        for X in shown:
            self.store.push(f'rank {self.rank}', X)
        arrays = {rank: self.text_array('') for rank in ranks}
        for rank, X in arrays.items():
            self.store.pull(f'rank {rank}', X)
        return [
            bytes(X.asnumpy().astype(np.uint8)).rstrip(b'\0').decode()
            for X in arrays.values()
        ]

    def text_array(self, text: str) -> Any:
        """Return a text as numbers; 0 is not one of them."""
        data = np.zeros(groups.MAX_TEXT, np.float32)
        encoded = text.encode()
        data[: len(encoded)] = list(encoded)
        return self.nd.array(data)

    def fail(self, error):
        super().fail(error)
        send = self.store._send_command_to_servers
        sent = groups.in_thread(send, TO_PYTHON, self.heart.failure)
        wait([sent], 4 * self.heart.seconds)

    def leave(self):
        del self.store  # waits for the others


class Server:
    """The scheduler, or a server, until the workers are done or one fails."""

    def __init__(self, mx: Any, role: str, timeout: float) -> None:
        self.library, self.check = mx.base._LIB, mx.base.check_call
        self.store = mx.kv.create('dist')
        self.timeout = timeout
        self.failure = ''
        num_workers = number_in('DMLC_NUM_WORKER')
        num_servers = number_in('DMLC_NUM_SERVER')
        #: Who sends heartbeats here: the scheduler has them all.
        self.watched = {SCHEDULER: 'the scheduler'}
        if role == 'scheduler':
            self.watched = {
                FIRST_WORKER + 2 * i: f'rank {i}' for i in range(num_workers)
            } | {
                FIRST_SERVER + 2 * i: f'server {i}'
                for i in range(num_servers)
            }

    def run(self) -> None:
        """Serve. Raises `GroupError` where a process fails or is gone."""
        patience = groups.PATIENCE * self.timeout
        serving = groups.in_thread(self.serve)
        end, has_begun = time.monotonic() + self.timeout, False
        while not serving.done():
            wait([serving], self.timeout / 60)
            if self.failure:
                # The workers still read here why they end
                time.sleep(self.timeout / 10)
                raise groups.GroupError(self.failure)
            # With less than no patience all are silent, once they are known
            has_begun = has_begun or any(self.silent(-(10**6)))
            if not has_begun and time.monotonic() > end:
                raise groups.GroupError(
                    'not all processes of the parameter server have come '
                    f'within {self.timeout:g} seconds: start a scheduler and '
                    'as many servers and workers as DMLC_NUM_… say'
                )
            for name in self.silent(math.ceil(patience)):
                raise groups.GroupError(groups.GONE.format(name))
        serving.result()

    def serve(self) -> None:
        """Do what is asked for until the workers have left."""

        @ctypes.CFUNCTYPE(
            None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p
        )
        def obey(_: int, text: bytes, __: object) -> None:
            self.failure = text.decode(errors='replace')

        self.check(
            self.library.MXKVStoreRunServer(self.store.handle, obey, None)
        )

    def silent(self, seconds: int) -> Iterator[str]:
        """Yield the names of those that were silent for so long."""
        number = ctypes.c_int()
        for node, name in self.watched.items():
            status = self.library.MXKVStoreGetNumDeadNode(
                self.store.handle, node, ctypes.byref(number), seconds
            )
            # Before the start and after the end there is no such process
            if status == 0 and number.value:
                yield name
