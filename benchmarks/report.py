"""From results.json to results.md.

    python -m benchmarks.report [FOLDER]

Every number on the page is made here from the raw ones.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import pictures, profiling, targets
from benchmarks.numbers import (
    Results,
    Runs,
    column,
    ratio,
    spread,
    table,
    text,
)
from benchmarks.targets import TIMES, exponent, targets_table
from benchmarks.workload import FRAMEWORKS, MAX_LEN
from d2lbert.runs.display import LABELS

PAGE_FILE, RESULTS_FILE = 'results.md', 'results.json'
SIDES = {'textbook': 'd2l 1.0.3', 'ours': 'd2lbert'}
MINUTE = 60


# ---- the sections ----------------------------------------------------


def training_page(results: Results) -> str:
    """Describe the training."""
    head = (
        *('framework', 'code', 'pairs/s, as printed', 'pairs/s of the call'),
        *('share of rate', 'peak, GB', 'peak above import, GB'),
    )
    rows = []
    for framework in FRAMEWORKS:
        for side, code in SIDES.items():
            runs = results[framework][side]
            share = targets.rate_share(results, framework, side).median
            rows.append(
                [
                    LABELS[framework],
                    code,
                    text(runs, 'pairs_per_sec'),
                    text(runs, 'pairs_per_sec_of_call'),
                    f'{share:.0f} %',
                    *peaks(runs),
                ]
            )
    rates = matrix_rates(results)
    flops = results['torch']['flops_per_step'] / 1e9
    bound = median(rates) / flops * results['batch_size']
    times = times_textbook(bound, results, 'textbook', 'pairs_per_sec')
    steps, call = [], []
    for framework in FRAMEWORKS:
        name, runs = LABELS[framework], results[framework]
        steps.append(f'{runs["num_steps"]} steps ({name})')
        faster = ratio(
            runs['ours'], runs['textbook'], 'pairs_per_sec_of_call'
        )
        call.append(f'{name} {faster.text(unit=TIMES)}')
    return f"""\
`d2l.train_bert(train_iter, net, loss, len(vocab), devices, num_steps)` of
each tab: the chapter's network on batches of {results['batch_size']} × \
{MAX_LEN} of WikiText-2, by the recipe of the
tab, {' and '.join(steps)} after a call that warms up. Both
sides get the same minibatches, as native arrays in a list; loading is
measured by itself below. `train_bert` and `get_bert_encoding` are in the
chapter, not in the package `d2l`: they are its cells in our words, around
the package's own network, loss, dataset, timer, accumulator and animator.

{table(head, rows)}

"As printed" is what the chapter's last line says, whose timer leaves out
the data and the picture on both sides; "of the call" is by the clock, all
that `train_bert` does included; the textbook draws its picture at every
step, ours, outside of a notebook, once. By the clock the ratios are:
{', '.join(call)}.

Useful arithmetic is {flops:.1f} GFLOP a step, computed from the batches: no
padding, real predictions only, and in the last block only the queries that
are used. A row of n tokens with p predictions and q different positions
among them and `<cls>` takes 6 times n (4H² + 2HF) + 2n²H in the first block,
2nH² + q (2H² + 2HF) + 2nqH in the last, and p (H² + HV) + H² + 2H in the
heads; 6 is a multiplication and an addition, forward and twice backward.
The share of the rate is pairs/s × {flops:.1f} GFLOP / \
{results['batch_size']} over the best float32
product of 2048³ in PyTorch, measured in the same round:
{spread(rates).text(0)} GFLOP/s. No code that makes these products is faster
than {bound:,.0f} pairs/s,
{times}.
"""


def times_textbook(
    speed: float, results: Results, side: str, unit: str
) -> str:
    """Say how many times the textbook's a speed is, in each framework."""
    speeds = {
        LABELS[framework]: median(column(results[framework][side], unit))
        for framework in FRAMEWORKS
    }
    return ' and '.join(
        f'{speed / theirs:.1f} × the textbook in {name}'
        for name, theirs in speeds.items()
    )


def matrix_rates(results: Results) -> list[float]:
    """Return the rates of the best matrix product in all rounds, GFLOP/s."""
    return [
        run['flops_per_sec'] / 1e9
        for framework in FRAMEWORKS
        for run in results[framework]['rate']
    ]


def peaks(runs: Runs) -> list[str]:
    """Write the median peak of memory, and that above the import's."""
    above = [
        run['peak_bytes'] - run['peak_bytes_after_import'] for run in runs
    ]
    return [gigabytes(column(runs, 'peak_bytes')), gigabytes(above)]


def gigabytes(values: Sequence[float]) -> str:
    """Write the median of some sizes."""
    return f'{median(values) / 1e9:.2f}'


def loading_page(results: Results) -> str:
    """Describe the loading."""
    head = [f'{code}, {unit}' for unit in ('s', 'GB')
            for code in SIDES.values()]  # fmt: skip
    rows = [
        [
            LABELS[framework],
            *(text(runs[side], 'seconds', 2) for side in SIDES),
            *(peaks(runs[side])[0] for side in SIDES),
        ]
        for framework, runs in results.items()
    ]
    first = results['torch']['ours'][0]
    return f"""\
`d2l.load_data_wiki(512, {MAX_LEN})` of each tab, nothing cached. The
textbook's reads a folder, as after its download; ours also unpacks the
archive. All made the same {first['examples']:,} examples with a vocabulary
of {first['vocabulary']:,}: the SHA-256 of each of the seven arrays was equal
in every process, or there would be no page.

{table(['framework', *head], rows)}
"""


def reloading_page(results: Results) -> str:
    """Describe loading from the cache."""
    made, read = (text(results[name], 'seconds', 3)
                  for name in ('made', 'read'))  # fmt: skip
    return f"""\
Of the same text, length and seed `d2lbert pretrain` makes examples once and
keeps them: {made} s the first time, {read} s to read
the text and its examples again, which had the same SHA-256.
"""


def representing_page(results: Results) -> str:
    """Describe the representing."""
    names = ('textbook, one at a time', 'ours, one at a time', 'represent')
    head = (
        *('framework', "sentences/s, the chapter's, one at a time"),
        *('ours, one at a time', '`represent`'),
    )
    gflops = results['flops'] / 1e9
    rate = median(matrix_rates(results))
    bound = results['sentences'] * rate / gflops
    times = times_textbook(bound, results, names[0], 'sentences_per_sec')
    rows = [
        [
            LABELS[framework],
            *(
                text(results[framework][name], 'sentences_per_sec', 0)
                for name in names
            ),
        ]
        for framework in FRAMEWORKS
    ]
    return f"""\
`d2lbert.represent(net, vocab, texts)` of {results['sentences']:,} sentences
of the corpus, and `get_bert_encoding` of one after the other in evaluation
mode: of {results['sample']} of them, evenly chosen, whose mean speed stands
for all.

{table(head, rows)}

The matrix products of all sentences are {gflops:.0f} GFLOP. At the rate of
the best product of 2048³ in the same rounds, {rate:.0f} GFLOP/s, they alone
would take {gflops / rate:.2f} s: no code that makes these products is faster
than {bound:,.0f} sentences/s,
{times}.
"""


def importing_page(results: Results) -> str:
    """Describe the imports."""
    rows = [
        [f'`{name}`', f'{min(values):.3f}', spread(values).text(3)]
        for name, values in results.items()
    ]
    return f"""\
Whole processes, from start to end.

{table(('command', 'best, s', 'median (spread), s'), rows)}
"""


def growth_page(results: Results) -> str:
    """Describe the growth curves."""
    head = (
        *('framework', 'size', 'from, to', 'exponent of time'),
        *('of the arithmetic', 'last doubling'),
    )
    rows = []
    for framework in FRAMEWORKS:
        for name, sizes in results['curves'].items():
            time, work, last = (
                spread(
                    [
                        exponent(
                            sizes[-points:], column(run[name], cost)[-points:]
                        )
                        for run in results[framework]
                    ]
                )
                for cost, points in (
                    ('seconds', len(sizes)),
                    ('flops', len(sizes)),
                    ('seconds', 2),
                )
            )
            rows.append(
                [
                    LABELS[framework],
                    name.replace('_', ' '),
                    f'{sizes[0]:,} to {sizes[-1]:,}',
                    time.text(2),
                    work.text(2),
                    f'{last.median:.2f}',
                ]
            )
    base = ', '.join(
        f'{name.replace("_", " ")} {value:,}'
        for name, value in results['base'].items()
    )
    return f"""\
The fastest of some steps of our trainer on rows without padding, while one
size grows and the others stay ({base}). The exponent is
the slope of the time over the size, both logarithmic, and the last doubling
its slope at the end; the arithmetic is that of the formula above. "No
faster" allows {targets.EXPONENT_NOISE}.

{table(head, rows)}

![How cost grows](growth.png)
"""


def corpus_page(results: Results) -> str:
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
        *('corpus', 'examples', 'loading, s', 'peak, GB'),
        'above import, GB',
    )
    return f"""\
WikiText-2 and more of the same, made by repetition, through our
`load_data_wiki`.

{table(head, rows)}
"""


def shards_page(results: Results) -> str:
    """Describe shards on one processor."""
    rows = [
        [
            LABELS[framework],
            *(text(runs[devices], 'pairs_per_sec') for devices in runs),
        ]
        for framework, runs in results.items()
    ]
    names = [f'`{devices}`, pairs/s' for devices in results['torch']]
    return f"""\
Our `train_bert` with one shard, two and four on the one processor.

{table(['framework', *names], rows)}
"""


def profile_page(results: Results) -> str:
    """Say where a step's time goes."""
    columns = {
        f'{LABELS[framework]}, {when}': results[framework][side]['seconds']
        for framework in FRAMEWORKS
        for side, when in (('textbook', 'before'), ('ours', 'after'))
    }
    totals = [sum(seconds.values()) for seconds in columns.values()]
    rows = []
    for kind in profiling.KINDS:
        spent = [seconds[kind] for seconds in columns.values()]
        rows.append(
            [
                kind,
                *(
                    f'{own:.3f} s, {own / total:.0%}'
                    for own, total in zip(spent, totals, strict=True)
                ),
            ]
        )
    rows.append(['**a step**', *(f'**{total:.2f} s**' for total in totals)])
    return f"""\
A step's time on one thread, by kind of work: before is the textbook's code,
after is ours. Operators are timed by each framework's own profiler (MXNet's
with an engine that computes one after the other) and grouped by name and by
whether logits go in; what is computed in NumPy is timed as Python. Profiling
takes time itself, so that the sums are not the speeds above.

{table(['kind of work', *columns], rows)}
"""


def display_page(results: Results) -> str:
    """Say what a reader's display costs."""
    progress, animator = (
        spread([1e3 * shown for shown in results[name]]).text(2)
        for name in ('progress', 'animator')
    )
    return f"""\
Showing a step takes {progress} ms in `d2lbert pretrain`, whose line has
steps per second and the time left, and {animator} ms in the tabs'
`Animator`, outside of a notebook.
"""


#: In the order of the page: a title, the page and the targets.
PAGES: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    'training': ('Training', training_page),
    'loading': ('Loading WikiText-2', loading_page),
    'reloading': ('Loading WikiText-2 again', reloading_page),
    'representing': ('Representing sentences', representing_page),
    'importing': ('Importing', importing_page),
    'growth': ('How cost grows', growth_page),
    'corpus': ('Larger corpora', corpus_page),
    'shards': ('Shards on one processor', shards_page),
    'profile': ("Where a step's time goes", profile_page),
    'display': ('Display', display_page),
}


def machine_page(machine: Results, sections: Mapping[str, Results]) -> str:
    """Describe the machine, and how quiet it was."""
    variables = ' '.join(
        f'{name}={value}' for name, value in machine['variables'].items()
    )
    rows = [
        [
            PAGES[name][0],
            section['date'],
            section['commit'],
            f'{section["seconds"] / MINUTE:.1f}',
            f'{section["load_before"]:.2f}',
        ]
        for name, section in sections.items()
    ]
    return f"""\
{machine['processor']}, {machine['cores']} cores, \
{machine['memory_bytes'] / 2**30:.0f} GiB, {machine['system']}.

* d2lbert: {machine['versions']['ours']}
* the textbook: {machine['versions']['textbook']}
* variables: {variables or 'none that set threads or memory'}

{table(('section', 'measured', 'commit', 'minutes', 'load before it'), rows)}
"""


def page(results: Results) -> str:
    """Return the whole page in Markdown."""
    sections = results['sections']
    measured = measured_sections(results)
    missing = [title for name, (title, _) in PAGES.items()
               if name not in measured]  # fmt: skip
    parts = [
        '# Against the textbook',
        'Made by `make bench` from results.json. Every measurement is a '
        'process of its own; the\ntextbook and d2lbert take turns. A ratio '
        'is the median of the ratios of neighbours,\nwith the least and the '
        'greatest.',
    ]
    if results['quick']:
        parts.append(
            '**A quick run, to see that it runs: not to be quoted.**'
        )
    if missing:
        parts.append(f'Not measured: {", ".join(missing)}.')
    parts += [
        '![Ratios with their spread](ratios.png)',
        targets_table(targets.reached(measured)),
        'At every size:',
        targets_table(targets.kept(measured)),
    ]
    for name, found in measured.items():
        title, describe = PAGES[name]
        parts += [f'## {title}', describe(found).strip()]
    parts += [
        '## The machine',
        machine_page(results['machine'], sections).strip(),
    ]
    return '\n\n'.join(parts) + '\n'


def measured_sections(results: Results) -> dict[str, Results]:
    """Return the results of the sections that there are, in order."""
    return {
        name: results['sections'][name]['results']
        for name in PAGES
        if name in results['sections']
    }


def write(folder: Path) -> None:
    """Write results.md and its pictures beside results.json."""
    results = json.loads((folder / RESULTS_FILE).read_text('utf-8'))
    measured = measured_sections(results)
    (folder / PAGE_FILE).write_text(page(results), 'utf-8')
    pictures.draw_ratios(
        [target for target in targets.reached(measured)
         if target.unit == TIMES],
        folder / 'ratios.png',
    )  # fmt: skip
    if 'growth' in measured:
        pictures.draw_growth(measured['growth'], folder / 'growth.png')
    print(f'{folder / PAGE_FILE}', file=sys.stderr)


if __name__ == '__main__':
    write(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent)
