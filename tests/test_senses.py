"""After training, *crane* the bird and *crane* the machine are apart."""

import numpy as np
import pytest

import d2lbert
from helpers import BIRD, MACHINE, sample_paragraphs

# Not the chapter's 50 steps at 0.01: these flatten every representation
# into one, in either framework.
LONGER = {
    'recipe': 'corrected',
    'steps': 640,
    'batch_size': 128,
    'lr': 0.001,
    'progress': False,
}


def crane_sentences(sense):
    """Sentences with one crane in the topics of this sense."""
    return sorted(
        {
            sentence.lower()
            for topic, sentences in sample_paragraphs()
            if topic in sense
            for sentence in sentences
            if sentence.lower().split().count('crane') == 1
        }
    )


def cranes(run, sentences):
    """The representation of `crane` in each sentence, unit length."""
    found = d2lbert.represent(run.net, run.vocab, sentences)
    X = np.stack(
        [
            encoded[1 + sentence.split().index('crane')]
            for sentence, encoded in zip(sentences, found, strict=True)
        ]
    )
    return X / np.linalg.norm(X, axis=1, keepdims=True)


@pytest.mark.long
def test_the_two_cranes(backend_name):
    run = d2lbert.pretrain(backend=backend_name, **LONGER)
    known, held_out = [], []
    for sense in (BIRD, MACHINE):
        sentences = crane_sentences(sense)
        assert len(sentences) > 200
        known.append(cranes(run, sentences[::2]).mean(axis=0))
        held_out.append(cranes(run, sentences[1::2]))
    # Nearer to the mean of the own sense than to that of the other
    right = [
        (X @ known[own] > X @ known[1 - own]).mean()
        for own, X in enumerate(held_out)
    ]
    assert min(right) > 0.9, right
