"""The programs that JAX compiles: kept, told to the user, and forgotten."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer

import jax

logger = logging.getLogger(__name__)

# A compilation that takes longer is told to the user, seconds
PATIENCE = 1.0
COMPILING = (
    'JAX compiles the training for %d rows of %d tokens: about %d seconds, '
    'and less the next time'
)
# Measured on two cores with the chapter's network
SECONDS_PER_ARRAY = 0.1
# No compilation takes longer, seconds
NEVER = 1e9
# Of all programs in the folder, bytes
MOST_BYTES = 1 << 30
MAPPINGS = Path('/proc/self/maps')
MOST_MAPPINGS = Path('/proc/sys/vm/max_map_count')


def keep_programs(folder: Path) -> None:
    """Let JAX keep what it has compiled in a folder, unless it has one.

    From a folder that cannot be written into, such as one for many users,
    programs are read.
    """
    if jax.config.jax_compilation_cache_dir is None:
        read_only = folder.is_dir() and not os.access(folder, os.W_OK)
        jax.config.update('jax_compilation_cache_dir', str(folder))
        # Where there is a limit, JAX locks the folder: without, a process
        # may read what another one is writing
        most = -1 if read_only else MOST_BYTES
        jax.config.update('jax_compilation_cache_max_size', most)
        # Of many small programs, too, a start is made
        least = NEVER if read_only else 0
        jax.config.update('jax_persistent_cache_min_compile_time_secs', least)
        with suppress(OSError):
            remove_unfinished(folder)


def remove_unfinished(folder: Path) -> None:
    """Remove programs without the time when they were used last.

    A process that was killed leaves them. Where there is one, JAX keeps no
    new programs.
    """
    for program in folder.glob('*-cache'):
        name = program.name.removesuffix('-cache')
        if not program.with_name(f'{name}-atime').exists():
            program.unlink()


def make_room() -> None:
    """Forget all programs where they fill half of what Linux allows.

    A program of a training has hundreds of memory mappings. Where the
    process may have no more of them, XLA ends it.
    """
    try:
        with open(MAPPINGS, 'rb') as mappings:
            used = sum(1 for _ in mappings)
        most = int(MOST_MAPPINGS.read_text())
    except OSError:  # not on Linux
        return
    if used > most // 2:
        jax.clear_caches()


@contextmanager
def told(shape: tuple[int, ...], num_arrays: int) -> Iterator[None]:
    """Say that a program is compiled within this context, if it takes long.

    `shape`: rows and tokens of the micro-batch; `num_arrays`: how many
    parameters the network has, to which the time is proportional.
    """
    seconds = max(1, round(SECONDS_PER_ARRAY * num_arrays))
    timer = Timer(PATIENCE, logger.warning, [COMPILING, *shape, seconds])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
