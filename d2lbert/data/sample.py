"""The embedded corpus: English text about two kinds of crane.

One is the bird that flies, the other the machine that lifts; more paragraphs
are about the town and the countryside around them. The text was written for
this project. `sample.txt` has one paragraph a line, and above it the
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
    return read_text().splitlines()[1::2]


def read_text() -> str:
    """Return the content of `sample.txt`: lines of topics and paragraphs."""
    return (resources.files(__package__) / 'sample.txt').read_text('utf-8')
