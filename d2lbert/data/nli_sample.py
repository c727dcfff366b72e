"""The embedded pairs for natural language inference, made by rules.

They are about the little world of the embedded corpus: whether a crane is
the bird or the machine follows from what it does. A premise tells of a bird,
of a machine, or of a crane that can be either. A hypothesis says what is true
of birds alone or of machines alone: it follows, contradicts, or neither.

No premise of the test part has a predicate of the training part, and no
hypothesis of its own. All of their words are in the vocabulary of the
embedded corpus. So a network that was pretrained on it knows which of them go
with wings and which with hooks. Another network cannot know that.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from d2lbert.data.snli import LABELS

#: How many pairs each part has.
SIZES = {'train': 2400, 'valid': 300, 'test': 600}
FIELDS = (
    'gold_label', 'sentence1_binary_parse', 'sentence2_binary_parse',
    'sentence1_parse', 'sentence2_parse', 'sentence1', 'sentence2',
    'captionID', 'pairID', 'label1', 'label2', 'label3', 'label4', 'label5',
)  # fmt: skip
SUBJECTS = (
    'a crane', 'the crane', 'one crane', 'another crane', 'the grey crane',
    'a white crane', 'the old crane', 'a large crane', 'the second crane',
)  # fmt: skip
TIMES = (
    'in the morning', 'at noon', 'in the evening', 'at dawn', 'today', 'now',
    'at last', 'on Monday', 'on Sunday', 'then', 'suddenly', 'at night',
)  # fmt: skip
KINDS = ('bird', 'machine')
#: What each kind of crane does, and what either does: for training.
PREDICATES = {
    'bird': (
        'spread its wings', 'beat its wings and flew away',
        'called to its mate', 'flew south with the flock',
        'danced on the grass', 'sat in its nest',
        'is flying over the trees', 'cleaned its feathers',
        'caught a frog in the reeds', 'slept in the shallow water',
        'came back to the marsh in spring', 'looked for insects',
    ),
    'machine': (
        'lowered its hook', 'lifted the container',
        'is lifting a heavy load', 'stands on rails',
        'raised the steel beams', 'moved the crate with its cable',
        'unloads the ship', 'stood beside the quay',
        'was built at the harbour', 'came on a truck',
        'lifts the bricks to the builders', 'has a driver in the cab',
    ),
    '': (
        'stood still', 'is there', 'was old', 'came back', 'is tall',
        'stopped', 'was in front', 'is very old', 'stayed until the evening',
        'turned slowly', 'is the first', 'was alone',
    ),
}  # fmt: skip
#: The same for testing.
HELD_OUT = {
    'bird': (
        'folded down on its eggs', 'fed its chicks',
        'stretched its long neck', 'opened its beak',
        'hides from the fox', 'landed near a pond',
        'eats seeds and snails', 'glides on the warm wind',
        'followed its parents to Africa', 'is circling above the meadow',
        'bowed and jumped into the air', 'drank from the lake',
    ),
    'machine': (
        'put the pallet on the deck', 'has a strong engine',
        'swings the pipe over the scaffold', 'needs oil',
        'pulled a wagon out', 'is on the building site',
        'began to unload the freighter', 'has a lever and a winch',
        'brings the concrete up to the roof', 'was checked by a mechanic',
        'is at the steel works', 'rolls through the railway yard',
    ),
    '': (
        'stays', 'was found', 'is big', 'left', 'turned to the left',
        'is far away', 'comes again', 'looks small', 'was the last',
        'is the oldest', 'waited', 'moved',
    ),
}  # fmt: skip
#: What follows from each kind, for training and for testing.
HYPOTHESES = {
    'bird': ('the crane is a bird', 'it has wings', 'the crane can fly'),
    'machine': (
        'the crane is a machine', 'it has a hook', 'a driver is in the cab',
    ),
}  # fmt: skip
HELD_OUT_HYPOTHESES = {
    'bird': ('it has feathers', 'it builds a nest', 'this is a bird'),
    'machine': ('it has a cable', 'it lifts loads', 'this is a machine'),
}


def lines(part: str) -> list[str]:
    """Return a part of the pairs as the lines of a file of SNLI.

    `part`: `'train'`, `'valid'` or `'test'`. All classes are equally
    frequent. The lines are the same on every machine.
    """
    rows = ('\t'.join(row) + '\n' for row in make_rows(part))
    return ['\t'.join(FIELDS) + '\n', *rows]


def make_rows(part: str) -> Iterator[list[str]]:
    """Yield the fields of each pair."""
    rng = random.Random(part)
    is_test = part == 'test'
    predicates = HELD_OUT if is_test else PREDICATES
    hypotheses = HELD_OUT_HYPOTHESES if is_test else HYPOTHESES
    for number in range(SIZES[part]):
        label = LABELS[number % len(LABELS)]
        said = rng.choice(KINDS)
        kind = {
            'entailment': said,
            'contradiction': KINDS[said == 'bird'],
            'neutral': '',
        }[label]
        premise = sentence(rng, predicates[kind])
        hypothesis = rng.choice(hypotheses[said])
        trees = tree(f'{premise} .'), tree(f'{hypothesis} .')
        plain = f'{premise.capitalize()}.', f'{hypothesis.capitalize()}.'
        name = f'{part}-{number}'
        yield [
            *(label, *trees, *trees, *plain, name, name),
            *([label] * 5),
        ]


def sentence(rng: random.Random, predicates: Sequence[str]) -> str:
    """Return a premise with one of some predicates."""
    words = f'{rng.choice(SUBJECTS)} {rng.choice(predicates)}'
    if rng.random() < 0.5:
        words = f'{rng.choice(TIMES)} {words}'
    return words


def tree(words: str) -> str:
    """Return a binary tree of words, in parentheses, from the right."""
    first, _, rest = words.partition(' ')
    return f'( {first} {tree(rest)} )' if rest else first
