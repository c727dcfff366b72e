"""The inputs that the textbook and we are given; needs NumPy only.

Everything is drawn from NumPy's `RandomState`, which never changes, so both
sides and every NumPy have the same numbers and no input needs a file.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FRAMEWORKS = ('torch', 'mxnet')

# ---- text ------------------------------------------------------------

#: What a corpus may have in the place of a space.
GRAINS = {
    'plain': (),
    'lines that end in a full stop': (' . \n', '. \n', ' .\n'),
    'carriage returns': ('\r', '\r\n', ' . \r\n', ' \r . '),
    'Unicode spaces': ('\x85', '\u2028', ' . \u2029', '\xa0', '\x1c', '\x0c'),
    'Unicode letters': (' \u0130stanbul ', ' Stra\u00dfe ', ' \u4f60 . '),
    'reserved tokens': (
        ' <unk> ', ' <MASK> ', ' <mask> ', ' <cls> ', ' <sep> ', ' <pad> ',
    ),
    'empty sentences': (' .  . ', ' . . ', ' .  .  . '),
    'spaces in a row': ('  ', '\t', ' \x0b ', '   .   '),
    'headings': ('\n = Part = \n', '\n = = A . b = = \n', '\n\n', '\n \n'),
}  # fmt: skip
#: Lengths and seeds for each corpus.
LENGTHS_AND_SEEDS = ((64, 0), (33, 1), (7, 2), (128, 123456789012345))
#: Of what corpora that make no sense consist.
PIECES = (
    *(' . ',) * 4, *(' ',) * 4, '\n', '\r', ' . \n', '\n\n', 'a', 'b', 'A',
    '.', '. ', ' .', '<cls>', '<sep>', '<unk>', '<mask>', '<pad>', '\x85',
    '\u2028', '\xa0', '\u0130', '\t', ' = ',
)  # fmt: skip
NUM_NONSENSE = {'torch': 400, 'mxnet': 50}
#: Where the corpus is in the folder of a comparison.
WIKITEXT = 'wikitext-2'
#: Lengths and seeds for it. The textbook's MXNet takes a minute for each.
WIKITEXT_CASES = {
    'torch': tuple(product((64, 128, 33), range(3))),
    'mxnet': ((64, 0),),
}


def corpus(name: str) -> str:
    """Return a text by its name in `GRAINS`."""
    rng = np.random.RandomState(len(name))
    lines = (
        ' . '.join(words(rng) for _ in range(rng.randint(1, 9))) + ' .\n'
        for _ in range(60)
    )
    pieces = []
    for word in ''.join(lines).split(' '):
        grain = GRAINS[name] and rng.randint(30) == 0
        space = GRAINS[name][rng.randint(len(GRAINS[name]))] if grain else ' '
        pieces += [word, space]
    return ''.join(pieces)


def words(rng: np.random.RandomState) -> str:
    """Return a sentence of invented words, some of which are rare."""
    indices = (rng.uniform(size=rng.randint(1, 14)) ** 2 * 100).astype(int)
    return ' '.join(f'W{index}' for index in indices)


def nonsense(seed: int) -> tuple[str, int]:
    """Return a text that makes no sense, and a length for its examples."""
    rng = np.random.RandomState(seed)
    size = rng.randint(5, 400)
    text = ''.join(PIECES[i] for i in rng.randint(len(PIECES), size=size))
    return text, int(rng.randint(5, 100))


def write_corpus(folder: Path, text: str) -> str:
    """Write a text where the textbook's `_read_wiki` looks for it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'wiki.train.tokens'
    path.write_bytes(text.encode('utf-8'))
    return str(folder)


#: The files of SNLI that the book reads, by whether they are for training.
SNLI_FILES = {True: 'snli_1.0_train.txt', False: 'snli_1.0_test.txt'}
#: Tokens of a sentence.
SNLI_STEPS = 9


def write_snli(folder: Path) -> str:
    """Write made-up pairs where the textbook's `read_snli` looks."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = ('entailment', 'contradiction', 'neutral', '-')
    for is_train, name in SNLI_FILES.items():
        rng = np.random.RandomState(is_train)
        rows = ['\t'.join(map(str, range(14)))]
        for _ in range(300):
            trees = [
                f'( ( {words(rng)} )  ( -LRB-  {words(rng)}\xa0x ) )'
                for _ in range(2)
            ]
            label = labels[rng.randint(4)]
            rows.append('\t'.join([label, *trees, *trees, *['x'] * 9]))
        (folder / name).write_text('\n'.join(rows) + '\n', encoding='utf-8')
    return str(folder)


def fingerprint(arrays: Sequence[Any], vocab: Any) -> dict[str, Any]:
    """Return what tells one set of examples from another: sizes and hashes.

    `arrays`: the seven arrays of all examples. The state of Python's
    `random` belongs to it: call this right after making the examples.
    """
    state = random.getstate()
    return {
        'examples': len(arrays[0]),
        'vocabulary': len(vocab),
        **{
            name: sha(np.asarray(array).astype(kind).tobytes())
            for (name, kind), array in zip(ARRAYS, arrays, strict=True)
        },
        'idx_to_token': sha(json.dumps(vocab.idx_to_token).encode()),
        'token_freqs': sha(json.dumps(vocab.token_freqs).encode()),
        'random': sha(repr(state).encode()),
    }


#: The arrays of a batch. The frameworks differ in the width of integers.
ARRAYS = (
    ('tokens', '<i8'),
    ('segments', '<i8'),
    ('valid_lens', '<f4'),
    ('pred_positions', '<i8'),
    ('mlm_weights', '<f4'),
    ('mlm_labels', '<i8'),
    ('nsp_labels', '<i8'),
)


#: The textbook's MXNet makes a float of whether the second sentence follows.
#: Ours is an integer, as in the PyTorch tab.
FLOAT_THERE = {'mxnet': 'nsp_labels'}


def sha(data: bytes) -> str:
    """Return the beginning of a SHA-256: enough to notice a difference."""
    return hashlib.sha256(data).hexdigest()[:16]


# ---- networks --------------------------------------------------------


class Sizes(NamedTuple):
    """The arguments of `BERTModel`, less dropout."""

    vocab_size: int
    num_hiddens: int
    ffn_num_hiddens: int
    num_heads: int
    num_blks: int
    max_len: int


NETWORKS = {
    'odd': Sizes(37, 12, 20, 3, 3, 19),
    'flat': Sizes(23, 10, 7, 5, 1, 11),
    'chapter': Sizes(20256, 128, 256, 2, 2, 1000),
}


class Parameter(NamedTuple):
    """A parameter's name in either tab, and its shape."""

    torch: str
    mxnet: str
    shape: tuple[int, ...]


def parameters(sizes: Sizes) -> Iterator[Parameter]:
    """Yield the parameters of the textbook's networks.

    Written out here, so that a wrong name on our side cannot hide.
    """
    vocab_size, hiddens, ffn_hiddens, _, num_blks, max_len = sizes

    def table(name: str, *shape: int) -> Iterator[Parameter]:
        yield Parameter(name, name, shape)

    def linear(
        torch: str, mxnet: str, outputs: int, inputs: int
    ) -> Iterator[Parameter]:
        yield Parameter(
            f'{torch}.weight', f'{mxnet}.weight', (outputs, inputs)
        )
        yield Parameter(f'{torch}.bias', f'{mxnet}.bias', (outputs,))

    def norm(torch: str, mxnet: str) -> Iterator[Parameter]:
        yield Parameter(f'{torch}.weight', f'{mxnet}.gamma', (hiddens,))
        yield Parameter(f'{torch}.bias', f'{mxnet}.beta', (hiddens,))

    yield from table('encoder.token_embedding.weight', vocab_size, hiddens)
    yield from table('encoder.segment_embedding.weight', 2, hiddens)
    yield from table('encoder.pos_embedding', 1, max_len, hiddens)
    for i in range(num_blks):
        blk = f'encoder.blks.{i}.'
        for name in ('W_q', 'W_k', 'W_v', 'W_o'):
            name = f'{blk}attention.{name}'
            yield from linear(name, name, hiddens, hiddens)
        for name, outputs, inputs in (
            ('dense1', ffn_hiddens, hiddens),
            ('dense2', hiddens, ffn_hiddens),
        ):
            name = f'{blk}ffn.{name}'
            yield from linear(name, name, outputs, inputs)
        for name in ('addnorm1.ln', 'addnorm2.ln'):
            yield from norm(blk + name, blk + name)
    yield from linear('hidden.0', 'hidden', hiddens, hiddens)
    yield from linear('mlm.mlp.0', 'mlm.mlp.0', hiddens, hiddens)
    yield from norm('mlm.mlp.2', 'mlm.mlp.1')
    yield from linear('mlm.mlp.3', 'mlm.mlp.2', vocab_size, hiddens)
    yield from linear('nsp.output', 'nsp.output', 2, hiddens)


def weights(name: str, framework: str) -> dict[str, np.ndarray]:
    """Draw a network's parameters, by the names of a tab: alike in both."""
    rng = np.random.RandomState(0)
    return {
        getattr(parameter, framework): draw(parameter, rng)
        for parameter in parameters(NETWORKS[name])
    }


def draw(parameter: Parameter, rng: np.random.RandomState) -> np.ndarray:
    """Draw matrices as Xavier does, and vectors near 0, or 1 for scales."""
    shape = parameter.shape
    bound = 0.1 if len(shape) == 1 else (6 / sum(shape[-2:])) ** 0.5
    is_scale = parameter.mxnet.endswith('gamma')
    return (is_scale + rng.uniform(-bound, bound, shape)).astype(np.float32)


def drawn(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Draw arrays near 0 of these shapes, in the order of their names."""
    rng = np.random.RandomState(0)
    return {
        name: rng.uniform(-0.3, 0.3, shapes[name]).astype(np.float32)
        for name in sorted(shapes)
    }


# ---- batches ---------------------------------------------------------


def batch(name: str, num_rows: int, seed: int) -> list[np.ndarray]:
    """Draw seven arrays for a network, padding included."""
    rng = np.random.RandomState(seed)
    vocab_size = NETWORKS[name].vocab_size
    num_tokens, num_slots = min(NETWORKS[name].max_len, 64), 4
    lens = rng.randint(3, num_tokens + 1, num_rows)
    lens[0] = num_tokens
    real_tokens = np.arange(num_tokens) < lens[:, None]
    num_real = rng.randint(1, num_slots + 1, num_rows)
    real_slots = np.arange(num_slots) < num_real[:, None]
    tokens = rng.randint(vocab_size, size=real_tokens.shape)
    segments = rng.randint(2, size=real_tokens.shape)
    positions = rng.randint(10**6, size=real_slots.shape) % lens[:, None]
    labels = rng.randint(vocab_size, size=real_slots.shape)
    return [
        (tokens * real_tokens).astype(np.int32),
        (segments * real_tokens).astype(np.int32),
        lens.astype(np.float32),
        (positions * real_slots).astype(np.int32),
        real_slots.astype(np.float32),
        (labels * real_slots).astype(np.int32),
        rng.randint(2, size=num_rows).astype(np.int32),
    ]


def batches(name: str) -> list[list[np.ndarray]]:
    """Draw five epochs of three batches and a smaller one."""
    sizes = (8, 8, 8, 5)
    return [batch(name, size, seed) for seed, size in enumerate(sizes)] * 5


def read_slices(path: Path) -> list[list[np.ndarray]]:
    """Read seven arrays of examples and cut the chapter's batches."""
    with np.load(path) as file:
        examples = [file[name] for name in file.files]
    starts = range(0, len(examples[0]), BATCH_SIZE)
    return [
        [array[start : start + BATCH_SIZE] for array in examples]
        for start in starts
    ]


#: Of WikiText-2, 5 batches of the chapter's size are trained on.
BATCH_SIZE, NUM_WIKITEXT_STEPS = 512, 5


class Training(NamedTuple):
    """A way to train: what the chapter's cells do, and what we call it."""

    name: str
    recipe: str
    devices: str


TRAININGS = {
    'torch': (
        Training('CrossEntropyLoss()', 'pytorch', 'cpu'),
        Training("reduction='none'", 'corrected', 'cpu'),
    ),
    'mxnet': (
        Training('1 device', 'mxnet', 'cpu'),
        Training('2 devices', 'mxnet', 'cpu:2'),
    ),
}
LEARNING_RATE = 0.01
