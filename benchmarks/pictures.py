"""The pictures of the page."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from d2lbert.book.animator import DPI
from d2lbert.runs.display import COLORS, LABELS

STYLE: Any = {'fontsize': 'medium'}


def draw_ratios(targets: Iterable[Any], path: Path) -> None:
    """Draw ratios as bars with their spread, and what is asked of them."""
    targets = list(targets)[::-1]
    if not targets:
        return
    figure = Figure(
        figsize=(9, 1.2 + 0.42 * len(targets)), layout='constrained'
    )
    axes = figure.subplots()
    for y, target in enumerate(targets):
        median, least, greatest = target.measured
        axes.barh(
            y,
            median,
            xerr=[[median - least], [greatest - median]],
            color=next(
                (COLORS[key] for key, name in LABELS.items()
                 if name in target.what),
                '0.5',
            ),
            height=0.6,
            capsize=3,
        )  # fmt: skip
        axes.text(
            1.01,
            y,
            f'{median:.1f} ({least:.1f}–{greatest:.1f})',
            va='center',
            transform=axes.get_yaxis_transform(),
            **STYLE,
        )
        for limit, style in ((target.least, '-'), (target.aim, ':')):
            if limit is not None:
                axes.vlines(limit, y - 0.42, y + 0.42, 'k', style)
    axes.set_yticks(
        range(len(targets)), [target.what for target in targets], **STYLE
    )
    axes.set_xscale('log')
    ticks = (1, 2, 3, 5, 10, 20, 50, 100)
    axes.set_xticks(ticks, [f'{tick}' for tick in ticks], **STYLE)
    axes.minorticks_off()
    ends = [
        end
        for target in targets
        for end in (*target.measured, target.aim or target.least, 1)
    ]
    axes.set_xlim(min(ends) / 1.2, max(ends) * 1.2)
    axes.axvline(1, color='0.6', linewidth=1)
    axes.set_xlabel(
        'times better than the textbook (line: at least; dots: the aim)',
        **STYLE,
    )
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=DPI)


def draw_growth(results: Mapping[str, Any], path: Path) -> None:
    """Draw the time of a step over each size, beside the arithmetic's."""
    curves = results['curves']
    figure = Figure(figsize=(9, 6.4), layout='constrained')
    panels = figure.subplots(2, 2).ravel()
    for axes, (name, sizes) in zip(panels, curves.items(), strict=True):
        for framework in LABELS:
            rounds = [
                [point['seconds'] for point in run[name]]
                for run in results[framework]
            ]
            by_size = list(zip(*rounds, strict=True))
            medians = [statistics.median(times) for times in by_size]
            axes.plot(
                sizes,
                medians,
                'o-',
                color=COLORS[framework],
                label=f'{LABELS[framework]}, a step',
            )
            axes.fill_between(
                sizes,
                [min(times) for times in by_size],
                [max(times) for times in by_size],
                color=COLORS[framework],
                alpha=0.2,
            )
            flops = [point['flops'] for point in results[framework][0][name]]
            axes.plot(
                sizes,
                [medians[0] * flop / flops[0] for flop in flops],
                '--',
                color=COLORS[framework],
                linewidth=1,
                label=f'{LABELS[framework]}, if it grew as the arithmetic',
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
