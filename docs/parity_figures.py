"""Make the pictures of docs/parity.md.

    python docs/parity_figures.py [--runs runs/parity] [NAME …]

Writes docs/images/parity-NAME.png, by default all of them. All but `drift`
and `float64` take a minute or two; these two need comparisons on WikiText-2,
which are made where `--runs` does not hold them: some minutes each.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from backends.adam import BETAS, EPSILON
from d2lbert.book.animator import DPI
from d2lbert.data.batches import Batches
from d2lbert.data.corpus import read_lines
from d2lbert.data.examples import load_examples
from d2lbert.evaluation.levels import entropies
from d2lbert.frameworks import FRAMEWORKS, label_of, load_tab
from d2lbert.parity.report import (
    REPORT_FILE,
    compare_backends,
    new_run,
    train,
)
from d2lbert.recipes import RECIPES
from d2lbert.runs.config import Config
from d2lbert.runs.run import new_net
from d2lbert.trainer import Trainer
from d2lbert.weights import get_weights, neutral_name, set_weights

IMAGES = Path(__file__).parent / 'images'
BACKENDS = ('mxnet', 'torch')
#: Each parameter that a matrix of the attention adds.
BIASES = ('W_q.bias', 'W_k.bias', 'W_v.bias')
#: The comparisons of docs/parity.md, by the folder that keeps them.
FULL = {'corpus': 'wikitext-2'}
SMALLER = FULL | {'recipe': 'pytorch', 'batch_size': 128, 'steps': 16}
REPORTS: dict[str, dict[str, Any]] = {
    'pytorch': FULL | {'recipe': 'pytorch', 'twin': True},
    'mxnet': FULL | {'recipe': 'mxnet'},
    'corrected': FULL | {'recipe': 'corrected'},
    'pytorch-128-f32': SMALLER | {'twin': True},
    'pytorch-128-f64': SMALLER | {'twin': True, 'dtype': 'float64'},
}


# ---- the chapter's network on the sample -----------------------------


def new_trainer(
    backend: str, dtype: str = 'float32', **options: Any
) -> tuple[Trainer, Batches]:
    """Return a trainer of the chapter's network, and its batches."""
    # At once: a recipe's other options follow from it
    given = {'backend': backend, 'devices': 'cpu', 'batch_size': 64} | options
    config = Config(**given)
    examples, vocab = load_examples(
        read_lines('sample'), config.max_len, random.Random(0)
    )
    tab = load_tab(backend)
    devices = tab.BACKEND.devices(config.devices)
    net = new_net(tab, config, vocab, devices)
    weights = {name: W.astype(dtype) for name, W in get_weights(net).items()}
    set_weights(net, weights, devices)
    trainer = Trainer(
        net, RECIPES[config.recipe], lr=config.lr, devices=devices
    )
    return trainer, Batches(examples, config.batch_size)


def padding(figure: Figure, runs: Path) -> None:
    """Draw both averages of one and the same loss."""
    axes = figure.subplots()
    trainer, batches = new_trainer('torch', recipe='pytorch')
    averages: dict[str, list[float]] = {'pytorch': [], 'corrected': []}
    for _, batch in zip(range(30), batches.from_step(0), strict=False):
        for name, losses in averages.items():
            trainer.recipe = RECIPES[name]
            losses.append(trainer.value_and_grad(batch).losses()[0])
        trainer.recipe = RECIPES['pytorch']
        trainer.step(batch)
    steps = range(1, 31)
    axes.plot(steps, averages['corrected'], color='0.2', label=(
        'mean over the real predictions'
    ))  # fmt: skip
    axes.plot(
        steps,
        averages['pytorch'],
        color=FRAMEWORKS['torch'].color,
        label='mean over all slots, padding included',
    )
    axes.fill_between(steps, *averages.values(), color='0.9')
    vocab_size = trainer.net.vocab_size
    entropy = entropies(batches.examples, vocab_size)['mlm_loss']
    for label, level, dashes in (
        ('chance', np.log(vocab_size), ':'),
        ('word frequencies', entropy, '--'),
    ):
        axes.axhline(
            level, color='0.4', linewidth=1, linestyle=dashes, label=label
        )
    axes.set(xlabel='step', ylabel='MLM loss', ylim=(0, None))
    legend_below(axes, 2)


def epsilon(figure: Figure, runs: Path) -> None:
    """Draw Adam's first step for gradients of all sizes."""
    gradients = np.logspace(-12, -3, 28).astype(np.float32)
    root = np.sqrt(1 - BETAS[1])
    axes = figure.subplots()
    for label, epsilon, style in (
        ('formula, ε after the correction', EPSILON, '-'),
        ('formula, ε before it', EPSILON / root, '--'),
    ):
        axes.plot(
            gradients,
            gradients / (gradients + epsilon),
            style,
            color='0.5',
            label=label,
        )
    for backend, marker in zip(BACKENDS, 'x+', strict=True):
        for inside in (False, True):
            axes.plot(
                gradients,
                first_step(backend, gradients, inside),
                marker,
                color=FRAMEWORKS[backend].color,
                label=None if inside else label_of(backend),
            )
    axes.set(
        xscale='log',
        xlabel='size of the gradient',
        ylabel='size of the step / learning rate',
    )
    legend_below(axes, 2)


def first_step(
    backend: str, gradients: np.ndarray, epsilon_inside: bool
) -> np.ndarray:
    """Return how far Adam moves weights, in learning rates."""
    tab = load_tab(backend)
    net = tab.BACKEND.Sequential(
        tab.BACKEND.Linear(1, len(gradients), bias=False)
    )
    ((name, shape),) = tab.BACKEND.parameter_shapes(net).items()
    tab.BACKEND.set_parameters(net, {name: np.zeros(shape, np.float32)})
    adam = tab.BACKEND.Adam(net, 1.0, epsilon_inside)
    adam.step({name: gradients.reshape(shape)})
    return -tab.BACKEND.get_parameters(net)[name].ravel()


def key_bias(figure: Figure, runs: Path) -> None:
    """Draw the gradients of the three biases of an attention."""
    panels = figure.subplots(1, 2, sharey=True)
    for axes, backend in zip(panels, BACKENDS, strict=True):
        trainer, batches = new_trainer(backend, recipe='corrected')
        found = trainer.value_and_grad(next(batches.from_step(0)))
        gradients = {
            neutral_name(trainer.net, name): array
            for name, array in found.arrays().items()
        }
        for bias, color in zip(
            BIASES, ('0.7', '#d6336c', '0.3'), strict=True
        ):
            sizes = np.abs(gradients[f'encoder.blks.0.attention.{bias}'])
            axes.plot(np.sort(sizes)[::-1], color=color, label=bias)
        axes.axhline(EPSILON, color='0.5', linestyle=':', label="Adam's ε")
        axes.set(
            title=label_of(backend), yscale='log', xlabel='element, sorted'
        )
    panels[0].set_ylabel('size of the gradient')
    legend_below(axes, 4)


def rounding(figure: Figure, runs: Path) -> None:
    """Draw what MXNet's float32 constant and oneDNN's logarithm do."""
    left, right = figure.subplots(1, 2)
    for backend, steps in gluon_steps().items():
        left.plot(
            range(1, len(steps) + 1),
            (steps - 1) * 1e6,
            '.-',
            color=FRAMEWORKS[backend].color,
            label=label_of(backend),
        )
    left.set(
        title="Adam's step, off its formula",
        xlabel='step',
        ylabel='millionths',
    )
    left.legend(frameon=False)
    for backend, errors in log_softmax_errors().items():
        right.hist(
            errors * 1e6,
            bins=np.linspace(-5, 5, 81),
            histtype='step',
            color=FRAMEWORKS[backend].color,
            label=label_of(backend),
        )
    right.set(
        title='log_softmax, off its value',
        xlabel='error, millionths',
        yscale='log',
        ylabel='how many logarithms',
    )
    right.legend(frameon=False)


def gluon_steps() -> dict[str, np.ndarray]:
    """Return each framework's own Adam steps over those of the formula.

    A gradient of 1 moves a weight by the learning rate, in every step.
    """
    import torch

    from backends.mxnet import nd

    num_steps, (beta1, beta2) = 30, BETAS
    w, g, m, v = (nd.array([x]) for x in (0.0, 1.0, 0.0, 0.0))
    weight = torch.nn.Parameter(torch.zeros(1))
    adam = torch.optim.Adam([weight], lr=1.0)
    ours, theirs = [], []
    for t in range(1, num_steps + 1):
        w[:] = 0
        lr = (1 - beta2**t) ** 0.5 / (1 - beta1**t)
        nd.adam_update(
            w, g, m, v, lr=lr, beta1=beta1, beta2=beta2, epsilon=0, out=w
        )
        ours.append(-w.asscalar())
        weight.data.zero_()
        weight.grad = torch.ones(1)
        adam.step()
        theirs.append(-weight.item())
    return {'mxnet': np.array(ours), 'torch': np.array(theirs)}


def log_softmax_errors() -> dict[str, np.ndarray]:
    """Return how far each framework's logarithms are off, in float32."""
    import torch

    from backends.mxnet import np as mx_np
    from backends.mxnet import npx

    logits = np.random.default_rng(0).normal(0, 2, (500, 2000))
    logits = logits.astype(np.float32)
    exact = logits.astype(np.float64)
    exact = exact - np.log(np.exp(exact).sum(1, keepdims=True))
    found = {
        'mxnet': npx.log_softmax(mx_np.array(logits), axis=-1).asnumpy(),
        'torch': torch.log_softmax(torch.from_numpy(logits), 1).numpy(),
    }
    return {name: (array - exact).ravel() for name, array in found.items()}


def shards(figure: Figure, runs: Path) -> None:
    """Draw how a curve depends on the number of shards."""
    panels = figure.subplots(1, 3, sharey=True)
    cases = (
        ('mxnet', 'float32'),
        ('corrected', 'float32'),
        ('corrected', 'float64'),
    )
    for axes, (recipe, dtype) in zip(panels, cases, strict=True):
        whole = curve_of_shards(recipe, dtype, 1)
        for num_shards, style in ((2, 'o-'), (3, 's--'), (5, '^:')):
            curve = curve_of_shards(recipe, dtype, num_shards)
            axes.plot(
                range(1, len(curve) + 1),
                np.where(curve == whole, np.nan, np.abs(curve - whole)),
                style,
                markersize=3,
                linewidth=1,
                color='0.3',
                label=f'{num_shards} shards and 1',
            )
        axes.set(title=f'{recipe}, {dtype}', yscale='log', xlabel='step')
    panels[0].set_ylabel('difference of the MLM losses')
    legend_below(axes, 3)


def curve_of_shards(recipe: str, dtype: str, num_shards: int) -> np.ndarray:
    """Return the MLM losses of twenty steps with so many shards."""
    trainer, batches = new_trainer(
        'torch', dtype, recipe=recipe, devices=f'cpu:{num_shards}'
    )
    steps = trainer.train(batches.from_step(0), 20)
    return np.array([step.mlm_loss for step in steps])


def legend_below(axes: Any, num_columns: int) -> None:
    """Put the legend of the panels below them, where it covers nothing."""
    axes.figure.legend(
        *axes.get_legend_handles_labels(),
        loc='outside lower center',
        ncols=num_columns,
        frameon=False,
    )


# ---- comparisons on WikiText-2 ---------------------------------------


def get_report(name: str, runs: Path) -> dict[str, Any]:
    """Read a comparison, or make it."""
    folder = runs / name
    if not (folder / REPORT_FILE).exists():
        compare_backends(out=folder, **REPORTS[name])
    return json.loads((folder / REPORT_FILE).read_text('utf-8'))


def apart(report: dict[str, Any], other: int) -> np.ndarray:
    """Return how far the first MLM curve is from the other one."""
    first, *others = report['histories'].values()
    gaps = np.abs(np.array(first) - np.array(others[other]))[:, 0]
    return np.where(gaps == 0, np.nan, gaps)


def drift(figure: Figure, runs: Path) -> None:
    """Draw all recipes' curves, and how far the frameworks are apart."""
    panels = figure.subplots(
        2, 3, sharex=True, sharey='row', height_ratios=(1.2, 1)
    )
    for recipe, (curves, gaps) in zip(
        ('mxnet', 'corrected', 'pytorch'), panels.T, strict=True
    ):
        report = get_report(recipe, runs)
        for backend, style in (('torch', '-'), ('mxnet', '--')):
            losses = np.array(report['histories'][backend])[:, 0]
            curves.plot(
                range(1, len(losses) + 1),
                losses,
                style,
                color=FRAMEWORKS[backend].color,
                label=label_of(backend),
            )
        draw_gaps(gaps, report)
        curves.set(title=f'recipe {recipe}')
        gaps.set(xlabel='step')
    panels[0, 0].set_ylabel('MLM loss')
    panels[1, 0].set_ylabel('difference')
    panels[0, 0].legend(frameon=False)
    legend_below(panels[1, 2], 2)


def float64(figure: Figure, runs: Path) -> None:
    """Draw the same training in float32 and in float64."""
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name in zip(
        panels, ('pytorch-128-f32', 'pytorch-128-f64'), strict=True
    ):
        report = get_report(name, runs)
        if report['dtype'] == 'float32':
            report['histories']['other sums'] = other_sums(runs)
        draw_gaps(axes, report)
        axes.set(title=report['dtype'], xlabel='step')
    panels[0].set_ylabel('difference of the MLM losses')
    legend_below(panels[0], 2)


def other_sums(runs: Path) -> list[list[float]]:
    """Return PyTorch's losses when it adds up in another order.

    The rows go through the network 50 at a time instead of all at once.
    """
    path = runs / 'other-sums.json'
    if not path.exists():
        config = Config(backend='torch', micro_batch=50, **SMALLER)
        examples, vocab = load_examples(
            read_lines(config.corpus), config.max_len, random.Random(0)
        )
        run = new_run('torch', config, vocab)
        batches = Batches(examples, config.batch_size)
        weights = get_weights(run.net)
        history = train(run, weights, batches, progress=True)
        path.write_text(json.dumps(history))
    return json.loads(path.read_text('utf-8'))


def draw_gaps(axes: Any, report: dict[str, Any]) -> None:
    """Draw how far the frameworks are apart, and PyTorch from itself."""
    labels = (
        'PyTorch and MXNet',
        'PyTorch twice, one weight nudged',
        'PyTorch twice, sums in another order',
    )
    for i in range(len(report['histories']) - 1):
        gaps = apart(report, i)
        axes.plot(
            range(1, len(gaps) + 1),
            gaps,
            ('o-', 's--', '^:')[i],
            markersize=3,
            linewidth=1,
            color=('0.2', '#2b8a3e', '#ae3ec9')[i],
            label=labels[i],
        )
    axes.set_yscale('log')


FIGURES: dict[str, tuple[Callable[[Figure, Path], None], tuple]] = {
    'padding': (padding, (6, 4)),
    'epsilon': (epsilon, (6, 3.8)),
    'key-bias': (key_bias, (7, 3.5)),
    'rounding': (rounding, (8, 3.2)),
    'shards': (shards, (9, 3.4)),
    'drift': (drift, (9, 5.2)),
    'float64': (float64, (7.5, 3.8)),
}


def main() -> None:
    """Draw the figures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('names', nargs='*', metavar='NAME', default=[])
    parser.add_argument('--runs', type=Path, default=Path('runs/parity'))
    options = parser.parse_args()
    for name in options.names or FIGURES:
        draw, size = FIGURES[name]
        figure = Figure(figsize=size, layout='constrained')
        draw(figure, options.runs)
        for axes in figure.axes:
            axes.grid(alpha=0.25)
            if axes.get_xlabel() == 'step':
                axes.xaxis.get_major_locator().set_params(integer=True)
        path = IMAGES / f'parity-{name}.png'
        figure.savefig(path, dpi=DPI)
        print(path)


if __name__ == '__main__':
    main()
