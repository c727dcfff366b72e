"""A fine-tuned network: kept in a folder, and read back.

The folder holds

* `finetuned.json`: the manifest, with the options, the sizes of the network,
  the results, and the versions of the software;
* `metrics.jsonl`: a line for each step, also with the test accuracy after
  an epoch;
* `weights.safetensors`, `vocab.txt`, `tokenizer.json`: as in the folder of a
  pretraining;
* `finetuning.png` and `finetuning.svg`: the curves;
* `checkpoints/`, `.lock`: as there, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from d2lbert.finetuning.config import FinetuningConfig
from d2lbert.finetuning.figures import draw_finetuning
from d2lbert.finetuning.recipes import get_recipe
from d2lbert.finetuning.trainer import ClassifierStep, ClassifierTrainer
from d2lbert.frameworks import load_tab
from d2lbert.runs.trained import (
    FINETUNED_FILE,
    FINETUNING,
    TrainedRun,
    config_of,
    put_weights,
    read_run,
)


@dataclass
class FinetunedRun(TrainedRun):
    """A fine-tuned network, its vocabulary, and how the training went.

    The fields are those of `TrainedRun`, and `sizes`: the arguments of its
    `BERTModel`. `net` is the native `BERTClassifier`, `steps` are of
    `ClassifierStep`, and each of `evaluations` has the `test_accuracy` after
    an epoch.
    """

    sizes: dict[str, Any] = field(default_factory=dict)

    COMMAND: ClassVar[str] = 'finetune'
    NOUN: ClassVar[str] = 'fine-tuned run'
    MANIFEST: ClassVar[str] = FINETUNED_FILE
    PICTURE: ClassVar[str] = FINETUNING
    STEP: ClassVar[Any] = ClassifierStep
    ABOUT: ClassVar[Sequence[str]] = ('sizes',)

    @classmethod
    def load(
        cls, folder: str | Path, backend: str | None = None
    ) -> FinetunedRun:
        """Return what `load_finetuned` does."""
        return load_finetuned(folder, backend)

    def new_trainer(self, **options: Any) -> ClassifierTrainer:
        """Return a trainer that begins with the current parameters.

        `options`: of `Trainer`, those that no configuration has.
        """
        return ClassifierTrainer(
            self.net,
            get_recipe(self.config.recipe),
            lr=self.config.lr,
            devices=self.devices,
            micro_batch=self.config.micro_batch,
            seed=self.config.seed,
            **options,
        )

    @property
    def history(self) -> list[list[float]]:
        """Loss and accuracy of each step: `[[loss, accuracy], …]`."""
        return [[step.loss, step.accuracy] for step in self.steps]

    @property
    def last_epoch(self) -> list[ClassifierStep]:
        """The steps of the last epoch, which may not be at its end."""
        ends = [0, *(found['step'] for found in self.evaluations)]
        start = max(end for end in ends if end < max(1, len(self.steps)))
        return self.steps[start:]

    @property
    def loss(self) -> float:
        """The mean over the rows of the last epoch, as they were seen."""
        return mean_of(self.last_epoch, 'loss')

    @property
    def train_accuracy(self) -> float:
        """The share of the last epoch's rows that were right when seen."""
        return mean_of(self.last_epoch, 'accuracy')

    @property
    def test_accuracies(self) -> list[float]:
        """The accuracy on the test part after each epoch."""
        return [found['test_accuracy'] for found in self.evaluations]

    @property
    def test_accuracy(self) -> float:
        """The accuracy on the test part after the last epoch, or NaN."""
        return (self.test_accuracies or [math.nan])[-1]

    @property
    def examples_per_sec(self) -> float:
        """Pairs trained on in a second."""
        return self.speed

    def summary(self) -> str:
        """Return the section's two lines."""
        return (
            f'loss {self.loss:.3f}, train acc {self.train_accuracy:.3f}, '
            f'test acc {self.test_accuracy:.3f}\n'
            f'{self.examples_per_sec:.1f} examples/sec on {self.place()}'
        )

    def start(self) -> str:
        """Return in words what the training began with."""
        return 'random weights' if self.config.scratch else 'pretrained'

    def new_results(self) -> dict[str, Any]:
        """Return the results of a run that was trained here."""
        return {
            'backend': self.config.backend,
            'recipe': self.config.recipe,
            'epochs': self.config.epochs,
            'steps': len(self.steps),
            'seed': self.config.seed,
            'scratch': self.config.scratch,
            'devices': [str(device) for device in self.devices],
            'processes': self.processes,
            'loss': self.loss,
            'train_accuracy': self.train_accuracy,
            'test_accuracy': self.test_accuracy,
            'test_accuracies': self.test_accuracies,
            'examples_per_sec': self.examples_per_sec,
            'history': self.history,
        }

    def draw_curves(
        self, path: Path, write: Callable[[Path, bytes], None]
    ) -> object:
        """Draw losses and accuracies. `path`, `write`: see `draw_losses`."""
        return draw_finetuning([self], path, write=write)


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
    found = read_run(folder, FinetunedRun)
    path = Path(folder) / FINETUNED_FILE
    config = config_of(FinetuningConfig, found.options, path)
    tab = load_tab(backend or config.backend)
    net = new_classifier(tab, found.about['sizes'])
    put_weights(net, found.weights, path)
    return FinetunedRun(config, net, **found.fields())


def new_classifier(tab: Any, sizes: dict[str, Any]) -> Any:
    """Return a classifier without its parameters."""
    return tab.BERTClassifier(tab.BERTModel(**sizes))
