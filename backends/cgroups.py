"""The control groups of Linux that a process is in, as in a container."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT, OWN = Path('/sys/fs/cgroup'), Path('/proc/self/cgroup')


def folders(
    controller: str, root: Path = ROOT, own: Path = OWN
) -> Iterator[tuple[int, Path]]:
    """Yield the version and the folder of each group with a controller.

    `controller`: such as `'cpu'`; `root`: where control groups are mounted;
    `own`: lists the groups of the process. The folders that contain a group
    come after it, because their limits hold for it, too. A folder need not
    be there.
    """
    lines: list[str] = []
    with suppress(OSError, ValueError):
        lines = own.read_text().splitlines()
    for line in lines:
        _, _, rest = line.partition(':')
        controllers, colon, group = rest.partition(':')
        if not colon:
            continue
        if controllers == '':
            version, mount = 2, root
        elif controller in controllers.split(','):
            version, mount = 1, root / controller
        else:
            continue
        folder = mount / group.lstrip('/')
        # In a container the group's own folder may not be mounted
        for place in (folder, *folder.parents):
            if place.is_relative_to(mount):
                yield version, place
