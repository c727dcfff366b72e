"""The subcommands `fill` and `follows`, which ask a network for words."""

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
    RunArgument,
    SecondArgument,
    path_option,
)


def fill(
    folder: RunArgument,
    text: Annotated[
        str,
        typer.Argument(
            metavar='TEXT',
            help='A sentence with <mask> for each word to find.',
        ),
    ],
    second: SecondArgument = None,
    top: Annotated[
        int, typer.Option(metavar='N', help='Words for each mask.')
    ] = 5,
    backend: BackendOption = None,
    out: Annotated[
        Path | None,
        path_option(
            metavar='FILE.png', help='Draw bars of the words into a picture.'
        ),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find the most probable words for the masks of a text."""
    from d2lbert.data.files import check_new_file
    from d2lbert.errors import InputError
    from d2lbert.evaluation.fill_mask import fill as fill_masks
    from d2lbert.runs.run import load_run

    if out:
        if out.suffix.lower() != '.png':
            raise InputError(
                f'--out {out}: expected a name that ends in .png'
            )
        check_new_file(out, '--out', force)
    run = load_run(folder, backend)
    given = text if second is None else (text, second)
    say_unknown(run.vocab, given)
    (filling,) = fill_masks(run.net, run.vocab, [given], top)
    if out:
        save_bars(out, filling, force)
    rows = list(zip(filling.candidates, filling.probabilities, strict=True))
    width = max(len(word) for words, _ in rows for word in words)
    for number, (words, probabilities) in enumerate(rows, 1):
        print(f'mask {number}')
        for word, probability in zip(words, probabilities, strict=True):
            print(f'  {word:{width}}  {probability:.4f}')
    if as_json:
        results = {
            'tokens': filling.tokens,
            'positions': filling.positions.tolist(),
            'candidates': filling.candidates,
            'probabilities': filling.probabilities.tolist(),
        }
        print(json.dumps(results))


def follows(
    folder: RunArgument,
    first: Annotated[
        str, typer.Argument(metavar='A', help='The first sentence.')
    ],
    second: Annotated[
        str, typer.Argument(metavar='B', help='The second sentence.')
    ],
    backend: BackendOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how probable it is that sentence B follows sentence A."""
    from d2lbert.evaluation.fill_mask import follows as predict
    from d2lbert.runs.run import load_run

    run = load_run(folder, backend)
    say_unknown(run.vocab, (first, second))
    result = predict(run.net, run.vocab, [(first, second)])
    values = {name: float(X[0]) for name, X in result._asdict().items()}
    print(f'B follows A    {values["follows"]:.4f}')
    print(f'it does not    {values["does_not"]:.4f}')
    if as_json:
        print(json.dumps(values))


def say_unknown(vocab: Any, text: Any) -> None:
    """Print each token of a text that is not in the vocabulary."""
    from d2lbert.representation import to_tokens

    tokens, _ = to_tokens(text, vocab)
    for token in dict.fromkeys(tokens):
        if vocab[token] == vocab.unk:
            print(f'{token}  (unknown)')


def save_bars(path: Path, filling: Any, force: bool) -> None:
    """Draw the bars of a text into a PNG, under exactly this name."""
    from d2lbert.evaluation.fill_mask import draw_filling
    from d2lbert.runs.display import DPI, check_memory

    check_memory()
    drawn = io.BytesIO()
    draw_filling(filling).savefig(drawn, format='png', dpi=DPI)
    save_file(path, drawn.getvalue(), '--out', force)
