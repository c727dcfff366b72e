"""The book's pretrained networks, in either of its formats.

An archive holds `vocab.json`, the tokens in the order of their indices, and
`pretrained.params`, the parameters of a whole `BERTModel`: for the MXNet tab
as Gluon writes them, for the PyTorch tab as PyTorch wrote them before 1.6.
Any framework reads both, and nothing is unpickled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from d2lbert.data.archives import read_member
from d2lbert.data.corpus import cache_folder
from d2lbert.data.downloads import MAX_BYTES, fetch_file
from d2lbert.data.files import check_regular, describe_error
from d2lbert.data.vocab import UNKNOWN, Vocab
from d2lbert.data.weight_files import reader_of
from d2lbert.errors import InputError, RunError
from d2lbert.weights import neutral

DATA_URL = 'http://d2l-data.s3-accelerate.amazonaws.com/'
#: Address and SHA-1 of each archive. The book calls those of both tabs
#: `bert.small` and `bert.base`.
ARCHIVES = {
    name: (f'{DATA_URL}{name}.zip', sha1)
    for name, sha1 in {
        'bert.base': '7b3820b35da691042e5d34c0971ac3edbd80d3f4',
        'bert.small': 'a4e718a47137ccd1809c9107ab4f5edd317bae2c',
        'bert.base.torch': '225d66f04cae318b841a13d32af3acc165f253ac',
        'bert.small.torch': 'c72329e68a732bef0452e4b96a1c341c8910f81f',
    }.items()
}
#: The arguments of `BERTModel` that the arrays do not tell.
NUM_HEADS = {256: 4, 768: 12}
VOCAB, PARAMETERS = 'vocab.json', 'pretrained.params'
MAX_VOCAB_BYTES = 1 << 26


class Pretrained(NamedTuple):
    """A network that was trained elsewhere, by neutral names."""

    weights: dict[str, np.ndarray]
    vocab: Vocab

    def sizes(self) -> dict[str, int]:
        """Return the arguments of `BERTModel`, less dropout.

        Raises `RunError` where the arrays are not those of the book.
        """
        try:
            tokens = self.weights['encoder.token_embedding.weight']
            positions = self.weights['encoder.pos_embedding']
            ffn = self.weights['encoder.blks.0.ffn.dense1.weight']
            vocab_size, num_hiddens = tokens.shape
            num_heads = NUM_HEADS[num_hiddens]
        except (KeyError, ValueError) as error:
            raise RunError(
                'the pretrained weights are not those of bert.small or '
                'bert.base: give another archive'
            ) from error
        blocks = {
            name.split('.')[2]
            for name in self.weights
            if name.startswith('encoder.blks.')
        }
        return {
            'vocab_size': vocab_size,
            'num_hiddens': num_hiddens,
            'ffn_num_hiddens': len(ffn),
            'num_heads': num_heads,
            'num_blks': len(blocks),
            'max_len': positions.shape[1],
        }


def fetch_pretrained(name: str) -> Path:
    """Return the path of an archive of `ARCHIVES`, fetched if need be."""
    return fetch_file(*ARCHIVES[name], cache_folder())


def read_pretrained(path: str | Path) -> Pretrained:
    """Return the network in an archive.

    Raises `InputError` for a path that cannot be read, `CorpusError` for a
    damaged archive, and `RunError` for one that holds something else.
    """
    try:
        check_regular(path, MAX_BYTES)
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f'{path} cannot be read ({describe_error(error)}): give an '
            f'archive with {VOCAB} and {PARAMETERS}'
        ) from error
    try:
        tokens = json.loads(
            read_member(data, str(path), VOCAB, MAX_VOCAB_BYTES)
        )
        params = read_member(data, str(path), PARAMETERS, MAX_BYTES)
        weights = neutral(reader_of(params)(params))
        return Pretrained(dict(weights), vocab_of_list(tokens))
    except (InputError, ValueError, KeyError, MemoryError) as error:
        raise RunError(
            f'the pretrained network in {path} cannot be read ({error}): '
            'fetch the archive again'
        ) from error


def vocab_of_list(tokens: Any) -> Vocab:
    """Return the vocabulary of a JSON list of tokens.

    Raises `ValueError` for anything else.
    """
    if not isinstance(tokens, list) or not all(
        isinstance(token, str) for token in tokens
    ):
        raise ValueError(f'{VOCAB} is no list of tokens')
    if len(set(tokens)) < len(tokens) or UNKNOWN not in tokens:
        raise ValueError(f'{VOCAB} repeats a token or has no {UNKNOWN}')
    return Vocab.from_tokens(tokens)
