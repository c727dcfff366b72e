"""Slides from a notebook: its headings, first sentences and pictures.

Nothing is written twice. A slide shows a heading, the first sentence below
it and of each item, tables, formulas, tasks and outputs. The whole text is
in the speaker's notes. What the slides look like is in `static/slides.css`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import nbformat
from markdown_it import MarkdownIt
from markdown_it.token import Token
from nbformat import NotebookNode, v4

MARKDOWN = MarkdownIt('commonmark').enable('table')
#: The start of a text, up to the end of a sentence; a few letters are none.
SENTENCE = re.compile(
    r'.{20,}?(?:[.!?](?=\*{0,2}(?:\s|$))\*{0,2}|[。！？])|.+', re.DOTALL
)
ITEM = re.compile(r'^(?:[*-]|\d+\.) +', re.MULTILINE)
TASK = re.compile(r'# your turn|your_\w+ =')
#: The longest code and output that can be read from the last row.
MOST_LINES = 14


class Slides:
    """The cells of a notebook of slides."""

    def __init__(self) -> None:
        self.cells: list[NotebookNode] = []
        self.heading, self.filled, self.large = '', False, ''

    def start(self, heading: str = '') -> None:
        """Begin a slide, by default with the heading of the last one."""
        self.heading = heading or self.heading
        level = '#' if not self.cells else '##'
        self.say(f'{level} {self.heading}')
        self.filled, self.large = False, ''

    @property
    def on_title(self) -> bool:
        """Whether no slide has another heading than the first one."""
        return self.cells[0].source == f'# {self.heading}'

    def say(self, text: str) -> None:
        """Write on the slide."""
        self.cells.append(v4.new_markdown_cell(text))

    def show(self, text: str, large: str = '') -> None:
        """Write on the slide, or on a new one if this one is full.

        `large`: the kind of what takes much room. A slide has one of these,
        or several blocks of code to be compared.
        """
        if large and self.large and (large, self.large) != ('fence', 'fence'):
            self.start()
        self.say(text)
        self.filled, self.large = True, large or self.large

    def output(self, cell: NotebookNode, code: bool) -> None:
        """Put the output of a cell, with or without its code, on a slide."""
        if self.large:
            self.start()
        cell = nbformat.from_dict(cell)
        cell.metadata.setdefault('tags', []).append(
            'remove-output' if code else 'remove-input'
        )
        self.cells.append(cell)
        self.filled, self.large = True, 'output'


def with_slides(notebook: NotebookNode) -> NotebookNode:
    """Return the slides of a notebook, as a notebook.

    Each heading begins a slide: the first one is of level 1, all others of
    level 2.
    """
    slides = Slides()
    for cell in notebook.cells:
        if cell.cell_type == 'markdown':
            add_text(slides, cell.source)
        elif TASK.search(cell.source):
            slides.output(cell, code=True)
        elif pictures(cell) or wanted_lines(slides, cell):
            slides.output(cell, code=False)
    found = nbformat.from_dict(notebook)
    found.cells = slides.cells
    return found


def add_text(slides: Slides, text: str) -> None:
    """Put what is to be seen of a cell's text on slides, and all in notes."""
    first = True
    for kind, block in shown(text):
        if kind == 'heading_open':
            slides.start(block.lstrip('# '))
        elif kind == 'paragraph_open' and block.startswith('$$'):
            slides.show(block)
        elif kind == 'paragraph_open':
            if first and slides.filled:
                slides.start()
            if first or block.startswith('**'):
                slides.show(SENTENCE.match(block)[0])
        elif kind.endswith('list_open'):
            slides.show(shortened(block), kind)
        else:
            slides.show(block, kind)
        first = kind == 'heading_open'
    slides.say(f'<aside class="notes">\n\n{noted(text)}\n\n</aside>')


def shown(text: str) -> Iterator[tuple[str, str]]:
    """Yield the kind and the source of each block, without solutions."""
    lines, folded = text.splitlines(), False
    for token in MARKDOWN.parse(text):
        if token.level or not is_block(token):
            continue
        start, end = token.map
        block = '\n'.join(lines[start:end]).strip()
        if '<details' in block:
            folded = True
        elif '</details' in block:
            folded = False
        elif not folded and token.type != 'html_block':
            yield token.type, block


def is_block(token: Token) -> bool:
    """Say whether a block begins here."""
    return bool(token.map) and token.nesting >= 0


def shortened(block: str) -> str:
    """Return a list with the first sentence of each item."""
    marks = [found[0] for found in ITEM.finditer(block)]
    items = ITEM.split(block)[1:]
    return '\n'.join(
        # A space that does not break, as before a French ; stays
        mark + re.sub('[ \n]+', ' ', SENTENCE.match(item.strip())[0])
        for mark, item in zip(marks, items, strict=True)
    )


def noted(text: str) -> str:
    """Return a cell's text for the notes: no headings, formulas as code."""
    text = re.sub(r'^#+ (.*)$', r'**\1**', text, flags=re.MULTILINE)
    text = re.sub(r'</?details>|</?summary>', '', text)
    return re.sub(r'(\$\$?)([^$]+)\1', r'`\2`', text)


def pictures(cell: NotebookNode) -> bool:
    """Say whether a cell has drawn a picture."""
    return any('image/png' in it.get('data', {}) for it in cell.outputs)


def wanted_lines(slides: Slides, cell: NotebookNode) -> bool:
    """Say whether a slide has room for what a cell has printed.

    What stands below the title is about the reader's environment.
    """
    lines = sum(it.get('text', '').count('\n') for it in cell.outputs)
    return 0 < lines <= MOST_LINES and not slides.on_title
