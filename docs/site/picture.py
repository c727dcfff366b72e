"""The picture of the first pages: what a network guesses for a mask.

`python docs/site/picture.py` trains the networks (about two minutes on two
cores that are free) and writes `picture.json`.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from words import words_of

import d2lbert
from d2lbert.data.vocab import MASK

FILE = Path(__file__).with_suffix('.json')
SENTENCES = (
    'the crane folded its <mask> and slept',
    'the crane lowered its <mask> to the deck',
)
STEPS = (50, 640)
#: Those of the notebooks' longer training.
OPTIONS = {
    'backend': 'torch',
    'recipe': 'corrected',
    'lr': 0.001,
    'batch_size': 128,
    'num_blks': 1,
    'dropout': 0.1,
}


def measure() -> list[dict[str, Any]]:
    """Return the three best words after each number of steps."""
    found = []
    for steps in STEPS:
        run = d2lbert.pretrain(**OPTIONS, steps=steps)
        filled = d2lbert.fill(run.net, run.vocab, SENTENCES, top=3)
        for sentence, one in zip(SENTENCES, filled, strict=True):
            words = zip(
                one.candidates[0], one.probabilities[0].tolist(), strict=True
            )
            guesses = [[word, round(share, 4)] for word, share in words]
            found.append(
                {'sentence': sentence, 'steps': steps, 'guesses': guesses}
            )
    return found


def picture(language: str) -> str:
    """Return the picture as HTML, which takes the colours of the page."""
    say = words_of(language)
    rows = json.loads(FILE.read_text('utf-8'))
    parts = ['<div class="guesses">']
    for row in sorted(rows, key=lambda row: SENTENCES.index(row['sentence'])):
        before, after = map(escape, row['sentence'].split(MASK))
        title = say('after {} steps').format(row['steps'])
        parts.append(
            f'<div><p><span lang="en">{before}<b>?</b>{after}</span> '
            f'<small>{title}</small></p><ul>'
        )
        for word, share in row['guesses']:
            parts.append(
                f'<li><span lang="en">{escape(word)}</span>'
                f'<span class="bar"><i style="width: {share:.1%}"></i></span>'
                f'<span>{say("{}%").format(round(100 * share))}</span></li>'
            )
        parts.append('</ul></div>')
    return ''.join([*parts, '</div>'])


if __name__ == '__main__':
    lines = ',\n'.join(map(json.dumps, measure()))
    FILE.write_text(f'[\n{lines}\n]\n', 'utf-8')
