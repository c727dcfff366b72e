"""What a guesser scores that knows less than a network.

Chance knows how many tokens there are. The frequencies know how often each
token occurs in the training examples, and how often a second sentence
follows the first; they do not look at the text around a masked token.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from d2lbert.data.examples import BLOCK, Batch, Examples
from d2lbert.data.vocab import CLS, PAD, SEP, Vocab

#: What an example has as many of as its form asks for.
FORM = (CLS, SEP, PAD)
#: How many examples are counted at a time: a corpus may be large.
ROWS = 64 * BLOCK
#: How many guesses count as a success of the measure `mlm_top5`.
TOP = 5


class Answers(NamedTuple):
    """What is asked in some examples, B of them, with N predictions.

    `rows` and `slots`: the example of each prediction and its slot there,
    `(N,)` each; `mlm_labels`: the right tokens, `(N,)`; `nsp_labels`: 1
    where the second sentence follows, `(B,)`.
    """

    rows: np.ndarray
    slots: np.ndarray
    mlm_labels: np.ndarray
    nsp_labels: np.ndarray


class Scores(NamedTuple):
    """What a guesser scores, float64: for each answer, or one for all.

    Losses are cross-entropies in nats; the others are 1 for a success and 0
    for a failure, or the probability of a success.
    """

    mlm_loss: np.ndarray  # (N,) or ()
    mlm_accuracy: np.ndarray  # (N,) or ()
    mlm_top5: np.ndarray  # (N,) or ()
    nsp_loss: np.ndarray  # (B,) or ()
    nsp_accuracy: np.ndarray  # (B,) or ()


class Frequencies(NamedTuple):
    """How often each token and each class of pairs occurs, int64."""

    tokens: np.ndarray  # (vocab_size,)
    pairs: np.ndarray  # (2,)


def answers_of(examples: Examples) -> Answers:
    """Return what is asked in some examples, padded slots left out."""
    everything = slice(None)
    weights = examples.column('mlm_weights', everything)
    rows, slots = np.nonzero(weights)
    labels = examples.column('mlm_labels', everything)[rows, slots]
    nsp_labels = examples.column('nsp_labels', everything)
    return Answers(rows, slots, labels, nsp_labels)


def entropies(
    examples: Examples, vocab_size: int, mlm_average: str = 'predictions'
) -> dict[str, float]:
    """Return both losses of the frequencies of the answers, in nats.

    They are entropies, −Σ p ln p: the least loss of a guesser that looks at
    nothing but these frequencies. `mlm_average`: see `Recipe`; in a mean over
    all slots a padded one counts, and costs nothing.
    """
    labels, pairs, num_slots = np.zeros(vocab_size, int), np.zeros(2, int), 0
    for start in range(0, examples.num_examples, ROWS):
        rows = slice(start, start + ROWS)
        is_asked = examples.column('mlm_weights', rows) > 0
        asked = examples.column('mlm_labels', rows)[is_asked]
        labels += np.bincount(asked, minlength=vocab_size)
        pairs += np.bincount(examples.column('nsp_labels', rows), minlength=2)
        num_slots += is_asked.size
    share = labels.sum() / num_slots if mlm_average == 'slots' else 1.0
    return {
        'mlm_loss': float(share * entropy(labels)),
        'nsp_loss': float(entropy(pairs)),
    }


def entropy(counts: np.ndarray) -> float:
    """Return −Σ p ln p for what occurs so often, in nats."""
    p = counts[counts > 0] / counts.sum()
    return -(p * np.log(p)).sum()


def count_frequencies(examples: Examples, vocab: Vocab) -> Frequencies:
    """Count the tokens and the pairs of the training examples.

    Masked tokens count as what they were. Those of the form are left out,
    because they are never asked for.
    """
    tokens, pairs = np.zeros(len(vocab), int), np.zeros(2, int)
    for start in range(0, examples.num_examples, ROWS):
        batch = examples.rows(slice(start, start + ROWS))
        found = np.bincount(unmasked(batch).ravel(), minlength=len(vocab))
        tokens += found
        pairs += np.bincount(batch.nsp_labels, minlength=2)
    tokens[vocab[list(FORM)]] = 0
    return Frequencies(tokens, pairs)


def unmasked(batch: Batch) -> np.ndarray:
    """Return the tokens of a batch as they were before masking, `(B, T)`."""
    tokens = batch.tokens.copy()
    rows, slots = np.nonzero(batch.mlm_weights)
    positions = batch.pred_positions[rows, slots]
    tokens[rows, positions] = batch.mlm_labels[rows, slots]
    return tokens


def chance(vocab_size: int) -> Scores:
    """Return the scores of chance: all answers are equally probable."""
    return Scores(
        np.log(vocab_size),
        np.divide(1, vocab_size),
        np.divide(min(TOP, vocab_size), vocab_size),
        np.log(2),
        np.divide(1, 2),
    )


def frequent(frequencies: Frequencies, answers: Answers) -> Scores:
    """Return the scores of the frequencies, for each answer.

    Probabilities are (n + 1) / (Σn + K) for a token or class that occurs n
    times, one of K (Laplace's rule): those that never occur have one too.
    The guesses are the commonest, and of equally common ones the first.
    """
    tokens, pairs = frequencies
    mlm_ranks = ranks_of(tokens)[answers.mlm_labels]
    return Scores(
        surprise(tokens)[answers.mlm_labels],
        (mlm_ranks == 0).astype(float),
        (mlm_ranks < TOP).astype(float),
        surprise(pairs)[answers.nsp_labels],
        (ranks_of(pairs)[answers.nsp_labels] == 0).astype(float),
    )


def surprise(counts: np.ndarray) -> np.ndarray:
    """Return −ln of the probability of each, by Laplace's rule, float64."""
    return np.log(counts.sum() + len(counts)) - np.log(counts + 1)


def ranks_of(counts: np.ndarray) -> np.ndarray:
    """Return the place of each in the order of their counts, from 0."""
    ranks = np.empty(len(counts), int)
    ranks[np.argsort(-counts, kind='stable')] = np.arange(len(counts))
    return ranks
