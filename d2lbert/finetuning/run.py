"""A fine-tuned network: kept in a folder, and read back.

The folder holds

* `finetuned.json`: the manifest, with the options, the sizes of the network,
  the results, and the versions of the software;
* `metrics.jsonl`: a line for each step;
* `weights.safetensors`, `vocab.txt`, `tokenizer.json`: as in the folder of a
  pretraining;
* `finetuning.png` and `finetuning.svg`: the curves.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d2lbert.data.files import DAMAGE, load_arrays
from d2lbert.data.vocab import Vocab
from d2lbert.errors import FolderTaken, InputError, RunError
from d2lbert.finetuning.config import FinetuningConfig
from d2lbert.finetuning.figures import draw_finetuning
from d2lbert.finetuning.trainer import ClassifierStep
from d2lbert.frameworks import load_tab
from d2lbert.runs import display
from d2lbert.runs.checkpoint import Checkpoints
from d2lbert.runs.folder import (
    check_free,
    locked,
    read_manifest,
    to_manifest,
    write_together,
)
from d2lbert.runs.run import (
    METRICS_FILE,
    RUN_FILE,
    TOKENIZER_FILE,
    VOCAB_FILE,
    WEIGHTS_FILE,
    files_of,
    put_weights,
    speed_of,
    versions,
    vocab_in,
)
from d2lbert.weights import check_finite

FINETUNED_FILE = 'finetuned.json'
PICTURE = 'finetuning'
PICTURES = [PICTURE + suffix for suffix in display.SUFFIXES]


@dataclass
class FinetunedRun:
    """A fine-tuned network, its vocabulary, and how the training went.

    `sizes`: the arguments of its `BERTModel`; `net`: the native
    `BERTClassifier`; `steps`: what each step reported; `test_accuracies`:
    that after each epoch; `record`: the results and versions in
    `finetuned.json`, for a run that was read.
    """

    config: FinetuningConfig
    sizes: dict[str, Any]
    net: Any
    vocab: Vocab
    devices: Sequence[Any]
    steps: list[ClassifierStep] = field(default_factory=list)
    test_accuracies: list[float] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def history(self) -> list[list[float]]:
        """Loss and accuracy of each step: `[[loss, accuracy], …]`."""
        return [[step.loss, step.accuracy] for step in self.steps]

    @property
    def epochs(self) -> list[list[ClassifierStep]]:
        """The steps of each epoch."""
        each = max(1, len(self.steps) // self.config.epochs)
        return [
            self.steps[start : start + each]
            for start in range(0, len(self.steps), each)
        ]

    @property
    def loss(self) -> float:
        """The mean over the rows of the last epoch, as they were seen."""
        return mean_of(self.epochs[-1], 'loss')

    @property
    def train_accuracy(self) -> float:
        """The share of the last epoch's rows that were right when seen."""
        return mean_of(self.epochs[-1], 'accuracy')

    @property
    def test_accuracy(self) -> float:
        """The accuracy on the test part after the last epoch."""
        return self.test_accuracies[-1]

    @property
    def examples_per_sec(self) -> float:
        """Pairs trained on in a second."""
        return speed_of(self.steps)

    def summary(self) -> str:
        """Return the section's two lines."""
        return (
            f'loss {self.loss:.3f}, train acc {self.train_accuracy:.3f}, '
            f'test acc {self.test_accuracy:.3f}\n'
            f'{self.examples_per_sec:.1f} examples/sec on '
            f'{list(self.devices)}'
        )

    def start(self) -> str:
        """Return in words what the training began with."""
        return 'random weights' if self.config.scratch else 'pretrained'

    def results(self) -> dict[str, Any]:
        """Return the results, ready for JSON."""
        if self.record:
            return self.record['results']
        return {
            'backend': self.config.backend,
            'recipe': self.config.recipe,
            'epochs': self.config.epochs,
            'steps': len(self.steps),
            'seed': self.config.seed,
            'scratch': self.config.scratch,
            'devices': [str(device) for device in self.devices],
            'loss': self.loss,
            'train_accuracy': self.train_accuracy,
            'test_accuracy': self.test_accuracy,
            'test_accuracies': self.test_accuracies,
            'examples_per_sec': self.examples_per_sec,
            'history': self.history,
        }

    def save(self, folder: str | Path) -> None:
        """Write the run into a folder. See this module's description.

        Raises `InputError` for a folder that holds such files already or
        cannot be written, and `RunError` where writing fails half-way.
        """
        with locked(folder) as check_held:
            check_no_finetuned(folder)
            self.write(Path(folder), check_held)

    def write(self, folder: Path, check_held: Callable[[], None]) -> None:
        """Write into a folder that is locked, then draw the picture.

        `check_held`: see `locked`.
        """
        files = self.files()
        record = self.record or {
            'results': self.results(),
            'versions': versions(self.config.backend),
        }
        about = {
            'config': self.config.as_dict(),
            'sizes': self.sizes,
            **record,
        }
        files[FINETUNED_FILE] = to_manifest(about, files)
        write_together(folder, files, check_held, ': make room and try again')
        with display.drawing():
            check_held()
            draw_finetuning([self], folder / PICTURE)

    def files(self) -> dict[str, bytes]:
        """Return the files that `load_finetuned` needs, by name.

        Raises `RunError` for parameters that are not finite.
        """
        metrics = (
            json.dumps({'step': i, **step._asdict()})
            for i, step in enumerate(self.steps, 1)
        )
        return files_of(self.net, self.vocab, metrics)


def mean_of(steps: Sequence[ClassifierStep], name: str) -> float:
    """Return the mean of a number over the rows of some steps, or NaN."""
    num_rows = sum(step.num_pairs for step in steps)
    total = sum(getattr(step, name) * step.num_pairs for step in steps)
    return total / num_rows if num_rows else math.nan


def load_finetuned(
    folder: str | Path, backend: str | None = None
) -> FinetunedRun:
    """Read a run, into its own framework or into another one.

    Raises `InputError` where there is none and `RunError` for one that is
    damaged, not finite, or of another d2lbert.
    """
    path = Path(folder) / FINETUNED_FILE
    if not os.path.isfile(path):
        raise InputError(
            f'{folder} holds no fine-tuned run: give a folder that '
            '`d2lbert finetune --out` has written'
        )
    try:
        record, files = read_manifest(path)
        options, sizes = record.pop('config'), record.pop('sizes')
        vocab = vocab_in(files)
        steps = [
            ClassifierStep(
                *(json.loads(line)[name] for name in ClassifierStep._fields)
            )
            for line in files[METRICS_FILE].splitlines()
        ]
        weights = load_arrays(files[WEIGHTS_FILE])
        config = FinetuningConfig(**options)
        results = record['results']
        accuracies = results['test_accuracies']
        devices = results['devices']
    except (*DAMAGE, InputError, TypeError) as error:
        raise RunError(
            f'the run in {folder} cannot be read ({error}): copy it again '
            'from where it came, or train it again'
        ) from error
    check_finite(f'the weights in {folder} are', weights)
    net = new_classifier(load_tab(backend or config.backend), sizes)
    put_weights(net, weights, path)
    return FinetunedRun(
        config, sizes, net, vocab, devices, steps, accuracies, record
    )


def new_classifier(tab: Any, sizes: dict[str, Any]) -> Any:
    """Return a classifier without its parameters."""
    return tab.BERTClassifier(tab.BERTModel(**sizes))


def check_no_finetuned(folder: str | Path) -> None:
    """Raise `InputError` unless a run can be written into a folder."""
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise FolderTaken(f'{folder} is not a folder: give another --out')
    if Checkpoints(folder).find():
        raise FolderTaken(
            f'{folder} holds checkpoints of a run: give another --out'
        )
    check_free(
        folder,
        (
            *(FINETUNED_FILE, RUN_FILE, METRICS_FILE, WEIGHTS_FILE),
            *(VOCAB_FILE, TOKENIZER_FILE, *PICTURES),
        ),
    )
