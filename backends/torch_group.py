"""Several processes in PyTorch, as `torchrun` starts them.

The sums go over gloo between processors and over NCCL between cards. The
store that `torchrun` keeps is where a process shows that it is alive.
"""

from __future__ import annotations

import os
from datetime import timedelta

import numpy as np

# Its errors are told in one line; this takes effect before the import
os.environ.setdefault('TORCH_CPP_LOG_LEVEL', 'FATAL')

import torch
import torch.distributed as dist

from backends import groups
from backends.groups import number_in

#: How long gloo and NCCL wait for a process. `groups.Heart` gives it up
#: before, when it no longer shows that it is alive.
FOR_EVER = timedelta(days=1000)


def join(timeout: float) -> groups.Group:
    """Join the processes of `torchrun`. See `backends.groups.join`."""
    size = number_in('WORLD_SIZE')
    if size == 1:
        return groups.ALONE
    group = TorchGroup(size, timeout, 'torch')
    group.rank = number_in('RANK')
    group.local_rank = number_in('LOCAL_RANK', 0)
    group.local_size = number_in('LOCAL_WORLD_SIZE', 1)
    group.is_restarting = number_in('TORCHELASTIC_MAX_RESTARTS', 0) > 0
    group.keeper = 'rank 0, which keeps the store of the ranks,'
    if os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True':
        group.keeper = 'torchrun on the machine of rank 0'
    group.connect(group.initialize)
    return group


class TorchGroup(groups.Processes):
    """One of several processes of PyTorch."""

    def initialize(self) -> None:
        seconds = timedelta(seconds=self.timeout)
        store, _, _ = next(dist.rendezvous('env://', timeout=seconds))
        # torchrun keeps the store when it starts the processes again
        restart = number_in('TORCHELASTIC_RESTART_COUNT', 0)
        self.store = dist.PrefixStore(f'd2lbert/{restart}', store)
        dist.init_process_group(
            'cpu:gloo,cuda:nccl' if torch.cuda.is_available() else 'gloo',
            store=dist.PrefixStore('sums', self.store),
            rank=self.rank,
            world_size=self.size,
            timeout=FOR_EVER,
        )

    def sum_over_all(self, arrays):
        for X in arrays:
            dist.all_reduce(
                torch.from_numpy(X) if isinstance(X, np.ndarray) else X
            )

    def exchange(self, text, ranks):
        self.store.set(str(self.rank), text)
        return [self.store.get(str(rank)).decode() for rank in ranks]

    def leave(self):
        dist.destroy_process_group()
