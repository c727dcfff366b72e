"""The subcommand `encode`, which represents text."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from d2lbert.cli.folders import save_file
from d2lbert.cli.options import (
    BackendOption,
    ForceOption,
    JsonOption,
    PrecisionOption,
    RunArgument,
    SecondArgument,
    path_option,
)
from d2lbert.runs.config import inexact


def encode(
    folder: RunArgument,
    text: Annotated[
        str,
        typer.Argument(
            metavar='TEXT', help='A sentence, its words separated by spaces.'
        ),
    ],
    second: SecondArgument = None,
    backend: BackendOption = None,
    precision: PrecisionOption = 'float32',
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
    (X,) = represent(run.net, run.vocab, [given], precision=precision)
    if npy:
        save_array(npy, X, force)
    print(
        f'encoded text {(1, *X.shape)}, <cls> {(1, X.shape[1])}'
        f'{inexact(precision)}'
    )
    width = max(map(len, tokens))
    for token, features in zip(tokens, X, strict=True):
        unknown = '' if token in run.vocab.token_to_idx else '  (unknown)'
        values = ' '.join(f'{value:8.4f}' for value in features[:3])
        print(f'{token:{width}}  {values} …{unknown}')
    if as_json:
        results = {'tokens': tokens, 'shape': X.shape, 'features': X.tolist()}
        print(json.dumps(results))


def save_array(path: Path, array: Any, force: bool) -> None:
    """Write a NumPy file, under exactly this name."""
    import numpy as np

    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    save_file(path, file.getvalue(), '--npy', force)
