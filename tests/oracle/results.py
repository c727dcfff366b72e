"""What both sides compute, with the textbook's package or with ours.

`side` is `with_torch` or `with_mxnet`; `d2l` is that framework's module of
the textbook's package, or our tab.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from oracle import cases

Arrays = dict[str, np.ndarray]
#: `load(folder, max_len)` returns a dataset.
Load = Callable[[str, int], Any]


def progress(message: str) -> None:
    """Say on stderr what is being done now."""
    print(f'{time.strftime("%H:%M:%S")} {message}', file=sys.stderr)


# ---- examples --------------------------------------------------------


def stacked(side: ModuleType, dataset: Any) -> list[np.ndarray]:
    """Return a dataset's examples as seven NumPy arrays."""
    columns = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    return [np.stack([side.to_numpy(X) for X in col]) for col in columns]


def examples(
    side: ModuleType, load: Load, folder: str, max_len: int, seed: int
) -> dict[str, Any] | None:
    """Return the fingerprint of a corpus' examples; `None` without any."""
    random.seed(seed)
    dataset = load(folder, max_len)
    if dataset is None or len(dataset) == 0:
        return None
    return cases.fingerprint(stacked(side, dataset), dataset.vocab)


def types(side: ModuleType, load: Load, folder: Path) -> list[str]:
    """Return what numbers each of the seven arrays of an example has."""
    path = cases.write_corpus(folder / 'plain', cases.corpus('plain'))
    return [side.type_name(X) for X in load(path, 64)[0]]


def odd_corpora(
    side: ModuleType, load: Load, folder: Path
) -> Iterator[tuple[str, Any]]:
    """Yield the fingerprints of the examples of the odd corpora."""
    for name in cases.GRAINS:
        path = cases.write_corpus(folder / name, cases.corpus(name))
        for max_len, seed in cases.LENGTHS_AND_SEEDS:
            yield (
                f'{name}, length {max_len}, seed {seed}',
                examples(side, load, path, max_len, seed),
            )


def nonsense(
    side: ModuleType, load: Load, folder: Path, number: int
) -> Iterator[tuple[str, Any]]:
    """Yield the fingerprints of the examples of random characters."""
    for seed in range(number):
        text, max_len = cases.nonsense(seed)
        path = cases.write_corpus(folder / 'nonsense', text)
        yield f'{seed}', examples(side, load, path, max_len, seed)


def wikitext(
    side: ModuleType, load: Load, folder: Path, framework: str
) -> Iterator[tuple[str, Any]]:
    """Yield the fingerprints of the examples of WikiText-2."""
    for max_len, seed in cases.WIKITEXT_CASES[framework]:
        progress(f'WikiText-2, {framework}, length {max_len}, seed {seed}')
        yield (
            f'WikiText-2, length {max_len}, seed {seed}',
            examples(side, load, str(folder / cases.WIKITEXT), max_len, seed),
        )


def snli(side: ModuleType, d2l: Any, folder: Path) -> dict[str, Any]:
    """Return the fingerprints of both parts of made-up pairs of SNLI."""
    path, prints, vocab = cases.write_snli(folder / 'snli'), {}, None
    for is_train in (True, False):
        pairs = d2l.read_snli(path, is_train)
        with contextlib.redirect_stdout(sys.stderr):
            dataset = d2l.SNLIDataset(pairs, cases.SNLI_STEPS, vocab)
        vocab = dataset.vocab
        rows = [dataset[i] for i in range(len(dataset))]
        columns = zip(*((*pair, label) for pair, label in rows), strict=True)
        arrays = [[side.to_numpy(X) for X in col] for col in columns]
        prints[f'SNLI, {is_train}'] = {
            'examples': len(dataset),
            'pairs': cases.sha(json.dumps(list(pairs)).encode()),
            'types': [side.type_name(X) for X in (*rows[0][0], rows[0][1])],
            'arrays': [cases.sha(np.stack(col).tobytes()) for col in arrays],
            'idx_to_token': cases.sha(
                json.dumps(vocab.idx_to_token).encode()
            ),
        }
    return prints


# ---- networks --------------------------------------------------------


def classifier(classify: Any, net: Any, name: str) -> Arrays:
    """Return the logits of three classes of pairs.

    `classify(net, inputs, W, b)`: the section's classifier with a network
    and the parameters of its output layer.
    """
    tokens, segments, lens, *_ = cases.batch(name, 5, 1)
    num_hiddens = cases.NETWORKS[name].num_hiddens
    drawn = cases.drawn({'W': (3, num_hiddens), 'b': (3,)})
    logits = classify(net, (tokens, segments, lens), drawn['W'], drawn['b'])
    return {f'{name}/classifier': logits}


def network(side: ModuleType, d2l: Any, name: str, path: Path) -> Any:
    """Return a network with the parameters in a file of the other side."""
    net = side.new_net(d2l, cases.NETWORKS[name])
    side.load(net, path)
    return net


def outputs(side: ModuleType, net: Any, name: str) -> Arrays:
    """Return all outputs, with and without the optional inputs."""
    tokens, segments, lens, positions, *_ = cases.batch(name, 5, 1)
    results = {}
    for with_lens, with_positions in product((True, False), repeat=2):
        encoded_X, mlm_Y_hat, nsp_Y_hat = side.evaluate(
            net,
            (
                tokens,
                segments,
                lens if with_lens else None,
                positions if with_positions else None,
            ),
        )
        assert (mlm_Y_hat is None) == (not with_positions)
        key = f'{name}/outputs/{with_lens:d}{with_positions:d}'
        results[f'{key}/encoded_X'] = side.to_numpy(encoded_X)
        results[f'{key}/nsp_Y_hat'] = side.to_numpy(nsp_Y_hat)
        if with_positions:
            results[f'{key}/mlm_Y_hat'] = side.to_numpy(mlm_Y_hat)
    return results


def transformer(side: ModuleType, d2l: Any) -> Arrays:
    """Return the encodings of the Transformer section's encoder."""
    tokens, _, lens, *_ = cases.batch('odd', 5, 1)
    sizes = cases.NETWORKS['odd']
    net = d2l.TransformerEncoder(*sizes[:5], 0.0, True)
    side.draw_weights(net, (tokens, lens))
    encoded_X = side.evaluate(net, (tokens, lens))
    return {'transformer/encoded_X': side.to_numpy(encoded_X)}


def gradients(side: ModuleType, d2l: Any, net: Any, name: str) -> Arrays:
    """Return the gradient of the chapter's loss by parameter."""
    sizes = cases.NETWORKS[name]
    batch = cases.batch(name, 5, 1)
    return {
        f'{name}/gradients/{parameter}': gradient
        for parameter, gradient in side.gradients(
            d2l, net, sizes, batch
        ).items()
    }


def chapter_losses(
    side: ModuleType,
    d2l: Any,
    net: Any,
    name: str,
    batches: Iterable[Sequence[np.ndarray]],
    training: cases.Training,
) -> np.ndarray:
    """Train by the chapter's loop; return both losses of each step."""
    return np.array(
        list(
            side.chapter_steps(
                d2l, net, cases.NETWORKS[name], batches, training.name
            )
        )
    )
