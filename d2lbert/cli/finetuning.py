"""Subcommands for natural language inference: `finetune` and `infer`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from d2lbert.cli.folders import check_resume, into_folder
from d2lbert.cli.launching import given_options, launched
from d2lbert.cli.options import (
    BackendOption,
    JsonOption,
    OutOption,
    ResumeOption,
    TimeoutOption,
    config_options,
    path_argument,
)
from d2lbert.finetuning.config import FinetuningConfig


@config_options(config=FinetuningConfig)
def finetune(
    context: typer.Context,
    pretrained: Annotated[
        str | None,
        typer.Argument(
            metavar='RUN|bert.small|bert.base|PATH',
            help='The folder of a run, a pretrained network of the book, or '
            'the archive of one.',
            show_default='with --resume the same as before',
        ),
    ] = None,
    *,
    resume: ResumeOption = False,
    out: OutOption = None,
    timeout: TimeoutOption = 60,
    as_json: JsonOption = False,
    **options: Any,
) -> None:
    """Teach a pretrained network to infer, as the book does.

    Ctrl-C and SIGTERM finish the step and write a checkpoint. A launcher,
    such as torchrun, can start the command as several processes.
    """
    from d2lbert.errors import expand_home

    check_resume(resume, out)
    start = None if pretrained is None else expand_home(pretrained)
    given = given_options(context, options)
    with launched(context, timeout, options['backend']) as group:
        # The process may have begun again: what takes long comes here
        from d2lbert.finetuning.training import finetune as train

        out, run = into_folder(
            out,
            f'{options["task"]}-{options["backend"]}',
            lambda folder: train(
                start, out=folder, resume=resume, group=group, **given
            ),
        )
    if group.rank:
        return
    picture = out / 'finetuning.png'
    curves = f', its curves in {picture}' if picture.exists() else ''
    print(f'The run is in {out}{curves}', file=sys.stderr)
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
