"""The chapter's network in two frameworks, compared as far as it goes.

With the same weights, batches and dropout masks: every layer's output, both
losses, every gradient, one optimizer step, and a training.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from d2lbert import bert, display
from d2lbert.config import Config
from d2lbert.data.batches import Batches
from d2lbert.data.corpus import read_lines
from d2lbert.data.examples import Batch, load_examples
from d2lbert.errors import InputError, input_errors
from d2lbert.parity import (
    TOLERANCES,
    Difference,
    compare_forward,
    compare_histories,
    compare_named,
)
from d2lbert.randomness import DropoutMasks, generator
from d2lbert.run import load_tab
from d2lbert.trainer import Trainer
from d2lbert.weights import (
    get_weights,
    initial_weights,
    neutral_name,
    neutral_shapes,
    set_weights,
)

#: How many rows the outputs of all layers are compared for.
FORWARD_ROWS = 64
TITLES = {
    'forward': "layers' outputs",
    'losses': 'losses',
    'gradients': 'gradients',
    'step': 'one Adam step',
    'training': 'training',
}


@dataclass
class Report:
    """What `compare_backends` found.

    `histories`: both losses of each step, by backend.
    """

    config: Config
    backends: tuple[str, str]
    dtype: str
    differences: list[Difference] = field(default_factory=list)
    histories: dict[str, list[list[float]]] = field(default_factory=dict)

    @property
    def failures(self) -> list[Difference]:
        """The tensors that differ by more than is allowed."""
        return [found for found in self.differences if not found.passed]

    @property
    def passed(self) -> bool:
        """Whether no tensor differs by more than is allowed."""
        return not self.failures

    def table(self) -> str:
        """Return a line for each kind of comparison: its worst tensor."""
        rows = [
            (
                'compared',
                'tensors',
                'max abs',
                'max rel',
                'allowed',
                'worst at',
                '',
            )
        ]
        for kind, title in TITLES.items():
            found = [d for d in self.differences if d.kind == kind]
            if not found:
                continue
            worst = max(found, key=_badness)
            place = ', '.join(map(str, worst.index))
            rows.append(
                (
                    title,
                    str(len(found)),
                    f'{worst.max_abs:.1e}',
                    f'{worst.max_rel:.1e}',
                    f'{worst.allowed:.1e}',
                    f'{worst.name}[{place}]' if place else worst.name,
                    'pass' if all(d.passed for d in found) else 'FAIL',
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return '\n'.join(
            '  '.join(
                cell.ljust(width)
                for cell, width in zip(row, widths, strict=True)
            ).rstrip()
            for row in rows
        )

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            'backends': self.backends,
            'dtype': self.dtype,
            'config': self.config.as_dict(),
            'passed': self.passed,
            'differences': [found.as_dict() for found in self.differences],
            'histories': self.histories,
        }

    def save(self, folder: str | Path) -> Path:
        """Write `parity.json`, `parity.png` and `parity.svg`.

        Returns the path of the picture.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'parity.json').write_text(
            json.dumps(self.as_dict(), indent=1) + '\n', encoding='utf-8'
        )
        return display.draw_parity(
            self.histories,
            folder / 'parity',
            f'recipe {self.config.recipe} · {self.config.corpus} · '
            f'{self.dtype}',
        )


def compare_backends(
    names: Sequence[str] = ('torch', 'mxnet'),
    *,
    dtype: str = 'float32',
    progress: bool = True,
    **options: Any,
) -> Report:
    """Compare the chapter's network in two frameworks.

    `names`: two backends; `dtype`: `'float32'` or `'float64'`; `options`:
    the fields of `Config`, of which `backend` is set here. Dropout is on.

    Raises what `d2lbert.pretrain` raises.
    """
    if len(names) != 2:
        raise InputError(
            f'{len(names)} backends, {", ".join(names)}: expected two, such '
            'as torch mxnet'
        )
    if dtype not in TOLERANCES:
        raise InputError(
            f'unknown dtype {dtype!r}: expected '
            + ' or '.join(map(repr, TOLERANCES))
        )
    config = Config(backend=names[0], **options)
    examples, vocab = load_examples(
        read_lines(config.corpus), config.max_len, random.Random(config.seed)
    )
    ours, theirs = (Side(name, config, len(vocab), dtype) for name in names)
    batches = Batches(examples, config.batch_size, config.seed)
    batch = next(batches.from_step(0))
    report = Report(config, (names[0], names[1]), dtype)
    report.differences += compare_one_step(
        ours, theirs, batch, TOLERANCES[dtype]
    )
    our_history, their_history = (
        side.train(batches, progress) for side in (ours, theirs)
    )
    report.histories = {names[0]: our_history, names[1]: their_history}
    report.differences += compare_histories(
        our_history, their_history, atol=TOLERANCES[dtype]['training']
    )
    return report


class Side:
    """The chapter's network in one framework."""

    def __init__(
        self, name: str, config: Config, vocab_size: int, dtype: str
    ) -> None:
        self.name = name
        self.config = config
        self.dtype = dtype
        self.tab = load_tab(name)
        with input_errors():
            self.devices = self.tab.BACKEND.devices(config.devices)
        self.net = self.tab.BERTModel(**config.net_arguments(vocab_size))

    def reset(self, noise: float = 0.0) -> None:
        """Set the initial weights, with some noise added to each.

        Without noise, biases of zero would hide that one is left out.
        """
        rng = generator(self.config.seed, 'weights', 1)
        weights = initial_weights(
            neutral_shapes(self.net),
            self.config.get_recipe().initialization,
            self.config.seed,
        )
        for name in sorted(weights):
            array = weights[name].astype(self.dtype)
            weights[name] = array + (
                noise * rng.standard_normal(array.shape)
            ).astype(self.dtype)
        set_weights(self.net, weights, self.devices)

    def trainer(self) -> Trainer:
        """Return a trainer for the weights that are set now."""
        return Trainer(
            self.net,
            self.config.get_recipe(),
            lr=self.config.learning_rate,
            devices=self.devices,
            micro_batch=self.config.micro_batch,
            seed=self.config.seed,
        )

    def gradients_of(
        self, trainer: Trainer, batch: Batch
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Return the losses and the gradients, by neutral names.

        A gradient that is zero by its nature is zero here, as it is for the
        optimizer: what a framework computes instead is noise.
        """
        losses = trainer.read(trainer.accumulate(batch))
        trainer.backend.allreduce_gradients(trainer.replicas, self.devices)
        gradients = {
            neutral_name(self.net, name): array
            for name, array in trainer.backend.gradients(self.net).items()
        }
        for name, array in gradients.items():
            if name.endswith(bert.ZERO_GRADIENT):
                array[:] = 0
        return dict(zip(('mlm', 'nsp'), losses, strict=True)), gradients

    def step_from(
        self, trainer: Trainer, gradients: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Return the weights after one update by given gradients."""
        backend = trainer.backend
        backend.set_gradients(
            self.net,
            {
                name: gradients[neutral_name(self.net, name)]
                for name in backend.parameter_shapes(self.net)
            },
        )
        trainer.optimizer.step()
        return get_weights(self.net)

    def train(self, batches: Batches, progress: bool) -> list[list[float]]:
        """Return both losses of each step of a training."""
        self.reset()
        history = []
        with display.Progress(self.name, self.config.steps, progress) as bar:
            for step in self.trainer().train(
                batches.from_step(0), self.config.steps
            ):
                history.append([step.mlm_loss, step.nsp_loss])
                bar.show(mlm=step.mlm_loss, nsp=step.nsp_loss)
        return history


def compare_one_step(
    ours: Side, theirs: Side, batch: Batch, tolerances: dict[str, float]
) -> list[Difference]:
    """Compare layers, losses, gradients and one update, dropout on."""
    for side in (ours, theirs):
        side.reset(noise=0.02)
    rows = batch.rows(slice(FORWARD_ROWS))

    def draw() -> DropoutMasks:
        return DropoutMasks(
            ours.config.seed, 0, np.arange(len(rows.tokens)), rows.valid_lens
        )

    found = compare_forward(
        ours.net,
        theirs.net,
        rows[:4],
        rtol=tolerances['forward'],
        atol=tolerances['forward'],
        draw=draw,
    )
    trainers = [side.trainer() for side in (ours, theirs)]
    backends = [trainer.backend for trainer in trainers]
    with (
        backends[0].accumulate_gradients(ours.net),
        backends[1].accumulate_gradients(theirs.net),
    ):
        (our_losses, our_gradients), (their_losses, their_gradients) = (
            side.gradients_of(trainer, batch)
            for side, trainer in zip((ours, theirs), trainers, strict=True)
        )
        # The same gradients for both, so that this is Adam's difference only
        our_weights, their_weights = (
            side.step_from(trainer, our_gradients)
            for side, trainer in zip((ours, theirs), trainers, strict=True)
        )
    for kind, a, b in (
        ('losses', our_losses, their_losses),
        ('gradients', our_gradients, their_gradients),
        ('step', our_weights, their_weights),
    ):
        found += compare_named(kind, a, b, tolerances[kind])
    return found


def _badness(found: Difference) -> float:
    """Return how much of what is allowed a difference uses up."""
    if found.problem:
        return np.inf
    if not found.allowed:
        return 0.0 if not found.max_abs else np.inf
    return found.max_abs / found.allowed
