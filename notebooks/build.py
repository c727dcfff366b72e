"""Build the notebooks: `python -m notebooks.build [LANGUAGE …]`.

One file of code, `source/chapter.py`, and a file of prose for each language
make a notebook for each language and framework. The code is run once for
each framework, because nothing that it prints or draws depends on the
language. See README.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode, v4

from d2lbert.frameworks import FRAMEWORKS

HERE = Path(__file__).parent
SOURCE = HERE / 'source'
CODE = SOURCE / 'chapter.py'
#: The framework that a notebook's last section trains in as well.
OTHER = {'jax': 'torch', 'mxnet': 'torch', 'torch': 'mxnet'}
CORPUS_LINE = "corpus = 'sample'"
#: The longest that a cell may take on the real corpus, in seconds.
PATIENCE = 3600


class SourceError(Exception):
    """The source does not make notebooks; says where and why."""


class Prose(NamedTuple):
    """A language's Markdown by cell id, and what its pictures show."""

    texts: dict[str, str]
    alts: dict[str, str]


# ---- reading ---------------------------------------------------------


def languages() -> list[str]:
    """Return the languages that there is prose in."""
    return sorted(path.stem for path in SOURCE.glob('*.md'))


def read_cells(framework: str, corpus: str = 'sample') -> list[NotebookNode]:
    """Return the cells of a framework's notebooks; Markdown is empty."""
    cells = []
    for cell in jupytext.read(CODE, fmt='py:percent').cells:
        metadata = cell.metadata
        # What stands before the first id is about the file
        if 'title' not in metadata or framework not in metadata.get(
            'tags', [framework]
        ):
            continue
        text = cell.source.replace('BACKEND', framework)
        text = text.replace('OTHER', OTHER[framework])
        text = text.replace(CORPUS_LINE, f'corpus = {corpus!r}')
        new = v4.new_code_cell if cell.cell_type == 'code' else (
            v4.new_markdown_cell
        )  # fmt: skip
        cells.append(new(text, id=metadata['title'], metadata={}))
    ids = [cell.id for cell in cells]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise SourceError(f'{CODE.name}: twice in {framework}: {twice}')
    return cells


def read_prose(language: str) -> Prose:
    """Return a language's prose. Each part stands below `<!-- id -->`."""
    path = SOURCE / f'{language}.md'
    if not path.exists():
        raise SourceError(
            f'no prose in {language!r}: write {path.name}, as README.md says'
        )
    _, *parts = re.split(
        r'^<!-- (.+) -->$', path.read_text('utf-8'), flags=re.M
    )
    names, texts = parts[::2], [text.strip() for text in parts[1::2]]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise SourceError(f'{path.name}: twice: {twice}')
    found = dict(zip(names, texts, strict=True))
    alts = {
        name.removeprefix('alt '): ' '.join(found.pop(name).split())
        for name in names
        if name.startswith('alt ')
    }
    return Prose(found, alts)


# ---- building --------------------------------------------------------


def build(
    language: str, framework: str, corpus: str = 'sample'
) -> NotebookNode:
    """Return a notebook that has not been run yet.

    Raises `SourceError` where prose and code have not the same ids.
    """
    cells, prose = read_cells(framework, corpus), read_prose(language)
    wanted = [cell.id for cell in cells if cell.cell_type == 'markdown']
    check_ids(language, wanted, list(prose.texts))
    for cell in cells:
        if cell.cell_type == 'markdown':
            text = prose.texts[cell.id]
            for name, key in (
                ('{framework}', framework),
                ('{other}', OTHER[framework]),
            ):
                text = text.replace(name, FRAMEWORKS[key].label)
            cell.source = text
    notebook = v4.new_notebook(cells=cells)
    notebook.metadata = nbformat.from_dict(
        {
            'kernelspec': {
                'display_name': 'Python 3',
                'language': 'python',
                'name': 'python3',
            },
            'language_info': {'name': 'python'},
            'd2lbert': {'corpus': corpus, 'source': digest(notebook, prose)},
        }
    )
    return notebook


def check_ids(
    language: str, wanted: Sequence[str], found: Sequence[str]
) -> None:
    """Raise `SourceError` unless the prose has the code's ids in order."""
    missing = [name for name in wanted if name not in found]
    unknown = [name for name in found if name not in wanted]
    if missing or unknown:
        raise SourceError(
            f'{language}.md: missing {missing}, unknown {unknown}: its parts '
            f'have the ids of the Markdown cells in {CODE.name}'
        )
    for here, there in zip(found, wanted, strict=True):
        if here != there:
            raise SourceError(
                f'{language}.md: {here!r} stands where {CODE.name} has '
                f'{there!r}'
            )


def digest(notebook: NotebookNode, prose: Prose) -> str:
    """Return the checksum of all that a notebook is made from."""
    parts = [
        [cell.id, cell.cell_type, cell.source] for cell in notebook.cells
    ]
    text = json.dumps([parts, prose.alts])
    return hashlib.sha256(text.encode()).hexdigest()


def run(notebook: NotebookNode) -> None:
    """Run all cells in an empty folder, in a kernel of their own."""
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            timeout=PATIENCE,
            kernel_name='python3',
            resources={'metadata': {'path': folder}},
            record_timing=False,
        ).execute()
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            cell.metadata.clear()
            # Progress and warnings change with every run
            cell.outputs = [
                output
                for output in cell.outputs
                if output.get('name') != 'stderr'
            ]


def take_outputs(
    notebook: NotebookNode, executed: NotebookNode, prose: Prose
) -> None:
    """Give a notebook what another language's cells have printed and drawn.

    Raises `SourceError` for a picture that is not described.
    """
    outputs = {cell.id: cell for cell in executed.cells}
    drawn = set()
    for cell in notebook.cells:
        if cell.cell_type != 'code':
            continue
        cell.execution_count = outputs[cell.id].execution_count
        cell.outputs = nbformat.from_dict(outputs[cell.id].outputs)
        for output in cell.outputs:
            if 'image/png' in output.get('data', {}):
                drawn.add(cell.id)
                metadata = output.metadata.setdefault('image/png', {})
                metadata['alt'] = prose.alts.get(cell.id, '')
    undescribed, undrawn = drawn - {*prose.alts}, {*prose.alts} - drawn
    if undescribed or undrawn:
        raise SourceError(
            f'pictures without an <!-- alt ID -->: {sorted(undescribed)}; '
            f'descriptions without a picture: {sorted(undrawn)}'
        )


# ---- files -----------------------------------------------------------


def path_of(language: str, framework: str) -> Path:
    """Return where a notebook is."""
    return HERE / language / f'bert-{framework}.ipynb'


def make(
    chosen: Sequence[str],
    frameworks: Sequence[str],
    corpus: str,
    prose_only: bool = False,
) -> None:
    """Build, run and write notebooks.

    `prose_only`: run nothing, take outputs that there are already.
    """
    for framework in frameworks:
        notebooks = {
            language: build(language, framework, corpus)
            for language in chosen
        }
        if prose_only:
            executed = executed_before(notebooks[chosen[0]], framework)
        else:
            executed = build(chosen[0], framework, corpus)
            run(executed)
        for language, notebook in notebooks.items():
            take_outputs(notebook, executed, read_prose(language))
            path = path_of(language, framework)
            path.parent.mkdir(exist_ok=True)
            nbformat.write(notebook, path)
            print(path.relative_to(HERE.parent))


def executed_before(notebook: NotebookNode, framework: str) -> NotebookNode:
    """Return a notebook, in any language, that has run the same code.

    Raises `SourceError` where there is none.
    """
    for language in languages():
        path = path_of(language, framework)
        if path.exists():
            found = nbformat.read(path, as_version=4)
            if code_of(found) == code_of(notebook):
                return found
    raise SourceError(
        f'no {framework} notebook has run this code: build without --prose'
    )


def code_of(notebook: NotebookNode) -> list[tuple[str, str]]:
    """Return the ids and the code of a notebook's code cells."""
    return [
        (cell.id, cell.source)
        for cell in notebook.cells
        if cell.cell_type == 'code'
    ]


def stale(language: str, framework: str) -> str | None:
    """Return why a notebook is not what the source makes, if so."""
    path = path_of(language, framework)
    if not path.exists():
        return f'{path.relative_to(HERE.parent)} is not there'
    found = nbformat.read(path, as_version=4)
    kept = found.metadata.get('d2lbert', {})
    wanted = build(language, framework, kept.get('corpus', 'sample'))
    source = wanted.metadata['d2lbert']['source']
    if source != kept.get('source'):
        return f'{path.relative_to(HERE.parent)} is older than its source'
    if source != digest(found, read_prose(language)):
        return f'{path.relative_to(HERE.parent)} was edited by hand'
    return None


def main() -> int:
    """Build the notebooks, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'languages', nargs='*', metavar='LANGUAGE', help=str(languages())
    )
    parser.add_argument('--corpus', default='sample')
    parser.add_argument(
        '--framework', choices=FRAMEWORKS, help='by default all'
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='say which notebooks are older than their source, run nothing',
    )
    parser.add_argument(
        '--prose',
        action='store_true',
        help='only the text has changed: keep the outputs, run nothing',
    )
    options = parser.parse_args()
    chosen = options.languages or languages()
    frameworks = [options.framework] if options.framework else [*FRAMEWORKS]
    try:
        if not options.check:
            make(chosen, frameworks, options.corpus, options.prose)
            return 0
        reasons = [
            stale(language, framework)
            for language in chosen
            for framework in frameworks
        ]
    except SourceError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    for reason in filter(None, reasons):
        print(f'{reason}: run make notebooks', file=sys.stderr)
    return int(any(reasons))


if __name__ == '__main__':
    sys.exit(main())
