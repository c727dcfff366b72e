"""What the project promises of its speed, and whether it holds.

Each function takes the results of the section of its name.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.compare import Ratio, paired
from benchmarks.workload import FRAMEWORKS
from d2lbert.runs.display import LABELS

Results = Mapping[str, Any]
#: How much greater than the arithmetic's an exponent may seem: over eight
#: times the size a fifth of the time, which noise alone can make.
EXPONENT_NOISE = 0.1
SHARD_LOSS = 0.1
TIMES = ' ×'


class Target(NamedTuple):
    """What is to be reached, and what was measured.

    `least`, `aim`: the factor to reach, or with `at_most` to stay below.
    """

    what: str
    least: float
    aim: float | None
    measured: Ratio
    unit: str = TIMES
    at_most: bool = False

    def verdict(self) -> str:
        """Say in words whether the target is met, by the median."""

        def met(limit: float) -> bool:
            if self.at_most:
                return self.measured.median <= limit
            return self.measured.median >= limit

        if self.aim is not None and met(self.aim):
            return 'yes, and the aim'
        if met(self.least):
            return 'yes' if self.aim is None else 'yes, the aim is not'
        return '**no**'

    def cells(self) -> list[str]:
        """Return a row of the table."""
        sign = '≤ ' if self.at_most else '≥ '
        return [
            self.what,
            f'{sign}{self.least:g}{self.unit}',
            '' if self.aim is None else f'{self.aim:g}{self.unit}',
            spread(self.measured, self.unit),
            self.verdict(),
        ]


def spread(ratio: Ratio, unit: str = TIMES) -> str:
    """Write a median with its spread."""
    digits = 2 if ratio.median < 10 else 1
    return (
        f'{ratio.median:.{digits}f}{unit} ({ratio.least:.{digits}f}–'
        f'{ratio.greatest:.{digits}f})'
    )


def column(runs: Sequence[Results], name: str) -> list[float]:
    """Return one number of each round."""
    return [run[name] for run in runs]


def of_rounds(values: Sequence[float]) -> Ratio:
    """Return the median of some numbers, the least and the greatest."""
    return Ratio(statistics.median(values), min(values), max(values))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return '\n'.join(
        f'| {" | ".join(row)} |' for row in [head, ['---'] * len(head), *rows]
    )


def summary(values: Sequence[float], digits: int = 1) -> str:
    """Write the median of the rounds with their spread."""
    median = statistics.median(values)
    return (
        f'{median:,.{digits}f} ({min(values):,.{digits}f}–'
        f'{max(values):,.{digits}f})'
    )


def targets_table(rows: Iterable[Target]) -> str:
    """Return what was to be reached, and what was."""
    head = ('what', 'at least', 'aim', 'measured', 'met')
    return table(head, [target.cells() for target in rows])


def training(results: Results) -> list[Target]:
    """Speed, memory and share of the processor, for each tab."""
    targets = []
    for framework, (least, aim) in {'torch': (3, 4), 'mxnet': (4, 6)}.items():
        runs, name = results[framework], LABELS[framework]
        ours, theirs = runs['ours'], runs['textbook']
        targets += [
            Target(
                f'training, {name}, pairs/s as printed',
                least,
                aim,
                paired(
                    column(ours, 'pairs_per_sec'),
                    column(theirs, 'pairs_per_sec'),
                ),
            ),
            Target(
                f'peak memory of training, {name}, textbook / ours',
                2,
                3,
                paired(
                    column(theirs, 'peak_bytes'), column(ours, 'peak_bytes')
                ),
            ),
            Target(
                f'share of the matrix-product rate, {name}',
                35,
                50,
                rate_share(results, framework, 'ours'),
                unit=' %',
            ),
        ]
    return targets


def rate_share(results: Results, framework: str, side: str) -> Ratio:
    """Return a side's useful arithmetic in per cent of the rate."""
    runs = results[framework]
    per_pair = runs['flops_per_step'] / results['batch_size']
    return paired(
        [100 * run['pairs_per_sec'] * per_pair for run in runs[side]],
        column(runs['rate'], 'flops_per_sec'),
    )


def loading(results: Results) -> list[Target]:
    """Loading for the first time, for each tab."""
    return [
        Target(
            f'loading WikiText-2 the first time, {LABELS[framework]}',
            least,
            aim,
            paired(
                column(results[framework]['textbook'], 'seconds'),
                column(results[framework]['ours'], 'seconds'),
            ),
        )
        for framework, (least, aim) in {
            'torch': (4, 8),
            'mxnet': (15, 40),
        }.items()
    ]


def reloading(results: Results) -> list[Target]:
    """Loading from the cache of examples."""
    return [
        Target(
            'loading WikiText-2 again, as `d2lbert pretrain` does',
            0.3,
            None,
            of_rounds(column(results['read'], 'seconds')),
            unit=' s',
            at_most=True,
        )
    ]


def representing(results: Results) -> list[Target]:
    """Many sentences at once against the textbook's one at a time."""
    return [
        Target(
            f'representing {results["sentences"]:,} sentences, '
            f'{LABELS[framework]}',
            10,
            None,
            paired(
                column(results[framework]['represent'], 'sentences_per_sec'),
                column(
                    results[framework]['textbook, one at a time'],
                    'sentences_per_sec',
                ),
            ),
        )
        for framework in FRAMEWORKS
    ]


def importing(results: Results) -> list[Target]:
    """Whole processes."""
    return [
        Target(
            f'`{name}`, the whole process',
            least,
            None,
            of_rounds(results[name]),
            unit=' s',
            at_most=True,
        )
        for name, least in (('import d2lbert', 0.3), ('d2lbert --help', 0.5))
    ]


def shards(results: Results) -> list[Target]:
    """More shards than one, in parts of the speed of one."""
    return [
        Target(
            f'{devices}, {LABELS[framework]}, speed against one shard',
            1 - SHARD_LOSS,
            None,
            paired(
                column(runs[devices], 'pairs_per_sec'),
                column(runs['cpu'], 'pairs_per_sec'),
            ),
        )
        for framework, runs in results.items()
        for devices in list(runs)[1:]
    ]


def growth(results: Results) -> list[Target]:
    """Exponents of time, less those of the arithmetic."""
    return [
        Target(
            f'growth with {name.replace("_", " ")}, {LABELS[framework]}, '
            "exponent less the arithmetic's",
            EXPONENT_NOISE,
            None,
            excess(results, framework, name),
            unit='',
            at_most=True,
        )
        for framework in FRAMEWORKS
        for name in results['curves']
    ]


def excess(results: Results, framework: str, name: str) -> Ratio:
    """Return by how much the exponent of time exceeds the arithmetic's."""
    values = [
        exponent(results['curves'][name], column(run[name], 'seconds'))
        - exponent(results['curves'][name], column(run[name], 'flops'))
        for run in results[framework]
    ]
    return of_rounds(values)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the slope of the costs over the sizes, both logarithmic."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def corpus(results: Results) -> list[Target]:
    """The largest corpus against the smallest."""
    small, *_, large = sorted(results, key=int)
    copies = int(large) / int(small)
    return [
        Target(
            f'{what} of a corpus of {copies:g} times the size',
            limit,
            None,
            paired(
                column(results[large], name), column(results[small], name)
            ),
            at_most=True,
        )
        for what, name, limit in (
            ('loading time', 'seconds', copies * (1 + EXPONENT_NOISE)),
            ('peak memory', 'peak_bytes', copies),
        )
    ]


def display(results: Results, training: Results) -> list[Target]:
    """What showing a step costs, in per cent of our fastest step."""
    fastest = max(
        max(column(training[framework]['ours'], 'pairs_per_sec'))
        for framework in FRAMEWORKS
    )
    seconds = training['batch_size'] / fastest
    shares = [100 * shown / seconds for shown in results['progress']]
    return [
        Target(
            'the progress line, of our fastest step',
            1,
            None,
            of_rounds(shares),
            unit=' %',
            at_most=True,
        )
    ]


def reached(measured: Mapping[str, Results]) -> list[Target]:
    """Return the targets of the sections that were measured."""
    return of_sections(
        measured, (training, loading, reloading, representing, importing)
    )


def kept(measured: Mapping[str, Results]) -> list[Target]:
    """Return what has to hold at every size."""
    found = of_sections(measured, (growth, corpus, shards))
    if {'display', 'training'} <= set(measured):
        found += display(measured['display'], measured['training'])
    return found


def of_sections(
    measured: Mapping[str, Results],
    functions: Sequence[Callable[[Results], list[Target]]],
) -> list[Target]:
    """Join the targets of the sections that the functions are named for."""
    return [
        target
        for function in functions
        if function.__name__ in measured
        for target in function(measured[function.__name__])
    ]
