"""Subcommands that are tools: `convert` and `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from d2lbert import errors
from d2lbert.cli.options import ForceOption, path_argument, path_option
from d2lbert.cli.status import FAILED


def convert(
    source: Annotated[
        Path,
        path_argument(
            metavar='SOURCE',
            help='The folder of a run, a safetensors file, or a file of '
            "Gluon's save_parameters; with the names of any tab.",
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar='torch-state-dict|mxnet-params|flax-state|safetensors|run',
            help='What to write.',
        ),
    ],
    out: Annotated[
        Path, path_option(help='The file, or for a run the folder.')
    ],
    like: Annotated[
        Path | None,
        path_option(
            metavar='RUN',
            help='For --to run: the folder of a run that has the '
            'vocabulary and the sizes.',
        ),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Convert weights for another framework or another program.

    A .pt or .pth file is refused, because it may run any code when it is
    opened. The error shows how to make a safetensors file of it.
    """
    from d2lbert.tools.convert import convert as write

    weights = write(source, to, out, like, force)
    num_values = sum(W.size for W in weights.values())
    print(f'{out}: {len(weights)} parameters, {num_values:,} numbers')


def doctor(
    enable_mxnet: Annotated[
        bool | None,
        typer.Option(
            '--enable-mxnet/--disable-mxnet',
            help='Make `import mxnet` work in this environment, in any '
            'order; or undo that.',
            show_default=False,
        ),
    ] = None,
) -> None:
    """Say what is installed, what is broken, and how to repair it."""
    from backends import mxnet_import
    from d2lbert.tools.doctor import examine, problems, report

    if enable_mxnet is None:
        findings = examine()
        print(report(findings))
        if problems(findings):
            raise typer.Exit(FAILED)
        return
    try:
        if enable_mxnet:
            state = f'is on: {mxnet_import.enable()}'
        else:
            state = 'is off.' if mxnet_import.disable() else 'was not on.'
    except OSError as error:
        raise errors.RunError(error.strerror) from error
    print(f'The import hook {state}')
