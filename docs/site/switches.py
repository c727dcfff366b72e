"""The links on top of a notebook that change framework and language."""

from __future__ import annotations

import re
from collections.abc import Container
from html import escape

FRAMEWORKS = {'mxnet': 'MXNet', 'torch': 'PyTorch'}
LANGUAGES = {
    'en': 'English',
    'fr': 'Français',
    'ko': '한국어',
    'vi': 'Tiếng Việt',
    'zh': '中文',
}
NOTEBOOK = re.compile(r'notebooks/(\w+)/bert-(\w+)')


def switches(page: str, pages: Container[str]) -> str:
    """Return the links from a notebook to the same one in other versions."""
    match = NOTEBOOK.fullmatch(page)
    if not match:
        return ''
    language, framework = match.groups()
    frameworks = [
        (f'notebooks/{language}/bert-{key}', name, name, 'en')
        for key, name in FRAMEWORKS.items()
    ]
    languages = [
        (f'notebooks/{key}/bert-{framework}', name, key, key)
        for key, name in LANGUAGES.items()
    ]
    groups = (('Framework', frameworks), ('Language', languages))
    return (
        '<div class="switches">'
        + ''.join(
            f'<nav aria-label="{label}" lang="en">'
            + ''.join(link(*one, page) for one in group if one[0] in pages)
            + '</nav>'
            for label, group in groups
        )
        + '</div>'
    )


def link(target: str, name: str, short: str, lang: str, page: str) -> str:
    """Return a link of a switch; the page's own is marked as current."""
    current = ' aria-current="page"' if target == page else ''
    return (
        f'<a href="../../{target}.html" lang="{lang}" '
        f'aria-label="{escape(name)}"{current}>'
        f'<span class="long">{escape(name)}</span>'
        f'<span class="short">{escape(short)}</span></a>'
    )
