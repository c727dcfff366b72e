"""The same training on a CUDA card, PyTorch only: `make bench-gpu`.

    python -m benchmarks.gpu --d2l PATH [--rounds N] [--steps N]

Needs nothing but PyTorch and NumPy: what else d2l imports is replaced by
stand-ins where it is missing. PATH is the folder in which `d2l` is, and
WikiText-2 is found as `d2lbert` finds it. Writes results-gpu.json and
results-gpu.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.compare import (
    Bench,
    MeasurementError,
    Settings,
    commit,
    in_turn,
)
from benchmarks.numbers import column, ratio, table, text
from benchmarks.report import MEASURED, SIDES
from benchmarks.targets import Target, targets_table
from d2lbert.data.files import write_file

HERE = Path(__file__).parent
PAGE_FILE, RESULTS_FILE = 'results-gpu.md', 'results-gpu.json'
LEAST = 5
#: What d2lbert can do beside float32.
INEXACT = {
    'tf32': 'd2lbert, TF32 products (inexact)',
    'bf16': 'd2lbert, bf16 (inexact)',
}
NO_CARD = """\
# Speed on a GPU

No CUDA card was at hand where `make bench-gpu` was run: nothing was
measured.
"""


def main() -> int:
    """Compare on a card and write the page, or say that there is none."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.gpu')
    parser.add_argument('--d2l', required=True, metavar='PATH')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--steps', type=int, default=50)
    parser.add_argument('--out', type=Path, default=HERE, metavar='FOLDER')
    options = parser.parse_args()
    import torch

    options.out.mkdir(parents=True, exist_ok=True)
    page = options.out / PAGE_FILE
    if not torch.cuda.is_available():
        print('There is no CUDA card here: nothing is measured')
        if not page.exists():
            page.write_text(NO_CARD, 'utf-8')
        return 0
    settings = Settings(rounds=options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), settings, sys.executable)
        try:
            rounds = measure(bench, str(options.d2l), options.steps)
        except MeasurementError as error:
            print(error, file=sys.stderr)
            return 1
        machine = bench.machine()
    results = {
        'date': time.strftime('%Y-%m-%d %H:%M'),
        'commit': commit(),
        'card': torch.cuda.get_device_name(),
        'cuda': torch.version.cuda,
        'machine': machine,
        'batch_size': settings.batch_size,
        'num_steps': options.steps,
        'rounds': rounds,
    }
    content = json.dumps(results, indent=1) + '\n'
    write_file(options.out / RESULTS_FILE, content.encode())
    page.write_text(describe(results), 'utf-8')
    return 0


def measure(bench: Bench, d2l_path: str, num_steps: int) -> dict[str, Any]:
    """Let both sides train in turn, each loading and feeding its own way."""
    training = partial(
        bench.measure,
        framework='torch',
        name='training',
        variables={'D2L_PATH': str(Path(d2l_path).absolute())},
        batch_size=bench.settings.batch_size,
        num_warmup=bench.settings.warmup_steps,
        num_steps=num_steps,
    )
    ours = partial(training, 'ours', corpus=bench.settings.corpus)
    return in_turn(
        'training on the card',
        bench.settings.rounds,
        {
            'textbook': partial(training, 'textbook', corpus=bench.corpus()),
            'ours': ours,
            **{name: partial(ours, precision=name) for name in INEXACT},
        },
    )


def describe(results: Mapping[str, Any]) -> str:
    """Return the page in Markdown."""
    rounds, machine = results['rounds'], results['machine']
    units = {
        'pairs_per_sec': 'pairs/s as printed',
        'pairs_per_sec_of_call': 'pairs/s of the whole call',
    }
    targets = [
        Target(
            f'training on a {results["card"]}, {what}',
            *(LEAST, None),
            ratio(rounds['ours'], rounds['textbook'], unit),
        )
        for unit, what in units.items()
    ]
    rows = [
        [
            (SIDES | INEXACT)[side],
            *(text(runs, unit, 0) for unit in units),
            f'{max(column(runs, "peak_bytes_on_card")) / 1e9:.2f}',
        ]
        for side, runs in rounds.items()
    ]
    head = (
        *('code', 'pairs/s, as printed', 'pairs/s of the whole call'),
        'peak on the card, GB',
    )
    return (
        (HERE / 'gpu-page.md')
        .read_text('utf-8')
        .format(
            **results | machine | machine['versions'],
            targets=targets_table(targets),
            num_rounds=len(rounds['ours']),
            table=table(head, rows),
            measured=MEASURED.format(results['commit']),
        )
    )


if __name__ == '__main__':
    sys.exit(main())
