"""Convert weights between this package, the textbook and other programs.

    d2lbert convert runs/torch --to mxnet-params --out net.params
    d2lbert convert net.params --to run --like runs/torch --out runs/mine

It reads the folder of a run, a safetensors file, a file of Gluon's
`save_parameters`, or a state dict of PyTorch before 1.6, with the names of
any tab of the textbook. It writes safetensors and Gluon's format, PyTorch's
state dict, and safetensors with the paths of a Flax state. MXNet's files are
written here without MXNet.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save as to_safetensors

import backends
from backends.flax_names import path_of, turned
from backends.parameters import check_parameters
from d2lbert.data.files import (
    check_new_file,
    check_regular,
    describe_error,
    output_errors,
    write_file,
)
from d2lbert.data.weight_files import (
    ARRAY_MAGICS,
    CPU,
    DENSE,
    LIST_MAGIC,
    MAX_WEIGHTS,
    MXNET_TYPES,
    Weights,
    reader_of,
)
from d2lbert.errors import InputError, RunError, check_choice, input_errors
from d2lbert.frameworks import FRAMEWORKS, load_tab
from d2lbert.runs.run import Run, load_run
from d2lbert.runs.trained import versions
from d2lbert.weights import (
    get_weights,
    mxnet_name,
    neutral,
    neutral_shapes,
    set_weights,
)

#: The sizes of a tiny network; none is 1 or 2, as some axes always are.
TINY = {'vocab_size': 3, 'num_hiddens': 4, 'ffn_num_hiddens': 5, 'max_len': 6}


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
    return replace(
        like,
        devices=[],
        steps=[],
        record=record,
        evaluations=[],
        best_weights={},
    )


# ---- names and shapes ------------------------------------------------


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
