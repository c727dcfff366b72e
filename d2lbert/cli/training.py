"""Subcommands that train: `pretrain` and `chapter`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from d2lbert.cli.folders import check_resume, into_folder
from d2lbert.cli.launching import given_options, launched
from d2lbert.cli.options import (
    JsonOption,
    OutOption,
    ResumeOption,
    TimeoutOption,
    config_options,
    flag,
)
from d2lbert.errors import InputError
from d2lbert.frameworks import FRAMEWORKS

if TYPE_CHECKING:
    from d2lbert.runs.run import Run


@config_options()
def pretrain(
    context: typer.Context,
    *,
    resume: ResumeOption = False,
    is_dry: Annotated[
        bool,
        flag(
            '--dry-run',
            'Say how much memory the training will take, part by part, and '
            'how much there is. Train nothing and write nothing.',
        ),
    ] = False,
    out: OutOption = None,
    timeout: TimeoutOption = 60,
    as_json: JsonOption = False,
    **options: Any,
) -> None:
    """Train BERT as the chapter does and keep the run in a folder.

    Ctrl-C and SIGTERM finish the step and write a checkpoint. A launcher,
    such as torchrun, can start the command as several processes.
    """
    check_resume(resume, out)
    named = (options['backend'], options['recipe'])
    given = given_options(context, options)
    if is_dry:
        if resume:
            raise InputError(
                '--dry-run reads no checkpoint: give the options of the run '
                'instead of --resume'
            )
        from d2lbert.runs.pretraining import dry_run

        memory = dry_run(**given)
        print(memory.table())
        if as_json:
            print(json.dumps(memory.as_dict()))
        memory.check()
        return
    with launched(context, timeout, options['backend']) as group:
        # The process may have begun again: what takes long comes here
        from d2lbert.runs.pretraining import pretrain as train

        out, run = into_folder(
            out,
            '-'.join(filter(None, named)),
            lambda folder: train(
                out=folder, resume=resume, group=group, **given
            ),
        )
    if group.rank:
        return
    picture = out / 'losses.png'
    curves = f', its loss curves in {picture}' if picture.exists() else ''
    print(f'The run is in {out}{curves}', file=sys.stderr)
    print(run.summary())
    if best := run.best_line():
        print(best)
    if as_json:
        print(json.dumps(run.results()))


@config_options(
    *('corpus', 'tokenizer', 'vocab_size', 'steps', 'batch_size', 'max_len'),
    *('devices', 'seed'),
)
def chapter(*, out: OutOption = None, **options: Any) -> None:
    """Train in each framework with the recipe of its own tab.

    Frameworks that are not installed are left out. One picture shows all
    loss curves.
    """
    import backends
    from d2lbert.runs import display
    from d2lbert.runs.pretraining import pretrain as train
    from d2lbert.runs.trained import check_no_run

    names = backends.installed()
    if not names:
        raise InputError(
            'no framework is installed: in a clone of d2lbert run '
            + ' or '.join(known.install for known in FRAMEWORKS.values())
        )

    def train_first(folder: Path) -> Run:
        for inner in (*(folder / name for name in names), folder):
            check_no_run(inner)
        return train(backend=names[0], out=folder / names[0], **options)

    out, first = into_folder(out, 'chapter', train_first)
    runs: list[Run] = []
    for name in names:
        run = first
        if runs:
            run = train(backend=name, out=out / name, **options)
        runs.append(run)
        print(
            f'{FRAMEWORKS[name].label} (recipe {run.config.recipe})\n'
            f'{run.summary()}'
        )
    with display.drawing():
        display.draw_losses(runs, out / 'losses')
    picture = out / 'losses.png'
    if picture.exists():
        print(f'Loss curves: {picture}')
