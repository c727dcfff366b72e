"""The subcommand `evaluate`, which says what a run has learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from d2lbert.cli.launching import launched
from d2lbert.cli.options import (
    BackendOption,
    JsonOption,
    RunArgument,
    TimeoutOption,
    flag,
    path_option,
)


def evaluate(
    context: typer.Context,
    folder: RunArgument,
    split: Annotated[
        str,
        typer.Option(
            metavar='valid|test|PATH',
            help="The part of the run's corpus to evaluate on, or a text.",
        ),
    ] = 'valid',
    backend: BackendOption = None,
    best: Annotated[
        bool,
        flag(
            '--best',
            'Take the weights of the best evaluation during the training.',
        ),
    ] = False,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            metavar='sample|wikitext-2|PATH',
            help='Where the text of the training is now.',
            show_default='where it was',
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar='N',
            help='Rows that go through the network at a time, at most.',
            show_default='as many as keep it busy',
        ),
    ] = None,
    out: Annotated[
        Path | None,
        path_option(
            help='The folder for a picture.', show_default='no picture'
        ),
    ] = None,
    timeout: TimeoutOption = 60,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a run on text that it was not trained on.

    Beside each number stand chance and the frequencies of the words of the
    training text, and by how many standard errors the network is better. A
    launcher, such as torchrun, can start the command as several processes.
    """
    from d2lbert.runs.evaluating import evaluate as evaluate_run

    with launched(context, timeout) as group:
        found = evaluate_run(
            folder,
            split,
            backend=backend,
            best=best,
            corpus=corpus or None,
            batch_size=batch_size,
            out=out,
            group=group,
        )
    if group.rank:
        return
    print(
        f'{found.num_predictions:,} predictions in {found.num_pairs:,} pairs '
        f'of sentences ({split})'
    )
    print(found.table())
    if out and (out / 'evaluation.png').exists():
        print(f'Picture: {out / "evaluation.png"}')
    if as_json:
        print(json.dumps(found.as_dict()))
