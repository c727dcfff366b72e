"""The subcommand `parity`, which compares frameworks."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import typer

from d2lbert.cli.folders import into_folder
from d2lbert.cli.options import (
    NAMES,
    JsonOption,
    OutOption,
    config_options,
    flag,
)
from d2lbert.cli.status import FAILED
from d2lbert.errors import InputError
from d2lbert.frameworks import label_of


@config_options(
    *('recipe', 'corpus', 'tokenizer', 'vocab_size'),
    *('steps', 'batch_size', 'max_len'),
    *('num_hiddens', 'ffn_num_hiddens', 'num_heads', 'num_blks', 'dropout'),
    *('lr', 'schedule', 'schedule_steps', 'warmup', 'weight_decay'),
    *('clip_norm', 'initialization', 'devices', 'micro_batch', 'seed'),
    recipe='corrected',
)
def parity(
    *,
    names: Annotated[
        tuple[str, str],
        typer.Option(
            '--backends',
            metavar='NAME NAME|all',
            help=f'Two frameworks of {NAMES}, or the same one twice; '
            'or `all`.',
        ),
    ] = ('torch', 'mxnet'),
    dtype: Annotated[
        str,
        typer.Option(
            metavar='float32|float64', help='The type of all numbers.'
        ),
    ] = 'float32',
    twin: Annotated[
        bool,
        flag(
            '--twin',
            'Train the first framework once more, with one weight '
            'changed by rounding, to show how much of a difference is '
            'rounding. It decides nothing.',
        ),
    ] = False,
    out: OutOption = None,
    as_json: JsonOption = False,
    **options: Any,
) -> None:
    """Compare frameworks layer by layer and step by step.

    Both have the same weights, batches and dropout. Compared are every
    layer's output, both losses, every gradient, one step of Adam, and a
    training. The exit status is 1 where a tensor differs by more than is
    allowed.
    """
    from d2lbert.parity.report import REPORT_FILE, Report, compare_backends

    pairs = pairs_of(names)

    def folder_of(pair: tuple[str, str], folder: Path) -> Path:
        return folder / '-'.join(pair) if len(pairs) > 1 else folder

    def compare(folder: Path) -> list[Report]:
        return [
            compare_backends(
                pair,
                dtype=dtype,
                twin=twin,
                out=folder_of(pair, folder),
                **options,
            )
            for pair in pairs
        ]

    out, reports = into_folder(out, f'parity-{options["recipe"]}', compare)
    for report in reports:
        if len(pairs) > 1:
            print(' and '.join(map(label_of, report.backends)))
        print(report.table())
        if not report.passed:
            print(report.failures_text())
    for pair in pairs:
        folder = folder_of(pair, out)
        picture = folder / 'parity.png'
        if picture.exists():
            print(f'Curves: {picture}')
        print(f'Numbers: {folder / REPORT_FILE}')
    if as_json:
        found = [report.as_dict() for report in reports]
        print(json.dumps(found if len(found) > 1 else found[0]))
    if not all(report.passed for report in reports):
        raise typer.Exit(FAILED)


def pairs_of(names: tuple[str, str]) -> list[tuple[str, str]]:
    """Return which frameworks to compare; `all` is each two installed."""
    if 'all' not in names:
        return [names]
    import backends

    pairs = list(combinations(backends.installed(), 2))
    if set(names) != {'all'} or not pairs:
        raise InputError(
            f'--backends {" ".join(names)}: expected two frameworks, or all '
            'where two or more are installed'
        )
    return pairs
