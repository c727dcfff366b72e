"""Files that are whole or not there, and that tell when they were changed.

A manifest is JSON that ends with its own checksum and has the sizes and
checksums of the files that belong to it. It is written after them: what has
no manifest does not count.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2lbert.errors import InputError, RunError

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1
#: No manifest is larger: a run of a million steps has 50 MB.
MAX_MANIFEST = 1 << 28
#: What reading something damaged can raise.
DAMAGE = (OSError, ValueError, KeyError, TypeError)


# ---- files -----------------------------------------------------------


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, whatever happens meanwhile.

    It is written beside its place under the name `….part`, brought to the
    disk and then renamed.
    """
    part = path.with_name(f'{path.name}.part')
    try:
        with open(part, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring to the disk which files a folder has.

    Windows has no way to ask for that.
    """
    if os.name == 'nt':
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe_file(data: bytes) -> dict[str, Any]:
    """Return what a manifest says about a file."""
    return {'bytes': len(data), 'sha256': sha256(data)}


def read_file(path: Path, description: Mapping[str, Any]) -> bytes:
    """Read a file that a manifest describes.

    Raises `ValueError`, before reading where the size is wrong, for
    anything else than was written.
    """
    size = path.stat().st_size
    if size != description['bytes']:
        raise ValueError(
            f'{path.name} has {size} bytes instead of {description["bytes"]}'
        )
    data = path.read_bytes()
    if sha256(data) != description['sha256']:
        raise ValueError(f'{path.name} is not as it was written')
    return data


def load_arrays(data: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file.

    Raises `ValueError` for anything else, and allocates no more than
    `data` has.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(data)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def sha256(data: bytes) -> str:
    """Return the checksum of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


# ---- manifests -------------------------------------------------------


def to_manifest(content: Mapping[str, Any]) -> bytes:
    """Return the contents of a manifest."""
    content = {'format': FORMAT, **content}
    content['sha256'] = sha256(json.dumps(content).encode())
    return f'{json.dumps(content, indent=2)}\n'.encode()


def read_manifest(path: Path) -> dict[str, Any]:
    """Return what `to_manifest` was given.

    Raises `RunError` for a newer format and one of `DAMAGE` for anything
    that is not, byte for byte, as it was written.
    """
    if path.stat().st_size > MAX_MANIFEST:
        raise ValueError(f'{path.name} is too large for a manifest')
    data = path.read_bytes()
    try:
        content = json.loads(data)
    except RecursionError as error:
        raise ValueError(f'{path.name} is nested too deeply') from error
    if content['format'] != FORMAT:
        raise RunError(
            f'{path} has format {content["format"]!r}, this d2lbert reads '
            f'{FORMAT}: use the d2lbert that wrote it'
        )
    del content['format'], content['sha256']
    if to_manifest(content) != data:
        raise ValueError(f'{path.name} is not as it was written')
    return content


# ---- folders ---------------------------------------------------------


def make_folder(folder: str | Path) -> Path:
    """Make a folder if need be and see that it can be written.

    Raises `InputError` where it cannot.
    """
    folder = Path(folder)
    with folder_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Keep a folder for this process; its end, in any way, unlocks it.

    Raises `InputError` where another one has it, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(Path(folder) / '.lock')
    with folder_errors(folder):
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f'another training is using {folder}: wait for it, stop it, '
                'or give another --out'
            ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def folder_errors(folder: str | Path) -> Iterator[None]:
    """Turn an `OSError` into an `InputError` about a folder."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f'the folder {folder} cannot be written '
            f'({error.strerror or error}): give another --out'
        ) from error
