"""From results.json to results.md, whose words are in page.md.

    python -m benchmarks.report [FOLDER]

Every number on the page is made here from the raw ones.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import pictures, profiling, targets
from benchmarks.numbers import (
    Results,
    Runs,
    Spread,
    column,
    paired,
    ratio,
    spread,
    table,
    text,
)
from benchmarks.targets import TIMES, exponent, targets_table
from benchmarks.workload import BATCH_SIZE, FRAMEWORKS, MAX_LEN
from d2lbert.frameworks import label_of

HERE = Path(__file__).parent
PAGE_FILE, RESULTS_FILE = 'results.md', 'results.json'
SIDES = {'textbook': 'd2l 1.0.3', 'ours': 'd2lbert'}
#: What the speeds of results.json are called on the page.
NAMES = {'pairs_per_sec': 'pairs/s', 'sentences_per_sec': 'sentences/s'}
#: What fills the gaps of a section of page.md, by their names.
Gaps = dict[str, Any]


# ---- the sections ----------------------------------------------------


def training(results: Results) -> Gaps:
    """Describe the training."""
    rows, steps, call = [], [], []
    for framework in FRAMEWORKS:
        name, runs = label_of(framework), results[framework]
        for side, code in SIDES.items():
            speeds = column(runs[side], 'pairs_per_sec')
            share = targets.rate_share(results, framework, speeds).median
            rows.append(
                [
                    *(name, code),
                    text(runs[side], 'pairs_per_sec'),
                    text(runs[side], 'pairs_per_sec_of_call'),
                    f'{share:.0f} %',
                    *peaks(runs[side]),
                ]
            )
        steps.append(f'{runs["num_steps"]} steps ({name})')
        by_clock = ratio(
            runs['ours'], runs['textbook'], 'pairs_per_sec_of_call'
        )
        call.append(f'{name} {by_clock.text(unit=TIMES)}')
    head = (
        *('framework', 'code', 'pairs/s, as printed', 'pairs/s of the call'),
        *('share of rate', 'peak, GB', 'peak above import, GB'),
    )
    rates = matrix_rates(results)
    flops = results['torch']['flops_per_step'] / 1e9
    bound = median(rates) / flops * results['batch_size']
    return {
        'batch_size': results['batch_size'],
        'max_len': MAX_LEN,
        'steps': ' and '.join(steps),
        'table': table(head, rows),
        'call': ', '.join(call),
        'flops': f'{flops:.1f}',
        'rates': spread(rates).text(0),
        'bound': f'{bound:,.0f}',
        'times': times_textbook(bound, results, 'textbook', 'pairs_per_sec'),
        'products': products_table(
            *(results, 'pairs_per_sec'),
            *(targets.products_speeds, targets.rate_share),
            *('textbook', 'ours'),
        ),
    }


def products_table(
    results: Results,
    unit: str,
    speeds_of: Callable[[Results, str], list[float]],
    share_of: Callable[[Results, str, list[float]], Spread],
    theirs: str,
    ours: str,
) -> str:
    """Return how fast a section's products are, alone."""
    rows = []
    for framework in FRAMEWORKS:
        speeds, runs = speeds_of(results, framework), results[framework]
        rows.append(
            [
                label_of(framework),
                spread(speeds).text(0),
                share_of(results, framework, speeds).text(0, ' %'),
                paired(speeds, column(runs[theirs], unit)).text(1, TIMES),
                paired(
                    [100 * speed for speed in column(runs[ours], unit)],
                    speeds,
                ).text(0, ' %'),
            ]
        )
    head = (
        *('framework', f'products alone, {NAMES[unit]}', 'share of rate'),
        *('against the textbook', 'what d2lbert reaches of it'),
    )
    return table(head, rows)


def times_textbook(
    speed: float, results: Results, side: str, unit: str
) -> str:
    """Say how many times the textbook's a speed is, in each framework."""
    speeds = {
        label_of(framework): median(column(results[framework][side], unit))
        for framework in FRAMEWORKS
    }
    return ' and '.join(
        f'{speed / theirs:.1f} × the textbook in {name}'
        for name, theirs in speeds.items()
    )


def matrix_rates(results: Results) -> list[float]:
    """Return the rates of the best matrix product in all rounds, GFLOP/s."""
    runs = [run for name in FRAMEWORKS for run in results[name]['rate']]
    return [rate / 1e9 for rate in column(runs, 'flops_per_sec')]


def peaks(runs: Runs) -> list[str]:
    """Write the median peak of memory, and that above the import's, GB."""
    above = [
        run['peak_bytes'] - run['peak_bytes_after_import'] for run in runs
    ]
    return [
        f'{median(values) / 1e9:.2f}'
        for values in (column(runs, 'peak_bytes'), above)
    ]


def loading(results: Results) -> Gaps:
    """Describe the first loading."""
    head = [f'{code}, {unit}' for unit in ('s', 'GB')
            for code in SIDES.values()]  # fmt: skip
    rows = [
        [
            label_of(framework),
            *(text(runs[side], 'seconds', 2) for side in SIDES),
            *(peaks(runs[side])[0] for side in SIDES),
        ]
        for framework, runs in results.items()
    ]
    first = results['torch']['ours'][0]
    return {
        'batch_size': BATCH_SIZE,
        'max_len': MAX_LEN,
        'examples': f'{first["examples"]:,}',
        'vocabulary': f'{first["vocabulary"]:,}',
        'table': table(['framework', *head], rows),
    }


def reloading(results: Results) -> Gaps:
    """Describe loading from the cache."""
    return {name: text(runs, 'seconds', 3) for name, runs in results.items()}


def representing(results: Results) -> Gaps:
    """Describe the representing."""
    one_at_a_time = 'textbook, one at a time'
    heads = {
        one_at_a_time: "sentences/s, the chapter's, one at a time",
        'ours, one at a time': 'ours, one at a time',
        'represent': '`represent`',
    }
    unit = 'sentences_per_sec'
    rows = [
        [
            label_of(framework),
            *(text(results[framework][name], unit, 0) for name in heads),
        ]
        for framework in FRAMEWORKS
    ]
    gflops = results['flops'] / 1e9
    rate = median(matrix_rates(results))
    bound = results['sentences'] * rate / gflops
    return {
        'sentences': f'{results["sentences"]:,}',
        'sample': results['sample'],
        'table': table(['framework', *heads.values()], rows),
        'flops': f'{gflops:.0f}',
        'rate': f'{rate:.0f}',
        'seconds': f'{gflops / rate:.2f}',
        'bound': f'{bound:,.0f}',
        'times': times_textbook(bound, results, one_at_a_time, unit),
        'products': products_table(
            *(results, unit),
            *(targets.encoding_speeds, targets.encoding_share),
            *(one_at_a_time, 'represent'),
        ),
    }


def importing(results: Results) -> Gaps:
    """Describe how long processes take to start."""
    rows = [
        [f'`{name}`', f'{min(values):.3f}', spread(values).text(3)]
        for name, values in results.items()
    ]
    return {
        'table': table(('command', 'best, s', 'median (spread), s'), rows)
    }


def growth(results: Results) -> Gaps:
    """Describe the growth curves."""
    rows = []
    for framework in FRAMEWORKS:
        for name, sizes in results['curves'].items():
            curves = [run[name] for run in results[framework]]
            time, work, last = (
                spread(
                    [
                        exponent(sizes[start:], column(curve, cost)[start:])
                        for curve in curves
                    ]
                )
                for cost, start in (
                    ('seconds', 0),
                    ('flops', 0),
                    ('seconds', -2),
                )
            )
            rows.append(
                [
                    label_of(framework),
                    name.replace('_', ' '),
                    f'{sizes[0]:,} to {sizes[-1]:,}',
                    *(time.text(2), work.text(2), f'{last.median:.2f}'),
                ]
            )
    head = (
        *('framework', 'size', 'from, to', 'exponent of time'),
        *('of the arithmetic', 'last doubling'),
    )
    return {
        'base': ', '.join(
            f'{name.replace("_", " ")} {value:,}'
            for name, value in results['base'].items()
        ),
        'noise': targets.EXPONENT_NOISE,
        'table': table(head, rows),
    }


def corpus(results: Results) -> Gaps:
    """Describe larger corpora."""
    rows = [
        [
            f'× {copies}',
            f'{runs[0]["examples"]:,}',
            text(runs, 'seconds', 2),
            *peaks(runs),
        ]
        for copies, runs in results.items()
    ]
    head = (
        'corpus',
        'examples',
        'loading, s',
        'peak, GB',
        'above import, GB',
    )
    return {'table': table(head, rows)}


def shards(results: Results) -> Gaps:
    """Describe shards on one processor."""
    rows = [
        [
            label_of(name),
            *(text(run, 'pairs_per_sec') for run in runs.values()),
        ]
        for name, runs in results.items()
    ]
    head = [f'`{devices}`, pairs/s' for devices in results['torch']]
    return {'table': table(['framework', *head], rows)}


def company(results: Results) -> Gaps:
    """Describe training beside busy processes."""
    busy = (0, results['cores'], 2 * results['cores'])
    large, small = results['batch_sizes']
    rows = [
        [
            label_of(framework),
            f'{size}',
            SIDES[side],
            *(
                text(results[framework][f'{side} {size} {number}'],
                     'pairs_per_sec')
                for number in busy
            ),
        ]
        for framework in FRAMEWORKS
        for side, size in (
            ('textbook', large), ('ours', large), ('ours', small),
        )
    ]  # fmt: skip
    head = ('framework', 'batch', 'code', 'alone, pairs/s')
    beside = [f'beside {number}' for number in busy[1:]]
    return {
        'cores': results['cores'],
        'table': table([*head, *beside], rows),
    }


def profile(results: Results) -> Gaps:
    """Say where a step's time goes."""
    columns = {
        f'{label_of(framework)}, {when}': results[framework][side]['seconds']
        for framework in FRAMEWORKS
        for side, when in (('textbook', 'before'), ('ours', 'after'))
    }
    totals = [sum(seconds.values()) for seconds in columns.values()]
    rows = []
    for kind in profiling.KINDS:
        spent = [seconds[kind] for seconds in columns.values()]
        shares = [
            own / total for own, total in zip(spent, totals, strict=True)
        ]
        cells = zip(spent, shares, strict=True)
        rows.append([kind, *(f'{own:.3f} s, {x:.0%}' for own, x in cells)])
    rows.append(['**a step**', *(f'**{total:.2f} s**' for total in totals)])
    return {'table': table(['kind of work', *columns], rows)}


def display(results: Results) -> Gaps:
    """Say what a reader's display costs, in ms."""
    return {
        name: spread([1e3 * shown for shown in values]).text(2)
        for name, values in results.items()
    }


#: What `make stale` looks for.
MEASURED = (
    'Measured at commit `{}` with the code of `backends/`, `d2lbert/`, '
    '`benchmarks/*.py`.'
)
#: The title of each section in page.md, and what fills its gaps.
SECTIONS: Mapping[str, Callable[[Results], Gaps]] = {
    'Training': training,
    'Loading WikiText-2': loading,
    'Loading WikiText-2 again': reloading,
    'Representing sentences': representing,
    'Starting': importing,
    'How cost grows': growth,
    'Larger corpora': corpus,
    'Shards on one processor': shards,
    'In company': company,
    "Where a step's time goes": profile,
    'Display': display,
}
TITLES = {function.__name__: title for title, function in SECTIONS.items()}


def machine(results: Results) -> Gaps:
    """Describe the machine, and how quiet it was."""
    found = results['machine']
    rows = [
        [
            TITLES[name],
            section['date'],
            section['commit'],
            f'{section["seconds"] / 60:.1f}',
            f'{section["load_before"]:.2f}',
        ]
        for name, section in results['sections'].items()
    ]
    head = ('section', 'measured', 'commit', 'minutes', 'load before it')
    commits = {section['commit'] for section in results['sections'].values()}
    variables = [f'{name}={x}' for name, x in found['variables'].items()]
    return {
        **found,
        **found['versions'],
        'memory': f'{found["memory_bytes"] / 2**30:.0f}',
        'variables': ' '.join(variables) or 'none that set threads or memory',
        'table': table(head, rows),
        'measured': '\n'.join(map(MEASURED.format, sorted(commits))),
    }


def page(results: Results) -> str:
    """Return the whole page in Markdown."""
    measured = measured_sections(results)
    top, *parts = (HERE / 'page.md').read_text('utf-8').split('\n## ')
    warnings = []
    if results['quick']:
        warnings.append('A quick run, to see that it runs: not to be quoted.')
    missing = [TITLES[name] for name in TITLES if name not in measured]
    if missing:
        warnings.append(f'Not measured: {", ".join(missing)}.')
    pieces = [
        top.format(
            warnings=''.join(f'\n\n**{line}**' for line in warnings),
            reached=targets_table(
                targets.reached(measured, results['machine']['cores'])
            ),
            kept=targets_table(targets.kept(measured)),
        )
    ]
    for part in parts:
        title, _, _ = part.partition('\n')
        if title not in SECTIONS:
            pieces.append(part.format(**machine(results)))
        elif (name := SECTIONS[title].__name__) in measured:
            pieces.append(part.format(**SECTIONS[title](measured[name])))
    return '\n## '.join(pieces)


def measured_sections(results: Results) -> dict[str, Results]:
    """Return the results of the sections that there are, in order."""
    return {
        name: results['sections'][name]['results']
        for name in TITLES
        if name in results['sections']
    }


def write(folder: Path) -> None:
    """Write results.md and its pictures beside results.json."""
    results = json.loads((folder / RESULTS_FILE).read_text('utf-8'))
    measured = measured_sections(results)
    (folder / PAGE_FILE).write_text(page(results), 'utf-8')
    if 'growth' in measured:
        pictures.draw_growth(measured['growth'], folder / 'growth.png')
    print(f'{folder / PAGE_FILE}', file=sys.stderr)


if __name__ == '__main__':
    write(Path(sys.argv[1]) if sys.argv[1:] else HERE)
