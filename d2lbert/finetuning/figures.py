"""Pictures of fine-tunings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from d2lbert.classifier import NUM_CLASSES
from d2lbert.data.files import write_file
from d2lbert.runs.display import check_memory, save_figure

if TYPE_CHECKING:
    from d2lbert.finetuning.run import FinetunedRun

COLOURS = {False: 'tab:blue', True: 'tab:orange'}


def draw_finetuning(
    runs: Sequence[FinetunedRun],
    path: str | Path,
    title: str = '',
    write: Callable[[Path, bytes], None] = write_file,
) -> list[Path]:
    """Draw the curves of one fine-tuning or several as PNG and SVG.

    On the left the loss of each step, on the right the accuracy on the test
    part after each epoch. `path`: the file to write, without suffix;
    `title`: the heading; `write`: writes a file. Returns the paths written.
    """
    check_memory()
    from matplotlib.figure import Figure

    config = runs[0].config
    figure = Figure(figsize=(9, 4.2))
    figure.subplots_adjust(
        left=0.065, right=0.985, top=0.86, bottom=0.24, wspace=0.18
    )
    title = title or (
        f'{Path(config.pretrained).name} on {Path(config.data).name} · '
        f'{config.backend}, recipe {config.recipe} · batches of '
        f'{config.batch_size} · lr {config.lr:g}'
    )
    figure.suptitle(title, y=0.97, fontsize='medium', parse_math=False)
    left, right = figure.subplots(1, 2)
    seen: set[bool] = set()
    for run in runs:
        scratch = run.config.scratch
        many = len(runs) > 1
        style = {
            'color': COLOURS[scratch],
            'alpha': 0.7 if many else 1.0,
            'linewidth': 1.2,
            'label': None if scratch in seen else run.start(),
        }
        seen.add(scratch)
        ends = [found['step'] for found in run.evaluations]
        each = ends[0] if ends else len(run.steps)
        steps = range(1, len(run.steps) + 1)
        left.plot(
            [i / each for i in steps], [s.loss for s in run.steps], **style
        )
        epochs = range(1, len(ends) + 1)
        right.plot(epochs, run.test_accuracies, marker='o', ms=3, **style)
    for axes, level in (
        (left, math.log(NUM_CLASSES)),
        (right, 1 / NUM_CLASSES),
    ):
        axes.axhline(
            level, label=f'chance: ln {NUM_CLASSES} and 1/{NUM_CLASSES}',
            color='0.5', linewidth=1, linestyle=(0, (1, 2)),
        )  # fmt: skip
    left.set(title='Loss of each batch', xlabel='epoch', ylabel='loss')
    right.set(
        title='Accuracy on the test part', xlabel='epoch',
        ylabel='accuracy', ylim=(0, 1),
    )  # fmt: skip
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.25)
    lines, labels = right.get_legend_handles_labels()
    figure.legend(lines, labels, loc='lower center', ncols=3, frameon=False)
    return save_figure(figure, Path(path), write)
