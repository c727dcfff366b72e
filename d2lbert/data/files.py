"""Files that are whole or not there, and that show when they are damaged.

A sealed file holds its own checksum: the SHA-256 of all its other bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from d2lbert.errors import InputError, RunError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import numpy as np

#: The format of sealed files. A reader refuses every other one.
FORMAT = 2
#: Stands for a file's checksum until that is known.
NO_CHECKSUM = '0' * 64
#: The names of files that are being written: the digits are random.
UNFINISHED = f'.d2lbert-{"[0-9a-f]" * 16}.part'
#: Nobody takes as many seconds to write a file.
LONG_AGO = 3600
#: A file that is being written has a lock after as many seconds.
SOON = 10
#: How much of a file is read at a time, in bytes.
CHUNK = 1 << 20
#: Manifests have 5 levels at most.
MAX_DEPTH = 50
#: How a system says that there is no room for more.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: What reading a damaged file can raise.
DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
    MemoryError,
)


# ---- files -----------------------------------------------------------


def check_regular(path: str | Path, most: int | None = None) -> None:
    """Raise `OSError` unless a path is a regular file.

    Reading anything else, such as a pipe, may never end. `most`: the
    largest size that is accepted, in bytes.
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
    """Return the reason of an error, without a path."""
    return (
        getattr(error, 'strerror', None)
        or str(error)
        or re.sub('(?<=[a-z])(?=[A-Z])', ' ', type(error).__name__).lower()
    )


def write_file(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file that consists of some parts, whole or not at all.

    See `new_file`.
    """
    with new_file(path) as file:
        for data in parts:
            file.write(data)


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write, which gets its name at the end of the block.

    Until then it has a name that no other has; it is brought to the disk
    and then renamed: a killed process or a full disk leaves the old file as
    it was. A link is replaced and not followed.
    """
    part = path.with_name(f'.d2lbert-{os.urandom(8).hex()}.part')
    try:
        with open(part, 'x+b') as file:
            lock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def lock(file: IO[bytes]) -> bool:
    """Lock a file until it is closed, or until the process ends.

    Returns whether it is locked: some systems cannot do that.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def remove_unfinished(
    folder: Path, min_age: float = LONG_AGO, names: str = UNFINISHED
) -> None:
    """Remove what killed processes have left of `new_file`.

    `min_age`: in seconds; 0 where nobody else writes into the folder. A
    file whose writer no longer locks it is removed `SOON`. `names`: a
    pattern of other names that killed processes leave.
    """
    for part in folder.glob(names):
        with suppress(FileNotFoundError):  # another process removes it, too
            age = time.time() - os.lstat(part).st_mtime
            if age >= min_age or (age >= SOON and is_abandoned(part)):
                part.unlink()


def is_abandoned(part: Path) -> bool:
    """Return whether no process is writing an unfinished file."""
    try:
        check_regular(part)
        with open(part, 'rb') as file:
            return lock(file)
    except OSError:
        return False


def check_new_file(path: Path, option: str, force: bool) -> None:
    """Raise `InputError` where a file may not be written.

    `option`: which names the path; `force`: whether to replace a file.
    """
    if not os.path.lexists(path):
        return
    if not force:
        raise InputError(
            f'{path} exists already: give another {option}, or --force to '
            'replace it'
        )
    if not os.path.isfile(path):
        raise InputError(f'{path} is not a file: give another {option}')


def sync_folder(folder: Path) -> None:
    """Bring the list of a folder's files to the disk.

    Windows has no call for that.
    """
    if os.name == 'nt':
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def output_errors(path: str | Path, option: str) -> Iterator[None]:
    """Turn an `OSError` into an `InputError` about the path of an option.

    A full disk becomes a `RunError`.
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


# ---- checksums -------------------------------------------------------


def sha256(*parts: bytes | memoryview) -> str:
    """Return the SHA-256 of all parts together, in hexadecimal."""
    return sha256_of(parts)


def sha256_of(parts: Iterable[bytes | memoryview]) -> str:
    """Return the SHA-256 of parts that come one by one."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def chunks(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the rest of a file, a part at a time."""
    return iter(partial(file.read, CHUNK), b'')


def seal(data: bytes, *rest: memoryview) -> list[bytes | memoryview]:
    """Return a file's parts, with its checksum instead of `NO_CHECKSUM`.

    `data`: the beginning of the file, which has `NO_CHECKSUM` in it; `rest`:
    what follows.
    """
    before, after = without(data, NO_CHECKSUM)
    return [before, sha256(before, after, *rest).encode(), after, *rest]


def check_seal(data: bytes, checksum: object) -> None:
    """Raise `ValueError` where a sealed file is not as it was written.

    `data`: the whole file; `checksum`: the one that it holds.
    """
    if sha256(*without(data, checksum)) != checksum:
        raise ValueError('it is not as it was written')


def without(data: bytes, checksum: object) -> tuple[memoryview, memoryview]:
    """Return the bytes before and after the first quoted `checksum`.

    Where there is none, other bytes are left out, and the checksum of the
    rest does not match.
    """
    start = data.find(f'"{checksum}"'.encode()) + 1
    view = memoryview(data)
    return view[:start], view[start + len(NO_CHECKSUM) :]


def parse_manifest(path: Path, text: str | bytes) -> dict[str, Any]:
    """Return the content of a file's manifest, which is JSON.

    Raises one of `DAMAGE` for other text, `RunError` for another format.
    """
    content = json.loads(text)
    if not isinstance(content, dict) or 'format' not in content:
        raise ValueError('it has no manifest')
    check_depth(content)
    found = content.pop('format')
    if found != FORMAT:
        raise RunError(
            f'{path} has format {found!r}, this d2lbert reads {FORMAT}: use '
            'the d2lbert that wrote it'
        )
    return content


def check_depth(content: object) -> None:
    """Raise `ValueError` where JSON has more levels than `MAX_DEPTH`.

    What is read at some depth of the stack may not be written at another.
    """
    level = [content]
    for _ in range(MAX_DEPTH):
        inner = (value for value in level if isinstance(value, (dict, list)))
        level = [
            value
            for values in inner
            for value in (
                values.values() if isinstance(values, dict) else values
            )
        ]
    if level:
        raise ValueError(f'it has more than {MAX_DEPTH} levels')


# ---- arrays ----------------------------------------------------------


def load_arrays(data: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file.

    Raises `ValueError` for anything else, `InputError` for types that NumPy
    does not have, and allocates no more bytes than `data` has.
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


def safetensors_header(
    layout: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    metadata: Mapping[str, str],
) -> tuple[bytes, dict[str, int]]:
    """Return how a safetensors file begins, and where each array starts.

    `layout`: the type, of integers or floats, and the shape of each array;
    `metadata`: texts. The starts are counted from the end of the header, in
    the order of the file.
    """
    about: dict[str, Any] = {'__metadata__': dict(metadata)}
    starts, end = {}, 0
    # The widest numbers first, so that each array is aligned
    for name in sorted(layout, key=lambda name: -layout[name][0].itemsize):
        dtype, shape = layout[name]
        starts[name] = end
        end += dtype.itemsize * math.prod(shape)
        about[name] = {
            'dtype': f'{dtype.kind.upper()}{8 * dtype.itemsize}',
            'shape': shape,
            'data_offsets': [starts[name], end],
        }
    header = json.dumps(about).encode()
    header += b' ' * (-len(header) % 8)
    return len(header).to_bytes(8, 'little') + header, starts


def to_safetensors(
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> tuple[bytes, list[memoryview]]:
    """Return the header of a safetensors file of arrays, and their bytes.

    The package safetensors copies all bytes twice; a large network has no
    memory for that. `metadata`: texts for the header.
    """
    header, starts = safetensors_header(
        {name: (A.dtype, A.shape) for name, A in arrays.items()},
        metadata or {},
    )
    parts = []
    for name in starts:
        dtype = arrays[name].dtype.newbyteorder('<')
        little = arrays[name].astype(dtype, 'C', copy=False)
        parts.append(memoryview(little.reshape(-1).view('u1').data))
    return header, parts


def write_arrays(
    path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> None:
    """Write arrays and a JSON object as one sealed safetensors file.

    The header's metadata hold the object as `manifest` and the checksum as
    `sha256`.
    """
    metadata = {
        'manifest': json.dumps({'format': FORMAT, **about}),
        'sha256': NO_CHECKSUM,
    }
    header, parts = to_safetensors(arrays, metadata)
    write_file(path, *seal(header, *parts))


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return what `write_arrays` was given.

    Raises `RunError` for another format and one of `DAMAGE` for a file that
    is not, byte for byte, as it was written. The header is checked before
    the arrays are read, so that a false size allocates nothing.
    """
    about, checksum = read_header(path)
    data = path.read_bytes()
    check_seal(data, checksum)
    return load_arrays(data), about


def read_header(path: Path) -> tuple[dict[str, Any], str]:
    """Return the object that `write_arrays` was given, and the checksum.

    Raises the errors of `read_arrays`. The checksum is not checked.
    """
    from safetensors import SafetensorError, safe_open

    check_regular(path)
    path.open('rb').close()  # the error of `safe_open` has no number
    try:
        with safe_open(path, 'numpy') as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    about = parse_manifest(path, metadata.get('manifest', 'null'))
    return about, metadata['sha256']
