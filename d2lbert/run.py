"""A pretraining run: do it, keep it in a folder, read it back.

A run's folder holds

* `run.json`: the options, the results, the versions of what made them, and
  checksums of itself and of the files below;
* `metrics.jsonl`: a line for each step;
* `weights.safetensors`: the parameters, by neutral names;
* `vocab.txt`: a token a line, in the order of their indices;
* `losses.png` and `losses.svg`: both loss curves, not needed to read it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import platform
import random
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import backends
from backends import base
from d2lbert import __version__, display
from d2lbert.config import Config
from d2lbert.data.batches import Batches
from d2lbert.data.corpus import read_lines
from d2lbert.data.examples import load_examples
from d2lbert.data.vocab import Vocab
from d2lbert.errors import InputError, RunError, input_errors
from d2lbert.files import write_file
from d2lbert.trainer import Step, Trainer
from d2lbert.weights import (
    get_weights,
    initial_weights,
    neutral_shapes,
    set_weights,
)

FORMAT = 1
RUN_FILE, METRICS_FILE = 'run.json', 'metrics.jsonl'
WEIGHTS_FILE, VOCAB_FILE = 'weights.safetensors', 'vocab.txt'


@dataclass
class Run:
    """A trained network, its vocabulary, and how the training went.

    `net`: the native network; `steps`: what each step reported.
    """

    config: Config
    net: Any
    vocab: Vocab
    devices: Sequence[base.Device]
    steps: list[Step] = field(default_factory=list)

    @property
    def history(self) -> list[list[float]]:
        """Both losses of each step: `[[mlm, nsp], …]`."""
        return [[step.mlm_loss, step.nsp_loss] for step in self.steps]

    @property
    def mlm_loss(self) -> float:
        """The mean over the steps, as the chapter prints it."""
        return _mean(step.mlm_loss for step in self.steps)

    @property
    def nsp_loss(self) -> float:
        """The mean over the steps, as the chapter prints it."""
        return _mean(step.nsp_loss for step in self.steps)

    @property
    def pairs_per_sec(self) -> float:
        """Sentence pairs trained on in a second."""
        seconds = sum(step.seconds for step in self.steps)
        return (
            sum(step.num_pairs for step in self.steps) / seconds
            if seconds
            else math.nan
        )

    def summary(self) -> str:
        """Return the chapter's two lines."""
        return (
            f'MLM loss {self.mlm_loss:.3f}, '
            f'NSP loss {self.nsp_loss:.3f}\n'
            f'{self.pairs_per_sec:.1f} sentence pairs/sec on '
            f'{list(self.devices)}'
        )

    def label(self) -> str:
        """Return what to call the run among others."""
        return f'{self.config.backend}, recipe {self.config.recipe}'

    def results(self) -> dict[str, Any]:
        """Return the results, ready for JSON."""
        return {
            'backend': self.config.backend,
            'recipe': self.config.recipe,
            'steps': len(self.steps),
            'seed': self.config.seed,
            'devices': [str(device) for device in self.devices],
            'mlm_loss': self.mlm_loss,
            'nsp_loss': self.nsp_loss,
            'pairs_per_sec': self.pairs_per_sec,
            'history': self.history,
        }

    def save(self, folder: str | Path) -> None:
        """Write the run's folder. See this module's description.

        Raises `InputError` for a folder that holds a run already or cannot
        be written, and `RunError` where writing fails half-way.
        """
        check_no_run(folder)
        folder = make_folder(folder)
        files = self.files()
        try:
            for name, data in files.items():
                write_file(folder / name, data)
            display.draw_losses(
                {self.label(): self.history},
                folder / 'losses',
                len(self.vocab),
                self.config.title(),
            )
            # Last, because a folder with this file is a finished run
            write_file(folder / RUN_FILE, self.manifest(files))
        except OSError as error:
            raise RunError(
                f'the run could not be written to {folder}: '
                f'{error.strerror or error}. What is there is not a whole '
                'run: make room and train it again'
            ) from error

    def files(self) -> dict[str, bytes]:
        """Return the files that `load_run` needs, by name."""
        from safetensors.numpy import save

        metrics = (
            json.dumps({'step': i, **step._asdict()})
            for i, step in enumerate(self.steps, 1)
        )
        return {
            WEIGHTS_FILE: save(get_weights(self.net)),
            VOCAB_FILE: _to_bytes(self.vocab.idx_to_token),
            METRICS_FILE: _to_bytes(metrics),
        }

    def manifest(self, files: Mapping[str, bytes]) -> bytes:
        """Return the contents of `run.json`."""
        content = {
            'format': FORMAT,
            'config': self.config.as_dict(),
            'results': self.results(),
            'versions': {
                'd2lbert': __version__,
                'python': platform.python_version(),
                **{
                    name: str(importlib.import_module(name).__version__)
                    for name in ('numpy', self.config.backend)
                },
            },
            'files': {name: _sha256(data) for name, data in files.items()},
        }
        content['sha256'] = _sha256_of_json(content)
        return _to_bytes([json.dumps(content, indent=2)])


def pretrain(
    *, out: str | Path | None = None, progress: bool = True, **options: Any
) -> Run:
    """Pretrain BERT as the chapter does.

    `options`: the fields of `Config`, with its defaults: `backend`,
    `recipe`, `corpus`, `steps`, `batch_size`, `max_len`, `num_hiddens`,
    `ffn_num_hiddens`, `num_heads`, `num_blks`, `dropout`, `lr`, `devices`,
    `micro_batch`, `seed`. `out`: the folder in which to keep the run, which
    must not hold one; `progress`: show a progress bar on stderr.

    Raises `InputError` for an option that cannot be used, `CorpusError` for
    a corpus that cannot be had, `RunError` for a training that diverges or
    cannot be kept, and `ModuleNotFoundError` for a framework that is not
    installed.
    """
    config = Config(**options)
    if out is not None:
        check_no_run(out)
    tab = load_tab(config.backend)
    with input_errors():
        devices = tab.BACKEND.devices(config.devices)
    if config.batch_size < len(devices):
        raise InputError(
            f'batch_size = {config.batch_size} is less than the '
            f'{len(devices)} devices: each needs a row at least'
        )
    examples, vocab = load_examples(
        read_lines(config.corpus), config.max_len, random.Random(config.seed)
    )
    if out is not None:
        make_folder(out)
    net = new_net(tab, config, vocab, devices)
    trainer = Trainer(
        net,
        config.get_recipe(),
        lr=config.learning_rate,
        devices=devices,
        micro_batch=config.micro_batch,
        seed=config.seed,
    )
    batches = Batches(examples, config.batch_size, config.seed)
    run = Run(config, net, vocab, devices)
    with display.Progress(config.backend, config.steps, progress) as bar:
        for step in trainer.train(batches.from_step(0), config.steps):
            run.steps.append(step)
            check_finite(run)
            bar.show(mlm=step.mlm_loss, nsp=step.nsp_loss)
    if out is not None:
        run.save(out)
    return run


def new_net(
    tab: Any, config: Config, vocab: Vocab, devices: Sequence[base.Device]
) -> Any:
    """Return the network of a run with its initial weights."""
    net = tab.BERTModel(**config.net_arguments(len(vocab)))
    set_weights(
        net,
        initial_weights(
            neutral_shapes(net),
            config.get_recipe().initialization,
            config.seed,
        ),
        devices,
    )
    return net


def load_run(folder: str | Path, backend: str | None = None) -> Run:
    """Read a run back, in its own framework or in the other one.

    Raises `InputError` where there is no run and `RunError` for a damaged
    one.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = Path(folder)
    try:
        manifest = (folder / RUN_FILE).read_bytes()
    except OSError as error:
        raise InputError(
            f'{folder} holds no run ({RUN_FILE}: {error.strerror}): give a '
            'folder that `d2lbert pretrain --out` has written'
        ) from error
    try:
        saved = read_manifest(manifest)
        files = {
            name: read_file(folder / name, saved['files'][name])
            for name in (WEIGHTS_FILE, VOCAB_FILE, METRICS_FILE)
        }
        config = Config(**saved['config'])
        vocab = Vocab.from_tokens(files[VOCAB_FILE].decode().splitlines())
        steps = [
            Step(*(json.loads(line)[name] for name in Step._fields))
            for line in files[METRICS_FILE].splitlines()
        ]
        weights = load(files[WEIGHTS_FILE])
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
        SafetensorError,
    ) as error:
        reason = error if str(error) else type(error).__name__
        raise RunError(
            f'the run in {folder} cannot be read ({reason}): copy it again '
            'from where it came, or train it again'
        ) from error
    tab = load_tab(backend or config.backend)
    devices = [tab.BACKEND.try_gpu()]
    net = tab.BERTModel(**config.net_arguments(len(vocab)))
    try:
        set_weights(net, weights, devices)
    except ValueError as error:
        raise RunError(
            f'the weights in {folder} are not those of its '
            f'{RUN_FILE}: {error}'
        ) from error
    return Run(config, net, vocab, devices, steps)


def load_tab(backend: str) -> Any:
    """Return the tab module of a backend: `d2lbert.mxnet` or `.torch`."""
    with input_errors():
        backends.load(backend)
    return importlib.import_module(f'd2lbert.{backend}')


def check_no_run(folder: str | Path) -> None:
    """Raise `InputError` where a folder holds a run or is not a folder."""
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(f'{folder} is not a folder: give another --out')
    if os.path.exists(Path(folder) / RUN_FILE):
        raise InputError(
            f'{folder} holds a run already: give another --out, or remove it'
        )


def make_folder(folder: str | Path) -> Path:
    """Make a folder if need be and see that it can be written.

    Raises `InputError` where it cannot.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise InputError(
            f'the folder {folder} cannot be written ({error.strerror}): '
            'give another --out'
        ) from error


def check_finite(run: Run) -> None:
    """Raise `RunError` where the last loss is infinite or not a number."""
    if not all(map(math.isfinite, run.history[-1])):
        mlm_loss, nsp_loss = run.history[-1]
        raise RunError(
            f'the training diverged: at step {len(run.steps)} the MLM loss '
            f'is {mlm_loss}, the NSP loss {nsp_loss}; nothing is kept. Give '
            f'a smaller --lr than {run.config.learning_rate}'
        )


def read_manifest(data: bytes) -> dict[str, Any]:
    """Return what `Run.manifest` wrote.

    Raises `RunError` for another format and `ValueError` for a damaged one.
    """
    saved = json.loads(data)
    if saved['format'] != FORMAT:
        raise RunError(
            f'the run has format {saved["format"]!r}, this d2lbert reads '
            f'{FORMAT}: use the d2lbert that wrote it'
        )
    if saved.pop('sha256') != _sha256_of_json(saved):
        raise ValueError(f'{RUN_FILE} is not as it was written')
    return saved


def read_file(path: Path, sha256: str) -> bytes:
    """Read a file. Raises `ValueError` where its checksum differs."""
    data = path.read_bytes()
    if _sha256(data) != sha256:
        raise ValueError(f'{path.name} is not as it was written')
    return data


def _mean(values: Iterable[float]) -> float:
    """Return the mean, or NaN of nothing: converted runs have no steps."""
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def _to_bytes(lines: Iterable[str]) -> bytes:
    return ''.join(f'{line}\n' for line in lines).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sha256_of_json(content: dict[str, Any]) -> str:
    return _sha256(json.dumps(content, sort_keys=True).encode())
