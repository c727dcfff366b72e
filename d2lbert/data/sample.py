"""The embedded corpus: English text that is generated from templates.

The text was written for this project. It is about two kinds of crane, the
bird that flies and the machine that lifts, and about the town and the
countryside around them. The templates are in `sample_text/*.txt`. The text
is the same on every machine and in every version of Python.

A topic is a heading, `== name : number of paragraphs`, then the cast of its
paragraphs, such as `place = the marsh | the lake`, then its beats, separated
by blank lines. A beat is a list of sentences; a paragraph has one of them.
An indented line continues the line above it. In a sentence

- `{place}` is one of the cast's options, the same in a whole paragraph;
  `who, she = Anna, she | Peter, he` chooses two words together;
- `[old|young]` is one of its options, chosen each time.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

FILES = ('cranes_that_fly', 'cranes_that_lift', 'country', 'town')
SEED = 1903
MOST_BEATS_LEFT_OUT = 2

_HEADING = re.compile(r'== (.+) : (\d+)')
_SLOT = re.compile(r'\{(\w+)\}')
_CHOICE = re.compile(r'\[([^\[\]]*)\]')
_ARTICLE = re.compile(r'\b([Aa]) (?=[aeiou])')


class Topic(NamedTuple):
    """The templates of one kind of paragraph."""

    name: str
    paragraphs: int
    cast: list[tuple[list[str], tuple[str, ...]]]  # slots, their options
    beats: list[tuple[str, ...]]


class Dealer:
    """Draws from options; each comes once before any comes twice.

    It uses only `random.Random(int).random()`, the one stream of numbers
    that Python promises to keep in all versions.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random
        self._decks: dict[tuple[str, ...], list[str]] = {}

    def below(self, n: int) -> int:
        """Return an integer from 0 to n - 1."""
        return int(self._random() * n)

    def draw(self, options: tuple[str, ...]) -> str:
        """Return one of the options that have not been drawn yet."""
        deck = self._decks.setdefault(options, [])
        if not deck:
            deck.extend(options)
        return deck.pop(self.below(len(deck)))


def lines() -> list[str]:
    """Return the corpus, one paragraph a line, in the style of WikiText.

    Words and punctuation are separated by single spaces, and sentences by
    `' . '`; the last one ends in `' .'`. Every line has at least two
    sentences.
    """
    return [f'{" . ".join(sentences)} .' for _, sentences in paragraphs()]


def paragraphs() -> list[tuple[str, list[str]]]:
    """Return the name of the topic and the sentences of each paragraph."""
    topics = {topic.name: topic for topic in read_topics()}
    programme = tuple(
        name
        for name, topic in topics.items()
        for _ in range(topic.paragraphs)
    )
    dealer = Dealer(SEED)
    names = [dealer.draw(programme) for _ in programme]
    return [(name, tell(topics[name], dealer)) for name in names]


def read_topics(files: Sequence[str] = FILES) -> list[Topic]:
    """Return the topics of these files, in their order."""
    folder = resources.files(__package__) / 'sample_text'
    topics: list[Topic] = []
    for name in files:
        text = (folder / f'{name}.txt').read_text('utf-8')
        for block in text.replace('\n  ', ' ').strip().split('\n\n'):
            first, *rest = block.strip().split('\n')
            heading = _HEADING.fullmatch(first)
            if heading:
                cast = [_casting(line) for line in rest]
                topics.append(Topic(heading[1], int(heading[2]), cast, []))
            else:
                topics[-1].beats.append((first, *rest))
    return topics


def _casting(line: str) -> tuple[list[str], tuple[str, ...]]:
    slots, options = line.split(' = ')
    return slots.split(', '), tuple(options.split(' | '))


def tell(topic: Topic, dealer: Dealer) -> list[str]:
    """Return the sentences of a paragraph: its first beat, most others."""
    actors: dict[str, str] = {}
    for slots, options in topic.cast:
        chosen = dealer.draw(options).split(', ')
        actors.update(zip(slots, chosen, strict=True))
    beats = topic.beats[:]
    for _ in range(dealer.below(MOST_BEATS_LEFT_OUT + 1)):
        del beats[1 + dealer.below(len(beats) - 1)]
    return [_speak(dealer.draw(beat), actors, dealer) for beat in beats]


def _speak(frame: str, actors: dict[str, str], dealer: Dealer) -> str:
    """Return a sentence of a template; `a` before a vowel becomes `an`."""
    text = _SLOT.sub(lambda slot: actors[slot[1]], frame)
    while _CHOICE.search(text):
        text = _CHOICE.sub(
            lambda choice: dealer.draw(tuple(choice[1].split('|'))), text
        )
    text = _ARTICLE.sub(r'\1n ', ' '.join(text.split()))
    return text[0].upper() + text[1:]
