"""Pretraining: its corpus, its memory, and its evaluations.

The loop, its checkpoints and its end are in `d2lbert.runs.training`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from backends.groups import ALONE, Group
from backends.types import Device
from d2lbert.data.examples import Examples, column_blocks
from d2lbert.data.files import sha256, sha256_of
from d2lbert.data.vocab import Vocab
from d2lbert.errors import InputError, warn
from d2lbert.evaluation.evaluate import Evaluator
from d2lbert.evaluation.levels import count_frequencies, entropies
from d2lbert.frameworks import label_of, load_tab
from d2lbert.runs import display
from d2lbert.runs.config import Config
from d2lbert.runs.evaluating import load_split
from d2lbert.runs.memory import LARGE, Memory, predict
from d2lbert.runs.run import (
    Run,
    check_shards,
    devices_of,
    load_examples,
    new_net,
)
from d2lbert.runs.starting import train_run
from d2lbert.runs.trained import text_file
from d2lbert.runs.training import Training
from d2lbert.trainer import Step


def pretrain(
    *,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    group: Group | None = None,
    **options: Any,
) -> Run:
    """Pretrain BERT as the chapter does.

    `options`: the fields of `Config`, with its defaults: `backend`,
    `recipe`, `corpus`, `tokenizer`, `vocab_size`, `steps`, `batch_size`,
    `preset`, `max_len`, `num_hiddens`, `ffn_num_hiddens`, `num_heads`,
    `num_blks`, `dropout`, `lr`, `schedule`, `schedule_steps`, `warmup`,
    `weight_decay`, `clip_norm`, `initialization`, `devices`, `micro_batch`,
    `checkpoint_blocks`, `seed`, `save_every`, `keep`, `evaluate_every`,
    `split`, `precision`. `out`:
    the folder for the run, which must not hold one; `progress`: show a
    progress bar on stderr. `resume`: go on with the run in `out` from its
    newest checkpoint, with its own options where none are given;
    `Config.MAY_CHANGE` lists those that may differ. `group`: the processes
    that train together, by default those that a launcher has started with
    this one; rank 0 alone uses `out`.

    After Ctrl-C or SIGTERM the training finishes its step, writes a
    checkpoint to `out` and raises `Stopped`; after the last step it writes
    the whole run first. The error's `run` is the run so far, also without
    `out`. A second signal ends the process at once.

    Raises `InputError` for an option that cannot be used, `CorpusError` for
    a corpus that cannot be read, `RunError` for a training that diverges or
    cannot be written, or a damaged run, and `ModuleNotFoundError` for a
    framework that is not installed. Warns with `RunWarning` where a resumed
    run will not equal an uninterrupted one bit by bit.
    """
    return train_run(Pretraining, options, out, resume, progress, group)


def dry_run(**options: Any) -> Memory:
    """Return the memory that a training would take, without training.

    `options`: see `pretrain`. Raises its errors, and `InputError` where the
    memory of a training cannot be predicted.
    """
    config = Config(**options)
    data = prepare(config, progress=False, group=ALONE)
    memory = predict(data.tab.BACKEND, config, data.examples, len(data.vocab))
    if memory is None:
        raise InputError(
            f'the memory of {label_of(config.backend)} on '
            f'{list(map(str, data.devices))} was not measured: leave '
            '--dry-run out, or give --devices cpu'
        )
    return memory


class Prepared(NamedTuple):
    """What a training needs before its network."""

    tab: Any
    devices: Sequence[Device]
    examples: Examples
    vocab: Vocab


def prepare(config: Config, progress: bool, group: Group) -> Prepared:
    """Import the framework and read the corpus. Raises `InputError`."""
    tab = load_tab(config.backend)
    devices = devices_of(tab, config, group)
    examples, vocab = load_examples(config, progress)
    _, num_shards = group.share(len(devices))
    check_shards(
        config.batch_size, config.steps, examples.num_examples, num_shards
    )
    return Prepared(tab, devices, examples, vocab)


class Pretraining(Training):
    """A run that is being pretrained."""

    RUN, CONFIG, LENGTH = Run, Config, 'steps'

    config: Config
    run: Run

    def read(self) -> None:
        """Import the framework and read the corpus and the held-out text."""
        config = self.config
        self.tab, self.devices, self.examples, self.vocab = prepare(
            config, self.progress, self.group
        )
        self.evaluator = None
        if config.evaluate_every:
            self.evaluator = Evaluator(
                load_split(
                    config.split,
                    config.corpus,
                    self.vocab,
                    config.max_len,
                    self.progress,
                ),
                self.vocab,
                count_frequencies(self.examples, self.vocab),
                config.split,
            )

    def new_run(self) -> Run:
        """Return the run, in memory that was found to be enough."""
        config, num_examples = self.config, self.examples.num_examples
        if config.batch_size > num_examples:
            warn(
                f'batch_size = {config.batch_size}: the corpus makes '
                f'{num_examples} examples, and each step takes all of them'
            )
        memory = predict(
            self.tab.BACKEND, config, self.examples, len(self.vocab)
        )
        if memory:
            memory.check()
        if self.progress and memory and memory.total >= LARGE:
            display.note(f'{memory.line()}; --dry-run lists its parts')
        net = new_net(self.tab, config, self.vocab, self.devices)
        return Run(
            *(config, net, self.vocab, self.devices, self.group.size),
            frequencies=entropies(
                self.examples,
                len(self.vocab),
                config.own_recipe().mlm_average,
            ),
        )

    @property
    def num_steps(self) -> int:
        """How many steps the training takes."""
        return self.config.steps

    @property
    def evaluate_every(self) -> int | None:
        """How many steps there are from one evaluation to the next."""
        return self.config.evaluate_every

    def evaluate(self) -> Mapping[str, float]:
        """Evaluate the network on the held-out text, and keep the best."""
        assert self.evaluator
        found = self.evaluator.evaluate(self.run.net, group=self.group)
        self.run.add_evaluation(found.as_dict())
        return {'valid': found.network['mlm_loss']}

    def shown(self, step: Step) -> Mapping[str, float]:
        """Return both losses of a step."""
        return {'mlm': step.mlm_loss, 'nsp': step.nsp_loss}

    @cached_property
    def data(self) -> dict[str, str]:
        """Checksums of what is trained and evaluated on, without its path."""
        sums = {
            'vocabulary': sha256(text_file(self.vocab.idx_to_token)),
            'examples': sha256_of(column_blocks(self.examples)),
        }
        if self.evaluator:
            held_out = column_blocks(self.evaluator.examples)
            sums['held-out examples'] = sha256_of(held_out)
        return sums
