"""Sphinx's settings for the page: `make site`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sphinx.util import inspect

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from switches import NOTEBOOK, switches  # noqa: E402
from words import words_of  # noqa: E402

from d2lbert.frameworks import FRAMEWORKS  # noqa: E402

project = 'd2lbert'
extensions = [
    'myst_nb',
    'sphinx.ext.autodoc',
    'sphinx.ext.viewcode',
    'sphinx-mathjax-offline',
]
root_doc = 'index'
html_theme = 'furo'
html_title = 'd2lbert'
html_favicon = 'static/favicon.svg'
html_static_path = ['static']
html_css_files = ['site.css']
html_js_files = ['site.js']
html_copy_source = False
html_show_copyright = False
# Summaries are fetched, which pages opened as files may not
html_show_search_summary = False
html_use_index = False
html_domain_indices = False
templates_path = ['templates']

nb_execution_mode = 'off'
nb_merge_streams = True
myst_enable_extensions = ['dollarmath', 'amsmath']
myst_heading_anchors = 3
smartquotes = False
# All notebooks but one are reached by the switches, not by the table of
# contents; the definition and its tabs have classes of one name
suppress_warnings = ['toc.not_included', 'ref.python']

default_role = 'literal'
# JAX's backend sets JAX up when it is imported
autodoc_mock_imports = [*FRAMEWORKS, 'flax', 'optax', 'backends.jax']
autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
# `set` is matplotlib's, which writes one into each of its subclasses
autodoc_default_options = {'members': True, 'exclude-members': 'set'}


def complete(
    app: Any, page: str, template: str, context: dict[str, Any], tree: Any
) -> None:
    """Put the switches onto a page; a notebook's page is in its language."""
    for part in ('body', 'furo_navigation_tree'):
        context[part] = accessible(context.get(part, ''))
    match = NOTEBOOK.fullmatch(page)
    if match:
        context['language'] = match[1]
        # What the templates' _() and {% trans %} call
        context['gettext'] = words_of(match[1])
    context['switches'] = switches(page, app.env.found_docs)


def accessible(html: str) -> str:
    """Mend what Sphinx's HTML does not tell a screen reader."""
    for wrong, right in (
        ('class="caption" role="heading"', 'class="caption"'),
        ('<th class="head"><p></p></th>', '<td></td>'),
    ):
        html = html.replace(wrong, right)
    return html


def real_signature(
    app: Any,
    what: str,
    name: str,
    thing: Any,
    options: Any,
    signature: str | None,
    returns: str | None,
) -> tuple[str, str | None] | None:
    """Return a class's own signature, not its mocked base class's."""
    if what != 'class' or signature != '(*args, **kwargs)':
        return None
    found = inspect.signature(thing.__init__, bound_method=True)
    text = inspect.stringify_signature(found, show_annotation=False)
    return text, returns


def mark_code(
    app: Any,
    what: str,
    name: str,
    thing: Any,
    options: Any,
    lines: list[str],
) -> None:
    """Let indented lines after an empty one in a module's text be code."""
    for at in range(len(lines) - 1, 1, -1):
        above, gap, line = lines[at - 2 : at + 1]
        starts = not gap and above and not above.startswith((' ', '*', '-'))
        if what == 'module' and starts and line.startswith('    '):
            lines[at:at] = ['::', '']


def setup(app: Any) -> None:
    """Called by Sphinx."""
    # After the theme, which makes the navigation
    app.connect('html-page-context', complete, priority=900)
    app.connect('autodoc-process-signature', real_signature)
    app.connect('autodoc-process-docstring', mark_code)
