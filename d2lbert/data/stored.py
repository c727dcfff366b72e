"""Examples in a file, which may be larger than the memory.

It is a sealed safetensors file. It is written a block at a time, each array
in the smallest type of integer, and read through a memory map.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from d2lbert.data.examples import Batch, num_slots
from d2lbert.data.files import (
    FORMAT,
    NO_CHECKSUM,
    chunks,
    new_file,
    read_header,
    safetensors_header,
    sha256_of,
    without,
)
from d2lbert.data.vocab import Vocab
from d2lbert.data.wordpiece import vocab_of

#: How safetensors names the types of NumPy.
DTYPES = {
    'U8': np.uint8,
    'U16': np.uint16,
    'U32': np.uint32,
    'U64': np.uint64,
}
#: The types of a `Batch`.
TYPES = {
    name: empty.dtype for name, empty in Batch.empty(0, 0)._asdict().items()
}
#: Arrays of so many bytes are copied into memory.
SMALL = 1 << 24
#: Arrays by name: type and shape.
Layout = dict[str, tuple[np.dtype, tuple[int, ...]]]


class StoredExamples:
    """The examples in a file, `num_examples` of them.

    Large arrays are in a memory map: see `d2lbert.data.examples.Examples`.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.num_examples = len(arrays['valid_lens'])
        #: Without those in a memory map, which the system can drop.
        self.nbytes = sum(
            array.nbytes
            for array in arrays.values()
            if not isinstance(array, np.memmap)
        )

    def rows(self, index: Any) -> Batch:
        """Return some of the examples, in memory."""
        return Batch(*(self.column(name, index) for name in TYPES))

    def column(self, name: str, index: Any) -> np.ndarray:
        """Return one array of some of the examples, in memory."""
        return np.array(self.arrays[name][index], TYPES[name])


class StoredVocab(Vocab):
    """A vocabulary whose words are counted in a file.

    `load_freqs`: reads the counts; most callers never need them.
    """

    def __init__(
        self,
        vocab: Vocab,
        load_freqs: Callable[[], list[tuple[str, int]]],
    ) -> None:
        self._set_tokens(vocab.idx_to_token)
        self._load_freqs = load_freqs

    @cached_property
    def token_freqs(self) -> list[tuple[str, int]]:  # type: ignore[override]
        """How often each word occurs, the most frequent one first."""
        return self._load_freqs()


def layout_of(num_examples: int, max_len: int, vocab_size: int) -> Layout:
    """Return the arrays of some examples."""
    token = np.min_scalar_type(vocab_size)
    place = np.min_scalar_type(max_len)
    rows, slots = (num_examples, max_len), (num_examples, num_slots(max_len))
    flag = np.dtype(np.uint8)
    return {
        'tokens': (token, rows),
        'mlm_labels': (token, slots),
        'pred_positions': (place, slots),
        'valid_lens': (place, (num_examples,)),
        'segments': (flag, rows),
        'mlm_weights': (flag, slots),
        'nsp_labels': (flag, (num_examples,)),
    }


def num_bytes(layout: Layout) -> int:
    """Return how many bytes the arrays take."""
    return sum(
        dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        for dtype, shape in layout.values()
    )


def write_examples(
    path: Path, num_examples: int, max_len: int, vocab: Vocab,
    blocks: Iterable[Batch],
) -> None:  # fmt: skip
    """Write examples that come in blocks, and their vocabulary.

    All numbers are whole and not negative.
    """
    others = vocab_arrays(vocab)
    layout = layout_of(num_examples, max_len, len(vocab)) | {
        name: (array.dtype, array.shape) for name, array in others.items()
    }
    manifest = json.dumps({'format': FORMAT, 'key': path.stem})
    header, starts = safetensors_header(
        layout, {'manifest': manifest, 'sha256': NO_CHECKSUM}
    )
    with new_file(path) as file:
        file.write(header)
        row = 0
        for block in blocks:
            for name, array in block._asdict().items():
                dtype, shape = layout[name]
                row_bytes = num_bytes({name: (dtype, shape[1:])})
                file.seek(len(header) + starts[name] + row * row_bytes)
                file.write(array.astype(dtype).data)
            row += block.num_examples
        for name, array in others.items():
            file.seek(len(header) + starts[name])
            file.write(array.data)
        file.seek(len(header))
        before, after = without(header, NO_CHECKSUM)
        checksum = sha256_of(parts_of(before, after, file))
        file.seek(len(before))
        file.write(checksum.encode())


def read_examples(path: Path) -> tuple[StoredExamples, Vocab]:
    """Return the examples that `write_examples` was given.

    Raises `RunError` or one of `DAMAGE` for any other file, and for one
    that is not, byte for byte, as it was written.
    """
    about, checksum = read_header(path)
    if about['key'] != path.stem:
        raise ValueError(f'{path.name} has the examples of another text')
    with open(path, 'rb') as file:
        size = file.read(8)
        text = file.read(int.from_bytes(size, 'little'))
        before, after = without(size + text, checksum)
        if sha256_of(parts_of(before, after, file)) != checksum:
            raise ValueError('it is not as it was written')
        header = json.loads(text)
        header.pop('__metadata__')
        arrays = {
            name: map_array(file, 8 + len(text), **about)
            for name, about in header.items()
        }
    return StoredExamples(arrays), read_vocab(arrays)


def map_array(
    file: IO[bytes],
    start: int,
    dtype: str,
    shape: list[int],
    data_offsets: list[int],
) -> np.ndarray:
    """Return an array of a safetensors file, in a memory map if large.

    `start`: where the arrays begin.
    """
    if 0 in shape:  # nothing cannot be mapped
        return np.empty(shape, DTYPES[dtype])
    array = np.memmap(
        file, DTYPES[dtype], 'r', start + data_offsets[0], tuple(shape)
    )
    # Whoever cuts a file short ends each process that reads its map
    return array if array.nbytes > SMALL else np.array(array)


def parts_of(
    before: memoryview, after: memoryview, file: IO[bytes]
) -> Iterator[bytes | memoryview]:
    """Yield a file without its checksum, whose header is read already."""
    yield before
    yield after
    yield from chunks(file)


# ---- vocabulary ------------------------------------------------------


def vocab_arrays(vocab: Vocab) -> dict[str, np.ndarray]:
    """Return a vocabulary as arrays; no token has a space in it."""
    words, counts = [], []
    for word, number in vocab.token_freqs:
        words.append(word)
        counts.append(number)
    return {
        'counts': np.array(counts, np.uint64),
        'words': to_array(' '.join(words)),
        'vocabulary': to_array(' '.join(vocab.idx_to_token)),
        'tokenizer': to_array(vocab.tokenizer_json()),
    }


def read_vocab(arrays: Mapping[str, np.ndarray]) -> Vocab:
    """Return the vocabulary that `vocab_arrays` was given."""
    tokens = to_text(arrays['vocabulary']).split(' ')
    tokenizer = to_text(arrays['tokenizer'])
    if tokenizer:
        return vocab_of(tokens, tokenizer)

    def load_freqs() -> list[tuple[str, int]]:
        words = to_text(arrays['words']).split(' ')
        return list(zip(words, arrays['counts'].tolist(), strict=True))

    return StoredVocab(Vocab.from_tokens(tokens), load_freqs)


def to_array(text: str) -> np.ndarray:
    """Return the UTF-8 of a text as an array."""
    return np.frombuffer(text.encode(), np.uint8)


def to_text(array: np.ndarray) -> str:
    """Return the text that `to_array` was given."""
    return array.tobytes().decode()
