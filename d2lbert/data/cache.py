"""Examples that are made once and read back afterwards.

The same text, length and seed make the same examples. They are kept in the
cache's folder `examples`, each set in a safetensors file of its own whose
name says what they are of. A file is believed only if its checksum is right.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from d2lbert import __version__
from d2lbert.data.corpus import cache_folder
from d2lbert.data.examples import MIN_FREQ, Batch, load_examples
from d2lbert.data.files import DAMAGE, load_arrays, write_file
from d2lbert.data.vocab import RESERVED_TOKENS, Vocab

#: To be raised when other examples are made of a text, or kept otherwise.
FORMAT = 1
#: How many files are kept, the newest: of WikiText-2 each has 11 MB.
NUM_KEPT = 8
WORDS, COUNTS, CHECKSUM = 'words', 'counts', 'sha256'


def load_cached_examples(
    lines: Sequence[str], max_len: int, seed: int
) -> tuple[Batch, Vocab]:
    """Return `load_examples(lines, max_len, random.Random(seed))`.

    It is read from the cache, or made and put there for the next time. A
    cache that cannot be read or written is done without.
    """
    key = key_of(lines, max_len, seed)
    path = cache_folder() / 'examples' / f'{key}.safetensors'
    with suppress(*DAMAGE):
        return from_arrays(load_arrays(path.read_bytes()), key, max_len)
    examples, vocab = load_examples(lines, max_len, random.Random(seed))
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(path, to_arrays(examples, vocab, key))
        remove_old(path.parent)
    return examples, vocab


def key_of(lines: Sequence[str], max_len: int, seed: int) -> str:
    """Return the checksum of all that decides the examples.

    Python is among it because it says what is a space or a lower-case
    letter.
    """
    python = sys.version_info[:2]
    digest = hashlib.sha256(
        repr((FORMAT, __version__, python, max_len, seed)).encode()
    )
    for line in lines:
        digest.update(f'{len(line)} {line}'.encode())
    return digest.hexdigest()


def to_arrays(
    examples: Batch, vocab: Vocab, key: str
) -> dict[str, np.ndarray]:
    """Return what is kept: whole numbers, in no more bytes than they need."""
    words, counts = zip(*vocab.token_freqs, strict=True)
    text = '\n'.join(words).encode()  # no word has a space in it
    arrays = {
        **examples._asdict(),
        WORDS: np.frombuffer(text, np.uint8),
        COUNTS: np.array(counts),
    }
    arrays = {
        name: array.astype(np.min_scalar_type(int(array.max())))
        for name, array in arrays.items()
    }
    return {**arrays, CHECKSUM: checksum(arrays, key)}


def from_arrays(
    arrays: dict[str, np.ndarray], key: str, max_len: int
) -> tuple[Batch, Vocab]:
    """Return what `to_arrays` was given.

    Raises one of `DAMAGE` for arrays that it has not made.
    """
    if arrays.pop(CHECKSUM).tobytes() != checksum(arrays, key).tobytes():
        raise ValueError('not as it was written')
    words = arrays.pop(WORDS).tobytes().decode().split('\n')
    counts = arrays.pop(COUNTS).tolist()
    dtypes = [array.dtype for array in Batch.empty(0, max_len)]
    return (
        Batch(
            *(
                arrays[name].astype(dtype)
                for name, dtype in zip(Batch._fields, dtypes, strict=True)
            )
        ),
        Vocab.from_counts(
            dict(zip(words, counts, strict=True)), MIN_FREQ, RESERVED_TOKENS
        ),
    )


def checksum(arrays: Mapping[str, np.ndarray], key: str) -> np.ndarray:
    """Return the SHA-256 of what is kept under a key, `(32,)` uint8."""
    digest = hashlib.sha256(key.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f'{name} {array.dtype} {array.shape}'.encode())
        digest.update(array.data)
    return np.frombuffer(digest.digest(), np.uint8)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a safetensors file, whole or not at all."""
    from safetensors.numpy import save

    write_file(path, save(arrays))


def remove_old(folder: Path) -> None:
    """Remove all files but the newest, what was never finished included."""
    oldest_first = sorted(
        folder.iterdir(), key=lambda path: path.stat().st_mtime
    )
    for path in oldest_first[:-NUM_KEPT]:
        path.unlink(missing_ok=True)
