"""The links on top of a page that change framework and language."""

from __future__ import annotations

import re
from collections.abc import Container
from html import escape

from words import words_of

from d2lbert.frameworks import FRAMEWORKS

LANGUAGES = {
    'en': 'English',
    'fr': 'Français',
    'ko': '한국어',
    'vi': 'Tiếng Việt',
    'zh': '中文',
}
NOTEBOOK = re.compile(r'notebooks/(\w+)/bert-(\w+)')


def switches(page: str, pages: Container[str]) -> str:
    """Return the links from a page to the versions of the chapter.

    From a notebook they lead to the same one in another framework or
    language. Other pages are in no framework and in English: theirs lead to
    the chapter, and the page's script marks what the reader chose last.
    """
    match = NOTEBOOK.fullmatch(page)
    language, framework = match.groups() if match else ('en', 'torch')
    frameworks = [
        (f'notebooks/{language}/bert-{it.name}', it.label, it.label, 'en')
        for it in FRAMEWORKS.values()
    ]
    languages = [
        (f'notebooks/{key}/bert-{framework}', name, key, key)
        for key, name in LANGUAGES.items()
    ]
    groups = (('Framework', frameworks), ('Language', languages))
    of = '' if match else ' of the chapter'
    say = words_of(language)
    return (
        '<div class="switches">'
        + ''.join(
            f'<nav class="{kind.lower()}" aria-label="{say(kind)}{of}">'
            + ''.join(link(*one, page) for one in group if one[0] in pages)
            + '</nav>'
            for kind, group in groups
        )
        + '</div>'
    )


def link(target: str, name: str, short: str, lang: str, page: str) -> str:
    """Return a link of a switch; the page's own is marked as current."""
    current = ' aria-current="page"' if target == page else ''
    up = '../' * page.count('/')
    return (
        f'<a href="{up}{target}.html" lang="{lang}" '
        f'aria-label="{escape(name)}"{current}>'
        f'<span class="long">{escape(name)}</span>'
        f'<span class="short">{escape(short)}</span></a>'
    )
