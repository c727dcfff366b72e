"""The options of the command: those of a `Config`, and others in common.

Importing this module does not import NumPy, so that `--help` is fast.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from d2lbert.errors import InputError, expand_home
from d2lbert.frameworks import FRAMEWORKS
from d2lbert.runs.config import ABOUT_PRECISION, PRECISIONS, Config

#: How the help texts list the frameworks.
NAMES = '|'.join(FRAMEWORKS)

Command = TypeVar('Command', bound=Callable[..., None])


def config_options(
    *names: str, config: Any = Config, **defaults: Any
) -> Callable[..., Any]:
    """Give a command with the parameter `**options` options of `config`.

    `names`: the fields to offer, all of them that are options where none is
    named; `config`: a dataclass of `option` fields; `defaults`: defaults of
    this command that differ from those of `config`.
    """
    types = get_type_hints(config)

    def parameter(name: str, default: Any, about: Any) -> inspect.Parameter:
        about, type_of = dict(about), types[name]
        if about.pop('several', False):
            default, type_of = [default], list[str]
        if name in defaults:
            about, default = about | {'show_default': True}, defaults[name]
        return inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[type_of, typer.Option(**about)],
        )

    offered = [
        parameter(field.name, field.default, field.metadata)
        for field in fields(config)
        if field.metadata and (not names or field.name in names)
    ]

    def add_to(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        *own, _options = signature.parameters.values()
        # Before the command's own options, and behind its context
        parameters = sorted([*offered, *own], key=lambda one: one.kind)
        signature = signature.replace(parameters=parameters)
        vars(command)['__signature__'] = signature
        return command

    return add_to


def flag(name: str, help: str) -> Any:
    """Return an option without a value, which has no opposite."""
    return typer.Option(name, help=help)


def a_path(text: str) -> Path:
    """Read a path; an empty one would mean the current folder."""
    if not text:
        raise typer.BadParameter("'' is empty, expected a path.")
    # A shell leaves the ~ of --out=~/runs as it is
    try:
        return Path(expand_home(text))
    except InputError as error:
        raise typer.BadParameter(f'{error}.') from error


path_argument = partial(typer.Argument, parser=a_path)
path_option = partial(typer.Option, parser=a_path, metavar='PATH')

RunArgument = Annotated[
    Path, path_argument(metavar='DIR', help='The folder of a run.')
]
SecondArgument = Annotated[
    str | None,
    typer.Argument(metavar='TEXT2', help='A second sentence, for a pair.'),
]
BackendOption = Annotated[
    str | None,
    typer.Option(
        metavar=NAMES,
        help='The framework that computes.',
        show_default="the run's",
    ),
]
PrecisionOption = Annotated[
    str, typer.Option(metavar=PRECISIONS, help=ABOUT_PRECISION)
]

OutOption = Annotated[
    Path | None,
    path_option(
        help='The folder to write to.', show_default='a new one under runs/'
    ),
]
ResumeOption = Annotated[
    bool,
    flag(
        '--resume',
        'Continue the run in the folder from its newest checkpoint, with its '
        'options where none are given.',
    ),
]
TimeoutOption = Annotated[
    float,
    typer.Option(
        metavar='SECONDS',
        help='After how long a process that does not answer ends the others, '
        'where a launcher has started several.',
    ),
]
ForceOption = Annotated[
    bool, flag('--force', 'Replace the file to write where there is one.')
]
JsonOption = Annotated[
    bool,
    flag('--json', 'Print all results as one JSON object, the last line.'),
]
