"""Which pages there are: their languages, names, order and links."""

from __future__ import annotations

import re
from collections.abc import Container
from html import escape
from typing import NamedTuple

from reference import MODULES
from words import words_of

from d2lbert.frameworks import FRAMEWORKS

LANGUAGES = {
    'en': 'English',
    'fr': 'Français',
    'ko': '한국어',
    'vi': 'Tiếng Việt',
    'zh': '中文',
}
#: The framework of pages that are in none.
FRAMEWORK = 'torch'
NOTEBOOK = re.compile(
    rf'notebooks/({"|".join(LANGUAGES)})/(\w+)-({"|".join(FRAMEWORKS)})'
)
#: The notebooks in the order of reading, and what they are about.
NOTEBOOKS = {
    'bert': 'Pretraining BERT',
    'finetuning': 'Fine-tuning BERT',
}
#: The slides of the same notebook.
SLIDES = re.compile(NOTEBOOK.pattern.replace('notebooks', 'slides'))
REFERENCE = 'api/index'
#: No student finds this page by a search.
ANSWERS = 'docs/answers'
#: Pages that are in English only.
SECTIONS = {
    'Use': {
        'notebooks/README': 'How to run the notebooks',
        'docs/teaching': 'For teachers',
        ANSWERS: 'Answers for teachers',
        'README': 'The project',
        'docs/learning': 'What the network has learned',
        'docs/editions': 'Editions of the book',
        'SECURITY': 'Security',
        REFERENCE: 'API reference',
    },
    'Measured': {
        'docs/parity': 'Parity of the frameworks',
        'docs/oracle': "The book's numbers",
        'benchmarks/results': 'Speed and memory',
        'benchmarks/results-gpu': 'Speed on a GPU',
        'docs/scaling': 'Scaling',
        'docs/reliability': 'Reliability',
    },
    'Develop': {
        'docs/design': 'Design',
        'docs/adding-a-backend': 'Adding a framework',
        'CONTRIBUTING': 'Contributing',
        'CHANGELOG': 'Changes',
    },
}


class Entry(NamedTuple):
    """A page in the sidebar."""

    page: str
    name: str
    level: int = 1


def language_of(page: str) -> str:
    """Return the language of a page."""
    match = NOTEBOOK.fullmatch(page) or SLIDES.fullmatch(page)
    found = match[1] if match else page.split('/')[0]
    return found if found in LANGUAGES else 'en'


def framework_of(page: str) -> str | None:
    """Return the framework of a notebook's page."""
    match = NOTEBOOK.fullmatch(page)
    return match[3] if match else None


def own(language: str, name: str) -> str:
    """Return the page `index` or `search` of a language."""
    return name if language == 'en' else f'{language}/{name}'


def link_to(target: str, page: str) -> str:
    """Return a link from a page to another one."""
    return '../' * page.count('/') + target + '.html'


def versions(page: str, pages: Container[str]) -> dict[str, str]:
    """Return where each language leads from a page.

    That is the same page, or the language's first where there is none. A
    page without a language is in English.
    """
    here, framework = language_of(page), framework_of(page)
    found = {}
    for language in LANGUAGES:
        if framework:
            there = page.replace(f'/{here}/', f'/{language}/')
        else:
            there = own(language, page.removeprefix(f'{here}/'))
        known = there in pages or there == own(language, 'search')
        found[language] = there if known else own(language, 'index')
    return {**found, here: page}


def sections(
    page: str, pages: Container[str]
) -> list[tuple[str, list[Entry]]]:
    """Return the sidebar of a page: titles in its language, and entries."""
    language = language_of(page)
    say = words_of(language)
    found = [('', [Entry(own(language, 'index'), say('Start here'))])]
    for name, title in NOTEBOOKS.items():
        entries = [
            Entry(f'notebooks/{language}/{name}-{it.name}', it.label)
            for it in FRAMEWORKS.values()
        ]
        found.append((say(title), entries))
    for title, names in SECTIONS.items():
        entries = [Entry(name, say(text)) for name, text in names.items()]
        if title == 'Use' and page.startswith('api/'):
            entries += [Entry(f'api/{it}', it, 2) for it in MODULES]
        found.append((say(title), entries))
    present = (
        (title, [entry for entry in entries if entry.page in pages])
        for title, entries in found
    )
    return [(title, entries) for title, entries in present if entries]


def sidebar(page: str, pages: Container[str]) -> str:
    """Return the sidebar of a page, as the theme would write it."""
    parts = []
    for title, entries in sections(page, pages):
        if title:
            parts.append(
                '<p class="caption"><span class="caption-text">'
                f'{escape(title)}</span></p>'
            )
        parts.append('<ul>')
        for entry in entries:
            here = entry.page == page
            current = ' current current-page' if here else ''
            parts.append(
                f'<li class="toctree-l{entry.level}{current}">'
                f'<a class="reference internal{current}" '
                f'href="{link_to(entry.page, page)}"'
                f'{" aria-current=page" if here else ""}>'
                f'{named(entry, page)}</a></li>'
            )
        parts.append('</ul>')
    return ''.join(parts)


def named(entry: Entry, page: str) -> str:
    """Return the name of an entry, with its language if it is another."""
    there = language_of(entry.page)
    if there == language_of(page):
        return escape(entry.name)
    mark = f'<abbr title="{LANGUAGES[there]}" lang="{there}">{there}</abbr>'
    return f'{escape(entry.name)} {mark}'


def neighbours(
    page: str, pages: Container[str]
) -> tuple[Entry | None, Entry | None]:
    """Return the pages before and after one, in its framework."""
    framework = framework_of(page) or FRAMEWORK
    row = [
        named_in_full(entry, title)
        for title, entries in sections(page, pages)
        for entry in entries
        if framework_of(entry.page) in (None, framework)
    ]
    at = next((n for n, entry in enumerate(row) if entry.page == page), None)
    if at is None:
        return None, None
    before = row[at - 1] if at else None
    return before, row[at + 1] if at + 1 < len(row) else None


def named_in_full(entry: Entry, title: str) -> Entry:
    """Return an entry whose name tells the notebook, too."""
    if framework_of(entry.page):
        return entry._replace(name=f'{title} ({entry.name})')
    return entry
