"""Convert weights between this package, the textbook and other programs.

    d2lbert convert runs/torch --to mxnet-params --out net.params
    d2lbert convert net.params --to run --like runs/torch --out runs/mine

It reads the folder of a run, a safetensors file, or a file of Gluon's
`save_parameters`, with the names of any tab of the textbook. It writes
these, PyTorch's state dict, and safetensors with the paths of a Flax state.

Nothing is ever unpickled, because a pickle can run any code. MXNet's files
are read and written here without MXNet, which does not notice damage.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as to_safetensors

import backends
from backends.flax_names import is_turned, name_of, path_of, turned
from backends.parameters import check_parameters
from d2lbert.data.files import (
    check_new_file,
    check_regular,
    describe_error,
    load_arrays,
    output_errors,
    write_file,
)
from d2lbert.errors import InputError, RunError, check_choice, input_errors
from d2lbert.frameworks import FRAMEWORKS, load_tab
from d2lbert.runs.run import Run, load_run, versions
from d2lbert.weights import (
    MXNET_NAMES,
    get_weights,
    mxnet_name,
    neutral_shapes,
    renamed,
    set_weights,
)

Weights = dict[str, np.ndarray]

#: What `nn.DataParallel` puts in front of each name.
PARALLEL = 'module.'
NO_PICKLE = (
    'this is a pickle, which may run any code when it is opened, so it is '
    'never opened here. If you trust it, load it where it was made and write '
    "safetensors.torch.save_file(net.state_dict(), 'net.safetensors')"
)

#: No file of weights is larger, in bytes: BERT-Large has 1.4 GB.
MAX_WEIGHTS = 8 << 30
#: The sizes of a tiny network; none is 1 or 2, as some axes always are.
TINY = {'vocab_size': 3, 'num_hiddens': 4, 'ffn_num_hiddens': 5, 'max_len': 6}

# MXNet's binary list: `NDArray::Save` and `MXNDArraySave` of MXNet 1.9.1
LIST_MAGIC = 0x112
#: For legacy shapes and NumPy's; they differ where a size is 0 or unknown.
ARRAY_MAGICS = (0xF993FAC9, 0xF993FACA)
DENSE, CPU = 0, (1, 0)
MXNET_TYPES = ('<f4', '<f8')


def convert(
    source: str | Path,
    to: str,
    out: str | Path,
    like: str | Path | None = None,
    force: bool = False,
) -> Weights:
    """Write the weights in `source` to `out`, and return them.

    `source`: a run's folder or a file of weights; `to`: a key of `WRITERS`
    or `'run'`; `out`: the path to write, which must not exist; `like`: for
    `'run'`, the folder of a run with the same configuration and vocabulary;
    `force`: whether to replace a file, but never a run.

    Raises `InputError` for an argument that cannot be used, with every name
    and shape that is wrong, and `RunError` for a damaged file. Nothing is
    written then.
    """
    check_choice('format', to, (*WRITERS, 'run'))
    if (to == 'run') != (like is not None):
        raise InputError(
            "--like RUN and --to run belong together: a run's vocabulary "
            'and sizes must come from another one'
        )
    out = Path(out)
    if to != 'run':
        check_new_file(out, '--out', force)
    weights = read_weights(source)
    if like is not None:
        like_run(like, weights, Path(source).name).save(out)
        return weights
    data = WRITERS[to](weights)
    check_new_file(out, '--out', force)  # again: it has taken some time
    with output_errors(out, '--out'):
        write_file(out, data)
    return weights


def read_weights(source: str | Path) -> Weights:
    """Return the parameters of a BERT by neutral names.

    `source`, and the errors: see `convert`.
    """
    if os.path.isdir(source):
        return get_weights(load_run(source, any_backend()).net)
    try:
        check_regular(source, MAX_WEIGHTS)
        data = Path(source).read_bytes()
        weights = neutral(reader_of(data)(data))
        with input_errors():
            check_weights(weights)
    except InputError as error:
        raise InputError(f'the weights in {source}: {error}') from error
    except OSError as error:
        raise InputError(
            f'{source} cannot be read ({describe_error(error)}): give the '
            'folder of a run, or a file of weights'
        ) from error
    except (ValueError, KeyError, MemoryError, zipfile.BadZipFile) as error:
        raise RunError(
            f'the weights in {source} cannot be read ({error}): copy the '
            'file again from where it came'
        ) from error
    return weights


def like_run(folder: str | Path, weights: Weights, source: str) -> Run:
    """Return a run with the options of another one and given weights.

    `source`: the name of the file or folder that they were in. The run has
    no steps, because they were trained elsewhere.
    """
    like = load_run(folder)
    with np.errstate(over='ignore'):  # `check_numbers` finds infinities
        single = {name: W.astype(np.float32) for name, W in weights.items()}
    with input_errors():
        check_numbers(single)
        set_weights(like.net, single)
    results = {'weights_from': source, 'steps': 0, 'history': []}
    record = {'results': results, 'versions': versions(like.config.backend)}
    return replace(like, devices=[], steps=[], record=record)


# ---- names and shapes ------------------------------------------------


def neutral(arrays: Mapping[str, np.ndarray]) -> Weights:
    """Return arrays by neutral names, from the names of any tab."""
    if arrays and all(name.startswith(PARALLEL) for name in arrays):
        arrays = {name[len(PARALLEL) :]: W for name, W in arrays.items()}
    if any(name.endswith('.gamma') for name in arrays):
        return {renamed(name, MXNET_NAMES): W for name, W in arrays.items()}
    paths = {name: name.split('.') for name in arrays}
    if any(map(is_turned, paths.values())):
        return {
            name_of(paths[name]): turned(paths[name], W)
            for name, W in arrays.items()
        }
    return dict(arrays)


def check_weights(weights: Weights) -> None:
    """Raise `ValueError` unless these are all the weights of a BERT."""
    check_numbers(weights)
    check_parameters(expected_shapes(weights), weights)


def check_numbers(weights: Weights) -> None:
    """Raise `ValueError` unless there are numbers, all real and finite."""
    faults = []
    for name, W in weights.items():
        if W.dtype not in (np.float32, np.float64):
            faults.append(
                f'{name} has type {W.dtype} instead of float32 or float64'
            )
        elif not W.size:
            faults.append(f'{name} has shape {W.shape}, without numbers')
        elif not np.isfinite(W).all():
            faults.append(f'{name} holds numbers that are not finite')
    if faults:
        raise ValueError('; '.join(faults))


def expected_shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the BERT whose sizes are those of `weights`.

    A tiny network shows which size each axis has. One of the full sizes
    could fill the memory, because a few small arrays can ask for it.
    """
    full = dict(zip(TINY.values(), sizes_of(weights), strict=True))
    blocks = {
        name.split('.')[2]
        for name in weights
        if name.startswith('encoder.blks.')
    }
    net = load_tab(any_backend()).BERTModel(
        **TINY, num_heads=1, num_blks=len(blocks)
    )
    return {
        name: tuple(full.get(size, size) for size in shape)
        for name, shape in neutral_shapes(net).items()
    }


def sizes_of(weights: Weights) -> tuple[int, ...]:
    """Return the sizes of a network, in the order of `TINY`."""
    shapes = {name: W.shape for name, W in weights.items()}
    try:
        vocab_size, num_hiddens = shapes['encoder.token_embedding.weight']
        _, max_len, _ = shapes['encoder.pos_embedding']
        ffn_num_hiddens, _ = shapes['encoder.blks.0.ffn.dense1.weight']
    except (KeyError, ValueError) as error:
        found = ', '.join(f'{name} {shapes[name]}' for name in sorted(shapes))
        raise ValueError(
            'every BERT of the chapter has encoder.token_embedding.weight '
            'with 2 axes, encoder.pos_embedding with 3 and '
            'encoder.blks.0.ffn.dense1.weight with 2; there is '
            + (found or 'nothing')
        ) from error
    return vocab_size, num_hiddens, ffn_num_hiddens, max_len


def any_backend() -> str:
    """Return the name of a backend, an installed one if there is any."""
    return [*FRAMEWORKS, *backends.installed()][-1]


# ---- reading ---------------------------------------------------------


def reader_of(data: bytes) -> Callable[[bytes], Mapping[str, np.ndarray]]:
    """Return the function that reads a file, by its first bytes.

    Raises `InputError` for a pickle and for anything unknown.
    """
    if data.startswith(struct.pack('<Q', LIST_MAGIC)):
        return read_mxnet
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


# ---- writing ---------------------------------------------------------


def to_torch(weights: Weights) -> bytes:
    """Return the bytes of a file for `torch.load`, a state dict."""
    load_tab('torch')
    import torch

    file = io.BytesIO()
    torch.save({name: torch.tensor(W) for name, W in weights.items()}, file)
    return file.getvalue()


def to_mxnet(weights: Weights) -> bytes:
    """Return the bytes of a file for Gluon's `load_parameters`."""
    parts = [struct.pack('<QQQ', LIST_MAGIC, 0, len(weights))]
    for W in weights.values():
        kind = MXNET_TYPES.index(W.dtype.newbyteorder('<').str)
        parts += (
            struct.pack('<Iii', ARRAY_MAGICS[-1], DENSE, W.ndim),
            struct.pack(f'<{W.ndim}q', *W.shape),
            struct.pack('<iii', *CPU, kind),
            W.astype(MXNET_TYPES[kind]).tobytes(),
        )
    parts.append(struct.pack('<Q', len(weights)))
    for name in map(str.encode, map(mxnet_name, weights)):
        parts += struct.pack('<Q', len(name)), name
    return b''.join(parts)


def to_flax(weights: Weights) -> bytes:
    """Return the bytes of a safetensors file with the paths of Flax."""
    arrays = {}
    for name, W in weights.items():
        path = path_of(name, W.ndim)
        arrays['.'.join(path)] = np.ascontiguousarray(turned(path, W))
    return to_safetensors(arrays)


WRITERS: dict[str, Callable[[Weights], bytes]] = {
    'torch-state-dict': to_torch,
    'mxnet-params': to_mxnet,
    'safetensors': to_safetensors,
    'flax-state': to_flax,
}
