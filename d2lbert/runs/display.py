"""The progress of a training, and pictures of its losses."""

from __future__ import annotations

import io
import math
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from d2lbert.book.animator import DPI
from d2lbert.data.files import describe_error, write_file
from d2lbert.errors import InputError, RunError, warn
from d2lbert.evaluation.evaluate import MEASURES, TITLES
from d2lbert.frameworks import FRAMEWORKS, label_of

if TYPE_CHECKING:
    from d2lbert.evaluation.evaluate import Evaluation
    from d2lbert.runs.config import Config
    from d2lbert.runs.run import Run

#: Both losses of each step, `[[mlm, nsp], …]`, by a label that begins with
#: the name of a framework.
Histories = Mapping[str, Sequence[Sequence[float]]]
#: Matplotlib's own four, in widths of a line, which has so many points.
DASHES, THIN = ((), (3.7, 1.6), (1, 1.65), (6.4, 1.6, 1, 1.6)), 1.5
SUFFIXES = ('.png', '.svg')
TASKS = ('Masked language modelling', 'Next sentence prediction')
LOSSES = ('mlm_loss', 'nsp_loss')
FREQUENCIES = 'word frequencies'
#: The lines of guessers: chance, and one or two of word frequencies.
LEVELS = (0, (1, 2)), '--', '-.'
#: A picture takes less memory than this.
DRAWING_BYTES = 1 << 28
#: Smaller differences of losses than this are not drawn.
LEAST_GAP = 1e-17


@contextmanager
def bar_errors() -> Iterator[None]:
    """Turn any error of tqdm into an `InputError` about its variables."""
    names = [name for name in os.environ if name.startswith('TQDM_')]
    try:
        yield
    except Exception as error:
        if not names:
            raise
        raise InputError(
            f'the progress bar does not work ({describe_error(error)}) with '
            f'the environment variables {", ".join(names)}: unset them'
        ) from error


with bar_errors():
    from tqdm import tqdm


class Unfailing:
    """A text stream whose errors are ignored.

    A full disk or a closed terminal must not stop a training.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> None:
        """Write, or ignore the error."""
        with suppress(OSError, ValueError):
            self.stream.write(text)

    def flush(self) -> None:
        """Flush, or ignore the error."""
        with suppress(OSError, ValueError):
            self.stream.flush()


class Progress(tqdm):
    """A line on stderr with the steps, losses, speed and time left.

    `label`: the line's start.
    """

    def __init__(
        self,
        label: str,
        num_steps: int,
        num_done: int = 0,
        visible: bool = True,
    ) -> None:
        self.values: dict[str, str] = {}
        with bar_errors():
            super().__init__(
                total=num_steps,
                initial=num_done,
                desc=label,
                unit='step',
                file=Unfailing(sys.stderr),
                disable=not visible or sys.stderr is None,
                mininterval=0.2,
            )

    def show(self, **values: float) -> None:
        """Count a step and show its values."""
        self.note(**values)
        self.update()

    def note(self, **values: float) -> None:
        """Show values from now on, until others of these names come."""
        self.values |= {name: f'{v:.3f}' for name, v in values.items()}
        self.set_postfix(self.values, refresh=False)


class Building:
    """The lines on stderr while examples are made, if that takes long.

    See `d2lbert.data.cache.Progress`.
    """

    def __init__(self, visible: bool = True) -> None:
        self.visible = visible and sys.stderr is not None

    def say(self, message: str) -> None:
        """Show a line."""
        if self.visible:
            print(f'd2lbert: {message}', file=Unfailing(sys.stderr))

    @contextmanager
    def bar(
        self, label: str, total: int, unit: str
    ) -> Iterator[Callable[[int], None]]:
        """Show how much is done, and the time left, after a while."""
        with bar_errors():
            bar = tqdm(
                total=total,
                desc=label,
                unit=unit,
                unit_scale=True,
                file=Unfailing(sys.stderr),
                disable=not self.visible,
                delay=2,
                mininterval=0.2,
            )

        def show(done: int) -> None:
            bar.update(done - bar.n)

        with bar:
            yield show


def note(text: str) -> None:
    """Print a line to stderr, where it can be printed."""
    if sys.stderr is not None:
        print(text, file=Unfailing(sys.stderr))


@contextmanager
def drawing() -> Iterator[None]:
    """Turn any error of a drawing into a warning: the numbers are worth more.

    Matplotlib's settings can be anything, and so can the name of a corpus.
    """
    try:
        yield
    except RunError:  # the folder is no longer there
        raise
    except Exception as error:
        warn(
            f'the losses could not be drawn: {describe_error(error)}. All '
            'numbers are kept without the picture'
        )


def check_memory() -> None:
    """Raise `OSError` where a picture would lack memory.

    NumPy's OpenBLAS, which Matplotlib uses, would ask for it for ever.
    """
    mmap.mmap(-1, DRAWING_BYTES).close()


def draw_losses(
    runs: Sequence[Run],
    path: str | Path,
    title: str = '',
    write: Callable[[Path, bytes], None] = write_file,
) -> list[Path]:
    """Draw the loss curves of one run or several as PNG and SVG.

    `runs`: all with the same vocabulary; `path`: the file to write, without
    suffix; `title`: the heading, by default that of the first run; `write`:
    writes a file. Returns the paths written.
    """
    check_memory()
    from matplotlib.figure import Figure

    histories = {run.label(): run.history for run in runs}
    vocab_size = len(runs[0].vocab)
    title = title or runs[0].config.title()
    figure = Figure()
    figure.suptitle(title, y=0.97, fontsize='medium', parse_math=False)
    for task, axes in enumerate(figure.subplots(1, 2)):
        draw_curves(axes, histories, task)
        draw_evaluations(axes, runs, task)
        draw_levels(axes, task, vocab_size, frequencies_of(runs))
        axes.set(title=TASKS[task], xlabel='step', ylabel='loss')
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.25)
    lines, labels = axes.get_legend_handles_labels()
    figure.legend(lines, labels, loc='lower center', ncols=3, frameon=False)
    # The legend is below the axes, where it covers no curve; in inches
    legend = 0.56 + 0.25 * math.ceil(len(lines) / 3)
    height = 3.34 + legend
    figure.set_size_inches(9, height)
    figure.subplots_adjust(
        left=0.065,
        right=0.985,
        top=1 - 0.62 / height,
        bottom=legend / height,
        wspace=0.18,
    )
    return save_figure(figure, Path(path), write)


def draw_parity(
    histories: Histories,
    path: str | Path,
    title: str,
    vocab_size: int,
    frequencies: Mapping[str, Mapping[str, float]],
) -> Path:
    """Draw loss curves over each other, and their differences below.

    `path`, `title`: see `draw_losses`; `vocab_size`, `frequencies`: see
    `draw_levels`. The differences of the first history from each other one
    have a logarithmic scale. Equal losses leave a gap there, and the word
    'none' where all are equal. A single history is compared with itself.
    Returns the path of the PNG.
    """
    check_memory()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.6), layout='constrained')
    figure.suptitle(title, fontsize='medium', parse_math=False)
    axes = figure.subplots(2, 2, sharex=True, height_ratios=(2, 1.3))
    (first, ours), *others = histories.items()
    for task, (curves, gaps) in enumerate(axes.T):
        draw_curves(curves, histories, task)
        draw_levels(curves, task, vocab_size, frequencies)
        for i, (label, history) in enumerate(others or [(first, ours)]):
            apart = abs(np.subtract(ours, history))[:, task]
            both = f'{_title_of(first)} and {_title_of(label)}'
            _draw_gaps(gaps, both, apart, i)
        gaps.set_yscale('log')
        if all(np.isnan(line.get_ydata()).all() for line in gaps.lines):
            gaps.text(0.5, 0.5, 'none', transform=gaps.transAxes, ha='center')
            gaps.set_yticks([])
        gaps.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        # Smaller differences than rounding would fill most of the picture
        gaps.set_ylim(max(gaps.get_ylim()[0], LEAST_GAP), None)
        curves.set(title=TASKS[task], ylabel='loss')
        gaps.set(xlabel='step', ylabel='difference')
        for panel in (curves, gaps):
            panel.legend(frameon=False)
            panel.grid(alpha=0.25)
    return save_figure(figure, Path(path))[0]


def draw_evaluation(
    evaluation: Evaluation, path: str | Path, title: str = ''
) -> list[Path]:
    """Draw each measure as bars: the network, the frequencies and chance.

    The network's bar has a whisker of two standard errors to each side.
    `path`, `title`: see `draw_losses`. Returns the paths written.
    """
    check_memory()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6))
    figure.subplots_adjust(
        left=0.055, right=0.985, top=0.8, bottom=0.14, wspace=0.4
    )
    figure.suptitle(title, y=0.97, fontsize='medium', parse_math=False)
    errors = evaluation.standard_errors
    label = label_of(evaluation.backend)
    scores = {
        label: (evaluation.network, _color_of(evaluation.backend)),
        'word frequencies': (evaluation.frequencies, '0.45'),
        'chance': (evaluation.chance, '0.75'),
    }
    panels = figure.subplots(1, len(errors))
    for axes, name in zip(panels, errors, strict=True):
        for place, (who, (values, color)) in enumerate(scores.items()):
            whisker = 2 * errors[name] if who == label else None
            axes.bar(
                place, values[name], color=color, label=who, yerr=whisker
            )
        axes.set_title(TITLES[name], fontsize='medium')
        axes.set_xticks([])
        axes.locator_params(axis='y', nbins=5)
        if MEASURES[name]:
            axes.yaxis.set_major_formatter('{x:.0%}')
        axes.grid(axis='y', alpha=0.25)
    lines, labels = axes.get_legend_handles_labels()
    figure.legend(lines, labels, loc='lower center', ncols=3, frameon=False)
    return save_figure(figure, Path(path))


def save_figure(
    figure: Any,
    path: Path,
    write: Callable[[Path, bytes], None] = write_file,
) -> list[Path]:
    """Write a figure as PNG and SVG, each whole or not at all.

    `path`, `write`: see `draw_losses`. Returns the paths written.
    """
    paths = [path.with_name(path.name + suffix) for suffix in SUFFIXES]
    for target in paths:
        drawn = io.BytesIO()
        figure.savefig(drawn, format=target.suffix[1:], dpi=DPI)
        write(target, drawn.getvalue())
    return paths


def draw_curves(
    axes: Any,
    histories: Histories,
    task: int,
) -> None:
    """Draw one task's losses of all histories, each with its label.

    Curves of one recipe may lie on each other, so they are drawn from wide
    and pale to thin and dark. Each recipe has its own dashes.
    """
    groups: dict[str, list[str]] = {}
    for label in histories:
        groups.setdefault(label.partition(',')[2], []).append(label)
    for label, history in histories.items():
        recipe = label.partition(',')[2]
        above = len(groups[recipe]) - 1 - groups[recipe].index(label)
        width = THIN + 2.5 * above
        plot_history(
            axes,
            history,
            task,
            label=_title_of(label),
            color=_color_of(label),
            linestyle=dashed(list(groups).index(recipe), width),
            linewidth=width,
            alpha=0.4 if above else 1,
        )


def plot_history(
    axes: Any, history: Sequence[Sequence[float]], task: int, **style: Any
) -> None:
    """Draw one task's loss of each step, the first of which is step 1.

    `style`: of the line, as Matplotlib takes it.
    """
    losses = [both[task] for both in history]
    # A line through a single step would be invisible
    marker = 'o' if len(losses) == 1 else None
    axes.plot(range(1, len(losses) + 1), losses, marker=marker, **style)


def dashed(number: int, width: float = THIN) -> Any:
    """Return a style for lines, one of four.

    `width`: of a line whose dashes shall be as long as a thin one's.
    """
    dashes = DASHES[number % len(DASHES)]
    return (0, [n * (THIN / width) for n in dashes]) if dashes else '-'


def draw_evaluations(axes: Any, runs: Sequence[Run], task: int) -> None:
    """Draw one task's losses on held-out text."""
    for run in runs:
        found = run.evaluations
        if found:
            axes.plot(
                [one['step'] for one in found],
                [one[LOSSES[task]] for one in found],
                label=f'{_title_of(run.label())}: {found[-1]["split"]}',
                color=_color_of(run.label()),
                linestyle=':',
                marker='o',
                markersize=5,
                markerfacecolor='white',
                zorder=3,
            )


def frequencies_of(runs: Iterable[Run]) -> dict[str, Mapping[str, float]]:
    """Return the losses of the word frequencies of some runs, by label.

    Those of held-out text stand for those of the training text, unless that
    is averaged otherwise.
    """
    found: dict[str, Mapping[str, float]] = {}
    for run in runs:
        if run.frequencies:
            found[frequencies_label(run.config)] = run.frequencies
        if run.evaluations:
            found[FREQUENCIES] = run.evaluations[-1]['frequencies']
    return found


def frequencies_label(config: Config) -> str:
    """Return what to call the losses of the word frequencies."""
    slots = config.own_recipe().mlm_average == 'slots'
    return f'{FREQUENCIES}, padding counted' if slots else FREQUENCIES


def draw_levels(
    axes: Any,
    task: int,
    vocab_size: int,
    frequencies: Mapping[str, Mapping[str, float]],
) -> None:
    """Draw one task's losses of guessers that do not look at the text.

    They are chance and the word frequencies. `frequencies`: the losses of
    these, by label.
    """
    levels = {
        f'chance: ln {vocab_size:,} and ln 2': math.log((vocab_size, 2)[task])
    }
    for label, losses in frequencies.items():
        levels[label] = losses[LOSSES[task]]
    for dashes, (label, level) in zip(LEVELS, levels.items(), strict=False):
        axes.axhline(
            level, label=label, color='0.4', linewidth=1, linestyle=dashes
        )


def _draw_gaps(axes: Any, label: str, apart: np.ndarray, number: int) -> None:
    axes.plot(
        range(1, len(apart) + 1),
        np.where(apart, apart, np.nan),
        marker='os^v'[number % 4],
        label=label,
        color='0.6' if number else '0.2',
        linestyle=dashed(number),
        markersize=3,
        linewidth=1,
    )


def _color_of(label: str) -> str | None:
    known = FRAMEWORKS.get(label.partition(',')[0])
    return known.color if known else None


def _title_of(label: str) -> str:
    """Return a label of `Histories` with the framework's own label."""
    name, comma, rest = label.partition(',')
    return label_of(name) + comma + rest
