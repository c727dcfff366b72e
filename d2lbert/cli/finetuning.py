"""Subcommands for natural language inference: `finetune` and `infer`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from d2lbert.cli.folders import into_folder
from d2lbert.cli.options import (
    BackendOption,
    JsonOption,
    OutOption,
    config_options,
    path_argument,
)
from d2lbert.finetuning.config import FinetuningConfig


@config_options(config=FinetuningConfig)
def finetune(
    pretrained: Annotated[
        str,
        typer.Argument(
            metavar='RUN|bert.small|bert.base|PATH',
            help='The folder of a run, a pretrained network of the book, or '
            'the archive of one.',
        ),
    ],
    *,
    out: OutOption = None,
    as_json: JsonOption = False,
    **options: Any,
) -> None:
    """Teach a pretrained network to infer, as the book does."""
    from d2lbert.errors import expand_home
    from d2lbert.finetuning.training import finetune as train

    out, run = into_folder(
        out,
        f'{options["task"]}-{options["backend"]}',
        lambda folder: train(expand_home(pretrained), out=folder, **options),
    )
    print(
        f'The run is in {out}, its curves in {out / "finetuning.png"}',
        file=sys.stderr,
    )
    print(run.summary())
    if as_json:
        print(json.dumps(run.results()))


def infer(
    folder: Annotated[
        Path,
        path_argument(metavar='DIR', help='The folder of a fine-tuned run.'),
    ],
    premise: Annotated[
        str,
        typer.Argument(
            metavar='PREMISE', help='A sentence, words separated by spaces.'
        ),
    ],
    hypothesis: Annotated[
        str, typer.Argument(metavar='HYPOTHESIS', help='Another one.')
    ],
    backend: BackendOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether a hypothesis follows from a premise."""
    from d2lbert.data.snli import LABELS
    from d2lbert.finetuning.inference import infer as probabilities_of
    from d2lbert.finetuning.run import load_finetuned

    run = load_finetuned(folder, backend)
    (odds,) = probabilities_of(run.net, run.vocab, [(premise, hypothesis)])
    named = dict(zip(LABELS, odds.tolist(), strict=True))
    for label, probability in sorted(
        named.items(), key=lambda item: -item[1]
    ):
        print(f'{label:13}  {probability:.3f}')
    if as_json:
        print(json.dumps(named))
