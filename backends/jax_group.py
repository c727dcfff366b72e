"""Several processes in JAX, which its own variables name.

`jax.distributed` joins them. The sums go over gloo between processors and
over NCCL between cards. JAX's service of the ranks, which rank 0 starts, is
where a process shows that it is alive.
"""

from __future__ import annotations

import os

import jax
import numpy as np

# The service's keys have no public name yet
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

from backends import groups
from backends.groups import number_in
from backends.jax_arrays import enable_x64
from backends.jax_service import Service, connected


def join(timeout: float) -> groups.Group:
    """Join the processes of one address. See `backends.groups.join`."""
    size = number_in('JAX_NUM_PROCESSES')
    if size == 1:
        return groups.ALONE
    group = JaxGroup(size, timeout, 'jax')
    group.rank = number_in('JAX_PROCESS_ID')
    group.keeper = 'the service of the ranks on the machine of rank 0'
    group.connect(group.initialize)
    return group


class JaxGroup(groups.Processes):
    """One of several processes of JAX."""

    def initialize(self) -> None:
        jax.config.update('jax_cpu_collectives_implementation', 'gloo')
        address = os.environ['JAX_COORDINATOR_ADDRESS']
        if self.rank == 0:
            self.kept = Service(address, self.size, self.timeout)
        self.service = connected(address, self.rank, self.timeout)
        # As `jax.distributed.initialize` does, but for its service
        global_state.coordinator_address = address
        global_state.num_processes = self.size
        global_state.process_id = self.rank
        global_state.client = self.service

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

    def leave(self):
        jax.distributed.shutdown()
        if self.rank == 0:
            self.kept.close()
