"""Writing files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, whatever happens meanwhile.

    It is written beside its place under the name `….part`, brought to the
    disk and then renamed.
    """
    part = path.with_name(f'{path.name}.part')
    try:
        with part.open('wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
