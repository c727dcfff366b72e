"""The comparison of the chapter's network in two frameworks.

With the same weights, batches and dropout masks: every layer's output, both
losses, every gradient, one optimizer step, and a training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from d2lbert import bert
from d2lbert.data.batches import Batches
from d2lbert.data.examples import Batch
from d2lbert.data.files import output_errors, write_file
from d2lbert.data.vocab import Vocab
from d2lbert.errors import InputError, check_choice
from d2lbert.evaluation.evaluate import chunks_of, means, score
from d2lbert.evaluation.levels import answers_of, entropies
from d2lbert.frameworks import label_of, load_tab
from d2lbert.parity import (
    TOLERANCES,
    Difference,
    compare_forward,
    compare_histories,
    compare_named,
)
from d2lbert.randomness import DropoutMasks, generator
from d2lbert.runs import display
from d2lbert.runs.config import Config
from d2lbert.runs.folder import check_free, locked, make_folder
from d2lbert.runs.run import (
    Run,
    check_shards,
    devices_of,
    load_examples,
    new_net,
)
from d2lbert.weights import get_weights, neutral_name, set_weights

Weights = dict[str, np.ndarray]

#: How many rows the outputs of all layers are compared for.
FORWARD_ROWS = 64
TITLES = {
    'forward': "layers' outputs",
    'losses': 'losses',
    'gradients': 'gradients',
    'step': 'one Adam step',
    'evaluation': 'evaluation',
    'training': 'training',
}
HEADS = (
    'compared', 'tensors', 'max abs', 'max rel', 'allowed', 'worst at', '',
)  # fmt: skip
REPORT_FILE, PICTURE = 'parity.json', 'parity'
#: How large the noise is that is added to the weights of the one step.
NOISE = 0.02
#: A gradient that differs for this many draws of weights is a fault.
NUM_ATTEMPTS = 3
#: The weight that the twin has one unit in its last place larger: the first
#: of the position that every row starts with.
NUDGED = 'encoder.pos_embedding'


@dataclass
class Report:
    """What `compare_backends` found.

    `histories`: both losses of each step, by backend, and of the twin if
    there was one; `twin`: how far the first backend's training is from
    itself with one weight changed by rounding; `kinks`: gradients that
    differed for the weights that were drawn first and agree for others, as
    they do where an input of a ReLU was within rounding of zero. Neither
    counts as a failure. `vocab_size`: of the vocabulary; `frequencies`: what
    the word frequencies score, see `entropies`.
    """

    config: Config
    backends: tuple[str, str]
    dtype: str
    vocab_size: int
    frequencies: dict[str, float]
    differences: list[Difference] = field(default_factory=list)
    histories: dict[str, list[list[float]]] = field(default_factory=dict)
    twin: list[Difference] = field(default_factory=list)
    kinks: list[Difference] = field(default_factory=list)

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
        rows: list[tuple[str, ...]] = [HEADS]
        for kind, title in TITLES.items():
            found = [d for d in self.differences if d.kind == kind]
            passed = all(d.passed for d in found)
            rows += _row(title, found, 'pass' if passed else 'FAIL')
            if kind == 'gradients':
                rows += _row('(weights at a kink)', self.kinks)
        name = label_of(self.backends[0])
        rows += _row(f'({name} and its twin)', self.twin)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return '\n'.join(
            '  '.join(map(str.ljust, row, widths)).rstrip() for row in rows
        )

    def failures_text(self, at_most: int = 20) -> str:
        """Return a line for each tensor that failed, the worst ones first.

        The steps of a training keep their order.
        """
        failures = sorted(
            self.failures,
            key=lambda d: 0.0 if d.kind == 'training' else -d.severity,
        )
        lines = list(map(str, failures[:at_most]))
        if len(failures) > at_most:
            lines.append(f'… and {len(failures) - at_most} more')
        return '\n'.join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        config = self.config.as_dict()
        del config['precision']  # it is that of `dtype`
        content = vars(self) | {'config': config, 'passed': self.passed}
        for kind in ('differences', 'twin', 'kinks'):
            content[kind] = [found.as_dict() for found in content[kind]]
        return content

    def save(self, folder: str | Path) -> Path:
        """Write `parity.json`, then `parity.png` and `parity.svg`.

        Returns the path of the PNG, which is not there where Matplotlib
        cannot draw: that is a warning.
        """
        folder = make_folder(folder)
        content = json.dumps(self.as_dict(), indent=1)
        with output_errors(folder, '--out'):
            write_file(folder / REPORT_FILE, content.encode() + b'\n')
        title = f'recipe {self.config.recipe} · {self.config.title()}'
        picture = folder / PICTURE
        name = display.frequencies_label(self.config)
        with display.drawing():
            display.draw_parity(
                *(self.histories, picture, f'{title} · {self.dtype}'),
                *(self.vocab_size, {name: self.frequencies}),
            )
        return picture.with_suffix('.png')


def compare_backends(
    names: Sequence[str] = ('torch', 'mxnet'),
    *,
    dtype: str = 'float32',
    twin: bool = False,
    out: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> Report:
    """Compare the chapter's network in two frameworks.

    `names`: two backends; `dtype`: `'float32'` or `'float64'`; `twin`: train
    the first backend once more with one weight larger by one unit in its
    last place, which shows how much of a difference is rounding; `out`: the
    folder in which to save the report, which must not hold one; `options`:
    the fields of `Config`, of which `backend` is set here. Dropout is on,
    unless the options say otherwise.

    Raises what `d2lbert.pretrain` raises.
    """
    if len(names) != 2:
        raise InputError(
            f'{len(names)} backends, {", ".join(names)}: expected two, such '
            'as torch mxnet'
        )
    check_choice('dtype', dtype, TOLERANCES)
    config = Config(backend=names[0], **options)
    if config.precision != 'float32':
        raise InputError(
            f'precision = {config.precision!r}: only exact arithmetic can be '
            "compared, leave it at 'float32'"
        )
    examples, vocab = load_examples(config, progress)
    ours, theirs = (new_run(name, config, vocab) for name in names)
    for run in (ours, theirs):
        check_shards(
            config.batch_size,
            config.steps,
            examples.num_examples,
            len(run.devices),
        )
    batches = Batches(examples, config.batch_size, config.seed)
    with (
        locked(out)
        if out is not None
        else nullcontext(lambda: None) as check_held
    ):
        if out is not None:
            pictures = (PICTURE + suffix for suffix in display.SUFFIXES)
            check_free(out, (REPORT_FILE, *pictures))
        report = compare_runs(ours, theirs, batches, dtype, twin, progress)
        if out is not None:
            check_held()
            report.save(out)
    return report


def new_run(name: str, config: Config, vocab: Vocab) -> Run:
    """Return a run in one framework, with its initial weights."""
    tab = load_tab(name)
    devices = devices_of(tab, config)
    net = new_net(tab, config, vocab, devices)
    return Run(replace(config, backend=name), net, vocab, devices)


def compare_runs(
    ours: Run,
    theirs: Run,
    batches: Batches,
    dtype: str,
    twin: bool,
    progress: bool,
) -> Report:
    """Compare one step and a training of two runs that have begun alike."""
    names = ours.config.backend, theirs.config.backend
    vocab_size = len(ours.vocab)
    frequencies = entropies(
        batches.examples, vocab_size, ours.config.own_recipe().mlm_average
    )
    report = Report(ours.config, names, dtype, vocab_size, frequencies)
    allowed = TOLERANCES[dtype]
    weights = {
        name: W.astype(dtype) for name, W in get_weights(ours.net).items()
    }
    batch = next(batches.from_step(0))
    report.differences, report.kinks = compare_off_kinks(
        partial(compare_one_step, ours, theirs, weights, batch, allowed)
    )
    first = train(ours, weights, batches, progress)
    second = train(theirs, weights, batches, progress)
    again = ', again' if names[0] == names[1] else ''
    report.histories = {names[0]: first, names[1] + again: second}
    limit = allowed['training']
    report.differences += compare_histories(first, second, atol=limit)
    if twin:
        third = train(ours, nudged(weights), batches, progress)
        report.histories[f'{names[0]}, one weight nudged'] = third
        report.twin = compare_histories(first, third, atol=limit)
    return report


def train(
    run: Run, weights: Weights, batches: Batches, progress: bool
) -> list[list[float]]:
    """Return both losses of each step of a training from some weights."""
    set_weights(run.net, weights, run.devices)
    num_steps, history = run.config.steps, []
    with (
        closing(run.new_trainer(shared_masks=True)) as trainer,
        display.Progress(run.framework(), num_steps, visible=progress) as bar,
    ):
        for step in trainer.train(batches.from_step(0), num_steps):
            history.append([step.mlm_loss, step.nsp_loss])
            bar.show(mlm=step.mlm_loss, nsp=step.nsp_loss)
    return history


def nudged(weights: Weights) -> Weights:
    """Return weights, one of them the next larger number of its type."""
    W = weights[NUDGED].copy()
    first = W.reshape(-1)[:1]
    first[:] = np.nextafter(first, np.inf)
    return weights | {NUDGED: W}


def with_noise(weights: Weights, rng: np.random.Generator) -> Weights:
    """Return weights with some noise added to each.

    Without noise, biases of zero would hide that one is left out.
    """
    return {
        name: W + (NOISE * rng.standard_normal(W.shape)).astype(W.dtype)
        for name, W in sorted(weights.items())
    }


def compare_off_kinks(
    compare: Callable[[int], list[Difference]],
) -> tuple[list[Difference], list[Difference]]:
    """Compare one step for weights at which the gradient is continuous.

    Where an input of a ReLU is within rounding of zero, one framework lets
    its gradient pass and the other does not. Other weights have it
    elsewhere, or nowhere, while a fault is there for all. `compare`:
    compares for one of many draws of weights, from 1. Returns the
    differences, and those of the gradients for weights given up.
    """
    kinks: list[Difference] = []
    for attempt in range(1, NUM_ATTEMPTS + 1):
        found = compare(attempt)
        failures = [d for d in found if not d.passed]
        if {d.kind for d in failures} != {'gradients'}:
            return found, kinks
        kinks += failures
    return found, []


def compare_one_step(
    ours: Run,
    theirs: Run,
    weights: Weights,
    batch: Batch,
    tolerances: dict[str, float],
    attempt: int,
) -> list[Difference]:
    """Compare layers, scores, losses, gradients and one update.

    Dropout is on, but not for the scores. `attempt`: the draw of the noise
    that is added to the weights.
    """
    seed = ours.config.seed
    noisy = with_noise(weights, generator(seed, 'weights', attempt))
    for run in (ours, theirs):
        set_weights(run.net, noisy, run.devices)
    rows, limit = batch.rows(slice(FORWARD_ROWS)), tolerances['forward']
    num_rows, num_tokens = rows.tokens.shape
    places = np.arange(num_rows)
    masks = partial(
        DropoutMasks, seed, 0, places, rows.valid_lens, num_tokens
    )
    found = compare_forward(
        ours.net, theirs.net, rows[:4], rtol=limit, atol=limit, draw=masks
    )
    scores, others = (evaluated(run, rows) for run in (ours, theirs))
    found += compare_named(
        'evaluation', scores, others, tolerances['evaluation']
    )
    first = take_step(ours, batch)
    # The same gradients for both, so that this is Adam's difference only
    second = take_step(theirs, batch, first['gradients'])
    for kind, arrays in first.items():
        found += compare_named(kind, arrays, second[kind], tolerances[kind])
    return found


def evaluated(run: Run, examples: Batch) -> dict[str, float]:
    """Return what a network scores, by the names of `MEASURES`."""
    chunks = chunks_of(run.net, examples, None)
    return means(score(run.net, chunks, answers_of(examples)))


def take_step(
    run: Run, batch: Batch, gradients: Weights | None = None
) -> dict[str, dict[str, Any]]:
    """Return the losses, the gradients and the weights after a step.

    `gradients`: those to step by, by default the ones found. A gradient that
    is zero by its nature is zero here, as it is for the optimizer: what a
    framework computes instead is noise.
    """
    with closing(run.new_trainer(shared_masks=True)) as trainer:
        computed = trainer.value_and_grad(batch)
        arrays = computed.arrays()
        names = {name: neutral_name(run.net, name) for name in arrays}
        found = {
            names[name]: np.zeros_like(array)
            if name.endswith(bert.ZERO_GRADIENT)
            else array
            for name, array in arrays.items()
        }
        losses = zip(('mlm', 'nsp'), computed.losses(), strict=True)
        given = gradients or found
        trainer.optimizer.step(
            {name: given[names[name]] for name in names},
            trainer.next_lr(),
            trainer.recipe.scale(computed),
        )
    return {
        'losses': dict(losses),
        'gradients': found,
        'step': get_weights(run.net),
    }


def _row(
    title: str, found: Sequence[Difference], verdict: str = ''
) -> list[tuple[str, ...]]:
    """Return the row of a table for the worst difference, if there is one."""
    if not found:
        return []
    worst = max(found, key=lambda d: d.severity)
    place = f'[{", ".join(map(str, worst.index))}]' if worst.index else ''
    numbers = (worst.max_abs, worst.max_rel, worst.allowed)
    cells = (f'{number:.1e}' for number in numbers)
    return [(title, str(len(found)), *cells, worst.name + place, verdict)]
