"""Files that are whole or not there, and that tell when they were changed.

A manifest is JSON that ends with its own checksum and has the sizes and
checksums of the files that belong to it. It is written after them: what has
no manifest does not count.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2lbert.errors import InputError, RunError

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1
LOCK = '.lock'
#: No manifest is larger: a run of a million steps has 50 MB.
MAX_MANIFEST = 1 << 28
#: How a system says that there is no room for more.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: What reading something damaged can raise.
DAMAGE = (OSError, ValueError, KeyError, TypeError)


# ---- files -----------------------------------------------------------


def check_regular(path: str | Path, most: int | None = None) -> None:
    """Raise `OSError` for what is no file that can be read to its end.

    Opening anything else, a pipe say, could wait or go on for ever. `most`:
    of how many bytes it may be.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, 'not a regular file', str(path))
    if most is not None and found.st_size > most:
        raise OSError(
            errno.EFBIG,
            f'it has {found.st_size:,} bytes, more than {most:,}',
            str(path),
        )


def describe_error(error: BaseException) -> str:
    """Return what is wrong, without the path that the message has anyway."""
    return (
        getattr(error, 'strerror', None)
        or str(error)
        or re.sub('(?<=[a-z])(?=[A-Z])', ' ', type(error).__name__).lower()
    )


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

    Raises `ValueError` for anything else, `InputError` for types that NumPy
    has not, and allocates no more than `data` has.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(data)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    except KeyError as error:
        raise InputError(
            f'it has numbers of type {error.args[0]}, which NumPy has not: '
            'write float32 where they were made'
        ) from error


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
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path.name} is no JSON') from error
    if not isinstance(content, dict) or 'format' not in content:
        raise ValueError(f'{path.name} is no manifest')
    if content['format'] != FORMAT:
        raise RunError(
            f'{path} has format {content["format"]!r}, this d2lbert reads '
            f'{FORMAT}: use the d2lbert that wrote it'
        )
    del content['format']
    content.pop('sha256', None)
    if to_manifest(content) != data:
        raise ValueError(f'{path.name} is not as it was written')
    return content


# ---- folders ---------------------------------------------------------


def make_folder(folder: str | Path) -> Path:
    """Make a folder if need be and see that it can be written.

    Raises `InputError` where it cannot, `RunError` where the disk is full.
    """
    folder = Path(folder)
    with output_errors(f'the folder {folder}', '--out'):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Keep a folder for this process; its end, in any way, unlocks it.

    It is made if need be, and goes again where an error leaves it empty.
    Raises what `make_folder` does, and `InputError` where another process
    has it.
    """
    from filelock import FileLock, Timeout

    is_new = not os.path.exists(folder)
    path = make_folder(folder) / LOCK
    lock = FileLock(path)
    with output_errors(f'the folder {folder}', '--out'):
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f'another process is using {folder}: wait for it, stop it, '
                'or give another --out'
            ) from error
    try:
        yield
    except BaseException:
        with suppress(OSError):  # the folder may be gone
            if is_new and os.listdir(folder) == [LOCK]:
                path.unlink()
                path.parent.rmdir()
        raise
    finally:
        lock.release()


@contextmanager
def output_errors(path: str | Path, option: str) -> Iterator[None]:
    """Turn an `OSError` into what it means for the path of an option.

    That is an `InputError`; for a full disk it is a `RunError`.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in NO_ROOM
        raise (RunError if full else InputError)(
            f'{path} cannot be written ({describe_error(error)}): '
            + ('make room, or ' * full)
            + f'give another {option}'
        ) from error
