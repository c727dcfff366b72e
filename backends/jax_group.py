"""Several processes in JAX, which its own variables name.

`jax.distributed` joins them. The sums go over gloo between processors and
over NCCL between cards. The service that rank 0 keeps for all is where a
process shows that it is alive.
"""

from __future__ import annotations

import math
import os

import jax
import numpy as np

# The service's keys have no public name yet
from jax._src.distributed import global_state
from jax.experimental import enable_x64, multihost_utils

from backends import groups
from backends.groups import number_in


def join(timeout: float) -> groups.Group:
    """Join the processes of one address. See `backends.groups.join`."""
    size = number_in('JAX_NUM_PROCESSES')
    if size == 1:
        return groups.ALONE
    group = JaxGroup(size, timeout, 'jax')
    group.rank = number_in('JAX_PROCESS_ID')
    group.keeper = 'rank 0, which keeps the service of the ranks,'
    group.connect(group.initialize)
    return group


class JaxGroup(groups.Processes):
    """One of several processes of JAX."""

    def initialize(self) -> None:
        jax.config.update('jax_cpu_collectives_implementation', 'gloo')
        jax.distributed.initialize(
            os.environ['JAX_COORDINATOR_ADDRESS'],
            self.size,
            self.rank,
            initialization_timeout=math.ceil(self.timeout),
        )
        self.service = global_state.client

    def sum_over_all(self, arrays):
        for X in arrays:
            with enable_x64(X.dtype == np.float64):
                # In the order of the ranks, so that all have the same bits
                X[...] = multihost_utils.process_allgather(X).sum(0)

    def exchange(self, text, ranks):
        self.service.key_value_set(
            f'd2lbert/{self.rank}', text, allow_overwrite=True
        )
        return [self.read(rank) for rank in ranks]

    def read(self, rank: int) -> str:
        """Return what a process shows, which may be nothing yet."""
        try:
            return self.service.key_value_try_get(f'd2lbert/{rank}')
        except jax.errors.JaxRuntimeError as error:
            if 'NOT_FOUND' in str(error):
                return ''
            raise

    def fail(self, error):
        super().fail(error)
        if self.rank == 0:
            # JAX ends all processes when the service is gone: they shall
            # have read why by then
            self.heart.wait(8)

    def leave(self):
        jax.distributed.shutdown()
