"""Compare, and write results.json, results.md and the picture.

    python -m benchmarks [--quick] [SECTION …]

Sections that are named are measured again, the others stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.compare import (
    QUICK,
    Bench,
    MeasurementError,
    Settings,
    commit,
)
from benchmarks.sections import SECTIONS
from d2lbert.data.files import write_file
from d2lbert.errors import D2LBertError


def main() -> int:
    """Measure the sections that are asked for and write the page."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks')
    add = parser.add_argument
    add('sections', nargs='*', metavar='SECTION', help=', '.join(SECTIONS))
    add('--quick', action='store_true', help='tiny, into runs/benchmarks')
    add('--textbook', default='.oracle/bin/python', help='has d2l 1.0.3')
    add('--out', type=Path, metavar='FOLDER')
    options = parser.parse_args()
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(
            f'unknown: {", ".join(sorted(unknown))}; expected '
            + ', '.join(SECTIONS)
        )
    if not os.path.exists(options.textbook):
        parser.error(
            f'{options.textbook} is not there: `make bench` makes it, or '
            'give --textbook the interpreter of an environment with d2l'
        )
    default = Path('runs/benchmarks') if options.quick else report.HERE
    out = options.out or default
    out.mkdir(parents=True, exist_ok=True)
    settings = QUICK if options.quick else Settings()
    # Not resolved: a virtual environment's python is a link
    textbook = os.path.abspath(options.textbook)
    error = None
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), settings, textbook)
        try:
            measure(bench, options.sections or SECTIONS, out, options.quick)
        except (MeasurementError, D2LBertError) as failure:
            error = failure
    if (out / report.RESULTS_FILE).exists():
        report.write(out)
    if error:
        print(error, file=sys.stderr)
    return int(error is not None)


def measure(
    bench: Bench, names: Iterable[str], out: Path, quick: bool
) -> None:
    """Measure sections, keeping the results of each as soon as it is done."""
    head = {'machine': bench.machine(), 'quick': quick}
    results = earlier_results(out, head)
    measured = commit()  # before the results here are other ones
    for name in names:
        load, start = os.getloadavg()[0], time.perf_counter()
        results['sections'][name] = {
            'date': time.strftime('%Y-%m-%d %H:%M'),
            'commit': measured,
            'load_before': load,
            'results': SECTIONS[name](bench),
            'seconds': time.perf_counter() - start,
        }
        text = json.dumps(results, indent=1) + '\n'
        write_file(out / report.RESULTS_FILE, text.encode())


def earlier_results(out: Path, head: dict[str, Any]) -> dict[str, Any]:
    """Return the results that are there, if they have the same head."""
    path = out / report.RESULTS_FILE
    if path.exists():
        results = json.loads(path.read_text('utf-8'))
        if results | head == results:
            return results
        why = 'is of another machine or other versions: starting anew'
        print(path, why, file=sys.stderr)
    return {**head, 'sections': {}}


if __name__ == '__main__':
    sys.exit(main())
