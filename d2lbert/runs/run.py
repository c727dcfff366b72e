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

import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from backends import base
from backends.groups import ALONE, Group
from d2lbert import __version__
from d2lbert.data.cache import load_cached_examples
from d2lbert.data.corpus import Paths, open_corpus
from d2lbert.data.examples import Examples
from d2lbert.data.files import (
    DAMAGE,
    load_arrays,
    to_safetensors,
    write_file,
)
from d2lbert.data.vocab import Vocab
from d2lbert.data.wordpiece import tokens_of, vocab_of
from d2lbert.errors import FolderTaken, InputError, RunError, input_errors
from d2lbert.frameworks import load_tab
from d2lbert.runs import display
from d2lbert.runs.checkpoint import Checkpoints
from d2lbert.runs.config import Config
from d2lbert.runs.folder import (
    check_free,
    locked,
    read_manifest,
    to_manifest,
    write_together,
)
from d2lbert.trainer import Step, Trainer
from d2lbert.weights import (
    check_finite,
    get_weights,
    initial_weights,
    neutral_shapes,
    set_weights,
)

RUN_FILE, METRICS_FILE = 'run.json', 'metrics.jsonl'
WEIGHTS_FILE, VOCAB_FILE = 'weights.safetensors', 'vocab.txt'
BEST_FILE = 'best.safetensors'
TOKENIZER_FILE = 'tokenizer.json'
PICTURE = 'losses'
PICTURES = [PICTURE + suffix for suffix in display.SUFFIXES]


@dataclass
class Run:
    """A trained network, its vocabulary, and how the training went.

    `net`: the native network; `devices`: where it was trained, by each of so
    many `processes`; `steps`: what each step reported; `record`: the results
    and versions in `run.json`, for a run that was read; `evaluations`: what
    `Evaluation.as_dict` returned, with the `step` after which it was;
    `best_weights`: the parameters, by neutral names, after `best_step`.
    """

    config: Config
    net: Any
    vocab: Vocab
    devices: Sequence[Any]
    processes: int = 1
    steps: list[Step] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    best_weights: dict[str, np.ndarray] = field(default_factory=dict)

    def add_evaluation(self, evaluation: dict[str, Any]) -> None:
        """Keep what was found after the last step, and the best weights."""
        num_steps = len(self.steps)
        self.evaluations.append({'step': num_steps, **evaluation})
        if self.best_step == num_steps:
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
        return speed_of(self.steps)

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
        each = f' in each of {self.processes} processes'
        return (
            f'MLM loss {self.mlm_loss:.3f}, '
            f'NSP loss {self.nsp_loss:.3f}\n'
            f'{self.pairs_per_sec:.1f} sentence pairs/sec on '
            f'{list(self.devices)}{each if self.processes > 1 else ""}'
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
        return f'{self.config.backend}, recipe {self.config.recipe}'

    def results(self) -> dict[str, Any]:
        """Return the results, ready for JSON."""
        if self.record:
            return self.record['results']
        return {
            'backend': self.config.backend,
            'recipe': self.config.recipe,
            'steps': len(self.steps),
            'seed': self.config.seed,
            'devices': [str(device) for device in self.devices],
            'processes': self.processes,
            'mlm_loss': self.mlm_loss,
            'nsp_loss': self.nsp_loss,
            'pairs_per_sec': self.pairs_per_sec,
            'history': self.history,
        }

    def save(self, folder: str | Path) -> None:
        """Write the run into a folder. See this module's description.

        Raises `InputError` for a folder that holds a run already or cannot
        be written, and `RunError` where writing fails half-way.
        """
        with locked(folder) as check_held:
            check_no_run(folder)
            self.write(folder, check_held)
            self.draw(folder, check_held)

    def write(
        self, folder: str | Path, check_held: Callable[[], None]
    ) -> None:
        """Write into a folder that is locked, over any run in it.

        `check_held`: see `locked`. The pictures of that run are removed.
        """
        folder = Path(folder)
        files = self.files()
        record = self.record or {
            'results': self.results(),
            'versions': versions(self.config.backend),
        }
        about = {'config': self.config.as_dict(), **record}
        files = {**files, RUN_FILE: to_manifest(about, files)}
        remedy = (
            '. What is there is not a whole run: make room and try again, '
            'with --resume where there are checkpoints'
        )
        # Without the manifest the folder holds no run
        outdated = (RUN_FILE, *PICTURES)
        write_together(folder, files, check_held, remedy, outdated)

    def draw(
        self, folder: str | Path, check_held: Callable[[], None]
    ) -> None:
        """Draw the pictures of a run that was written.

        `check_held`: see `locked`.
        """

        def write(path: Path, data: bytes) -> None:
            check_held()
            write_file(path, data)

        if self.steps:
            with display.drawing():
                display.draw_losses(
                    [self], Path(folder) / PICTURE, write=write
                )

    def files(self) -> dict[str, bytes]:
        """Return the files that `load_run` needs, by name.

        Raises `RunError` for parameters that are not finite.
        """
        evaluated = {
            found['step']: {'evaluation': found} for found in self.evaluations
        }
        metrics = (
            json.dumps({'step': i, **step._asdict(), **evaluated.get(i, {})})
            for i, step in enumerate(self.steps, 1)
        )
        files = files_of(self.net, self.vocab, metrics)
        if self.best_weights:
            files[BEST_FILE] = weights_file(self.best_weights)
        return files


def speed_of(steps: Sequence[Any]) -> float:
    """Return the pairs trained on in a second, or NaN without steps."""
    seconds = sum(step.seconds for step in steps)
    num_pairs = sum(step.num_pairs for step in steps)
    return num_pairs / seconds if seconds else math.nan


def files_of(
    net: Any, vocab: Vocab, metrics: Iterable[str]
) -> dict[str, bytes]:
    """Return the files of a trained network, by name.

    `metrics`: a line for each step. Raises `RunError` for parameters that
    are not finite.
    """
    weights = get_weights(net)
    check_finite('the parameters are', weights)
    files = {
        WEIGHTS_FILE: weights_file(weights),
        VOCAB_FILE: text_file(vocab.idx_to_token),
        METRICS_FILE: text_file(metrics),
    }
    if tokenizer := vocab.tokenizer_json():
        files[TOKENIZER_FILE] = tokenizer.encode()
    return files


def weights_file(weights: Mapping[str, np.ndarray]) -> bytes:
    """Return the contents of a safetensors file."""
    header, parts = to_safetensors(weights)
    return b''.join([header, *parts])


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


def check_shards(config: Config, num_examples: int, num_shards: int) -> None:
    """Raise `InputError` where a batch has fewer rows than shards."""
    if config.batch_size < num_shards:
        raise InputError(
            f'batch_size = {config.batch_size} is less than the '
            f'{num_shards} devices: each needs a row at least'
        )
    num_whole, num_rows = divmod(num_examples, config.batch_size)
    if 0 < num_rows < num_shards and config.steps > num_whole:
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
    folder: str | Path, backend: str | None = None, best: bool = False
) -> Run:
    """Read a run, into its own framework or into the other one.

    `best`: the network has the weights of the best evaluation instead of the
    last ones.

    Raises `InputError` where there is no run or no evaluation, and
    `RunError` for a run that is damaged, not finite, or of a newer d2lbert.
    """
    path = Path(folder) / RUN_FILE
    if not os.path.isfile(path):
        raise InputError(
            f'{folder} holds no run: '
            + (
                'its training was stopped, continue it with d2lbert '
                'pretrain --resume'
                if Checkpoints(folder).find()
                else 'give a folder that `d2lbert pretrain --out` has written'
            )
        )
    try:
        record, files = read_manifest(path)
        options = record.pop('config')
        # Weights that were trained elsewhere have none
        devices = record['results'].get('devices', [])
        vocab = vocab_in(files)
        metrics = list(map(json.loads, files[METRICS_FILE].splitlines()))
        steps = [
            Step(*(line[name] for name in Step._fields)) for line in metrics
        ]
        weights = load_arrays(files[WEIGHTS_FILE])
        best_weights = (
            load_arrays(files[BEST_FILE]) if BEST_FILE in files else {}
        )
    except DAMAGE as error:
        raise RunError(
            f'the run in {folder} cannot be read ({error}): copy it again '
            'from where it came, or train it again'
        ) from error
    if best:
        if not best_weights:
            raise InputError(
                f'the run in {folder} has no best weights, because no '
                'evaluation has chosen them: train with --evaluate-every'
            )
        weights = best_weights
    check_finite(f'the weights in {folder} are', weights)
    config = config_of(options, path)
    check_memory(config, len(vocab))
    tab = load_tab(backend or config.backend)
    net = tab.BERTModel(**config.net_arguments(len(vocab)))
    put_weights(net, weights, Path(folder) / RUN_FILE)
    processes = record['results'].get('processes', 1)
    evaluations = [
        line['evaluation'] for line in metrics if 'evaluation' in line
    ]
    return Run(
        *(config, net, vocab, devices, processes, steps, record),
        evaluations=evaluations,
        best_weights=best_weights,
    )


def put_weights(
    net: Any, weights: Mapping[str, np.ndarray], manifest: Path
) -> None:
    """Give a network the weights of a run, on a GPU where there is one.

    Raises `RunError` where they are not those that the manifest describes.
    """
    try:
        set_weights(net, weights, [net.backend.try_gpu()])
    except ValueError as error:
        raise RunError(
            f'the weights in {manifest.parent} are not those of its '
            f'{manifest.name}: {error}'
        ) from error


def vocab_in(files: Mapping[str, bytes]) -> Vocab:
    """Return the vocabulary of a run's files."""
    tokens = files[VOCAB_FILE].decode().split('\n')[:-1]
    if TOKENIZER_FILE in files:
        return vocab_of(tokens, files[TOKENIZER_FILE].decode())
    return Vocab.from_tokens(tokens)


def config_of(options: Mapping[str, Any], path: Path) -> Config:
    """Return the options that a whole file holds.

    `path`: of the file. Raises `RunError` where another version of d2lbert
    has written it, whose options these are.
    """
    try:
        return Config(**options)
    except (TypeError, InputError) as error:
        raise RunError(
            f'the options in {path} cannot be used ({error}), as where '
            f'another version than {__version__} has written it: use the '
            'd2lbert that wrote it'
        ) from error


def check_no_run(folder: str | Path) -> None:
    """Raise `InputError` unless a run can be written into a folder.

    It may be there, and hold other files than those of a run.
    """
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise FolderTaken(f'{folder} is not a folder: give another --out')
    if os.path.exists(Path(folder) / RUN_FILE):
        raise FolderTaken(
            f'{folder} holds a run already: give another --out, or remove it'
        )
    if Checkpoints(folder).find():
        raise FolderTaken(
            f'{folder} holds checkpoints of a run: continue it with '
            '--resume, or give another --out'
        )
    check_free(
        folder,
        (
            *(RUN_FILE, METRICS_FILE, WEIGHTS_FILE, VOCAB_FILE),
            *(TOKENIZER_FILE, BEST_FILE, *PICTURES),
        ),
    )


def versions(backend: str) -> dict[str, str]:
    """Return the versions of the software that trains a run."""
    modules = map(import_module, ('d2lbert', 'numpy', backend))
    found = {module.__name__: str(module.__version__) for module in modules}
    return {'python': platform.python_version(), **found}


def text_file(lines: Iterable[str]) -> bytes:
    """Return the contents of a file of these lines."""
    return ''.join(f'{line}\n' for line in lines).encode()
