"""Build the notebooks: `python -m notebooks.build [LANGUAGE …]`.

A notebook has a folder in `source/`. Its file of code, `cells.py`, and its
file of prose for each language make an edition for each language and
framework. The code is run once for each framework, because nothing that it
prints or draws depends on the language. See README.md.
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
CODE = 'cells.py'
#: The framework that a notebook may train in as well.
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


def names() -> list[str]:
    """Return the names of the notebooks."""
    return sorted(path.parent.name for path in SOURCE.glob(f'*/{CODE}'))


def languages() -> list[str]:
    """Return the languages that there is prose in."""
    return sorted({path.stem for path in SOURCE.glob('*/*.md')})


def read_cells(
    name: str, framework: str, corpus: str = 'sample'
) -> list[NotebookNode]:
    """Return the cells of a notebook in a framework; Markdown is empty."""
    cells = []
    path = SOURCE / name / CODE
    for cell in jupytext.read(path, fmt='py:percent').cells:
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
    check_once(f'{name}/{CODE} in {framework}', [cell.id for cell in cells])
    return cells


def read_prose(name: str, language: str) -> Prose:
    """Return a notebook's prose. Each part stands below `<!-- id -->`."""
    path = SOURCE / name / f'{language}.md'
    if not path.exists():
        raise SourceError(
            f'no prose in {language!r}: write {name}/{path.name}, as '
            'README.md says'
        )
    _, *parts = re.split(
        r'^<!-- (.+) -->$', path.read_text('utf-8'), flags=re.M
    )
    ids, texts = parts[::2], [text.strip() for text in parts[1::2]]
    check_once(f'{name}/{path.name}', ids)
    found = dict(zip(ids, texts, strict=True))
    alts = {
        each.removeprefix('alt '): ' '.join(found.pop(each).split())
        for each in ids
        if each.startswith('alt ')
    }
    return Prose(found, alts)


def check_once(where: str, ids: Sequence[str]) -> None:
    """Raise `SourceError` for an id that there is twice."""
    twice = sorted({each for each in ids if ids.count(each) > 1})
    if twice:
        raise SourceError(f'{where}: twice: {twice}')


# ---- building --------------------------------------------------------


def build(
    name: str, language: str, framework: str, corpus: str = 'sample'
) -> NotebookNode:
    """Return an edition of a notebook that has not been run yet.

    Raises `SourceError` where prose and code have not the same ids.
    """
    cells = read_cells(name, framework, corpus)
    prose = read_prose(name, language)
    wanted = [cell.id for cell in cells if cell.cell_type == 'markdown']
    check_ids(f'{name}/{language}.md', wanted, list(prose.texts))
    for cell in cells:
        if cell.cell_type == 'markdown':
            text = prose.texts[cell.id]
            for mark, key in (
                ('{framework}', framework),
                ('{other}', OTHER[framework]),
            ):
                text = text.replace(mark, FRAMEWORKS[key].label)
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
    where: str, wanted: Sequence[str], found: Sequence[str]
) -> None:
    """Raise `SourceError` unless the prose has the code's ids in order."""
    missing = [each for each in wanted if each not in found]
    unknown = [each for each in found if each not in wanted]
    if missing or unknown:
        raise SourceError(
            f'{where}: missing {missing}, unknown {unknown}: its parts have '
            f'the ids of the Markdown cells in {CODE}'
        )
    for here, there in zip(found, wanted, strict=True):
        if here != there:
            raise SourceError(
                f'{where}: {here!r} stands where {CODE} has {there!r}'
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


def path_of(name: str, language: str, framework: str) -> Path:
    """Return where an edition of a notebook is."""
    return HERE / language / f'{name}-{framework}.ipynb'


def make(
    name: str,
    chosen: Sequence[str],
    frameworks: Sequence[str],
    corpus: str,
    prose_only: bool = False,
) -> None:
    """Build, run and write editions of a notebook.

    `prose_only`: run nothing, take outputs that there are already.
    """
    for framework in frameworks:
        notebooks = {
            language: build(name, language, framework, corpus)
            for language in chosen
        }
        if prose_only:
            executed = executed_before(notebooks[chosen[0]], name, framework)
        else:
            executed = build(name, chosen[0], framework, corpus)
            run(executed)
        for language, notebook in notebooks.items():
            take_outputs(notebook, executed, read_prose(name, language))
            path = path_of(name, language, framework)
            path.parent.mkdir(exist_ok=True)
            nbformat.write(notebook, path)
            print(path.relative_to(HERE.parent))


def executed_before(
    notebook: NotebookNode, name: str, framework: str
) -> NotebookNode:
    """Return an edition, in any language, that has run the same code.

    Raises `SourceError` where there is none.
    """
    for language in languages():
        path = path_of(name, language, framework)
        if path.exists():
            found = nbformat.read(path, as_version=4)
            if code_of(found) == code_of(notebook):
                return found
    raise SourceError(
        f'no {name}-{framework}.ipynb has run this code: build without '
        '--prose'
    )


def code_of(notebook: NotebookNode) -> list[tuple[str, str]]:
    """Return the ids and the code of a notebook's code cells."""
    return [
        (cell.id, cell.source)
        for cell in notebook.cells
        if cell.cell_type == 'code'
    ]


def stale(name: str, language: str, framework: str) -> str | None:
    """Return why an edition is not what the source makes, if so."""
    path = path_of(name, language, framework)
    if not path.exists():
        return f'{path.relative_to(HERE.parent)} is not there'
    found = nbformat.read(path, as_version=4)
    kept = found.metadata.get('d2lbert', {})
    wanted = build(name, language, framework, kept.get('corpus', 'sample'))
    source = wanted.metadata['d2lbert']['source']
    if source != kept.get('source'):
        return f'{path.relative_to(HERE.parent)} is older than its source'
    if source != digest(found, read_prose(name, language)):
        return f'{path.relative_to(HERE.parent)} was edited by hand'
    return None


def main() -> int:
    """Build the notebooks, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'languages', nargs='*', metavar='LANGUAGE', help=str(languages())
    )
    parser.add_argument('--notebook', choices=names(), help='by default all')
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
    notebooks = [options.notebook] if options.notebook else names()
    try:
        if not options.check:
            for name in notebooks:
                make(name, chosen, frameworks, options.corpus, options.prose)
            return 0
        reasons = [
            stale(name, language, framework)
            for name in notebooks
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
