"""The command: its subcommands, and how it ends."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
import warnings
from itertools import pairwise
from typing import Annotated, Any

import typer

from d2lbert import errors
from d2lbert.cli.comparing import parity
from d2lbert.cli.evaluating import evaluate
from d2lbert.cli.finetuning import finetune, infer
from d2lbert.cli.inference import fill, follows
from d2lbert.cli.options import flag
from d2lbert.cli.representing import encode
from d2lbert.cli.status import FAILED, explain
from d2lbert.cli.terminal import say, terminal
from d2lbert.cli.tools import convert, doctor
from d2lbert.cli.training import chapter, pretrain
from d2lbert.frameworks import FRAMEWORKS, check_package, check_process
from d2lbert.runs.signals import replace_handlers

app = typer.Typer(
    help='BERT pretraining from Dive into Deep Learning, in '
    + ' and '.join(framework.label for framework in FRAMEWORKS.values())
    + '.',
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def common(
    context: typer.Context,
    debug: Annotated[
        bool, flag('--debug', 'Where a command fails, show the traceback.')
    ] = False,
) -> None:
    """Take the options of all commands."""
    context.obj['debug'] = debug


# The help lists them in this order
for subcommand in (
    *(pretrain, chapter, evaluate, encode, fill, follows),
    *(finetune, infer),
    *(parity, convert, doctor),
):
    app.command()(subcommand)


def main() -> None:
    """Run the command; an error becomes one line and an exit status."""
    replace_handlers(raise_stopped)
    settings: dict[str, Any] = {'debug': False}
    with terminal():
        try:
            run(settings)
        except errors.Stopped as error:
            message, status = str(error), 128 + error.number
        except BrokenPipeError:
            sys.exit(FAILED)
        except Exception as error:
            if settings['debug']:
                traceback.print_exc()
            message, status = explain(error)
        else:
            leave(settings, 0)
            return
        # A launcher ends the other processes when one has ended
        replace_handlers(lambda *_: None)
        group = settings.get('group')
        if group and group.size > 1:
            message = f'rank {group.rank}: {message}'
        say(message)
        leave(settings, status)
        sys.exit(status)


def leave(settings: dict[str, Any], status: int) -> None:
    """End a process that a launcher has started, at once.

    A framework may wait for ever for a process that is gone.
    """
    if settings.get('is_launched'):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run(settings: dict[str, Any]) -> None:
    """Run the command; all that it prints is then written."""
    check_package()
    check_process()
    # Not above: another package of this name may hide `backends`
    from backends.blas import choose_kind

    choose_kind()
    logging.basicConfig(format='d2lbert: %(message)s')
    with warnings.catch_warnings():
        warnings.simplefilter('always', errors.RunWarning)
        warnings.showwarning = show_warning
        try:
            app(with_all(sys.argv[1:]), prog_name='d2lbert', obj=settings)
        finally:
            sys.stdout.flush()


def with_all(arguments: list[str]) -> list[str]:
    """Return the arguments with `--backends all` as `--backends all all`.

    An option of two values cannot have one.
    """
    for i, words in enumerate(pairwise(arguments)):
        follows = arguments[i + 2 : i + 3] or ['-']
        if words == ('--backends', 'all') and follows[0].startswith('-'):
            return [*arguments[: i + 1], 'all', *arguments[i + 1 :]]
    return arguments


def raise_stopped(number: int, frame: object) -> None:
    """Stop at once on a signal."""
    name = signal.Signals(number).name
    raise errors.Stopped(number, f'stopped by {name} before the end')


def show_warning(message: object, *about: object, **more: object) -> None:
    """Print a warning in one line, without the place in the code."""
    say(message)
