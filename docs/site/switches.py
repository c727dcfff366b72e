"""The links on top of a page that change framework and language."""

from __future__ import annotations

from collections.abc import Container
from html import escape

from pages import (
    LANGUAGES,
    framework_of,
    language_of,
    link_to,
    versions,
)
from words import words_of

from d2lbert.frameworks import FRAMEWORKS

#: Where Colab opens a notebook of a GitHub repository, and the frameworks
#: that it can install: MXNet has no wheel for its Python.
COLAB = 'https://colab.research.google.com/github/{}/blob/main/{}.ipynb'
ON_COLAB = ('jax', 'torch')
GITHUB = 'https://github.com/'


def switches(page: str, pages: Container[str], repository: str = '') -> str:
    """Return the links from a page to its versions.

    A notebook has one in each framework and language. Another page has no
    framework, and where it is in English only, the languages lead to their
    first pages. `repository`: the project's address on GitHub, if it has one.
    """
    say = words_of(language_of(page))
    languages = [
        link(target, page, LANGUAGES[key], key)
        for key, target in versions(page, pages).items()
        if target == page or target in pages or target.endswith('search')
    ]
    return (
        '<div class="switches">'
        + frameworks(page, pages, repository)
        + f'<nav class="language" aria-label="{say("Language")}">'
        + ''.join(languages)
        + '</nav></div>'
    )


def frameworks(page: str, pages: Container[str], repository: str) -> str:
    """Return the links of a notebook: its frameworks and its file."""
    framework = framework_of(page)
    if not framework:
        return ''
    say = words_of(language_of(page))
    links = []
    for it in FRAMEWORKS.values():
        target = page.removesuffix(framework) + it.name
        if target in pages:
            links.append(link(target, page, it.label))
    slides = page.replace('notebooks/', 'slides/', 1)
    if slides in pages:
        links_on = f'<a class="slides" href="{link_to(slides, page)}">'
        links_on += f'{say("Slides")}</a>'
    else:
        links_on = ''
    return (
        f'<nav class="framework" aria-label="{say("Framework")}">'
        + ''.join(links)
        + '</nav>'
        + links_on
        + f'<a class="download" href="{page.split("/")[-1]}.ipynb" download '
        f'aria-label="{say("Download the notebook")}">'
        f'<span aria-hidden="true">⤓</span> .ipynb</a>'
        + colab(page, repository)
    )


def colab(page: str, repository: str) -> str:
    """Return the link that opens a notebook in Colab, where it can run."""
    if not repository or framework_of(page) not in ON_COLAB:
        return ''
    name = repository.removeprefix(GITHUB).removesuffix('.git').strip('/')
    label = words_of(language_of(page))('Open in Colab')
    return (
        f'<a class="colab" href="{escape(COLAB.format(name, page))}" '
        f'aria-label="{label}">Colab</a>'
    )


def link(target: str, page: str, name: str, language: str = '') -> str:
    """Return a link of a switch; the page's own is marked as current."""
    current = ' aria-current="page"' if target == page else ''
    lang = f' lang="{language}"' if language else ''
    return (
        f'<a href="{link_to(target, page)}"{lang} '
        f'aria-label="{escape(name)}"{current}>'
        f'<span class="long">{escape(name)}</span>'
        f'<span class="short">{language or escape(name)}</span></a>'
    )
