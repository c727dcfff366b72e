"""How many cores of the processor this process may use."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

from backends import cgroups


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


#: The files of a control group by its version: see the kernel's documents
#: `cgroup-v2` (microseconds in each period, and the period) and `sched-bwc`.
QUOTA_FILES = {
    1: ('cpu.cfs_quota_us', 'cpu.cfs_period_us'),
    2: ('cpu.max',),
}


def cpu_quota(root: Path = cgroups.ROOT, own: Path = cgroups.OWN) -> float:
    """Return how many cores' time Linux gives this process's control groups.

    The arguments are those of `cgroups.folders`. Returns infinity where
    there is no limit.
    """
    quotas = [
        quota_of([folder / name for name in QUOTA_FILES[version]])
        for version, folder in cgroups.folders('cpu', root, own)
    ]
    return min(quotas, default=math.inf)


def quota_of(files: list[Path]) -> float:
    """Return the quota in some files, in cores; infinity for none."""
    with suppress(OSError, ValueError):
        quota, period = ' '.join(file.read_text() for file in files).split()
        if float(quota) > 0:
            return float(quota) / float(period)
    return math.inf
