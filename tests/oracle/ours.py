"""Our side of the comparison."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from d2lbert.book import chapter
from d2lbert.errors import CorpusError
from d2lbert.frameworks import load_tab
from d2lbert.recipes import RECIPES
from d2lbert.weights import get_weights, neutral_shapes, set_weights
from oracle import cases, results


def modules(framework: str) -> tuple[ModuleType, Any]:
    """Return the helper module and our tab of a framework."""
    tab = load_tab(framework)
    return importlib.import_module(f'oracle.with_{framework}'), tab


def loader(tab: Any) -> results.Load:
    """Return what gives the dataset behind `load_data_wiki`."""

    def load(folder: str, max_len: int) -> Any:
        try:
            train_iter, _ = tab.load_data_wiki(8, max_len, folder)
        except CorpusError:  # no example, or nothing but spaces
            return None
        return train_iter.dataset

    return load


def export(framework: str, folder: Path) -> None:
    """Write our files of parameters, which the textbook's side reads."""
    side, tab = modules(framework)
    for name, sizes in cases.NETWORKS.items():
        net = side.new_net(tab, sizes)
        side.set_weights(net, cases.weights(name, framework))
        side.save(net, folder / f'ours-{framework}-{name}{side.SUFFIX}')


def network(framework: str, name: str, folder: Path) -> Any:
    """Return our network with the parameters of the textbook's file."""
    side, tab = modules(framework)
    path = folder / f'textbook-{framework}-{name}{side.SUFFIX}'
    return results.network(side, tab, name, path)


def classify(
    net: Any, inputs: Sequence[np.ndarray], W: Any, b: Any
) -> np.ndarray:
    """Return the logits of our classifier on our network."""
    backend = net.backend
    classifier = load_tab(backend.name).BERTClassifier(net)
    weights = get_weights(net)
    shapes = neutral_shapes(classifier)
    kept = {name: A for name, A in weights.items() if name in shapes}
    set_weights(
        classifier, {**kept, 'output.weight': W, 'output.bias': b},
        backend.devices('cpu'),
    )  # fmt: skip
    (logits,) = backend.evaluate(classifier, [inputs])
    return logits


def trainer_losses(
    side: ModuleType,
    net: Any,
    batches: Iterable[Sequence[np.ndarray]],
    training: cases.Training,
) -> np.ndarray:
    """Train as our `train_bert` does; return both losses of each step."""
    train_iter = [side.native(batch) for batch in batches]
    steps = chapter.training_steps(
        train_iter,
        net,
        RECIPES[training.recipe],
        net.backend.devices(training.devices),
        len(train_iter),
    )
    return np.array([[step.mlm_loss, step.nsp_loss] for step in steps])
