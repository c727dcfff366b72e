"""JAX's service of the ranks, in a process of its own.

`jax.distributed.initialize` would keep the service in rank 0. JAX ends each
process that loses the service, in its own words, and nothing can prevent
that: so the service must outlive rank 0, as the store of `torchrun` does.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from typing import Any

from jaxlib import _jax  # type: ignore[attr-defined]

#: What the service says when it listens, and rank 0 when all have left.
READY, DONE = b'ready\n', b'done\n'


class Service:
    """The service, as rank 0 starts and ends it.

    `address`: where the ranks find it; `size`: how many they are. The
    service stays for `timeout` seconds where this process has gone without
    `close`, so that the other ranks can read which one has.

    Raises `OSError` where it cannot begin to listen.
    """

    def __init__(self, address: str, size: int, timeout: float) -> None:
        arguments = f'{address!r}, {size}, {timeout}'
        self.process = subprocess.Popen(
            [
                sys.executable,
                '-c',
                f'import sys; sys.path[:] = {sys.path}; '
                f'from {__name__} import serve; serve({arguments})',
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the ranks alone
        )
        assert self.process.stdout
        line = self.process.stdout.readline()
        if line != READY:
            text = line.decode(errors='replace').strip()
            raise OSError(
                f'the service of the ranks cannot listen at {address}: {text}'
            )

    def close(self) -> None:
        """End the service, which no rank needs any longer."""
        self.process.communicate(DONE)


def serve(address: str, size: int, timeout: float) -> None:
    """Serve until rank 0 says so, or some time after it has gone."""
    port = address.rpartition(':')[2]
    try:
        # Named, because the service lives as long as its Python object
        service = _jax.get_distributed_runtime_service(
            os.environ.get('JAX_COORDINATOR_BIND_ADDRESS', f'[::]:{port}'),
            size,
            **heartbeats(timeout),
        )
    except Exception as error:
        print(' '.join(str(error).split()), flush=True)
        return
    print(READY.decode(), end='', flush=True)
    if sys.stdin.buffer.readline() != DONE:
        time.sleep(timeout)
    service.shutdown()


def connected(address: str, rank: int, timeout: float) -> Any:
    """Return JAX's client of the service, when all ranks have come."""
    client = _jax.get_distributed_runtime_client(
        address,
        rank,
        init_timeout=math.ceil(timeout),
        use_compression=True,
        **heartbeats(timeout),
    )
    client.connect()
    return client


def heartbeats(timeout: float) -> dict[str, int]:
    """Return after how long JAX itself gives up a rank, and ends all.

    That is later than d2lbert does, which says why.
    """
    seconds = math.ceil(2 * timeout)
    text = _jax.get_distributed_runtime_client.__doc__ or ''
    if 'heartbeat_timeout' in text:
        return {'heartbeat_timeout': seconds}
    # JAX 0.6
    return {'heartbeat_interval': 1, 'max_missing_heartbeats': seconds}
