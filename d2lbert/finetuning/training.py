"""Fine-tuning, from a pretrained network to a classifier of pairs."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from d2lbert.data.batches import Batches
from d2lbert.data.nli import NLIBatch, make_nli_examples
from d2lbert.data.snli import read_pairs
from d2lbert.data.vocab import PAD, Vocab
from d2lbert.errors import InputError, input_errors
from d2lbert.finetuning.config import MAX_LEN, FinetuningConfig
from d2lbert.finetuning.recipes import get_recipe
from d2lbert.finetuning.run import (
    FinetunedRun,
    check_no_finetuned,
    new_classifier,
)
from d2lbert.finetuning.trainer import (
    ClassifierTrainer,
    accuracy_of,
)
from d2lbert.frameworks import load_tab
from d2lbert.pretrained import ARCHIVES, fetch_pretrained, read_pretrained
from d2lbert.runs import display
from d2lbert.runs.folder import locked
from d2lbert.runs.run import devices_of, load_run
from d2lbert.weights import (
    get_weights,
    initial_weights,
    neutral_shapes,
    set_weights,
)


def finetune(
    pretrained: str | Path,
    *,
    out: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> FinetunedRun:
    """Fine-tune a pretrained network as the book's section does.

    `pretrained`: the folder of a run, `'bert.small'` or another name of
    `d2lbert.pretrained.ARCHIVES`, or the path of such an archive;
    `options`: the fields of `FinetuningConfig`, with its defaults: `task`,
    `data`, `backend`, `recipe`, `epochs`, `batch_size`, `num_pairs`,
    `max_len`, `dropout`, `lr`, `scratch`, `devices`, `micro_batch`, `seed`.
    `out`: the folder for the run, which must not hold one; `progress`: show
    a progress bar on stderr.

    Raises `InputError` for an option that cannot be used, `CorpusError` for
    data that cannot be read, `RunError` for a training that diverges or
    cannot be written, or a damaged run, and `ModuleNotFoundError` for a
    framework that is not installed.
    """
    config = FinetuningConfig(pretrained=os.fspath(pretrained), **options)
    if out is None:
        return Finetuning(config, progress).train()
    check_no_finetuned(out)
    with locked(out) as check_held:
        check_no_finetuned(out)  # again: it may have been used meanwhile
        run = Finetuning(config, progress).train()
        run.write(Path(out), check_held)
    return run


class Start(NamedTuple):
    """What a fine-tuning begins with.

    `sizes`: the arguments of `BERTModel`, less dropout; `weights`: those of
    the whole network, by neutral names; `max_len`: the longest rows that it
    was trained on, as far as is known.
    """

    sizes: dict[str, Any]
    weights: dict[str, np.ndarray]
    vocab: Vocab
    max_len: int


def start_of(config: FinetuningConfig) -> Start:
    """Read the pretrained network of a fine-tuning."""
    name = config.pretrained
    if os.path.isdir(name):
        run = load_run(name, config.backend)
        return Start(
            run.config.net_arguments(len(run.vocab)),
            get_weights(run.net),
            run.vocab,
            run.config.max_len,
        )
    if name not in ARCHIVES and not os.path.isfile(name):
        raise InputError(
            f'pretrained = {name!r}: expected the folder of a run, '
            f'{", ".join(ARCHIVES)}, or the path of such an archive'
        )
    path = fetch_pretrained(name) if name in ARCHIVES else name
    found = read_pretrained(path)
    sizes = found.sizes()
    return Start(sizes, found.weights, found.vocab, sizes['max_len'])


class Finetuning:
    """A fine-tuning: its examples, its network and its trainer."""

    def __init__(self, config: FinetuningConfig, progress: bool) -> None:
        self.progress = progress
        self.recipe = get_recipe(config.recipe)
        tab = load_tab(config.backend)
        devices = devices_of(tab, config)
        start = start_of(config)
        self.max_len = config.max_len or min(MAX_LEN, start.max_len)
        if self.max_len > start.sizes['max_len']:
            raise InputError(
                f'max_len = {self.max_len}: expected at most '
                f'{start.sizes["max_len"]}, the positions of the network'
            )
        self.vocab, self.pad = start.vocab, start.vocab[PAD]
        self.train_set, self.test_set = (
            self.examples(config.data, part, num_pairs)
            for part, num_pairs in (
                ('train', config.num_pairs),
                ('test', None),
            )
        )
        if min(config.batch_size, self.train_set.num_examples) < len(devices):
            raise InputError(
                f'a batch of {config.batch_size} of '
                f'{self.train_set.num_examples} pairs has fewer rows than '
                f'the {len(devices)} devices: give a larger --batch-size'
            )
        sizes = {**start.sizes, 'dropout': config.dropout}
        net = new_classifier(tab, sizes)
        with input_errors():
            set_weights(net, self.weights(net, config, start), devices)
        self.run = FinetunedRun(config, sizes, net, start.vocab, devices)
        self.trainer = ClassifierTrainer(
            net,
            self.recipe,
            lr=config.lr,
            devices=devices,
            micro_batch=config.micro_batch,
            seed=config.seed,
        )

    def examples(
        self, data: str, part: str, num_pairs: int | None
    ) -> NLIBatch:
        """Return the examples of a part of the data."""
        pairs, tokenize = read_pairs(data, part), self.vocab.tokenize
        return make_nli_examples(
            list(map(tokenize, pairs.premises[:num_pairs])),
            list(map(tokenize, pairs.hypotheses[:num_pairs])),
            pairs.labels[:num_pairs],
            self.vocab,
            self.max_len,
        )

    def weights(
        self, net: Any, config: FinetuningConfig, start: Start
    ) -> dict[str, np.ndarray]:
        """Return the classifier's first weights."""
        shapes = neutral_shapes(net)
        new = self.recipe.output_weights(shapes, config.seed)
        if config.scratch:
            drawn = initial_weights(
                shapes, self.recipe.initialization, config.seed
            )
            return {**drawn, **new}
        kept = {name: start.weights[name] for name in shapes.keys() - new}
        return {**kept, **new}

    def train(self) -> FinetunedRun:
        """Take all steps; after each epoch look at the test part."""
        run, config = self.run, self.run.config
        batches = Batches(self.train_set, config.batch_size, config.seed)
        num_steps = config.epochs * len(batches)
        with (
            display.Progress(
                config.backend, num_steps, visible=self.progress
            ) as bar,
            closing(self.trainer),
        ):
            for _ in range(config.epochs):
                for step in self.trainer.train(batches, len(batches)):
                    run.steps.append(step)
                    shown = {'loss': step.loss, 'acc': step.accuracy}
                    if run.test_accuracies:
                        shown['test'] = run.test_accuracies[-1]
                    bar.show(**shown)
                run.test_accuracies.append(
                    accuracy_of(run.net, self.test_set, self.pad)
                )
        return run
