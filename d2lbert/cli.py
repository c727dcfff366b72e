"""The `d2lbert` command.

Exit status: 0 done, 1 failed, 2 bad input, 130 and 143 stopped by Ctrl-C
and by SIGTERM.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from d2lbert.errors import D2LBertError, InputError, RunWarning, Stopped
from d2lbert.runs.signals import replace_handlers

FAILED, BAD_INPUT = 1, 2

app = typer.Typer(
    help='BERT pretraining from Dive into Deep Learning, in MXNet and '
    'PyTorch.',
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def a_path(text: str) -> Path:
    """Read a path; an empty one would be the folder one is in."""
    if not text:
        raise typer.BadParameter("'' is empty, expected a path.")
    return Path(text)


# Backends and recipes are text here: `Config` knows which there are, and
# importing them would make `--help` wait.
BackendOption = Annotated[
    str,
    typer.Option(metavar='torch|mxnet', help='The framework that computes.'),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        metavar='mxnet|pytorch|corrected',
        help='How to start and to normalise the loss.',
        show_default="that of the backend's own tab",
    ),
]
CorpusOption = Annotated[
    str,
    typer.Option(
        metavar='sample|wikitext-2|PATH',
        help='The embedded text, WikiText-2, or an archive, folder or UTF-8 '
        'text file with a paragraph a line.',
    ),
]
StepsOption = Annotated[int, typer.Option(help='Training steps.')]
BatchSizeOption = Annotated[
    int, typer.Option(help='Sentence pairs in a step.')
]
MaxLenOption = Annotated[
    int, typer.Option(help='Tokens of an example; longer pairs are dropped.')
]
NumHiddensOption = Annotated[int, typer.Option(help='Hidden units.')]
FFNNumHiddensOption = Annotated[
    int, typer.Option(help='Hidden units of the feed-forward networks.')
]
NumHeadsOption = Annotated[int, typer.Option(help='Attention heads.')]
NumBlksOption = Annotated[int, typer.Option(help='Encoder blocks.')]
DropoutOption = Annotated[
    float, typer.Option(help='Probability of dropping, from 0 to below 1.')
]
LROption = Annotated[
    float | None,
    typer.Option(
        help="Adam's learning rate.", show_default="the recipe's, 0.01"
    ),
]
MicroBatchOption = Annotated[
    int | None,
    typer.Option(
        help='Rows that go through the network at a time.',
        show_default='4,096 tokens, 32,768 on a GPU',
    ),
]
DevicesOption = Annotated[
    str,
    typer.Option(
        metavar='all|cpu|cpu:N|gpu:I,J',
        help='Where to compute, a shard of the batch for each: all GPUs '
        'or else the processor, N shards on it, or those GPUs.',
    ),
]
SeedOption = Annotated[
    int, typer.Option(help='Decides weights, examples, order and dropout.')
]
JsonOption = Annotated[
    bool,
    typer.Option(
        '--json', help='Print the results as one JSON object, the last line.'
    ),
]


@app.callback()
def common(
    context: typer.Context,
    debug: Annotated[
        bool,
        typer.Option(
            '--debug', help='Where a command fails, show the traceback.'
        ),
    ] = False,
) -> None:
    """Take the options of all commands."""
    context.obj['debug'] = debug


@app.command()
def pretrain(
    context: typer.Context,
    backend: BackendOption = 'torch',
    recipe: RecipeOption = None,
    corpus: CorpusOption = 'sample',
    steps: StepsOption = 50,
    batch_size: BatchSizeOption = 512,
    max_len: MaxLenOption = 64,
    num_hiddens: NumHiddensOption = 128,
    ffn_num_hiddens: FFNNumHiddensOption = 256,
    num_heads: NumHeadsOption = 2,
    num_blks: NumBlksOption = 2,
    dropout: DropoutOption = 0.2,
    lr: LROption = None,
    devices: DevicesOption = 'all',
    micro_batch: MicroBatchOption = None,
    seed: SeedOption = 0,
    precision: Annotated[
        str,
        typer.Option(
            metavar='float32|tf32|bf16',
            help='The last two are faster on CUDA cards, and inexact.',
        ),
    ] = 'float32',
    save_every: Annotated[
        int | None,
        typer.Option(
            metavar='N', help='Steps from one checkpoint to the next.'
        ),
    ] = None,
    keep: Annotated[
        int, typer.Option(help='How many checkpoints to keep, 2 or more.')
    ] = 2,
    resume: Annotated[
        bool,
        typer.Option(
            '--resume',
            help='Go on with the run in the folder from its newest '
            'checkpoint, with its options where none are given.',
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=a_path,
            metavar='PATH',
            help='The folder to keep the run in.',
            show_default='a new one under runs/',
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train BERT as the chapter does and keep the run in a folder.

    Ctrl-C and SIGTERM let the step be finished and write a checkpoint.
    """
    from d2lbert.runs.pretraining import pretrain as train

    if out is None and resume:
        raise InputError('--resume needs the folder of the run: give --out')
    out = out or free_folder(
        Path('runs') / '-'.join(filter(None, (backend, recipe)))
    )
    # A resumed run keeps the options that are not given, hence only these
    options = {
        name: value
        for name, value in context.params.items()
        if name not in ('out', 'resume', 'as_json')
        and 'COMMANDLINE' in str(context.get_parameter_source(name))
    }
    run = train(out=out, resume=resume, **options)
    picture = out / 'losses.png'
    curves = f', its loss curves in {picture}' if picture.exists() else ''
    print(f'The run is in {out}{curves}', file=sys.stderr)
    print(run.summary())
    if as_json:
        print(json.dumps(run.results()))


@app.command()
def chapter(
    corpus: CorpusOption = 'sample',
    steps: StepsOption = 50,
    batch_size: BatchSizeOption = 512,
    max_len: MaxLenOption = 64,
    devices: DevicesOption = 'all',
    seed: SeedOption = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=a_path,
            metavar='PATH',
            help='The folder to keep the runs in.',
            show_default='a new one under runs/',
        ),
    ] = None,
) -> None:
    """Train in both frameworks, each as its own tab.

    A framework that is not installed is left out. The curves of both are
    drawn into one picture.
    """
    import backends
    from d2lbert.data.files import output_errors
    from d2lbert.runs import display
    from d2lbert.runs.pretraining import pretrain as train
    from d2lbert.runs.run import check_no_run

    names = backends.installed()
    if not names:
        raise InputError(
            'neither framework is installed: in a clone of d2lbert run pip '
            "install '.[torch]' or '.[mxnet]'"
        )
    out = out or free_folder(Path('runs') / 'chapter')
    for folder in (out, *(out / name for name in names)):
        check_no_run(folder)
    histories = {}
    for name in names:
        run = train(
            backend=name,
            corpus=corpus,
            steps=steps,
            batch_size=batch_size,
            max_len=max_len,
            devices=devices,
            seed=seed,
            out=out / name,
        )
        histories[run.label()] = run.history
        print(
            f'{display.LABELS[name]} (recipe {run.config.recipe})\n'
            f'{run.summary()}'
        )
    with output_errors(out, '--out'):
        picture, _ = display.draw_losses(
            histories, out / 'losses', len(run.vocab), run.config.title()
        )
    print(f'Loss curves: {picture}')


@app.command()
def encode(
    folder: Annotated[
        Path,
        typer.Argument(
            parser=a_path, metavar='DIR', help='The folder of a run.'
        ),
    ],
    text: Annotated[
        str,
        typer.Argument(
            metavar='TEXT',
            help='A sentence, its words separated by spaces.',
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
            metavar='torch|mxnet',
            help='The framework that computes.',
            show_default="the run's",
        ),
    ] = None,
    npy: Annotated[
        Path | None,
        typer.Option(
            parser=a_path,
            metavar='FILE',
            help='Write all features as a NumPy file, '
            'float32 (tokens, features).',
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            '--json',
            help='Print tokens and all features as one JSON object, '
            'the last line.',
        ),
    ] = False,
) -> None:
    """Represent a sentence or a pair of them."""
    from d2lbert.representation import represent, to_tokens
    from d2lbert.runs.run import load_run

    run = load_run(folder, backend)
    given = text if second is None else (text, second)
    tokens, _ = to_tokens(given)
    (X,) = represent(run.net, run.vocab, [given])
    if npy:
        save_array(npy, X)
    print(f'encoded text {(1, *X.shape)}, <cls> {(1, X.shape[1])}')
    width = max(map(len, tokens))
    for token, features in zip(tokens, X, strict=True):
        unknown = '' if token in run.vocab.token_to_idx else '  (unknown)'
        print(
            f'{token:{width}}  '
            + ' '.join(f'{value:8.4f}' for value in features[:3])
            + f' …{unknown}'
        )
    if as_json:
        print(
            json.dumps(
                {
                    'tokens': tokens,
                    'shape': list(X.shape),
                    'features': X.tolist(),
                }
            )
        )


@app.command()
def parity(
    names: Annotated[
        tuple[str, str],
        typer.Option(
            '--backends',
            metavar='NAME NAME',
            help='The two frameworks; the same one twice is allowed.',
        ),
    ] = ('torch', 'mxnet'),
    recipe: Annotated[
        str,
        typer.Option(
            metavar='mxnet|pytorch|corrected',
            help='How to start and to normalise the loss.',
        ),
    ] = 'corrected',
    corpus: CorpusOption = 'sample',
    steps: StepsOption = 50,
    dtype: Annotated[
        str,
        typer.Option(metavar='float32|float64', help='What to compute with.'),
    ] = 'float32',
    twin: Annotated[
        bool,
        typer.Option(
            '--twin',
            help='Train the first framework once more, with one weight '
            'changed by rounding: how much of a difference is rounding? '
            'Decides nothing.',
        ),
    ] = False,
    batch_size: BatchSizeOption = 512,
    max_len: MaxLenOption = 64,
    num_hiddens: NumHiddensOption = 128,
    ffn_num_hiddens: FFNNumHiddensOption = 256,
    num_heads: NumHeadsOption = 2,
    num_blks: NumBlksOption = 2,
    dropout: DropoutOption = 0.2,
    lr: LROption = None,
    devices: DevicesOption = 'all',
    micro_batch: MicroBatchOption = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=a_path,
            metavar='PATH',
            help='The folder for picture and numbers.',
            show_default='a new one under runs/',
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two frameworks layer by layer and step by step.

    With the same weights, batches and dropout: every layer's output, both
    losses, every gradient, one step of Adam, and a training. Exit status 1
    where a tensor differs by more than is allowed.
    """
    from d2lbert.parity.report import REPORT_FILE, compare_backends

    out = out or free_folder(Path('runs') / f'parity-{recipe}')
    report = compare_backends(
        names,
        dtype=dtype,
        twin=twin,
        out=out,
        recipe=recipe,
        corpus=corpus,
        steps=steps,
        batch_size=batch_size,
        max_len=max_len,
        num_hiddens=num_hiddens,
        ffn_num_hiddens=ffn_num_hiddens,
        num_heads=num_heads,
        num_blks=num_blks,
        dropout=dropout,
        lr=lr,
        devices=devices,
        micro_batch=micro_batch,
        seed=seed,
    )
    print(report.table())
    if not report.passed:
        print(report.failures_text())
    print(f'Curves: {out / "parity.png"}\nNumbers: {out / REPORT_FILE}')
    if as_json:
        print(json.dumps(report.as_dict()))
    if not report.passed:
        raise typer.Exit(FAILED)


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            parser=a_path,
            metavar='SOURCE',
            help='The folder of a run, a safetensors file, or a file of '
            "Gluon's save_parameters; with the names of either tab.",
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar='torch-state-dict|mxnet-params|safetensors|run',
            help='What to write.',
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            parser=a_path,
            metavar='PATH',
            help='The file, or for a run the folder.',
        ),
    ],
    like: Annotated[
        Path | None,
        typer.Option(
            parser=a_path,
            metavar='RUN',
            help='For --to run: the folder of a run that has the '
            'vocabulary and the sizes.',
        ),
    ] = None,
) -> None:
    """Convert weights for the other framework or another program.

    Nothing is ever unpickled: a .pt or .pth file is refused, with the line
    that makes a safetensors file of it.
    """
    from d2lbert.tools.convert import convert as write

    weights = write(source, to, out, like)
    num_values = sum(W.size for W in weights.values())
    print(f'{out}: {len(weights)} parameters, {num_values:,} numbers')


@app.command()
def doctor(
    enable_mxnet: Annotated[
        bool,
        typer.Option(
            '--enable-mxnet',
            help='Let `import mxnet` work in this '
            'environment, whatever is imported first.',
        ),
    ] = False,
    disable_mxnet: Annotated[
        bool, typer.Option('--disable-mxnet', help='Take that back.')
    ] = False,
) -> None:
    """Say what is installed, what is broken, and why."""
    from backends import mxnet_import
    from d2lbert.tools.doctor import examine

    if enable_mxnet and disable_mxnet:
        raise InputError(
            '--enable-mxnet and --disable-mxnet exclude each other: give one'
        )
    if enable_mxnet:
        print(f'The import hook is on: {mxnet_import.enable()}')
    elif disable_mxnet:
        found = mxnet_import.disable()
        print(
            'The import hook is off.'
            if found
            else 'The import hook was not on.'
        )
    else:
        report = examine()
        print(report.text())
        raise typer.Exit(report.exit_status)


def free_folder(path: Path) -> Path:
    """Return `path`, or with the first number that is not taken yet."""
    candidate, number = path, 1
    while os.path.exists(candidate):
        number += 1
        candidate = path.with_name(f'{path.name}-{number}')
    return candidate


def save_array(path: Path, array: Any) -> None:
    """Write a NumPy file, under exactly this name."""
    import numpy as np

    from d2lbert.data.files import output_errors, write_file

    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f'{path} is not a file: give another --npy')
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    with output_errors(path, '--npy'):
        write_file(path, file.getvalue())


def main() -> None:
    """Run the command and turn errors into one line and a status."""
    for name in ('stdout', 'stderr'):
        if getattr(sys, name) is None:  # closed by who started the process
            setattr(sys, name, io.StringIO())
    # What a terminal cannot show it shall show as an escape
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')
    replace_handlers(raise_stopped)
    settings = {'debug': False}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('always', RunWarning)
            warnings.showwarning = show_warning(warnings.showwarning)
            app(prog_name='d2lbert', obj=settings)
    except Stopped as error:
        leave(error, 128 + error.number)
    except Exception as error:
        if settings['debug']:
            traceback.print_exc()
        leave(*explain(error))


def explain(error: Exception) -> tuple[str, int]:
    """Return what to say about an error, and the exit status."""
    if isinstance(error, InputError):
        return str(error), BAD_INPUT
    if isinstance(error, ModuleNotFoundError) and error.__cause__:
        return str(error), BAD_INPUT
    if isinstance(error, D2LBertError):
        return str(error), FAILED
    again = shlex.join(['d2lbert', '--debug', *sys.argv[1:]])
    return (
        f'unexpected {type(error).__name__}: {error}. See where: {again}',
        FAILED,
    )


def raise_stopped(number: int, frame: object) -> None:
    """Stop at once on a signal."""
    name = signal.Signals(number).name
    raise Stopped(number, f'stopped by {name} before the end')


def show_warning(others: Any) -> Any:
    """Show our own warnings in one line, and others as before."""

    def show(message: Any, category: type[Warning], *where: Any) -> None:
        if issubclass(category, RunWarning):
            print(f'd2lbert: {message}', file=sys.stderr)
        else:
            others(message, category, *where)

    return show


def leave(reason: object, status: int) -> None:
    """Leave with a message on stderr."""
    print(f'd2lbert: {reason}', file=sys.stderr)
    sys.exit(status)


if __name__ == '__main__':
    main()
