"""The embedded corpus: English text about two kinds of crane.

One is the bird that flies, the other the machine that lifts; more paragraphs
are about the town and the countryside around them. No sentence says what a
crane is, or that there are two kinds. The text was written for this project.
`sample.txt` and `held_out.txt` have one paragraph a line, and above it the
paragraph's topic, such as `= the crane driver =`.
"""

from __future__ import annotations

from importlib import resources


def lines() -> list[str]:
    """Return the corpus, one paragraph a line, in the style of WikiText.

    Words and punctuation are separated by single spaces, and sentences by
    `' . '`; the last one ends in `' .'`. Every line has at least two
    sentences.
    """
    return paragraphs(read_text())


def held_out_lines() -> list[str]:
    """Return a text to evaluate on, in the same form as `lines`.

    It is about the same things. No run of six words is in both texts.
    """
    return paragraphs(read_text('held_out.txt'))


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a text that has topics between them."""
    return text.splitlines()[1::2]


def read_text(name: str = 'sample.txt') -> str:
    """Return the content of a file: lines of topics and paragraphs."""
    return (resources.files(__package__) / name).read_text('utf-8')
