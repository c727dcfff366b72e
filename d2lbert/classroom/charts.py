"""The notebooks' pictures of numbers: losses, words, representations.

Their labels need no translation, see `d2lbert.classroom.figures`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.layout_engine import ConstrainedLayoutEngine

from d2lbert.bert import BERTModel
from d2lbert.classifier import NUM_CLASSES
from d2lbert.classroom.figures import SIZE, Picture
from d2lbert.classroom.inspection import attention_weights
from d2lbert.data.snli import LABELS
from d2lbert.data.vocab import Vocab
from d2lbert.evaluation.fill_mask import Filling
from d2lbert.finetuning.run import FinetunedRun
from d2lbert.frameworks import label_of
from d2lbert.representation import Text, to_tokens
from d2lbert.runs.display import plot_history
from d2lbert.runs.run import Run

#: The curves of the first framework and of the second one, over them.
CURVES = (
    {'linewidth': 5, 'alpha': 0.35},
    {'linewidth': 1.3, 'linestyle': '-'},
)
#: The marker and the colours of each sense.
MARKS = (('o', 'Blues'), ('x', 'Oranges'))


# ---- losses ----------------------------------------------------------


def draw_curves(runs: Sequence[Run], entropy: float) -> Picture:
    """Draw the losses of trainings on one corpus, with chance.

    `runs`: of one framework or two. The colour is the recipe; the first
    framework's curves are wide and pale, the other's thin and dark.
    `entropy`: the MLM loss of the word frequencies.
    """
    picture = Picture((9, 4.2), layout='constrained')
    backends = list(dict.fromkeys(run.config.backend for run in runs))
    recipes = list(dict.fromkeys(run.config.recipe for run in runs))
    for task, axes in enumerate(picture.subplots(1, 2)):
        for run in runs:
            config = run.config
            plot_history(
                axes,
                run.history,
                task,
                label=f'{label_of(config.backend)}, {config.recipe}',
                **CURVES[backends.index(config.backend)],
                color=f'C{recipes.index(config.recipe)}',
            )
        _draw_levels(axes, task, len(runs[0].vocab), entropy)
        _loss_axes(axes, task)
    handles = axes.get_legend_handles_labels()
    picture.legend(
        *handles, loc='outside lower center', ncols=2, frameon=False,
        fontsize=SIZE,
    )  # fmt: skip
    return picture


def draw_held_out(run: Run) -> Picture:
    """Draw a training's losses, and those on held-out text.

    `run`: with evaluations.
    """
    picture = Picture((9, 4.2), layout='constrained')
    steps = [found['step'] for found in run.evaluations]
    for task, axes in enumerate(picture.subplots(1, 2)):
        plot_history(axes, run.history, task, color='C0', alpha=0.4)
        name = ('mlm_loss', 'nsp_loss')[task]
        held_out = [found[name] for found in run.evaluations]
        axes.plot(steps, held_out, 'o-', color='C1', linewidth=2)
        level = run.evaluations[-1]['frequencies'][name]
        _draw_levels(axes, task, len(run.vocab), level, 'frequencies')
        _loss_axes(axes, task)
    picture.legend(
        axes.lines[:2], ('train', 'valid'), loc='outside lower center',
        ncols=2, frameon=False, fontsize=SIZE,
    )  # fmt: skip
    return picture


def _draw_levels(
    axes: Any,
    task: int,
    vocab_size: int,
    level: float,
    name: str = '−Σ p ln p',
) -> None:
    """Draw the losses of chance, and for MLM of the word frequencies.

    `level`: of the word frequencies; `name`: what to call it.
    """
    num_classes = (vocab_size, 2)[task]
    _draw_level(axes, math.log(num_classes), f'ln {num_classes:,}')
    if not task:
        _draw_level(axes, level, name)


def _draw_level(axes: Any, level: float, text: str) -> None:
    """Draw a dashed line across the axes, with its text on the right."""
    axes.axhline(level, color='0.35', linewidth=1, linestyle='--')
    axes.text(
        1.01, level, text, va='center', color='0.25', size=SIZE,
        transform=axes.get_yaxis_transform(),
    )  # fmt: skip


def _loss_axes(axes: Any, task: int) -> None:
    axes.set_title(('mlm', 'nsp')[task], size=SIZE)
    axes.set_xlabel('step', size=SIZE)
    axes.set_ylabel('loss', size=SIZE)
    axes.tick_params(labelsize=SIZE)
    axes.grid(alpha=0.25)


# ---- fine-tuning -----------------------------------------------------


def draw_finetunings(groups: Mapping[str, Sequence[FinetunedRun]]) -> Picture:
    """Draw the curves of fine-tunings: loss, test accuracy, and chance.

    `groups`: by name, runs that differ in their seed alone. Each run has a
    thin line, their mean a thick one. The loss is the mean of an epoch.
    """
    picture = Picture((9, 4.2), layout='constrained')
    left, right = picture.subplots(1, 2)
    for number, (name, runs) in enumerate(groups.items()):
        losses = np.array([epoch_losses(run) for run in runs])
        accuracies = np.array([run.test_accuracies for run in runs])
        for axes, values in ((left, losses), (right, accuracies)):
            epochs = range(1, values.shape[1] + 1)
            style = {'color': f'C{number}', 'marker': 'os^'[number]}
            axes.plot(epochs, values.T, **style, alpha=0.35, ms=3)
            axes.plot(
                epochs, values.mean(axis=0), **style, linewidth=3, label=name
            )
    for axes, level, text in (
        (left, math.log(NUM_CLASSES), f'ln {NUM_CLASSES}'),
        (right, 1 / NUM_CLASSES, f'1/{NUM_CLASSES}'),
    ):
        _draw_level(axes, level, text)
        axes.set_xlabel('epoch', size=SIZE)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(labelsize=SIZE)
        axes.grid(alpha=0.25)
    left.set_ylabel('loss', size=SIZE)
    left.set_ylim(0, 1.2)
    right.set_ylabel('test accuracy', size=SIZE)
    right.set_ylim(0, 1)
    picture.legend(
        *right.get_legend_handles_labels(), loc='outside lower center',
        ncols=3, frameon=False, fontsize=SIZE,
    )  # fmt: skip
    return picture


def epoch_losses(run: FinetunedRun) -> list[float]:
    """Return the mean loss of each epoch's steps."""
    ends = [found['step'] for found in run.evaluations]
    losses = np.array([step.loss for step in run.steps])
    return [part.mean() for part in np.split(losses, ends[:-1])]


def draw_confusion(confusion: np.ndarray) -> Picture:
    """Draw how often each class, a row, was taken for each, a column."""
    picture = Picture((5.6, 4.4), layout=ConstrainedLayoutEngine(w_pad=0.15))
    axes = picture.add_subplot()
    axes.imshow(confusion, cmap='Blues', vmin=0, vmax=1.6 * confusion.max())
    for (row, column), count in np.ndenumerate(confusion):
        axes.text(
            column, row, str(count), ha='center', va='center', size=SIZE + 3
        )
    places = range(len(LABELS))
    axes.set_xticks(places, LABELS, size=SIZE)
    axes.set_yticks(places, LABELS, size=SIZE)
    axes.set_xlabel('p.argmax(axis=1)', size=SIZE)
    axes.set_ylabel('labels', size=SIZE)
    return picture


# ---- masks -----------------------------------------------------------


def draw_fillings(fillings: Mapping[str, Sequence[Filling]]) -> Picture:
    """Draw what several networks put for the mask of some texts, as bars.

    `fillings`: for each network, by name, what `d2lbert.fill` returned; the
    texts are the same, with one mask each. A row for each text, a column for
    each network.
    """
    rows = list(zip(*fillings.values(), strict=True))
    size = (3 * len(fillings), 0.9 + 1.7 * len(rows))
    picture = Picture(size, layout=ConstrainedLayoutEngine(h_pad=0.15))
    panels = picture.subplots(
        len(rows), len(fillings), sharex=True, squeeze=False
    )
    for (row, column), axes in np.ndenumerate(panels):
        filling = rows[row][column]
        words, values = filling.candidates[0], filling.probabilities[0]
        axes.barh(range(len(words)), values, color=f'C{column}')
        axes.set_yticks(range(len(words)), words, size=SIZE)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.tick_params(axis='x', labelsize=SIZE)
        if not row:
            axes.set_title([*fillings][column], size=SIZE, pad=26)
        if not column:
            # It is longer than its panel, which shall not become wider
            axes.annotate(
                ' '.join(filling.tokens[1:-1]), (0.01, 1), (0, 6),
                ('figure fraction', 'axes fraction'), 'offset points',
                size=SIZE, style='italic', parse_math=False, in_layout=False,
            )  # fmt: skip
    for axes in panels[-1]:
        axes.set_xlabel('p', size=SIZE)
    return picture


# ---- representations -------------------------------------------------


def draw_plane(
    vectors: Mapping[str, Mapping[str, np.ndarray]],
    senses: Mapping[str, Sequence[str]],
) -> Picture:
    """Draw vectors in the plane in which they differ most, by topic.

    `vectors`: for each network, by name, `(N, num_hiddens)` by topic;
    `senses`: the topics of each sense of a word. The axes are the first two
    principal components, with their share of the variance; all panels have
    one scale. A sense has one marker, a topic one colour.
    """
    planes = {
        name: principal_components(np.concatenate([*groups.values()]))
        for name, groups in vectors.items()
    }
    largest = 1.05 * max(abs(Y).max() for Y, _ in planes.values())
    limits = (-largest, largest)
    picture = Picture((3.1 * len(planes), 4.6), layout='constrained')
    panels = picture.subplots(1, len(planes), squeeze=False)[0]
    for axes, (name, groups) in zip(panels, vectors.items(), strict=True):
        Y, shares = planes[name]
        sizes = [len(X) for X in groups.values()]
        parts = np.split(Y, np.cumsum(sizes)[:-1])
        of_topic = dict(zip(groups, parts, strict=True))
        for sense, (marker, colors) in zip(senses, MARKS, strict=True):
            topics = senses[sense]
            shades = colormaps[colors](np.linspace(0.4, 0.95, len(topics)))
            for topic, color in zip(topics, shades, strict=True):
                axes.scatter(
                    *of_topic[topic].T, s=12, marker=marker, color=color,
                    label=topic, linewidths=0.8,
                )  # fmt: skip
        axes.set(xlim=limits, ylim=limits, aspect='equal')
        axes.set_title(name, size=SIZE)
        axes.set_xlabel(f'PC 1 ({shares[0]:.0%})', size=SIZE)
        axes.set_ylabel(f'PC 2 ({shares[1]:.0%})', size=SIZE)
        axes.tick_params(labelsize=SIZE)
    picture.legend(
        *axes.get_legend_handles_labels(), loc='outside lower center',
        ncols=2, frameon=False, fontsize=SIZE, markerscale=1.8,
    )  # fmt: skip
    return picture


def principal_components(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first two principal components and their shares.

    `X`: `(N, d)`. Returns `(N, 2)`, each component with the sign that makes
    its largest number positive, and the shares of the variance, `(2,)`.
    """
    centred = X - X.mean(axis=0)
    U, s, _ = np.linalg.svd(centred.astype(float), full_matrices=False)
    Y = (U * s)[:, :2]
    largest = Y[abs(Y).argmax(axis=0), range(2)]
    return Y * np.sign(largest), (s**2 / (s**2).sum())[:2]


def draw_attention(net: BERTModel, vocab: Vocab, text: Text) -> Picture:
    """Draw the attention weights, a panel for each head of each block.

    Rows are the tokens of the queries, columns the tokens of the keys.
    """
    tokens, _ = to_tokens(text, vocab)
    weights = attention_weights(net, vocab, text)
    num_blks, num_heads = weights.shape[:2]
    size = (3.7 * num_heads + 1.4, 0.6 + 4 * num_blks)
    picture = Picture(size, layout='constrained')
    panels = picture.subplots(
        num_blks, num_heads, sharex=True, sharey=True, squeeze=False
    )
    places, scale = range(len(tokens)), {'vmin': 0, 'vmax': weights.max()}
    for (blk, head), axes in np.ndenumerate(panels):
        image = axes.imshow(weights[blk, head], cmap='Blues', **scale)
        axes.set_title(f'blks[{blk}], head {head}', size=SIZE)
        axes.set_xticks(places, tokens, rotation=90, size=SIZE)
        axes.set_yticks(places, tokens, size=SIZE)
        axes.set_xlabel('K', size=SIZE)
        if not head:
            axes.set_ylabel('Q', size=SIZE, rotation=0)
    bar = picture.colorbar(image, ax=panels, shrink=0.7)
    bar.set_label('softmax $(QK^T/\\sqrt{d})$', size=SIZE)
    bar.ax.tick_params(labelsize=SIZE)
    return picture
