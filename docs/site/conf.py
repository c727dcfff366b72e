"""Sphinx's settings for the page: `make site`."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from docutils import nodes
from PIL import Image
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import inspect

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from pages import (  # noqa: E402
    ANSWERS,
    FRAMEWORK,
    LANGUAGES,
    NOTEBOOK,
    SLIDES,
    framework_of,
    language_of,
    link_to,
    named,
    neighbours,
    own,
    sidebar,
)
from switches import switches  # noqa: E402
from words import OF_THE_SCRIPT, words_of  # noqa: E402

import d2lbert  # noqa: E402
from d2lbert.book.animator import DPI  # noqa: E402
from d2lbert.frameworks import FRAMEWORKS  # noqa: E402

ROOT = HERE.parents[1]

project = 'd2lbert'
extensions = [
    'myst_nb',
    'sphinx.ext.autodoc',
    'sphinx.ext.viewcode',
    'sphinx_copybutton',
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
html_show_sphinx = False
html_use_index = False
html_domain_indices = False
templates_path = ['templates']

nb_execution_mode = 'off'
nb_merge_streams = True
myst_enable_extensions = [
    *('amsmath', 'attrs_block', 'attrs_inline', 'dollarmath'),
]
myst_heading_anchors = 4
smartquotes = False
# `pages` orders the pages; the definition and its tabs have classes of one
# name
suppress_warnings = ['toc.not_included', 'ref.python']
# What a reader types, not what it prints
copybutton_selector = 'div:not(.output) > div.highlight > pre'

default_role = 'literal'
# JAX's backend sets JAX up when it is imported
autodoc_mock_imports = [*FRAMEWORKS, 'flax', 'optax', 'backends.jax']
autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
# `set` is matplotlib's, which writes one into each of its subclasses
autodoc_default_options = {'exclude-members': 'set'}

#: Sphinx names a section, where Pagefind looks for the name of a heading.
SECTION = re.compile(
    r'<section id="([^"]+)">\n((?:<span id="[^"]+"></span>)*)<h([2-6])>'
)
#: A cell of a table, the code in it, and where a line of that may end.
CELL = re.compile('<td>.*?</td>', re.DOTALL)
CODE = re.compile('(?<=<span class="pre">)[^<]+')
END = re.compile(r'(?<=[._/:=])(?=[A-Za-z])')
#: From code to its page, which Sphinx gets wrong for what has two names.
WRONG_LINK = re.compile(
    '<a class="viewcode-back".*?</a>|<li><a href="builtins.html">.*?</li>'
)
#: A word that a browser would break before a digit.
HYPHENATED = re.compile(r'([\w.,]*\w-\d[\w.,]*)')
#: What shows slides, of reveal.js.
REVEAL = ('dist/reveal.js', 'dist/reveal.css', 'plugin/notes/notes.js')
#: Pixels of an inch of a picture, whose text of 10 points has 11 pixels.
PIXELS = 1.1 * 72
#: The width of the text on a telephone, in pixels.
NARROW = 328
#: What a line may end in.
PARENTS = (
    *(nodes.paragraph, nodes.emphasis, nodes.strong, nodes.title),
    *(nodes.reference, nodes.term, nodes.inline),
)

# The package imports its public names when they are first used
for name in d2lbert.__all__:
    getattr(d2lbert, name)


def complete(
    app: Any, page: str, template: str, context: dict[str, Any], tree: Any
) -> str | None:
    """Put what stands around the text onto a page, in its language.

    Returns another template for slides.
    """
    pages = app.env.found_docs
    language = language_of(page)
    say = words_of(language)
    context['language'] = language
    # What the templates' _() and {% trans %} call
    context['gettext'] = say
    context['master_doc'] = own(language, 'index')
    if SLIDES.fullmatch(page):
        context['slides'] = side_by_side(accessible(context['body']))
        context['notebook'] = link_to(
            page.replace('slides', 'notebooks'), page
        )
        return 'slides.html'
    if 'body' in context:
        context['body'] = searched(page, accessible(context['body']))
    context['furo_navigation_tree'] = sidebar(page, pages)
    for key, entry in zip(
        ('prev', 'next'), neighbours(page, pages), strict=True
    ):
        context[key] = entry and {
            'link': link_to(entry.page, page),
            'title': named(entry, page),
        }
    context['search_page'] = link_to(own(language, 'search'), page)
    context['switches'] = switches(page, pages, app.config.repository)
    context['script_words'] = json.dumps(
        {it: say(it) for it in OF_THE_SCRIPT}
    )
    return None


def searches(app: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the page for searching in each language."""
    for language in LANGUAGES:
        title = words_of(language)('Search')
        yield own(language, 'search'), {'title': title}, 'search.html'


def leave_out_search(app: Any) -> None:
    """Make no index of Sphinx's own: docs/site/search.py makes a better."""
    app.builder.search = False


def copy_reveal(app: Any, error: Exception | None) -> None:
    """Put the program that shows slides beside the site's own files."""
    if not error:
        source = files('sphinx_revealjs') / '_static' / 'revealjs'
        target = Path(app.outdir, '_static', 'revealjs')
        target.mkdir(exist_ok=True)
        for name in REVEAL:
            (target / Path(name).name).write_bytes(
                source.joinpath(name).read_bytes()
            )


def copy_notebooks(app: Any, error: Exception | None) -> None:
    """Put each notebook, as it was run, beside its page."""
    for page in app.env.found_docs:
        if not error and NOTEBOOK.fullmatch(page):
            path = ROOT / f'{page}.ipynb'
            shutil.copyfile(path, Path(app.outdir, f'{page}.ipynb'))


def accessible(html: str) -> str:
    """Mend what Sphinx's HTML does not tell a screen reader and a search."""
    html = WRONG_LINK.sub('', html)
    html = html.replace('<th class="head"><p></p></th>', '<td></td>')
    html = CELL.sub(lambda cell: CODE.sub(breakable, cell[0]), html)
    return SECTION.sub(r'<section>\n\2<h\3 id="\1">', html)


def side_by_side(html: str) -> str:
    """Return slides that follow one another, and not in the first one."""
    first, *others = html.rpartition('</section>')[0].split('<section>')
    return '<section>'.join([f'{first}</section>', *others])


def breakable(code: re.Match[str]) -> str:
    """Let a line end within a long name."""
    return END.sub('<wbr>', code[0])


def searched(page: str, html: str) -> str:
    """Mark the text for Pagefind; of a notebook, one framework will do."""
    hidden = page == ANSWERS or '_modules' in page
    if framework_of(page) in (None, FRAMEWORK) and not hidden:
        return f'<div data-pagefind-body>{html}</div>'
    return html


class KeepNumbersWhole(SphinxPostTransform):
    """No line ends at a hyphen before a digit: 1e-14, WikiText-2."""

    default_priority = 900

    def run(self) -> None:
        """Mark such words in the text; code and formulas are no text."""
        for text in list(self.document.findall(nodes.Text)):
            parts = HYPHENATED.split(text)
            if len(parts) == 1 or not isinstance(text.parent, PARENTS):
                continue
            found = [
                nodes.inline('', part, classes=['whole'])
                if number % 2
                else nodes.Text(part)
                for number, part in enumerate(parts)
            ]
            text.parent.replace(text, found)


class SizePictures(SphinxPostTransform):
    """Pictures of the documents are as wide as their text needs.

    Those of notebooks say it themselves. On a narrow page `site.css` lets
    both scroll.
    """

    default_priority = 900

    def run(self) -> None:
        """Set the width of each picture that a narrow page would shrink."""
        for node in self.document.findall(nodes.image):
            path = Path(self.env.srcdir, node['uri'])
            if path.suffix != '.png' or 'width' in node:
                continue
            with Image.open(path) as picture:
                dpi = picture.info.get('dpi', (DPI, DPI))[0]
                width = round(PIXELS * picture.width / dpi)
            if width > NARROW:
                node['width'] = f'{width}px'


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
    # The project's address on GitHub: `make site REPOSITORY=…`
    app.add_config_value('repository', '', 'html')
    app.add_post_transform(KeepNumbersWhole)
    app.add_post_transform(SizePictures)
    app.connect('builder-inited', leave_out_search)
    app.connect('html-collect-pages', searches)
    # After the theme, which makes the navigation
    app.connect('html-page-context', complete, priority=900)
    app.connect('build-finished', copy_notebooks)
    app.connect('build-finished', copy_reveal)
    app.connect('autodoc-process-signature', real_signature)
    app.connect('autodoc-process-docstring', mark_code)
