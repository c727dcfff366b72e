"""The picture of how cost grows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks import workload
from benchmarks.numbers import Results, column
from d2lbert.book.animator import DPI
from d2lbert.frameworks import FRAMEWORKS


def draw_growth(results: Results, path: Path) -> None:
    """Draw the time of a step over each size, beside the arithmetic's."""
    figure = Figure(figsize=(9, 6.4), layout='constrained')
    panels = figure.subplots(2, 2).ravel()
    for axes, (name, sizes) in zip(
        panels, results['curves'].items(), strict=True
    ):
        for framework in workload.FRAMEWORKS:
            runs, known = results[framework], FRAMEWORKS[framework]
            label, color = known.label, known.color
            seconds = np.array([column(run[name], 'seconds') for run in runs])
            medians = np.median(seconds, axis=0)
            least, greatest = seconds.min(axis=0), seconds.max(axis=0)
            flops = np.array(column(runs[0][name], 'flops'))
            bound = medians[0] * flops / flops[0]
            axes.plot(sizes, medians, 'o-', c=color, label=f'{label}, a step')
            axes.fill_between(sizes, least, greatest, color=color, alpha=0.2)
            label += ', if it grew as the arithmetic'
            axes.plot(sizes, bound, '--', c=color, linewidth=1, label=label)
        axes.set(xscale='log', yscale='log', ylabel='seconds')
        axes.set_xlabel(name.replace('_', ' '))
        axes.set_xticks(sizes, [f'{size:,}' for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter('{x:g}')
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.25)
    handles = panels[0].get_legend_handles_labels()
    place = 'outside lower center'
    figure.legend(*handles, loc=place, ncols=2, frameon=False)
    figure.savefig(path, dpi=DPI)
