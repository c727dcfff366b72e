"""What a reader sees of a training: progress and pictures."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from d2lbert.book.animator import DPI
from d2lbert.data.files import write_file

#: One colour for each framework, wherever its curve is drawn.
COLORS = {'mxnet': '#1f77b4', 'torch': '#d9480f'}
LABELS = {'mxnet': 'MXNet', 'torch': 'PyTorch'}
DASHES = ('-', '--', ':', '-.')
SUFFIXES = ('.png', '.svg')
#: Below this no difference of losses is drawn.
LEAST_GAP = 1e-17


class Unfailing:
    """A text stream that may be full or gone, which must stop nothing."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> None:
        """Write, if that can be done."""
        with suppress(OSError, ValueError):
            self.stream.write(text)

    def flush(self) -> None:
        """Flush, if that can be done."""
        with suppress(OSError, ValueError):
            self.stream.flush()


class Progress:
    """A line on stderr with steps, losses, speed and time left."""

    def __init__(
        self,
        label: str,
        num_steps: int,
        num_done: int = 0,
        visible: bool = True,
    ) -> None:
        from tqdm import tqdm

        self.bar = tqdm(
            total=num_steps,
            initial=num_done,
            desc=LABELS.get(label, label),
            unit='step',
            file=Unfailing(sys.stderr),
            disable=not visible or sys.stderr is None,
            mininterval=0.2,
        )

    def show(self, **values: float) -> None:
        """Count a step and show its values."""
        self.bar.set_postfix(
            {name: f'{value:.3f}' for name, value in values.items()},
            refresh=False,
        )
        self.bar.update()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bar.close()


def draw_losses(
    histories: Mapping[str, Sequence[Sequence[float]]],
    path: str | Path,
    vocab_size: int,
    title: str = '',
) -> list[Path]:
    """Draw the loss curves of one run or several as PNG and SVG.

    `histories`: `[[mlm, nsp], …]` by label, whose first word is a backend;
    `path`: where, without suffix; `vocab_size`: for the chance level of
    masked language modelling; `title`: what was run. Returns the paths
    written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.4))
    # Room above for the title and below for the legend, which is outside
    # of the axes to cover no curve
    figure.subplots_adjust(
        left=0.065, right=0.985, top=0.86, bottom=0.24, wspace=0.18
    )
    figure.suptitle(title, y=0.97, fontsize='medium', parse_math=False)
    tasks = (
        ('Masked language modelling', vocab_size),
        ('Next sentence prediction', 2),
    )
    for task, (axes, (name, num_classes)) in enumerate(
        zip(figure.subplots(1, 2), tasks, strict=True)
    ):
        for i, (label, history) in enumerate(histories.items()):
            _draw_curve(axes, label, [losses[task] for losses in history], i)
        axes.axhline(
            math.log(num_classes),
            label=f'chance: ln {vocab_size:,} and ln 2',
            color='0.5',
            linewidth=1,
            linestyle=(0, (1, 2)),
        )
        axes.set(title=name, xlabel='step', ylabel='loss')
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.25)
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc='lower center',
        ncols=3,
        frameon=False,
    )
    return save_figure(figure, Path(path))


def save_figure(figure: Any, path: Path) -> list[Path]:
    """Write a figure as PNG and SVG, each whole or not at all.

    `path`: where, without suffix. Returns the paths written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    paths = [path.with_name(path.name + suffix) for suffix in SUFFIXES]
    for target in paths:
        drawn = io.BytesIO()
        figure.savefig(drawn, format=target.suffix[1:], dpi=DPI)
        write_file(target, drawn.getvalue())
    return paths


def _draw_curve(
    axes: Any, label: str, losses: Sequence[float], number: int
) -> None:
    backend, _, _ = label.partition(',')
    axes.plot(
        range(1, len(losses) + 1),
        losses,
        label=_name(label),
        color=COLORS.get(backend),
        linestyle=DASHES[number % len(DASHES)],
        # A single step would have no line
        marker='o' if len(losses) == 1 else None,
    )


def draw_parity(
    histories: Mapping[str, Sequence[Sequence[float]]],
    path: str | Path,
    title: str = '',
) -> Path:
    """Draw loss curves over each other, and how far they are apart.

    `histories`, `path`, `title`: see `draw_losses`. The differences, of the
    first one from each of the others, stand on a logarithmic scale; equal
    losses leave a gap there, or are said to be none. A single one is
    compared with itself. Returns the path of the PNG.
    """
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.6), layout='constrained')
    figure.suptitle(title, fontsize='medium', parse_math=False)
    axes = figure.subplots(2, 2, sharex=True, height_ratios=(2, 1.3))
    (first, ours), *others = histories.items()
    for task, name in enumerate(
        ('Masked language modelling', 'Next sentence prediction')
    ):
        curves, gaps = axes[:, task]
        for i, (label, history) in enumerate(histories.items()):
            _draw_curve(
                curves, label, [losses[task] for losses in history], i
            )
        for i, (label, history) in enumerate(others or [(first, ours)]):
            apart = [
                abs(a[task] - b[task])
                for a, b in zip(ours, history, strict=True)
            ]
            _draw_gaps(gaps, f'{_name(first)} and {_name(label)}', apart, i)
        gaps.set_yscale('log')
        if all(np.isnan(line.get_ydata()).all() for line in gaps.lines):
            gaps.text(0.5, 0.5, 'none', transform=gaps.transAxes, ha='center')
            gaps.set_yticks([])
        gaps.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        # Nobody needs to see how far below rounding a difference can be
        gaps.set_ylim(max(gaps.get_ylim()[0], LEAST_GAP), None)
        curves.set(title=name, ylabel='loss')
        gaps.set(xlabel='step', ylabel='difference')
        for panel in (curves, gaps):
            panel.legend(frameon=False, fontsize='small')
            panel.grid(alpha=0.25)
    return save_figure(figure, Path(path))[0]


def _draw_gaps(
    axes: Any, label: str, apart: Sequence[float], number: int
) -> None:
    axes.plot(
        range(1, len(apart) + 1),
        [gap or math.nan for gap in apart],
        marker='os^v'[number % 4],
        label=label,
        color='0.6' if number else '0.2',
        linestyle=DASHES[number % len(DASHES)],
        markersize=3,
        linewidth=1,
    )


def _name(label: str) -> str:
    """Return what a label of `draw_losses` is called in a picture."""
    backend, comma, rest = label.partition(',')
    return LABELS.get(backend, backend) + comma + rest
