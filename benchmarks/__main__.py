"""Compare, and write results.json, results.md and the pictures.

    python -m benchmarks [--quick] [SECTION …]

Sections that are named are measured again, the others stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.compare import QUICK, Bench, MeasurementError, Settings
from benchmarks.sections import SECTIONS
from d2lbert.data.files import write_file
from d2lbert.errors import D2LBertError

HERE = Path(__file__).parent


def main() -> int:
    """Measure the sections that are asked for and write the page."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks')
    parser.add_argument(
        'sections',
        nargs='*',
        metavar='SECTION',
        help=f'by default all: {", ".join(SECTIONS)}',
    )
    parser.add_argument(
        '--quick',
        action='store_true',
        help='only see that it runs: tiny, and written to runs/benchmarks',
    )
    parser.add_argument(
        '--textbook',
        type=Path,
        default=Path('.oracle/bin/python'),
        metavar='PYTHON',
        help='the interpreter that has d2l 1.0.3 (default: %(default)s)',
    )
    parser.add_argument('--out', type=Path, metavar='FOLDER')
    options = parser.parse_args()
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f'unknown: {", ".join(sorted(unknown))}')
    if not options.textbook.exists():
        parser.error(
            f'{options.textbook} is not there: `make bench` makes it, or '
            'give --textbook the interpreter of an environment with d2l'
        )
    default = Path('runs/benchmarks') if options.quick else HERE
    out = options.out or default
    out.mkdir(parents=True, exist_ok=True)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            Path(folder),
            QUICK if options.quick else Settings(),
            # Not resolved: a virtual environment's python is a link
            os.path.abspath(options.textbook),
        )
        try:
            measure(bench, options.sections or SECTIONS, out, options.quick)
        except (MeasurementError, D2LBertError) as error:
            print(error, file=sys.stderr)
            failed = True
    if (out / report.RESULTS_FILE).exists():
        report.write(out)
    return int(failed)


def measure(
    bench: Bench, names: Iterable[str], out: Path, quick: bool
) -> None:
    """Measure sections, keeping the results of each as soon as it is done."""
    results = earlier_results(
        out, {'machine': bench.machine(), 'quick': quick}
    )
    for name in names:
        load = os.getloadavg()[0]
        start = time.perf_counter()
        results['sections'][name] = {
            'date': time.strftime('%Y-%m-%d %H:%M'),
            'commit': commit(),
            'load_before': load,
            'results': SECTIONS[name](bench),
            'seconds': time.perf_counter() - start,
        }
        text = json.dumps(results, indent=1) + '\n'
        write_file(out / report.RESULTS_FILE, text.encode())


def commit() -> str:
    """Return which commit is measured, or that nobody knows."""
    git = subprocess.run(
        ['git', 'describe', '--always', '--dirty'],
        capture_output=True,
        text=True,
        cwd=HERE,
    )
    return git.stdout.strip() or 'unknown'


def earlier_results(out: Path, head: dict[str, Any]) -> dict[str, Any]:
    """Return the results that are there, if they have the same head."""
    path = out / report.RESULTS_FILE
    if path.exists():
        results = json.loads(path.read_text('utf-8'))
        if results | head == results:
            return results
        print(
            f'{path} is of another machine or other versions: starting anew',
            file=sys.stderr,
        )
    return {**head, 'sections': {}}


if __name__ == '__main__':
    sys.exit(main())
