"""The reference: one page for each module, made from its docstrings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABS = ('d2lbert.jax', 'd2lbert.mxnet', 'd2lbert.torch')
#: The modules that a user calls. All others are the project's own matter.
SECTIONS = {
    'The library': (
        'd2lbert',
        'd2lbert.recipes',
        'd2lbert.finetuning.recipes',
        'd2lbert.runs.config',
        'd2lbert.finetuning.config',
        'd2lbert.errors',
    ),
    'The tabs, with the names of the book': TABS,
    'The model, the data and the training': (
        'd2lbert.bert',
        'd2lbert.classifier',
        'd2lbert.trainer',
        'd2lbert.representation',
        'd2lbert.evaluation.evaluate',
        'd2lbert.data.corpus',
        'd2lbert.data.examples',
        'd2lbert.data.vocab',
        'd2lbert.data.wordpiece',
    ),
    'Teaching, comparing, converting': (
        'd2lbert.classroom.charts',
        'd2lbert.classroom.exercises',
        'd2lbert.classroom.inspection',
        'd2lbert.classroom.figures',
        'd2lbert.parity',
        'd2lbert.pytest_plugin',
        'd2lbert.tools.convert',
        'd2lbert.tools.doctor',
    ),
    'The interface of the frameworks': ('backends', 'backends.base'),
}
#: Where the tabs have what is the same in all of them.
SHARED = {
    f'd2lbert.book.{name}' for name in ('animator', 'hub', 'nli', 'textbook')
}
MODULES = tuple(module for modules in SECTIONS.values() for module in modules)


def pages() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each page."""
    yield 'index', index()
    for module in MODULES:
        yield module, page(module)


def index() -> str:
    """Return the list of all modules, and what each is for."""
    parts = ['# API reference', 'Made from the docstrings.']
    for title, modules in SECTIONS.items():
        parts.append(f'## {title}')
        parts += [
            f'* [`{module}`]({module}.md): {first_line(module)}'
            for module in modules
        ]
    return '\n'.join(parts) + '\n'


def page(module: str) -> str:
    """Return the page of one module: what it defines and what it hands on."""
    parts = [f'.. automodule:: {module}']
    members = ', '.join(defined(module))
    parts += [f'   :members: {members}'] if members else []
    for name in handed_on(module):
        kind = 'class' if name[0].isupper() else 'function'
        parts.append(f'.. auto{kind}:: {module}.{name}')
        if kind == 'class':
            # Those of a named tuple are no news
            parts += ['   :members:', '   :inherited-members: tuple']
            # Each tab has it, and Sphinx would index it by its home
            parts += ['   :no-index:'] if module in TABS else []
    text = '\n'.join(parts)
    return f'# Module `{module}`\n\n```{{eval-rst}}\n{text}\n```\n'


def tree(module: str) -> ast.Module:
    """Return a module's code, which need not be importable here."""
    path = ROOT.joinpath(*module.split('.'))
    file = path / '__init__.py' if path.is_dir() else path.with_suffix('.py')
    return ast.parse(file.read_text('utf-8'))


def first_line(module: str) -> str:
    """Return the first line of a module's docstring."""
    return (ast.get_docstring(tree(module)) or '').split('\n')[0]


def defined(module: str) -> list[str]:
    """Return the public names that a module defines, in their order."""
    found: list[str] = []
    for node in tree(module).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found.append(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = getattr(node, 'targets', None) or [node.target]
            found += [it.id for it in targets if isinstance(it, ast.Name)]
    return [name for name in found if not name.startswith('_')]


def handed_on(module: str) -> list[str]:
    """Return the public names that a module takes from others.

    Those are in its `__all__`, and in a tab what all tabs have alike.
    Functions come before classes.
    """
    names: list[str] = []
    for node in tree(module).body:
        if isinstance(node, ast.ImportFrom) and node.module in SHARED:
            names += [it.name for it in node.names if module in TABS]
        elif isinstance(node, ast.Assign) and '__all__' in map(
            ast.unparse, node.targets
        ):
            names += ast.literal_eval(node.value)
    own = defined(module)
    public = [it for it in names if it[0] != '_' and not it.isupper()]
    return sorted(
        (it for it in public if it not in own), key=lambda it: it[0].isupper()
    )
