"""Fine-tuning, from a pretrained network to a classifier of pairs.

The loop, its checkpoints and its end are in `d2lbert.runs.training`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from backends.groups import Group
from d2lbert.data.files import sha256
from d2lbert.data.nli import NLIBatch, make_nli_examples
from d2lbert.data.snli import read_pairs
from d2lbert.data.vocab import PAD, Vocab
from d2lbert.errors import InputError, input_errors
from d2lbert.finetuning.config import MAX_LEN, FinetuningConfig
from d2lbert.finetuning.recipes import get_recipe
from d2lbert.finetuning.run import FinetunedRun, new_classifier
from d2lbert.finetuning.trainer import ClassifierStep, accuracy_of
from d2lbert.frameworks import load_tab
from d2lbert.pretrained import ARCHIVES, fetch_pretrained, read_pretrained
from d2lbert.runs.run import check_shards, devices_of, load_run
from d2lbert.runs.starting import train_run
from d2lbert.runs.trained import checksum, text_file
from d2lbert.runs.training import Training
from d2lbert.weights import (
    get_weights,
    initial_weights,
    neutral_shapes,
    set_weights,
)


def finetune(
    pretrained: str | Path | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    group: Group | None = None,
    **options: Any,
) -> FinetunedRun:
    """Fine-tune a pretrained network as the book's section does.

    `pretrained`: the folder of a run, `'bert.small'` or another name of
    `d2lbert.pretrained.ARCHIVES`, or the path of such an archive;
    `options`: the fields of `FinetuningConfig`, with its defaults: `task`,
    `data`, `backend`, `recipe`, `epochs`, `batch_size`, `num_pairs`,
    `max_len`, `dropout`, `lr`, `scratch`, `devices`, `micro_batch`, `seed`,
    `save_every`, `keep`. `out`, `progress`, `group` and what happens on a
    signal: see `d2lbert.pretrain`. `resume`: go on with the run in `out` as
    there, from the same pretrained network where none is given;
    `FinetuningConfig.MAY_CHANGE` lists the options that may differ.

    Raises `InputError` for an option that cannot be used, `CorpusError` for
    data that cannot be read, `RunError` for a training that diverges or
    cannot be written, or a damaged run, and `ModuleNotFoundError` for a
    framework that is not installed. Warns as `d2lbert.pretrain` does.
    """
    if pretrained is not None:
        options['pretrained'] = pretrained
    return train_run(Finetuning, options, out, resume, progress, group)


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


def start_of(config: FinetuningConfig, gpu: int = 0) -> Start:
    """Read the pretrained network of a fine-tuning. `gpu`: see `load_run`."""
    name = config.pretrained
    if os.path.isdir(name):
        run = load_run(name, config.backend, gpu=gpu)
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


class Finetuning(Training):
    """A run that is being fine-tuned."""

    RUN, CONFIG, LENGTH = FinetunedRun, FinetuningConfig, 'epochs'

    config: FinetuningConfig
    run: FinetunedRun

    def read(self) -> None:
        """Read the pretrained network, and the pairs in its vocabulary."""
        config, group = self.config, self.group
        tab = load_tab(config.backend)
        self.devices = devices_of(tab, config, group)
        start = start_of(config, group.local_rank)
        self.vocab = start.vocab
        self.max_len = config.max_len or min(MAX_LEN, start.max_len)
        if self.max_len > start.sizes['max_len']:
            raise InputError(
                f'max_len = {self.max_len}: expected at most '
                f'{start.sizes["max_len"]}, the positions of the network'
            )
        self.examples = self.examples_of('train', config.num_pairs)
        self.test_set = self.examples_of('test')
        check_shards(
            config.batch_size,
            self.num_steps,
            self.examples.num_examples,
            group.share(len(self.devices))[1],
        )
        self.sizes = {**start.sizes, 'dropout': config.dropout}
        self.net = new_classifier(tab, self.sizes)
        weights = self.first_weights(start)
        with input_errors():
            set_weights(self.net, weights, self.devices)
        self.first = checksum(weights)

    def new_run(self) -> FinetunedRun:
        """Return the run before its first step."""
        return FinetunedRun(
            *(self.config, self.net, self.vocab, self.devices),
            self.group.size,
            sizes=self.sizes,
        )

    def examples_of(
        self, part: str, num_pairs: int | None = None
    ) -> NLIBatch:
        """Return the examples of a part of the data, or its first ones."""
        pairs = read_pairs(self.config.data, part)
        tokenize = self.vocab.tokenize
        return make_nli_examples(
            list(map(tokenize, pairs.premises[:num_pairs])),
            list(map(tokenize, pairs.hypotheses[:num_pairs])),
            pairs.labels[:num_pairs],
            self.vocab,
            self.max_len,
        )

    def first_weights(self, start: Start) -> dict[str, np.ndarray]:
        """Return the classifier's weights before the first step."""
        config, net = self.config, self.net
        shapes = neutral_shapes(net)
        recipe = get_recipe(config.recipe)
        new = recipe.output_weights(shapes, config.seed)
        if config.scratch:
            drawn = initial_weights(
                shapes, recipe.initialization, config.seed
            )
            return {**drawn, **new}
        kept = {name: start.weights[name] for name in shapes.keys() - new}
        return {**kept, **new}

    @property
    def num_steps(self) -> int:
        """How many steps all epochs have."""
        return self.config.epochs * self.evaluate_every

    @property
    def evaluate_every(self) -> int:
        """How many steps an epoch has."""
        return -(-self.examples.num_examples // self.config.batch_size)

    def evaluate(self) -> Mapping[str, float]:
        """Find the accuracy on the test part."""
        accuracy = accuracy_of(
            self.net, self.test_set, self.vocab[PAD], self.group
        )
        self.run.add_evaluation({'test_accuracy': accuracy})
        return {'test': accuracy}

    def shown(self, step: ClassifierStep) -> Mapping[str, float]:
        """Return the loss and the accuracy of a step."""
        return {'loss': step.loss, 'acc': step.accuracy}

    @cached_property
    def data(self) -> dict[str, str]:
        """Checksums of what is trained and tested on, and begun with."""
        return {
            'vocabulary': sha256(text_file(self.vocab.idx_to_token)),
            'training pairs': checksum(self.examples._asdict()),
            'test pairs': checksum(self.test_set._asdict()),
            'first weights': self.first,
        }
