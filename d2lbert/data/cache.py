"""Keep pretraining examples in the cache and read them from there.

The same text, length and seed make the same examples. Each set of examples
is a sealed safetensors file in the cache's folder `examples`. Its name and
its manifest have the checksum of all that decides the examples.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from d2lbert import __version__
from d2lbert.data.corpus import cache_folder
from d2lbert.data.examples import MIN_FREQ, Batch, load_examples
from d2lbert.data.files import (
    DAMAGE,
    read_arrays,
    read_header,
    remove_unfinished,
    sha256,
    write_arrays,
)
from d2lbert.data.vocab import RESERVED_TOKENS, Vocab
from d2lbert.errors import RunError

#: To be raised when other examples are made of a text, or kept otherwise.
FORMAT = 2
#: How many files are kept, the newest: of WikiText-2 each has 11 MB.
NUM_KEPT = 8
#: The names of the files.
FILE_NAMES = '[0-9a-f]' * 64 + '.safetensors'


def load_cached_examples(
    lines: Sequence[str], max_len: int, seed: int
) -> tuple[Batch, Vocab]:
    """Return `load_examples(lines, max_len, random.Random(seed))`.

    The examples are read from the cache, or made and written to it. Errors
    of reading or writing the cache are ignored.
    """
    key = key_of(lines, max_len, seed)
    path = cache_folder() / 'examples' / f'{key}.safetensors'
    with suppress(*DAMAGE, RunError):  # a `RunError` for another format
        return read_examples(path)
    examples, vocab = load_examples(lines, max_len, random.Random(seed))
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_examples(path, examples, vocab)
        remove_old(path.parent)
    return examples, vocab


def key_of(lines: Sequence[str], max_len: int, seed: int) -> str:
    """Return the SHA-256 of all that decides the examples.

    Python's version belongs to it, because it decides which characters are
    spaces and lower-case letters.
    """
    python = sys.version_info[:2]
    lengths = [len(line) for line in lines]
    about = FORMAT, __version__, python, max_len, seed, lengths
    return sha256(repr(about).encode(), ''.join(lines).encode())


def write_examples(path: Path, examples: Batch, vocab: Vocab) -> None:
    """Write examples, each array in the smallest type of integer.

    All numbers are whole and not negative.
    """
    arrays = {
        name: array.astype(np.min_scalar_type(int(array.max())))
        for name, array in examples._asdict().items()
    }
    words, counts = zip(*vocab.token_freqs, strict=True)
    # One string, because JSON reads many slowly; no word has a space in it
    about = {'key': path.stem, 'words': ' '.join(words), 'counts': counts}
    write_arrays(path, arrays, about)


def read_examples(path: Path) -> tuple[Batch, Vocab]:
    """Return the examples that `write_examples` was given.

    Raises `RunError` or one of `DAMAGE` for any other file.
    """
    arrays, about = read_arrays(path)
    if about['key'] != path.stem:
        raise ValueError(f'{path.name} has the examples of another text')
    words = about['words'].split(' ')
    counts = dict(zip(words, about['counts'], strict=True))
    vocab = Vocab(counts, MIN_FREQ, RESERVED_TOKENS)
    typed = (
        arrays[name].astype(empty.dtype)
        for name, empty in Batch.empty(0, 0)._asdict().items()
    )
    return Batch(*typed), vocab


def remove_old(folder: Path) -> None:
    """Remove all files of this module but the newest; keep other files."""
    ours = filter(is_ours, folder.glob(FILE_NAMES))
    for path in sorted(ours, key=os.path.getmtime)[:-NUM_KEPT]:
        path.unlink(missing_ok=True)
    remove_unfinished(folder)


def is_ours(path: Path) -> bool:
    """Return whether `write_examples` has written a file under this name.

    Only its manifest is read.
    """
    try:
        about, _ = read_header(path)
        return about['key'] == path.stem
    except (*DAMAGE, RunError):
        return False
