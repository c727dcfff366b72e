"""The textbook's side. Runs in the environment that has d2l 1.0.3:

    python -m oracle.textbook golden tests/golden
    python -m oracle.textbook full FOLDER

The first makes the small files that are committed. The second is run by
`oracle.compare`, which has put our files of parameters, and WikiText-2 where
there is one, into the folder.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np

from oracle import cases, results

# d2l imports these two, which are large, for its chapters on vision
sys.modules['torchvision'] = types.ModuleType('torchvision')
sys.modules['torchvision.transforms'] = types.ModuleType('transforms')
sys.modules['torchvision'].transforms = sys.modules[  # type: ignore
    'torchvision.transforms'
]
SMALL = ('odd', 'flat')


def modules(framework: str) -> tuple[types.ModuleType, Any]:
    """Return our helper module and d2l's module of a framework."""
    side = importlib.import_module(f'oracle.with_{framework}')
    return side, importlib.import_module(f'd2l.{framework}')


def loader(d2l: Any) -> results.Load:
    """Return what loads a folder as `load_data_wiki` does after download."""
    return lambda folder, max_len: d2l._WikiTextDataset(
        d2l._read_wiki(folder), max_len
    )


def networks(
    framework: str, names: tuple[str, ...], folder: Path
) -> results.Arrays:
    """Write networks' files; return their outputs, gradients and losses."""
    side, d2l = modules(framework)
    arrays: results.Arrays = {}
    for name in names:
        path = folder / f'textbook-{framework}-{name}{side.SUFFIX}'
        net = side.new_net(d2l, cases.NETWORKS[name])
        side.set_weights(net, cases.weights(name, framework))
        side.save(net, path)
        arrays |= results.outputs(side, net, name)
        arrays |= results.gradients(side, d2l, net, name)
    for name in SMALL:
        path = folder / f'textbook-{framework}-{name}{side.SUFFIX}'
        for training in cases.TRAININGS[framework]:
            net = results.network(side, d2l, name, path)
            arrays[f'{name}/steps/{training.name}'] = results.chapter_losses(
                side, d2l, net, name, cases.batches(name), training
            )
    return arrays


def wikitext_losses(framework: str, folder: Path) -> results.Arrays:
    """Train the chapter's network on the first examples of WikiText-2.

    Both frameworks and both sides train on those that PyTorch writes here.
    """
    side, d2l = modules(framework)
    path = folder / 'wikitext-2.npz'
    if not path.exists():
        random.seed(0)
        dataset = loader(d2l)(str(folder / cases.WIKITEXT), 64)
        num_examples = cases.NUM_WIKITEXT_STEPS * cases.BATCH_SIZE
        first = [dataset[i] for i in range(num_examples)]
        np.savez(path, *results.stacked(side, first))
    arrays = {}
    for training in cases.TRAININGS[framework]:
        results.progress(f'textbook, {framework}: {training.name}')
        net = results.network(
            side,
            d2l,
            'chapter',
            folder / f'textbook-{framework}-chapter{side.SUFFIX}',
        )
        arrays[f'chapter/steps/{training.name}'] = results.chapter_losses(
            side, d2l, net, 'chapter', cases.read_slices(path), training
        )
    return arrays


def golden(folder: Path) -> None:
    """Write the files that the default tests read."""
    data: dict[str, Any] = {'types': {}}
    with tempfile.TemporaryDirectory() as corpora:
        for framework in cases.FRAMEWORKS:
            side, d2l = modules(framework)
            given = side, loader(d2l), Path(corpora)
            data['types'][framework] = results.types(*given)
            fingerprints = dict(results.odd_corpora(*given))
            # One code under two names: both modules make the same examples
            assert data.setdefault('examples', fingerprints) == fingerprints
            np.savez_compressed(
                folder / f'{framework}.npz',
                **networks(framework, SMALL, folder),
            )
    write_json(folder / 'examples.json', data)


def full(folder: Path) -> None:
    """Write all that `oracle.compare` compares."""
    for framework in cases.FRAMEWORKS:
        side, d2l = modules(framework)
        load = loader(d2l)
        results.progress(f'textbook, {framework}: odd corpora')
        data = dict(results.odd_corpora(side, load, folder / 'corpora'))
        results.progress(f'textbook, {framework}: nonsense')
        data |= results.nonsense(
            side, load, folder / 'corpora', cases.NUM_NONSENSE[framework]
        )
        results.progress(f'textbook, {framework}: networks')
        data['types'] = results.types(side, load, folder / 'corpora')
        arrays = networks(framework, tuple(cases.NETWORKS), folder)
        arrays |= results.transformer(side, d2l)
        data |= results.snli(side, d2l, folder)
        for name in cases.NETWORKS:
            path = folder / f'ours-{framework}-{name}{side.SUFFIX}'
            net = results.network(side, d2l, name, path)
            arrays |= results.classifier(side.classify, net, name)
            arrays |= {
                f'ours/{key}': array
                for key, array in results.outputs(side, net, name).items()
            }
        if (folder / cases.WIKITEXT).exists():
            data |= results.wikitext(side, load, folder, framework)
            arrays |= wikitext_losses(framework, folder)
        write_json(folder / f'{framework}.json', data)
        np.savez(folder / f'{framework}.npz', **arrays)


def write_json(path: Path, data: Any) -> None:
    """Write a file that can be compared line by line."""
    path.write_text(json.dumps(data, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    {'golden': golden, 'full': full}[sys.argv[1]](Path(sys.argv[2]))
