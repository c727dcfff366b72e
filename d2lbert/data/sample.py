"""The embedded corpus: a small English world, told from templates.

The text was written for this project. It knows two sorts of crane, the
bird that flies and the machine that lifts, and a town and a countryside
around them. ``sample_text/*.txt`` holds the words, topic by topic; this
module only tells them: the same text on every machine and Python version.

A topic is a heading, ``== name : number of paragraphs``, then the cast
of its paragraphs, ``place = the marsh | the lake``, then its beats,
separated by blank lines. A beat is a list of sentences of which one is
told; an indented line continues the one above it. In a sentence

- ``{place}`` is a member of the cast, the same all through a paragraph;
  ``who, she = Anna, she | Peter, he`` casts two words that go together;
- ``[old|young]`` is one of its options, chosen anew each time.
"""

from __future__ import annotations

import hashlib
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
    """What paragraphs of one kind are made of."""

    name: str
    paragraphs: int
    cast: list[tuple[list[str], tuple[str, ...]]]  # slots, their options
    beats: list[tuple[str, ...]]


class Dealer:
    """Draws from options so that each comes once before any comes twice.

    It uses only ``random.Random(int).random()``, the one stream that
    Python promises to keep from version to version.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random
        self._decks: dict[tuple[str, ...], list[str]] = {}

    def below(self, n: int) -> int:
        """A whole number from 0 to n - 1."""
        return int(self._random() * n)

    def draw(self, options: tuple[str, ...]) -> str:
        """The next card of the deck that belongs to these options."""
        deck = self._decks.setdefault(options, [])
        if not deck:
            deck.extend(options)
        return deck.pop(self.below(len(deck)))


def lines() -> list[str]:
    """The corpus, one paragraph a line, in the style of WikiText.

    Words and punctuation stand apart by single spaces; sentences are
    separated by ``' . '`` and the last one ends in ``' .'``. Every line
    has at least two sentences.
    """
    return [f'{" . ".join(sentences)} .' for _, sentences in paragraphs()]


def paragraphs() -> list[tuple[str, list[str]]]:
    """Every paragraph as the name of its topic and its sentences."""
    topics = {topic.name: topic for topic in read_topics()}
    programme = tuple(
        name
        for name, topic in topics.items()
        for _ in range(topic.paragraphs)
    )
    dealer = Dealer(SEED)
    names = [dealer.draw(programme) for _ in programme]
    return [(name, tell(topics[name], dealer)) for name in names]


def sha256() -> str:
    """The hash of the corpus as UTF-8 text, a line feed after each line."""
    text = ''.join(f'{line}\n' for line in lines())
    return hashlib.sha256(text.encode()).hexdigest()


def read_topics(files: Sequence[str] = FILES) -> list[Topic]:
    """The topics of these files, in their order."""
    folder = resources.files(__package__) / 'sample_text'
    texts = [(folder / f'{name}.txt').read_text('utf-8') for name in files]
    return [topic for text in texts for topic in _parse(text)]


def _parse(text: str) -> list[Topic]:
    topics: list[Topic] = []
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
    """The sentences of one paragraph: its first beat and most others."""
    actors: dict[str, str] = {}
    for slots, options in topic.cast:
        chosen = dealer.draw(options).split(', ')
        actors.update(zip(slots, chosen, strict=True))
    beats = topic.beats[:]
    for _ in range(dealer.below(MOST_BEATS_LEFT_OUT + 1)):
        del beats[1 + dealer.below(len(beats) - 1)]
    return [_speak(dealer.draw(beat), actors, dealer) for beat in beats]


def _speak(frame: str, actors: dict[str, str], dealer: Dealer) -> str:
    """One sentence: slots filled, choices made, ``a`` before a vowel."""
    text = _SLOT.sub(lambda slot: actors[slot[1]], frame)
    while _CHOICE.search(text):
        text = _CHOICE.sub(
            lambda choice: dealer.draw(tuple(choice[1].split('|'))), text
        )
    text = _ARTICLE.sub(r'\1n ', ' '.join(text.split()))
    return text[0].upper() + text[1:]
