"""The notebooks' diagrams, and what all their pictures have in common.

Their labels are names from the code, formulas and words of the corpus, so
that they need no translation. A picture shows itself in a notebook when it
is the last value of a cell.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from d2lbert.bert import BERTModel
from d2lbert.classroom.inspection import Example
from d2lbert.data.examples import Batch
from d2lbert.runs import display

Point = tuple[float, float]

TOKENS_A_LINE, PAIR_TOKENS_A_LINE = 7, 8
SPECIAL = ('<cls>', '<sep>')
#: The width and height of a token's box.
TOKEN = (0.94, 0.8)
#: Of the rows of an example's picture.
NAMES = ('words', 'tokens', 'segments', 'mlm_labels')
#: One colour for each kind of token; both sentences have their own.
KIND_COLORS = {
    'special': '#dee2e6',
    'plain 0': '#d0ebff',
    'plain 1': '#d3f9d8',
    'masked': '#ffc9c9',
    'changed': '#ffd8a8',
    'kept': '#fff3bf',
}
#: What becomes of a word to predict, with an example.
CHANGES = {
    'masked': 'crane → <mask>',
    'changed': 'crane → boat',
    'kept': 'crane → crane',
}
LAYER, LINE = '#d0ebff', '#495057'
#: Of text in a picture, in points: as many pixels on a screen.
SIZE = 11


class Picture(Figure):
    """A Matplotlib figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        drawn, small = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format='png', dpi=display.DPI)
        # 256 colours, as good to the eye, take a third of the bytes
        image = Image.open(drawn).convert('RGB').quantize(256)
        image.save(small, format='png', optimize=True)
        width, height = (size // 2 for size in image.size)
        return small.getvalue(), {'width': width, 'height': height}


# ---- the whole -------------------------------------------------------


def draw_pretraining() -> Picture:
    """Draw where the weights of a BERT come from, and where they go."""
    picture = Picture((9, 3.5))
    axes = _blank_axes(picture, 18, 7)
    top, bottom = 1.9, 5.1
    for x, y, width, text, color in (
        (2.6, top, 4.6, '… a crane is flying\nover the marsh …', 'white'),
        (9, top, 3.8, 'BERTEncoder', LAYER),
        (15, top - 0.75, 4.4, 'mlm: <mask> → flying', KIND_COLORS['masked']),
        (15, top + 0.75, 4.4, 'nsp: A → B ?', KIND_COLORS['plain 1']),
        (2.6, bottom, 4.6, '2,400 × (A, B, label)', 'white'),
        (9, bottom, 3.8, 'BERTEncoder', LAYER),
        (15, bottom, 4.4, 'BERTClassifier: label', KIND_COLORS['kept']),
    ):
        _box(axes, (x - width / 2, y - 0.55), (width, 1.1), text, color)
    for y, text in ((top, 'pretrain'), (bottom, 'finetune')):
        _arrow(axes, (4.9, y), (7.1, y))
        _name(axes, 6, y - 0.35, text)
    _arrow(axes, (10.9, top), (12.8, top - 0.75))
    _arrow(axes, (10.9, top), (12.8, top + 0.75))
    _arrow(axes, (10.9, bottom), (12.8, bottom))
    _arrow(axes, (9, top + 0.55), (9, bottom - 0.55))
    _name(axes, 9.2, 3.5, 'weights.safetensors', ha='left')
    return picture


# ---- an example ------------------------------------------------------


def draw_example(example: Example) -> Picture:
    """Draw how a pair of sentences becomes a pretraining example.

    Row by row: the words as they were; the tokens of the input, coloured by
    their kind; their segments; the labels to predict.
    """
    num_tokens = len(example.tokens)
    num_lines = -(-num_tokens // TOKENS_A_LINE)
    tokens_a_line = -(-num_tokens // num_lines)
    picture = Picture((9, 0.76 + 1.6 * num_lines))
    axes = _blank_axes(picture, tokens_a_line + 1.35, 5.2 * num_lines + 2.4)
    for line in range(num_lines):
        top = 0.2 + 5.2 * line
        for i, name in enumerate(NAMES):
            _name(axes, 1.25, top + i + 0.9, name, ha='right')
        start = line * tokens_a_line
        for place in range(start, min(start + tokens_a_line, num_tokens)):
            _draw_token(axes, example, place, 1.35 + place - start, top)
    top = 5.2 * num_lines + 0.5
    _name(axes, 1.25, top, 'nsp_labels', ha='right')
    _write(axes, 1.82, top, str(int(example.is_next)))
    for i, (kind, text) in enumerate(CHANGES.items()):
        corner, color = (1.35 + 2 * i, top + 0.9), KIND_COLORS[kind]
        _box(axes, corner, (1.85, 0.8), text, color)
    return picture


def _draw_token(
    axes: Any, example: Example, place: int, left: float, top: float
) -> None:
    kind, word = example.kind(place), example.words[place]
    segment = example.segments[place]
    plain = KIND_COLORS[f'plain {segment}']
    color = KIND_COLORS.get(kind, plain)
    weight = 'bold' if kind in CHANGES else 'normal'
    _write(axes, left + 0.47, top + 0.2, str(place), color='0.45')
    if kind != 'special':
        _box(axes, (left, top + 0.5), TOKEN, word, plain)
    token = example.tokens[place]
    _box(axes, (left, top + 1.5), TOKEN, token, color, weight=weight)
    _write(axes, left + 0.47, top + 2.9, str(segment))
    if place in example.positions:
        _box(axes, (left, top + 3.5), TOKEN, word, 'white')


def draw_pair(
    tokens: Sequence[str], segments: Sequence[int], valid_len: int
) -> Picture:
    """Draw an example of two sentences, padding included, row by row."""
    num_lines = -(-len(tokens) // PAIR_TOKENS_A_LINE)
    picture = Picture((9, 1.1 * num_lines + 0.5))
    axes = _blank_axes(picture, PAIR_TOKENS_A_LINE + 1.3, 2.6 * num_lines + 1)
    for place, (token, segment) in enumerate(
        zip(tokens, segments, strict=True)
    ):
        line, column = divmod(place, PAIR_TOKENS_A_LINE)
        left, top = 1.25 + column, 2.6 * line + 0.3
        if not column:
            for row, name in ((0.5, 'tokens'), (1.5, 'segments')):
                _name(axes, 1.15, top + row, name, ha='right')
        kind = 'special' if token in SPECIAL else f'plain {segment}'
        color = KIND_COLORS[kind] if place < valid_len else 'white'
        _box(axes, (left, top + 0.05), (0.96, 0.9), token, color)
        _write(axes, left + 0.48, top + 1.5, str(segment))
    bottom = 2.6 * num_lines + 0.5
    _name(axes, 1.25, bottom, f'valid_lens: {valid_len}', ha='left')
    return picture


# ---- the model -------------------------------------------------------


def draw_model(net: BERTModel, batch: Sequence[Any]) -> Picture:
    """Draw a `BERTModel`, with the shapes of a batch on their way through.

    `batch`: the seven arrays, of which only the shapes count. Each layer has
    the number of its parameters, below its name.
    """
    arrays = Batch(*batch)
    B, T = arrays.tokens.shape
    P = arrays.pred_positions.shape[1]
    V, H = net.vocab_size, net.encoder.num_hiddens
    num_blks = len(net.encoder.blks)
    picture = Picture((7, 7.8))
    axes = _blank_axes(picture, 14, 15.6)

    for x, name, array in (
        (2.4, 'token', f'tokens {(B, T)}'),
        (7, 'segment', f'segments {(B, T)}'),
        (11.6, 'pos', f'0, 1, …, {T - 1}'),
    ):
        _name(axes, x, 0.4, array)
        _layer(axes, net, x, 0.7, 1.2, f'encoder.{name}_embedding')
        _arrow(axes, (x, 2.3), (7, 3.05))
    _name(axes, 7, 3.3, f'+  {(B, T, H)}')

    _box(axes, (3.9, 4), (6.2, 5.6), '', 'white')
    axes.text(10.4, 6.8, f'× {num_blks}', va='center', size=14)
    for i, name in enumerate(('attention', 'addnorm1', 'ffn', 'addnorm2')):
        top = 4.4 + 1.3 * i
        start = top - 0.2 if i else 3.6
        _layer(axes, net, 7, start, top, f'encoder.blks.0.{name}')
    # The residual connections
    for top in (4.2, 6.85):
        axes.plot((7, 9.6, 9.6), (top, top, top + 2), color=LINE, lw=0.8)
        _arrow(axes, (9.6, top + 2), (9.05, top + 2))
    _name(axes, 1.7, 4.95, f'valid_lens {(B,)}')
    _arrow(axes, (3.3, 4.95), (4.95, 4.95))

    _arrow(axes, (7, 9.4), (7, 9.9))
    _name(axes, 7, 10.2, f'encoded_X {(B, T, H)}')
    for x, name, taken, layers, output in (
        (3.6, '[:, pred_positions]', (B, P, H), ['mlm'], f'{(B, P, V)}'),
        (10.4, '[:, 0]', (B, H), ['hidden', 'nsp'], f'{(B, 2)}'),
    ):
        _arrow(axes, (7, 10.5), (x, 11))
        _name(axes, x, 11.25, f'{name}  {taken}')
        top = 11.5
        for layer in layers:
            _layer(axes, net, x, top, top + 0.35, layer)
            top += 1.45
        _arrow(axes, (x, top), (x, 14.9))
        _name(axes, x, 15.2, f'{layers[-1]}_Y_hat {output}')
    return picture


def draw_transfer(bert: BERTModel) -> Picture:
    """Draw which layers of a `BERTModel` a `BERTClassifier` takes over.

    A box has the number of its parameters, but for the new layer.
    """
    picture = Picture((9, 4.7))
    axes = _blank_axes(picture, 18, 9.4)
    new, left_behind = KIND_COLORS['kept'], 'white'
    for x, y, name, color in (
        (4.6, 2, 'encoder', LAYER),
        (2.4, 5, 'mlm', left_behind),
        (6.8, 5, 'hidden', LAYER),
        (6.8, 8, 'nsp', left_behind),
        (15, 2, 'encoder', LAYER),
        (15, 5, 'hidden', LAYER),
        (15, 8, 'output', new),
    ):
        size = '?' if color == new else f'{_size(bert, name):,}'
        _box(
            axes, (x - 1.7, y - 0.8), (3.4, 1.6), f'{name}\n{size}', color,
        )  # fmt: skip
    for start, end in (
        ((4.6, 2.8), (2.4, 4.2)), ((4.6, 2.8), (6.8, 4.2)),
        ((6.8, 5.8), (6.8, 7.2)), ((15, 2.8), (15, 4.2)),
        ((15, 5.8), (15, 7.2)),
    ):  # fmt: skip
        _arrow(axes, start, end)
    for x, y, name in ((6.3, 2, 'encoder'), (8.5, 5, 'hidden')):
        _arrow(axes, (x, y), (13.3, y))
        _name(axes, 10.9, y - 0.4, f'bert.{name}')
    for x, name in (
        (4.6, 'bert = BERTModel(…)'),
        (15, 'BERTClassifier(bert)'),
    ):
        _name(axes, x, 0.6, name)
    _name(axes, 15.2, 3.5, '[:, 0]', ha='left')
    return picture


def _layer(
    axes: Any, net: BERTModel, x: float, start: float, top: float, name: str
) -> None:
    """Draw an arrow down into a box: a layer, by its structural name."""
    short = name.removeprefix('encoder.').replace('.0.', '[0].')
    text = f'{short}\n{_size(net, name):,}'
    _arrow(axes, (x, start), (x, top))
    _box(axes, (x - 2.05, top), (4.1, 1.1), text, LAYER)


def _size(net: BERTModel, name: str) -> int:
    """Return how many parameters a layer has, by its structural name."""
    return sum(
        math.prod(shape)
        for key, shape in net.backend.parameter_shapes(net).items()
        if key.startswith(name)
    )


def _arrow(axes: Any, start: Point, end: Point) -> None:
    style = {
        'arrowstyle': '->', 'color': LINE, 'linewidth': 0.8,
        'shrinkA': 0, 'shrinkB': 0,
    }  # fmt: skip
    axes.annotate('', end, start, arrowprops=style)


# ---- drawing ---------------------------------------------------------


def _blank_axes(picture: Picture, width: float, height: float) -> Any:
    """Return axes without axes, whose y grows downwards."""
    axes = picture.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return axes


def _box(
    axes: Any,
    corner: Point,
    extent: Point,
    text: str,
    color: str,
    **style: Any,
) -> None:
    """Draw a box with a text in its middle, from its upper left corner."""
    (left, top), (width, height) = corner, extent
    box = FancyBboxPatch(
        corner, width, height,
        boxstyle='round,pad=0,rounding_size=0.12',
        facecolor=color, edgecolor=LINE, linewidth=0.6,
    )  # fmt: skip
    axes.add_patch(box)
    _write(axes, left + width / 2, top + height / 2, text, **style)


def _name(axes: Any, x: float, y: float, text: str, **style: Any) -> None:
    """Write a name from the code."""
    _write(axes, x, y, text, family='monospace', **style)


def _write(axes: Any, x: float, y: float, text: str, **style: Any) -> None:
    """Write a text, its middle at a point unless `style` says otherwise."""
    style = {'ha': 'center', 'va': 'center', 'size': SIZE} | style
    axes.text(x, y, text, parse_math=False, **style)
