"""What the project promises of its speed, and whether it holds.

Each function takes the results of the section of its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.numbers import (
    Results,
    Spread,
    column,
    paired,
    ratio,
    spread,
    table,
)
from benchmarks.profiling import KINDS, PYTHON
from benchmarks.workload import FRAMEWORKS
from d2lbert.frameworks import FRAMEWORKS as ALL_FRAMEWORKS
from d2lbert.frameworks import label_of

#: How much greater than the arithmetic's an exponent may seem: over eight
#: times the size a fifth of the time, which noise alone can make.
EXPONENT_NOISE = 0.1
TIMES = ' ×'


class Target(NamedTuple):
    """What is to be reached, and what was measured.

    `limit`, `aim`: the factor to reach, or with `at_most` to stay below;
    `possible`: what code would reach that makes the matrix products alone;
    `operators`: what our own operators would, with nothing between them.
    """

    what: str
    limit: float
    aim: float | None
    measured: Spread
    unit: str = TIMES
    at_most: bool = False
    possible: Spread | None = None
    operators: Spread | None = None

    def meets(self, limit: float) -> bool:
        """Say whether the median reaches a limit, or stays below it."""
        if self.at_most:
            return self.measured.median <= limit
        return self.measured.median >= limit

    def verdict(self) -> str:
        """Say in words whether the target is met."""
        if self.aim is not None and self.meets(self.aim):
            return 'yes, and the aim'
        if self.meets(self.limit):
            return 'yes' if self.aim is None else 'yes, the aim is not'
        verdict = '**no**'
        for what, bound in (
            ('the products', self.possible),
            ('our operators', self.operators),
        ):
            if bound is not None:
                verdict += f'; {what} alone {bound.text(unit=self.unit)}'
        return verdict

    def cells(self) -> list[str]:
        """Return a row of the table."""
        return [
            self.what,
            f'{"≤" if self.at_most else "≥"} {self.limit:g}{self.unit}',
            '' if self.aim is None else f'{self.aim:g}{self.unit}',
            self.measured.text(unit=self.unit),
            self.verdict(),
        ]


def at_most(
    what: str, limit: float, measured: Spread, unit: str = TIMES
) -> Target:
    """Return a target to stay below."""
    return Target(what, limit, None, measured, unit, at_most=True)


def targets_table(rows: Iterable[Target]) -> str:
    """Return what was to be reached, and what was."""
    head = ('what', 'at least', 'aim', 'measured', 'met')
    return table(head, [target.cells() for target in rows])


def training(
    results: Results, operators: Mapping[str, float]
) -> Iterator[Target]:
    """Compare speed, memory and share of the processor, for each tab.

    `operators`: see `operator_speeds`; empty where they were not measured.
    """
    for framework, times, percent in (('torch', 3.5, 65), ('mxnet', 6, 50)):
        name, runs = label_of(framework), results[framework]
        ours, theirs = runs['ours'], runs['textbook']
        possible = products_speeds(results, framework)
        speeds = column(theirs, 'pairs_per_sec')
        own = [operators[framework]] * len(speeds) if operators else None
        yield Target(
            f'training, {name}, pairs/s as printed',
            times,
            None,
            ratio(ours, theirs, 'pairs_per_sec'),
            possible=paired(possible, speeds),
            operators=own and paired(own, speeds),
        )
        what = f'peak memory of training, {name}, textbook / ours'
        yield Target(what, 2, 3, ratio(theirs, ours, 'peak_bytes'))
        yield Target(
            f'share of the matrix-product rate, {name}',
            percent,
            None,
            rate_share(results, framework, column(ours, 'pairs_per_sec')),
            ' %',
            possible=rate_share(results, framework, possible),
            operators=own and rate_share(results, framework, own),
        )


def operator_speeds(
    profile: Results, cores: int, batch_size: int
) -> dict[str, float]:
    """Return the pairs/s that our operators alone allow, by framework.

    Each takes as long as on one core, all cores share them without loss, and
    Python takes no time.
    """
    num_pairs = cores * batch_size
    return {
        framework: num_pairs / operator_seconds(profile[framework]['ours'])
        for framework in FRAMEWORKS
    }


def operator_seconds(profile: Results) -> float:
    """Return the time of a step without Python, on one core."""
    seconds = profile['seconds']
    return sum(seconds[kind] for kind in KINDS if kind != PYTHON)


def products_speeds(results: Results, framework: str) -> list[float]:
    """Return the pairs/s that the products of the steps alone allow."""
    runs = results[framework]
    num_pairs = runs['num_steps'] * results['batch_size']
    return [num_pairs / run['seconds'] for run in runs['products']]


def rate_share(
    results: Results, framework: str, speeds: Sequence[float]
) -> Spread:
    """Return the useful arithmetic of pairs/s in per cent of the rate."""
    runs = results[framework]
    per_pair = runs['flops_per_step'] / results['batch_size']
    return paired(
        [100 * speed * per_pair for speed in speeds],
        column(runs['rate'], 'flops_per_sec'),
    )


def loading(results: Results) -> Iterator[Target]:
    """Compare the first loading, for each tab."""
    for framework, least in (('torch', 8), ('mxnet', 40)):
        runs = results[framework]
        faster = ratio(runs['textbook'], runs['ours'], 'seconds')
        what = f'loading WikiText-2 the first time, {label_of(framework)}'
        yield Target(what, least, None, faster)


def reloading(results: Results) -> Iterator[Target]:
    """Limit loading from the cache of examples."""
    seconds = spread(column(results['read'], 'seconds'))
    what = 'loading WikiText-2 again, as `d2lbert pretrain` does'
    yield at_most(what, 0.3, seconds, ' s')


def representing(results: Results) -> Iterator[Target]:
    """Compare many sentences at once with the textbook's one at a time."""
    unit = 'sentences_per_sec'
    for framework in FRAMEWORKS:
        name, runs = label_of(framework), results[framework]
        ours, theirs = runs['represent'], runs['textbook, one at a time']
        possible = encoding_speeds(results, framework)
        yield Target(
            f'representing {results["sentences"]:,} sentences, {name}',
            10,
            None,
            ratio(ours, theirs, unit),
            possible=paired(possible, column(theirs, unit)),
        )
        if framework == 'torch':
            yield Target(
                f'share of the matrix-product rate in it, {name}',
                75,
                None,
                encoding_share(results, framework, column(ours, unit)),
                ' %',
                possible=encoding_share(results, framework, possible),
            )


def encoding_speeds(results: Results, framework: str) -> list[float]:
    """Return the sentences/s that the products of encoding alone allow."""
    runs = results[framework]['products']
    return [results['sentences'] / run['seconds'] for run in runs]


def encoding_share(
    results: Results, framework: str, speeds: Sequence[float]
) -> Spread:
    """Return the arithmetic of some sentences/s in per cent of the rate."""
    per_sentence = results['flops'] / results['sentences']
    return paired(
        [100 * speed * per_sentence for speed in speeds],
        column(results[framework]['rate'], 'flops_per_sec'),
    )


def importing(results: Results) -> Iterator[Target]:
    """Limit the time of processes."""
    for name, limit in (('import d2lbert', 0.3), ('d2lbert --help', 0.5)):
        what = f'`{name}`, the whole process'
        yield at_most(what, limit, spread(results[name]), ' s')
    pairs = zip(
        results['from d2lbert import torch'],
        results['import torch'],
        strict=True,
    )
    more = spread([ours - theirs for ours, theirs in pairs])
    what = '`from d2lbert import torch`, more than `import torch`'
    yield at_most(what, 0.15, more, ' s')
    for name in ALL_FRAMEWORKS:
        command = f'd2lbert pretrain --backend {name}'
        what = f'`{command}` on the sample, to its first step'
        yield at_most(what, 3, spread(results[command]), ' s')


def growth(results: Results) -> Iterator[Target]:
    """Limit the exponents of time, less those of the arithmetic."""
    for framework in FRAMEWORKS:
        for name, sizes in results['curves'].items():
            excess = [
                exponent(sizes, column(run[name], 'seconds'))
                - exponent(sizes, column(run[name], 'flops'))
                for run in results[framework]
            ]
            what = f'growth with {name.replace("_", " ")}, '
            what += f"{label_of(framework)}, exponent less the arithmetic's"
            yield at_most(what, EXPONENT_NOISE, spread(excess), '')


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the slope of the costs over the sizes, both logarithmic."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def corpus(results: Results) -> Iterator[Target]:
    """Compare the largest corpus with the smallest."""
    small, *_, large = sorted(results, key=int)
    copies = int(large) / int(small)
    for what, name, limit in (
        ('loading time', 'seconds', copies * (1 + EXPONENT_NOISE)),
        ('peak memory', 'peak_bytes', copies),
    ):
        larger = ratio(results[large], results[small], name)
        what += f' of a corpus of {copies:g} times the size'
        yield at_most(what, limit, larger)


def shards(results: Results) -> Iterator[Target]:
    """Compare the speed of several shards with that of one."""
    for framework, runs in results.items():
        for devices in list(runs)[1:]:
            speed = ratio(runs[devices], runs['cpu'], 'pairs_per_sec')
            what = (
                f'{devices}, {label_of(framework)}, speed against one shard'
            )
            yield Target(what, 0.9, None, speed)


def company(results: Results) -> Iterator[Target]:
    """Compare training beside as many busy processes as cores with alone."""
    cores = results['cores']
    large, small = results['batch_sizes']
    for framework in FRAMEWORKS:
        name, runs = label_of(framework), results[framework]
        for size in (large, small):
            kept = ratio(
                runs[f'ours {size} {cores}'],
                runs[f'ours {size} 0'],
                'pairs_per_sec',
            )
            what = f'batches of {size}, {name}, beside {cores} against alone'
            yield Target(what, 0.4, 0.5, kept)
        alone, beside = (
            ratio(
                runs[f'ours {large} {busy}'],
                runs[f'textbook {large} {busy}'],
                'pairs_per_sec',
            )
            for busy in (0, cores)
        )
        what = f'training, {name}, against the textbook beside {cores}'
        yield Target(what, round(alone.median, 2), None, beside)


def display(results: Results, training: Results) -> Iterator[Target]:
    """Limit what showing a step costs, in per cent of our fastest step."""
    fastest = max(
        max(column(training[framework]['ours'], 'pairs_per_sec'))
        for framework in FRAMEWORKS
    )
    seconds = training['batch_size'] / fastest
    shares = [100 * shown / seconds for shown in results['progress']]
    name = 'the progress line, of our fastest step'
    yield at_most(name, 1, spread(shares), ' %')


def reached(measured: Mapping[str, Results], cores: int) -> list[Target]:
    """Return the targets of the sections that were measured."""
    found, operators = [], {}
    if 'training' in measured:
        results = measured['training']
        if 'profile' in measured:
            operators = operator_speeds(
                measured['profile'], cores, results['batch_size']
            )
        found += training(results, operators)
    return found + of_sections(
        measured, (loading, reloading, representing, importing)
    )


def kept(measured: Mapping[str, Results]) -> list[Target]:
    """Return what has to hold at every size."""
    found = of_sections(measured, (growth, corpus, shards, company))
    if {'display', 'training'} <= set(measured):
        found += display(measured['display'], measured['training'])
    return found


def of_sections(
    measured: Mapping[str, Results],
    functions: Sequence[Callable[[Results], Iterable[Target]]],
) -> list[Target]:
    """Join the targets of the sections that the functions are named for."""
    return [
        target
        for function in functions
        if function.__name__ in measured
        for target in function(measured[function.__name__])
    ]
