"""Lay out what the page is made of: `python docs/site/source.py FOLDER`.

The folder mirrors the repository, so that links between its files lead to
the same place on the page. The notebooks are copied as they were run.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat
import reference
from nbformat import NotebookNode, v4
from picture import picture
from slides import with_slides

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
#: All that there is on the page besides the notebooks.
FILES = (
    *('README.md', 'SECURITY.md', 'CONTRIBUTING.md', 'CHANGELOG.md'),
    *('docs/*.md', 'docs/images/*'),
    *('benchmarks/results*.md', 'benchmarks/*.png'),
    *('LICENSE', 'notebooks/README.md'),
)
#: Where the first pages have their picture.
PICTURE = '<!-- picture -->'
NOTEBOOKS = 'notebooks/*/*-*.ipynb'


def anchor(name: str) -> str:
    """Return what marks a cell's place, in every language and framework."""
    return f'<span class="place" id="at-{name}"></span>'


def with_anchors(notebook: NotebookNode) -> NotebookNode:
    """Return a notebook for the page: anchors, pictures with their text.

    Each cell after the title gets an anchor named after its id.
    """
    cells: list[Any] = []
    found = described(notebook)
    for number, cell in enumerate(found.cells):
        mark = anchor(cell.id) if number else ''
        if cell.cell_type == 'markdown':
            cell.source = f'{mark}\n\n{cell.source}'.lstrip()
        elif mark:
            cells.append(v4.new_markdown_cell(mark, id=f'at-{cell.id}'))
        cells.append(cell)
    found.cells = cells
    return found


def described(notebook: NotebookNode) -> NotebookNode:
    """Return a notebook whose pictures have their text for MyST-NB."""
    found = nbformat.from_dict(notebook)
    for cell in found.cells:
        text = cell.cell_type == 'code' and alternative(cell)
        if text:
            cell.metadata['mystnb'] = {'image': {'alt': text}}
    return found


def alternative(cell: NotebookNode) -> str | None:
    """Return what a code cell's picture shows, in words."""
    for output in cell.outputs:
        text = output.get('metadata', {}).get('image/png', {}).get('alt')
        if text:
            return str(text)
    return None


def moved_up(text: str) -> str:
    """Return a file of docs/site with links that hold at the top."""
    return text.replace('](../../', '](')


def write(path: Path, text: str) -> None:
    """Write a file, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, 'utf-8')


def lay_out(folder: Path) -> None:
    """Fill a folder, which is emptied before."""
    shutil.rmtree(folder, ignore_errors=True)
    for pattern in FILES:
        for path in ROOT.glob(pattern):
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for path in HERE.rglob('*.md'):
        text = moved_up(path.read_text('utf-8'))
        language = path.parent.name if path.parent != HERE else 'en'
        text = text.replace(PICTURE, picture(language))
        write(folder / path.relative_to(HERE), text)
    for name, text in reference.pages():
        write(folder / 'api' / f'{name}.md', text)
    for path in sorted(ROOT.glob(NOTEBOOKS)):
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        notebook = nbformat.read(path, as_version=4)
        nbformat.write(with_anchors(notebook), target)
        target = folder / 'slides' / path.relative_to(ROOT / 'notebooks')
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(with_slides(described(notebook)), target)


if __name__ == '__main__':
    lay_out(Path(sys.argv[1]))
