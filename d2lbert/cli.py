"""The `d2lbert` command.

Exit status: 0 done, 1 failed, 2 bad input, 130 and 143 stopped by Ctrl-C
and by SIGTERM.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from d2lbert import errors
from d2lbert.errors import InputError
from d2lbert.frameworks import (
    FRAMEWORKS,
    check_package,
    check_process,
    label_of,
)
from d2lbert.runs.signals import replace_handlers
from d2lbert.tools.options import (
    NAMES,
    ForceOption,
    JsonOption,
    OutOption,
    config_options,
    flag,
    path_argument,
    path_option,
)
from d2lbert.tools.terminal import say, terminal

if TYPE_CHECKING:
    from d2lbert.runs.run import Run

FAILED, BAD_INPUT = 1, 2
Result = TypeVar('Result')
#: How the frameworks say that there is no memory.
NO_MEMORY = re.compile('alloc|out of memory', re.IGNORECASE)

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


# ---- commands --------------------------------------------------------


@app.command()
@config_options()
def pretrain(
    context: typer.Context,
    *,
    resume: Annotated[
        bool,
        flag(
            '--resume',
            'Continue the run in the folder from its newest checkpoint, '
            'with its options where none are given.',
        ),
    ] = False,
    is_dry: Annotated[
        bool,
        flag(
            '--dry-run',
            'Say how much memory the training will take, part by part, and '
            'how much there is. Train nothing and write nothing.',
        ),
    ] = False,
    out: OutOption = None,
    timeout: Annotated[
        float,
        typer.Option(
            metavar='SECONDS',
            help='After how long a process that does not answer ends the '
            'others, where a launcher has started several.',
        ),
    ] = 60,
    as_json: JsonOption = False,
    **options: Any,
) -> None:
    """Train BERT as the chapter does and keep the run in a folder.

    Ctrl-C and SIGTERM finish the step and write a checkpoint. A launcher,
    such as torchrun, can start the command as several processes.
    """
    from backends.groups import launched_by
    from d2lbert.runs.pretraining import dry_run
    from d2lbert.runs.pretraining import pretrain as train
    from d2lbert.runs.processes import joined

    if out is None and resume:
        raise InputError('--resume needs the folder of the run: give --out')
    named = (options['backend'], options['recipe'])
    # A resumed run keeps the options that are not given
    given = {
        name: value
        for name, value in options.items()
        if 'COMMANDLINE' in str(context.get_parameter_source(name))
    }
    if is_dry:
        if resume:
            raise InputError(
                '--dry-run reads no checkpoint: give the options of the run '
                'instead of --resume'
            )
        memory = dry_run(**given)
        print(memory.table())
        if as_json:
            print(json.dumps(memory.as_dict()))
        memory.check()
        return
    context.obj['is_launched'] = bool(launched_by())
    with joined(timeout) as group:
        context.obj['group'] = group
        if group.rank:
            # Rank 0 speaks for all
            warnings.simplefilter('ignore', errors.RunWarning)
            logging.disable()
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
    if as_json:
        print(json.dumps(run.results()))


@app.command()
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
    from d2lbert.runs.run import check_no_run

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


@app.command()
def encode(
    folder: Annotated[
        Path, path_argument(metavar='DIR', help='The folder of a run.')
    ],
    text: Annotated[
        str,
        typer.Argument(
            metavar='TEXT', help='A sentence, its words separated by spaces.'
        ),
    ],
    second: Annotated[
        str | None,
        typer.Argument(
            metavar='TEXT2', help='A second sentence, for a pair.'
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar=NAMES,
            help='The framework that computes.',
            show_default="the run's",
        ),
    ] = None,
    npy: Annotated[
        Path | None,
        path_option(
            metavar='FILE',
            help='Write all features to a NumPy file, '
            'float32 (tokens, features).',
        ),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Represent a sentence or a pair of sentences."""
    from d2lbert.data.files import check_new_file
    from d2lbert.representation import represent, to_tokens
    from d2lbert.runs.run import load_run

    if npy:
        check_new_file(npy, '--npy', force)
    run = load_run(folder, backend)
    given = text if second is None else (text, second)
    tokens, _ = to_tokens(given, run.vocab)
    (X,) = represent(run.net, run.vocab, [given])
    if npy:
        save_array(npy, X, force)
    print(f'encoded text {(1, *X.shape)}, <cls> {(1, X.shape[1])}')
    width = max(map(len, tokens))
    for token, features in zip(tokens, X, strict=True):
        unknown = '' if token in run.vocab.token_to_idx else '  (unknown)'
        values = ' '.join(f'{value:8.4f}' for value in features[:3])
        print(f'{token:{width}}  {values} …{unknown}')
    if as_json:
        results = {'tokens': tokens, 'shape': X.shape, 'features': X.tolist()}
        print(json.dumps(results))


@app.command()
@config_options(
    *('recipe', 'corpus', 'tokenizer', 'vocab_size'),
    *('steps', 'batch_size', 'max_len'),
    *('num_hiddens', 'ffn_num_hiddens', 'num_heads', 'num_blks', 'dropout'),
    *('lr', 'devices', 'micro_batch', 'seed'),
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


@app.command()
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


@app.command()
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


def into_folder(
    out: Path | None, name: str, work: Callable[[Path], Result]
) -> tuple[Path, Result]:
    """Do some work for the folder `out`, or for a new one under `runs/`.

    `name`: of the new folder, which gets a number where it is taken. Where
    another process takes it meanwhile, the work is done for the next one.
    Returns the folder and what the work returns.
    """
    if out:
        return out, work(out)
    while True:
        folder, number = Path('runs') / name, 1
        while os.path.lexists(folder):
            number += 1
            folder = folder.with_name(f'{name}-{number}')
        try:
            return folder, work(folder)
        except errors.FolderTaken:
            if not os.path.lexists(folder):
                raise


def save_array(path: Path, array: Any, force: bool) -> None:
    """Write a NumPy file, under exactly this name."""
    import numpy as np

    from d2lbert.data.files import check_new_file, output_errors, write_file

    check_new_file(path, '--npy', force)
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    with output_errors(path, '--npy'):
        write_file(path, file.getvalue())


# ---- errors ----------------------------------------------------------


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


def explain(error: Exception) -> tuple[str, int]:
    """Return the message of an error, and the exit status."""
    # `backends.load` raises the second with a cause where a framework is
    # not installed
    if isinstance(error, (InputError, errors.BackendsError)) or (
        isinstance(error, ModuleNotFoundError) and error.__cause__
    ):
        return str(error), BAD_INPUT
    if isinstance(error, errors.D2LBertError):
        return str(error), FAILED
    # A framework's message can have many lines, and MXNet's a traceback,
    # whose last line says what happened
    message = str(error)
    if message.startswith('Traceback'):
        *_, message = message.strip().splitlines()
    text = ' '.join(message.split())
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and NO_MEMORY.search(text)
    ):
        return (
            f'there is not enough memory ({text}): give smaller numbers for '
            '--micro-batch, --batch-size or --max-len, or of hidden units '
            'and blocks; or --checkpoint-blocks',
            FAILED,
        )
    again = shlex.join(['d2lbert', '--debug', *sys.argv[1:]])
    name = type(error).__name__
    return f'unexpected {name}: {text}. To see where, run: {again}', FAILED


def raise_stopped(number: int, frame: object) -> None:
    """Stop at once on a signal."""
    name = signal.Signals(number).name
    raise errors.Stopped(number, f'stopped by {name} before the end')


def show_warning(message: object, *about: object, **more: object) -> None:
    """Print a warning in one line, without the place in the code."""
    say(message)
