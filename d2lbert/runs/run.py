"""A pretraining run: kept in a folder, and read back.

A run's folder holds

* `run.json`: the manifest, with the options, the results, and the versions
  of the software;
* `metrics.jsonl`: a line for each step, also with what an evaluation after
  it has found;
* `weights.safetensors`: the parameters, by neutral names;
* `best.safetensors`: those of the best evaluation, where there was one;
* `vocab.txt`: a token a line, in the order of their indices;
* `tokenizer.json`: what splits words, where tokens are pieces of words;
* `losses.png` and `losses.svg`: both loss curves. Reading a run does not
  need them, and weights that were trained elsewhere have none;
* `checkpoints/`: see `d2lbert.runs.checkpoint`; `.lock`: see `locked`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from backends import base
from backends.groups import ALONE, Group
from d2lbert.data.cache import load_cached_examples
from d2lbert.data.corpus import Paths, open_corpus
from d2lbert.data.examples import Examples
from d2lbert.data.vocab import Vocab
from d2lbert.data.wordpiece import tokens_of
from d2lbert.errors import InputError, input_errors
from d2lbert.frameworks import load_tab
from d2lbert.runs import display
from d2lbert.runs.config import Config, inexact
from d2lbert.runs.trained import (
    LOSSES,
    RUN_FILE,
    TrainedRun,
    config_of,
    put_weights,
    read_run,
)
from d2lbert.trainer import Step, Trainer
from d2lbert.weights import (
    get_weights,
    initial_weights,
    neutral_shapes,
    set_weights,
)


@dataclass
class Run(TrainedRun):
    """A pretrained network, its vocabulary, and how the training went.

    The fields are those of `TrainedRun`. `steps` are of `Step`, and
    `evaluations` what `Evaluation.as_dict` returns. `frequencies`: what the
    word frequencies score on the training examples, as the recipe averages
    it, where it is known: see `entropies`.
    """

    frequencies: dict[str, float] = field(default_factory=dict)

    COMMAND: ClassVar[str] = 'pretrain'
    NOUN: ClassVar[str] = 'run'
    MANIFEST: ClassVar[str] = RUN_FILE
    PICTURE: ClassVar[str] = LOSSES
    STEP: ClassVar[Any] = Step

    @classmethod
    def load(cls, folder: str | Path, backend: str | None = None) -> Run:
        """Return what `load_run` does."""
        return load_run(folder, backend)

    def add_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Keep what was found after the last step, and the best weights."""
        super().add_evaluation(evaluation)
        if self.best_step == len(self.steps):
            self.best_weights = get_weights(self.net)

    @property
    def best_step(self) -> int | None:
        """The step with the least sum of both losses, of those evaluated.

        Of equal ones it is the first.
        """
        best = min(
            self.evaluations,
            key=lambda found: found['mlm_loss'] + found['nsp_loss'],
            default={'step': None},
        )
        return best['step']

    @property
    def history(self) -> list[list[float]]:
        """Both losses of each step: `[[mlm, nsp], …]`."""
        return [[step.mlm_loss, step.nsp_loss] for step in self.steps]

    @property
    def mlm_loss(self) -> float:
        """The mean over the steps, as the chapter prints it, or NaN."""
        return fmean([step.mlm_loss for step in self.steps] or [math.nan])

    @property
    def nsp_loss(self) -> float:
        """The mean over the steps, as the chapter prints it, or NaN."""
        return fmean([step.nsp_loss for step in self.steps] or [math.nan])

    @property
    def pairs_per_sec(self) -> float:
        """Sentence pairs trained on in a second."""
        return self.speed

    def new_trainer(self, **options: Any) -> Trainer:
        """Return a trainer that begins with the current parameters.

        `options`: of `Trainer`, those that no configuration has.
        """
        return Trainer(
            self.net,
            self.config.own_recipe(),
            lr=self.config.lr,
            schedule=self.config.own_schedule(),
            devices=self.devices,
            micro_batch=self.config.micro_batch,
            seed=self.config.seed,
            precision=self.config.precision,
            checkpoint_blocks=self.config.checkpoint_blocks,
            **options,
        )

    def summary(self) -> str:
        """Return the chapter's two lines."""
        return (
            f'MLM loss {self.mlm_loss:.3f}, '
            f'NSP loss {self.nsp_loss:.3f}\n'
            f'{self.pairs_per_sec:.1f} sentence pairs/sec on {self.place()}'
            f'{inexact(self.config.precision)}'
        )

    def best_line(self) -> str:
        """Return one line about the best evaluation, nothing without one."""
        for found in self.evaluations:
            if found['step'] == self.best_step:
                return (
                    f'best on {found["split"]} after step {found["step"]}: '
                    f'MLM loss {found["mlm_loss"]:.3f}, '
                    f'NSP loss {found["nsp_loss"]:.3f}'
                )
        return ''

    def label(self) -> str:
        """Return what to call the run among others."""
        config = self.config
        recipe = f'recipe {config.recipe}{inexact(config.precision)}'
        return f'{config.backend}, {recipe}'

    def framework(self) -> str:
        """Return in words what has computed."""
        return super().framework() + inexact(self.config.precision)

    def new_results(self) -> dict[str, Any]:
        """Return the results of a run that was trained here."""
        return {
            'backend': self.config.backend,
            'recipe': self.config.recipe,
            'precision': self.config.precision,
            'steps': len(self.steps),
            'seed': self.config.seed,
            'devices': [str(device) for device in self.devices],
            'processes': self.processes,
            'mlm_loss': self.mlm_loss,
            'nsp_loss': self.nsp_loss,
            'pairs_per_sec': self.pairs_per_sec,
            'frequencies': self.frequencies,
            'history': self.history,
        }

    def draw_curves(
        self, path: Path, write: Callable[[Path, bytes], None]
    ) -> object:
        """Draw both losses. `path`, `write`: see `draw_losses`."""
        return display.draw_losses([self], path, write=write)


def load_examples(
    config: Config, progress: bool, corpus: Paths | None = None
) -> tuple[Examples, Vocab]:
    """Return the examples of a run, and their vocabulary.

    `progress`: show how far they are made, where that takes long; `corpus`:
    where the text is, by default where the options say.
    """
    return load_cached_examples(
        open_corpus(config.corpus if corpus is None else corpus),
        config.max_len,
        config.seed,
        tokens_of(config.tokenizer, config.vocab_size),
        display.Building(progress),
    )


def devices_of(
    tab: Any, config: Any, group: Group = ALONE
) -> list[base.Device]:
    """Return the devices of this process.

    `config`: of any training. `'all'` means the process's share of its
    machine's GPUs. Raises `InputError` where the devices do not exist.
    """
    with input_errors():
        devices = tab.BACKEND.devices(config.devices)
    if config.devices == 'all' and len(devices) >= group.local_size:
        return devices[group.local_rank :: group.local_size]
    return devices


def check_shards(
    batch_size: int, num_steps: int, num_examples: int, num_shards: int
) -> None:
    """Raise `InputError` where a batch has fewer rows than shards."""
    if batch_size < num_shards:
        raise InputError(
            f'batch_size = {batch_size} is less than the '
            f'{num_shards} devices: each needs a row at least'
        )
    num_whole, num_rows = divmod(num_examples, batch_size)
    if 0 < num_rows < num_shards and num_steps > num_whole:
        raise InputError(
            f'the last batch of an epoch has {num_rows} rows for '
            f'{num_shards} devices: give another --batch-size, or '
            'fewer devices'
        )


def new_net(
    tab: Any, config: Config, vocab: Vocab, devices: Sequence[base.Device]
) -> Any:
    """Return the network of a run with its initial weights."""
    check_memory(config, len(vocab), num_copies=4)  # gradients, two moments
    net = tab.BERTModel(**config.net_arguments(len(vocab)))
    weights = initial_weights(
        neutral_shapes(net), config.initialization, config.seed
    )
    set_weights(net, weights, devices)
    return net


def check_memory(
    config: Config, vocab_size: int, num_copies: int = 1
) -> None:
    """Raise `InputError` where a network is larger than this machine.

    A system that is out of memory may end any process, without a word.
    """
    width, total = config.num_hiddens, math.inf
    if hasattr(os, 'sysconf'):  # not on Windows
        total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    # Without biases and the like
    num_least = width * (
        2 * vocab_size
        + config.num_blks * (4 * width + 2 * config.ffn_num_hiddens)
    )
    needed = 4 * num_least * num_copies
    if needed > total:
        raise InputError(
            f'a network with num_hiddens = {width}, ffn_num_hiddens = '
            f'{config.ffn_num_hiddens} and num_blks = {config.num_blks} '
            f'needs {needed:,} bytes of memory or more, this machine has '
            f'{total:,}: give smaller numbers'
        )


def load_run(
    folder: str | Path,
    backend: str | None = None,
    best: bool = False,
    gpu: int = 0,
) -> Run:
    """Read a run, into its own framework or into the other one.

    `best`: the network has the weights of the best evaluation instead of the
    last ones; `gpu`: the number of the GPU that it is on, where there are
    any.

    Raises `InputError` where there is no run or no evaluation, and
    `RunError` for a run that is damaged, not finite, or of a newer d2lbert.
    """
    found = read_run(folder, Run)
    weights = found.best_weights if best else found.weights
    if not weights:
        raise InputError(
            f'the run in {folder} has no best weights, because no '
            'evaluation has chosen them: train with --evaluate-every'
        )
    path = Path(folder) / RUN_FILE
    config = config_of(Config, found.options, path)
    check_memory(config, len(found.vocab))
    tab = load_tab(backend or config.backend)
    net = tab.BERTModel(**config.net_arguments(len(found.vocab)))
    put_weights(net, weights, path, gpu)
    frequencies = found.record['results'].get('frequencies', {})
    return Run(config, net, **found.fields(), frequencies=frequencies)
