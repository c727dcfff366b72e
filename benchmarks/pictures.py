"""The pictures of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.numbers import column
from benchmarks.targets import Target
from d2lbert.book.animator import DPI
from d2lbert.runs.display import COLORS, LABELS

STYLE: Any = {'fontsize': 'medium'}


def draw_ratios(targets: Sequence[Target], path: Path) -> None:
    """Draw ratios as bars with their spread, and what is asked of them."""
    figure = Figure(
        figsize=(9, 1.2 + 0.42 * len(targets)), layout='constrained'
    )
    axes = figure.subplots()
    ends = [1.0]
    for y, target in enumerate(reversed(targets)):
        median, least, greatest = target.measured
        colors = [COLORS[key] for key, name in LABELS.items()
                  if name in target.what]  # fmt: skip
        axes.barh(
            y,
            median,
            xerr=[[median - least], [greatest - median]],
            color=colors[0] if colors else '0.5',
            height=0.6,
            capsize=3,
        )
        axes.text(
            1.01,
            y,
            f'{median:.1f} ({least:.1f}–{greatest:.1f})',
            va='center',
            transform=axes.get_yaxis_transform(),
            **STYLE,
        )
        for limit, style in ((target.limit, '-'), (target.aim, ':')):
            if limit is not None:
                axes.vlines(limit, y - 0.42, y + 0.42, 'k', style)
        ends += [*target.measured, target.aim or target.limit]
    names = [target.what for target in reversed(targets)]
    axes.set_yticks(range(len(names)), names, **STYLE)
    axes.set_xscale('log')
    ticks = (1, 2, 3, 5, 10, 20, 50, 100)
    axes.set_xticks(ticks, map(str, ticks), **STYLE)
    axes.minorticks_off()
    axes.set_xlim(min(ends) / 1.2, max(ends) * 1.2)
    axes.axvline(1, color='0.6', linewidth=1)
    axes.set_xlabel(
        'times better than the textbook (line: at least; dots: the aim)',
        **STYLE,
    )
    axes.spines[['top', 'right']].set_visible(False)
    figure.savefig(path, dpi=DPI)


def draw_growth(results: Mapping[str, Any], path: Path) -> None:
    """Draw the time of a step over each size, beside the arithmetic's."""
    curves = results['curves']
    figure = Figure(figsize=(9, 6.4), layout='constrained')
    panels = figure.subplots(2, 2).ravel()
    for axes, (name, sizes) in zip(panels, curves.items(), strict=True):
        for framework, color in COLORS.items():
            runs, label = results[framework], LABELS[framework]
            seconds = np.array([column(run[name], 'seconds') for run in runs])
            medians = np.median(seconds, axis=0)
            axes.plot(
                sizes, medians, 'o-', color=color, label=f'{label}, a step'
            )
            axes.fill_between(
                sizes,
                seconds.min(axis=0),
                seconds.max(axis=0),
                color=color,
                alpha=0.2,
            )
            flops = np.array(column(runs[0][name], 'flops'))
            axes.plot(
                sizes,
                medians[0] * flops / flops[0],
                '--',
                color=color,
                linewidth=1,
                label=f'{label}, if it grew as the arithmetic',
            )
        axes.set(xscale='log', yscale='log')
        axes.set_xticks(sizes, [f'{size:,}' for size in sizes], **STYLE)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter('{x:g}')
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(name.replace('_', ' '), **STYLE)
        axes.set_ylabel('seconds', **STYLE)
        axes.grid(alpha=0.25)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc='outside lower center',
        ncols=2,
        frameon=False,
        **STYLE,
    )
    figure.savefig(path, dpi=DPI)
