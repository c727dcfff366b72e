"""How many cores of the processor this process may use."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path


def num_cores() -> int:
    """Return how many threads should compute at a time.

    That is the number in `OMP_NUM_THREADS`, where it is one, but not more
    than there are cores.
    """
    # For threads within threads there can be more numbers after a comma
    wanted = os.environ.get('OMP_NUM_THREADS', '').partition(',')[0].strip()
    cores = available_cores()
    if wanted.isascii() and wanted.isdecimal() and int(wanted[:9]):
        return min(int(wanted[:9]), cores)
    return cores


def available_cores() -> int:
    """Return how many cores affinity and a container's quota allow."""
    if hasattr(os, 'sched_getaffinity'):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, cpu_quota())))


def cpu_quota(
    root: Path = Path('/sys/fs/cgroup'), own: Path = Path('/proc/self/cgroup')
) -> float:
    """Return how many cores' time Linux gives this process's control groups.

    `root`: where control groups are mounted; `own`: lists the groups of the
    process. Returns infinity where there is no limit. The files are those of
    the kernel's documents `cgroup-v2` (`cpu.max`: microseconds in each
    period, and the period) and `sched-bwc` (version 1: two files).
    """
    quotas = [math.inf]
    with suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, controllers, group = line.split(':', 2)
            if controllers == '':
                mount, names = root, ['cpu.max']
            elif 'cpu' in controllers.split(','):
                mount = root / 'cpu'
                names = ['cpu.cfs_quota_us', 'cpu.cfs_period_us']
            else:
                continue
            folder = mount / group.lstrip('/')
            # In a container the group's own folder may not be mounted
            for place in (folder, *folder.parents):
                if place.is_relative_to(mount):
                    quotas.append(quota_of([place / name for name in names]))
    return min(quotas)


def quota_of(files: list[Path]) -> float:
    """Return the quota in some files, in cores; infinity for none."""
    with suppress(OSError, ValueError):
        quota, period = ' '.join(file.read_text() for file in files).split()
        if float(quota) > 0:
            return float(quota) / float(period)
    return math.inf
