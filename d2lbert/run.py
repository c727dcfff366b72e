"""A pretraining run: do it, keep it in a folder, read it back.

A run's folder holds

* `run.json`: the options, the results and the versions of what made them;
* `metrics.jsonl`: a line for each step;
* `weights.safetensors`: the parameters, by neutral names;
* `vocab.txt`: a token a line, in the order of their indices;
* `losses.png` and `losses.svg`: both loss curves.
"""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import backends
from backends import base
from d2lbert import display
from d2lbert.config import Config
from d2lbert.data.batches import Batches
from d2lbert.data.corpus import read_lines
from d2lbert.data.examples import load_examples
from d2lbert.data.vocab import Vocab
from d2lbert.errors import InputError, RunError, input_errors
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
        return sum(step.mlm_loss for step in self.steps) / len(self.steps)

    @property
    def nsp_loss(self) -> float:
        """The mean over the steps, as the chapter prints it."""
        return sum(step.nsp_loss for step in self.steps) / len(self.steps)

    @property
    def pairs_per_sec(self) -> float:
        """Sentence pairs trained on in a second."""
        return sum(step.num_pairs for step in self.steps) / sum(
            step.seconds for step in self.steps
        )

    def summary(self) -> str:
        """Return the chapter's two lines."""
        return (
            f'MLM loss {self.mlm_loss:.3f}, '
            f'NSP loss {self.nsp_loss:.3f}\n'
            f'{self.pairs_per_sec:.1f} sentence pairs/sec on '
            f'{list(self.devices)}'
        )

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
        """Write the run's folder. See this module's description."""
        from safetensors.numpy import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(get_weights(self.net), folder / WEIGHTS_FILE)
        _write(
            folder / VOCAB_FILE,
            ''.join(f'{token}\n' for token in self.vocab.idx_to_token),
        )
        _write(
            folder / METRICS_FILE,
            ''.join(
                json.dumps({'step': i, **step._asdict()}) + '\n'
                for i, step in enumerate(self.steps, 1)
            ),
        )
        display.draw_losses(
            {self.config.backend: self.history},
            folder / 'losses',
            len(self.vocab),
        )
        # Last, because a folder with this file is a finished run
        _write(
            folder / RUN_FILE,
            json.dumps(
                {
                    'format': FORMAT,
                    'config': self.config.as_dict(),
                    'results': self.results(),
                },
                indent=2,
            )
            + '\n',
        )


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
    a corpus that cannot be had, and `ModuleNotFoundError` for a framework
    that is not installed.
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
    from safetensors.numpy import load_file

    folder = Path(folder)
    if not (folder / RUN_FILE).is_file():
        raise InputError(
            f'{folder} holds no run (no {RUN_FILE}): give a '
            'folder that `d2lbert pretrain --out` has written'
        )
    try:
        saved = json.loads((folder / RUN_FILE).read_text('utf-8'))
        if saved['format'] != FORMAT:
            raise RunError(
                f'{folder} has format {saved["format"]}, this '
                f'd2lbert reads {FORMAT}: install the other one'
            )
        config = Config(**saved['config'])
        vocab = Vocab.from_tokens(
            (folder / VOCAB_FILE).read_text('utf-8').splitlines()
        )
        steps = [
            Step(*(json.loads(line)[name] for name in Step._fields))
            for line in (folder / METRICS_FILE)
            .read_text('utf-8')
            .splitlines()
        ]
        weights = load_file(folder / WEIGHTS_FILE)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        SafetensorError,
    ) as error:
        raise RunError(
            f'the run in {folder} cannot be read: '
            f'{type(error).__name__}: {error}. Train it '
            'again'
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
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f'{folder} is not a folder: give another --out')
    if (folder / RUN_FILE).exists():
        raise InputError(
            f'{folder} holds a run already: give another --out, or remove it'
        )


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding='utf-8', newline='\n')
