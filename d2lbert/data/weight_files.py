"""Read the arrays of a file of weights, whoever has written it.

It is safetensors, MXNet's binary list of arrays, the archive of MXNet 2, or
what PyTorch wrote before 1.6 (`d2lbert.data.torch_files`). No pickle is ever
opened, because it can run any code. MXNet's files are read without MXNet,
which does not notice damage.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from d2lbert.data.files import load_arrays
from d2lbert.data.torch_files import LEGACY_START, NO_PICKLE, read_legacy
from d2lbert.errors import InputError

Weights = dict[str, np.ndarray]

#: No file of weights is larger, in bytes: BERT-Large has 1.4 GB.
MAX_WEIGHTS = 8 << 30

# MXNet's binary list: `NDArray::Save` and `MXNDArraySave` of MXNet 1.9.1
LIST_MAGIC = 0x112
#: For legacy shapes and NumPy's; they differ where a size is 0 or unknown.
ARRAY_MAGICS = (0xF993FAC9, 0xF993FACA)
DENSE, CPU = 0, (1, 0)
MXNET_TYPES = ('<f4', '<f8')


def reader_of(data: bytes) -> Callable[[bytes], Mapping[str, np.ndarray]]:
    """Return the function that reads a file, by its first bytes.

    Raises `InputError` for a pickle and for anything unknown.
    """
    if data.startswith(struct.pack('<Q', LIST_MAGIC)):
        return read_mxnet
    if data.startswith(LEGACY_START):
        return read_legacy
    if data[8:9] == b'{':
        return load_arrays
    is_zip = data.startswith(b'PK\x03\x04')
    if data.startswith(b'\x80') or (is_zip and b'.pkl' in data[:4096]):
        raise InputError(NO_PICKLE)
    if is_zip:
        return read_npz
    raise InputError(
        'this is no file of weights: expected safetensors, or what '
        "Gluon's save_parameters writes"
    )


def read_npz(data: bytes) -> Weights:
    """Read what MXNet 2's `save_parameters` writes, a NumPy archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if any(
            info.compress_type != zipfile.ZIP_STORED
            for info in archive.infolist()
        ):
            raise ValueError('it is compressed, as MXNet never does')
    with np.load(io.BytesIO(data), allow_pickle=False) as archived:  # noqa: TID251
        # Other files in it become arrays of bytes, which are no weights
        return {name: np.asarray(W) for name, W in archived.items()}


def read_mxnet(data: bytes) -> Weights:
    """Read MXNet's binary list of named arrays.

    `reader_of` has checked its first number. Raises `ValueError` for
    anything that is not as MXNet writes it.
    """
    file = io.BytesIO(data)
    _magic, reserved, num_arrays = _unpack(file, '<QQQ')
    if reserved:
        raise ValueError(f'its second number is {reserved} instead of 0')
    arrays = [_read_array(file) for _ in range(num_arrays)]
    (num_names,) = _unpack(file, '<Q')
    names = [
        _take(file, *_unpack(file, '<Q')).decode() for _ in range(num_names)
    ]
    if rest := file.read():
        raise ValueError(f'{len(rest)} bytes too many at its end')
    if len(names) != len(arrays) or len(set(names)) != len(names):
        raise ValueError(f'{len(names)} names for {len(arrays)} arrays')
    return dict(zip(names, arrays, strict=True))


def _read_array(file: io.BytesIO) -> np.ndarray:
    magic, storage, num_axes = _unpack(file, '<Iii')
    if magic not in ARRAY_MAGICS or storage != DENSE:
        raise ValueError(f'an array begins with {magic:#x}, {storage}')
    if not 0 <= num_axes <= 32:
        raise ValueError(f'an array has {num_axes} axes')
    shape = _unpack(file, f'<{num_axes}q')
    _device, _number, kind = _unpack(file, '<iii')
    if min(shape, default=0) < 0 or not 0 <= kind < len(MXNET_TYPES):
        raise ValueError(f'an array has shape {shape} and type {kind}')
    dtype = np.dtype(MXNET_TYPES[kind])
    values = _take(file, math.prod(shape) * dtype.itemsize)
    return np.frombuffer(values, dtype).reshape(shape).copy()


def _take(file: io.BytesIO, size: int) -> bytes:
    """Return the next `size` bytes; `file` holds at most `MAX_WEIGHTS`."""
    data = file.read(min(size, MAX_WEIGHTS))
    if len(data) < size:
        raise ValueError(f'it ends {size - len(data)} bytes too early')
    return data


def _unpack(file: io.BytesIO, form: str) -> tuple[Any, ...]:
    """Return the next numbers, by a format of `struct`."""
    return struct.unpack(form, _take(file, struct.calcsize(form)))
