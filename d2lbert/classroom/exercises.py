"""Checks of what students write in the notebooks.

Each prints one line: a tick where the answer is right, or else what is wrong
with it, without the answer. What has not been written yet is `None`.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from d2lbert.classifier import NUM_CLASSES
from d2lbert.data.nli import cut_pair
from d2lbert.data.snli import LABELS
from d2lbert.data.vocab import MASK

RIGHT, WRONG, NOT_YET = '✓', '✗', '… not written yet'
NUM_DRAWS = 10_000
#: Five standard errors of a share of 0.8 among so many draws.
TOLERANCE = 0.02


def check_replacement(replace: Callable[[str, str], str | None]) -> None:
    """Check the rule for words that were picked, by many draws.

    `replace`: takes a word and another word and returns what the network
    sees. The state of the random numbers is afterwards as it was.
    """
    states = random.getstate(), np.random.get_state()
    draws = Counter(replace('crane', 'boat') for _ in range(NUM_DRAWS))
    random.setstate(states[0])
    np.random.set_state(states[1])
    if set(draws) == {None}:
        print(NOT_YET)
        return
    wanted = {MASK: 0.8, 'boat': 0.1, 'crane': 0.1}
    for token in draws:
        if token not in wanted:
            _wrong(
                f"replace('crane', 'boat') is {token!r}: expected {MASK!r} "
                'or one of the two words'
            )
            return
    names = dict(zip(wanted, (MASK, 'another word', 'the word'), strict=True))
    for token, share in wanted.items():
        found = draws[token] / NUM_DRAWS
        if abs(found - share) > TOLERANCE:
            often = 'often' if found > share else 'seldom'
            _wrong(f'{names[token]} comes too {often}: {found:.0%}')
            return
    shares = ', '.join(
        f'{names[token]} {draws[token] / NUM_DRAWS:.0%}' for token in wanted
    )
    _right(shares)


def check_chance(
    mlm_loss: float | None, nsp_loss: float | None, vocab_size: int
) -> None:
    """Check the losses of a guesser who knows nothing, in nats."""
    for name, loss, num_answers in (
        ('mlm_chance', mlm_loss, vocab_size),
        ('nsp_chance', nsp_loss, 2),
    ):
        if loss is None:
            print(NOT_YET)
            return
        loss, wanted = float(loss), math.log(num_answers)
        if math.isclose(loss, wanted, rel_tol=1e-3):
            continue
        if loss < 0:
            _wrong(f'{name} is negative: a loss is not')
        elif any(
            math.isclose(loss, wanted / math.log(base), rel_tol=1e-3)
            for base in (2, 10)
        ):
            _wrong(f'{name}: another logarithm than that of the formula')
        else:
            _wrong(f'{name} = {loss:.3f}: how many answers are there?')
        return
    _right(f'{mlm_loss:.3f} and {nsp_loss:.3f}')


def check_most_probable(most_probable: Callable[..., Any]) -> None:
    """Check the most probable tokens for a mask.

    `most_probable`: takes the probabilities `(N,)` of N tokens, the list of
    these tokens and a number k, and returns k tokens, the most probable one
    first.
    """
    k, tokens = 8, [f'word{i}' for i in range(40)]
    p = np.random.default_rng(0).dirichlet(np.ones(len(tokens)))
    ranked = [tokens[i] for i in np.argsort(-p)]
    # The answer may change the arrays and lists that it is given
    found = most_probable(p.copy(), [*tokens], k)
    if found is None:
        print(NOT_YET)
    elif not isinstance(found, (list, tuple, np.ndarray)):
        _wrong(f'{type(found).__name__}: expected a list of tokens')
    elif others := [each for each in found if not isinstance(each, str)]:
        _wrong(f'{others[0]} is not a token')
    elif len(found) != k:
        _wrong(f'k = {k}, but {len(found)} tokens')
    elif [*found] == ranked[:k]:
        _right('the most probable one first')
    elif [*found] == ranked[:k][::-1]:
        _wrong('the most probable one comes last')
    elif {*found} == {*ranked[:k]}:
        _wrong('the right tokens in another order')
    elif {*found} == {*ranked[-k:]}:
        _wrong('these are the least probable tokens')
    else:
        _wrong('not the most probable tokens')


def check_attention(attention: Callable[..., Any]) -> None:
    """Check a head of attention without masks.

    `attention`: takes queries `(N, d)`, keys `(M, d)` and values `(M, v)`
    and returns `(N, v)`.
    """
    rng = np.random.default_rng(0)
    Q, K, V = (rng.normal(size=(n, d)) for n, d in ((3, 9), (5, 9), (5, 2)))
    found = attention(Q, K, V)
    if found is None:
        print(NOT_YET)
        return
    found, scores = np.asarray(found), Q @ K.T
    if found.shape != (3, 2):
        _wrong(f'shape {found.shape}: each of 3 queries gets 2 numbers')
    elif _alike(found, _softmax(scores / 3) @ V):
        _right('a head of attention')
    elif _alike(found, _softmax(scores) @ V):
        _wrong('the longer the vectors, the larger are your scores')
    elif _alike(found, _softmax((scores / 3).T).T @ V):
        _wrong('the weights of each query have to add up to 1')
    else:
        _wrong('not the weighted means of the values')


def check_weighted_mean(mean: Callable[..., Any]) -> None:
    """Check the mean of the losses of words, without those of padding.

    `mean`: takes `losses` and `weights`, `(N,)` each, a weight being 1 for a
    word and 0 for padding.
    """
    rng = np.random.default_rng(0)
    losses = rng.uniform(1, 8, 40)
    weights = (np.arange(40) < 28).astype(float)
    found = mean(losses, weights)
    if found is None:
        print(NOT_YET)
        return
    if np.shape(found) != ():
        _wrong(f'shape {np.shape(found)}: expected a single number')
    elif not _alike(found, mean(np.where(weights, losses, 99), weights)):
        _wrong('it changes when padding has another loss, and no word has')
    elif not _alike(mean(losses[:28], weights[:28]), found):
        _wrong('it changes when padding is left out')
    elif _alike(found, losses[:28].mean()):
        _right('the mean over the words')
    else:
        _wrong('not the mean of the losses whose weight is 1')


def check_total(total: float | None, losses: np.ndarray) -> None:
    """Check the mean over all slots, put together from its two parts.

    `losses`: those of all slots.
    """
    if total is None:
        print(NOT_YET)
    elif _alike(total, losses.mean()):
        _right(f'{total:.3f} is the mean over all slots')
    else:
        _wrong(f'{total:.3f}: the mean over all slots is another number')


def check_classes(answers: Sequence[int | None], labels: list[int]) -> None:
    """Check the classes that a reader has given to some pairs."""
    if len(answers) != len(labels):
        _wrong(f'{len(answers)} classes for {len(labels)} pairs')
        return
    if None in answers:
        print(NOT_YET)
        return
    for answer in answers:
        if answer not in range(len(LABELS)):
            _wrong(f'{answer!r} is no class: expected 0, 1 or 2')
            return
    others = [
        str(number)
        for number, pair in enumerate(zip(answers, labels, strict=True))
        if pair[0] != pair[1]
    ]
    if others:
        _wrong(f'pair {", ".join(others)}: the data has another class')
    else:
        _right(f'{len(labels)} pairs')


def check_truncation(truncate: Callable[..., Any]) -> None:
    """Check the function that shortens a pair until it fits.

    `truncate`: takes the tokens of both sentences and how many may remain
    together, and returns the tokens of both.
    """
    for sizes, most in (((3, 2), 5), ((7, 2), 5), ((2, 7), 5), ((4, 4), 7)):
        p_tokens, h_tokens = (
            [f'{name}{i}' for i in range(size)]
            for name, size in zip('ph', sizes, strict=True)
        )
        wanted = cut_pair(p_tokens, h_tokens, most)
        # The answer may change the lists that it is given
        found = truncate([*p_tokens], [*h_tokens], most)
        if found is None:
            print(NOT_YET)
            return
        case = f'{sizes[0]} and {sizes[1]} tokens, most = {most}'
        try:
            p, h = map(list, found)
        except (TypeError, ValueError):
            _wrong(f'{found!r}: expected two lists of tokens')
            return
        if (p, h) == wanted:
            continue
        if p != p_tokens[: len(p)] or h != h_tokens[: len(h)]:
            _wrong(f'{case}: what remains is not the beginning of each')
        elif len(p) + len(h) > most:
            _wrong(f'{case}: {len(p)} and {len(h)} remain')
        elif len(p) + len(h) < most:
            _wrong(f'{case}: only {len(p)} and {len(h)} remain')
        elif sizes[0] == sizes[1]:
            _wrong(f'{case}: which one loses a token if both are alike?')
        else:
            _wrong(f'{case}: the shorter one has lost tokens')
        return
    _right('the pairs of the dataset')


def check_new_parameters(number: int | None, num_hiddens: int) -> None:
    """Check the number of parameters that pretraining has not trained."""
    weights = NUM_CLASSES * num_hiddens
    if number is None:
        print(NOT_YET)
    elif number == weights + NUM_CLASSES:
        _right(f'{number} new parameters')
    elif number == weights:
        _wrong(f'{number}: a layer has more than weights')
    elif number < weights:
        _wrong(f'{number}: each class looks at all of hidden')
    else:
        _wrong(f'{number}: only one layer is new')


def check_cross_entropy(cross_entropy: Callable[..., Any]) -> None:
    """Check the loss of a batch of pairs, in nats.

    `cross_entropy`: takes logits `(N, 3)` and classes `(N,)` and returns the
    mean loss, a number.
    """
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(8, NUM_CLASSES))
    labels = np.arange(8) % NUM_CLASSES
    found = cross_entropy(logits.copy(), labels)
    if found is None:
        print(NOT_YET)
        return
    wanted = _mean_loss(_softmax(logits), labels)
    twice = cross_entropy(np.tile(logits, (2, 1)), np.tile(labels, 2))
    if np.shape(found) != ():
        _wrong(f'shape {np.shape(found)}: expected a single number')
    elif _alike(found, wanted):
        chance = cross_entropy(np.zeros((1, NUM_CLASSES)), labels[:1])
        _right(f'three equal logits give {chance:.3f}')
    elif not np.isfinite(found):
        _wrong(f'{found}: a logit may be negative, a probability is not')
    elif _alike(found, _mean_loss(_softmax(logits.T).T, labels)):
        _wrong('the probabilities of each pair have to add up to 1')
    elif not _alike(found, cross_entropy(logits + 1, labels)):
        _wrong('it changes when all logits grow by 1: a softmax does not')
    elif found < 0:
        _wrong(f'{found:.3f} is negative: a loss is not')
    elif not _alike(found, twice):
        _wrong('it changes when each pair is there twice')
    elif _alike(found, cross_entropy(logits.copy(), labels[::-1])):
        _wrong('it stays the same when the labels change places')
    elif any(_alike(found, wanted / math.log(base)) for base in (2, 10)):
        _wrong('another logarithm than that of the formula')
    elif _alike(found, wanted / NUM_CLASSES):
        _wrong('divided by the number of logits, not by that of pairs')
    else:
        _wrong('not the mean of the losses of the pairs')


def _mean_loss(p: np.ndarray, labels: np.ndarray) -> float:
    return -np.log(p[range(len(p)), labels]).mean()


def check_suspect(name: str | None) -> None:
    """Check which argument makes the difference between the two tabs."""
    if name is None:
        print(NOT_YET)
    elif name == 'dropout':
        _right('the caller asks for one value and gets another')
    elif name in ('num_heads', 'num_blks'):
        _wrong(f'{name}: ignored, but the caller gives the same value')
    elif name in ('num_hiddens', 'ffn_num_hiddens', 'max_len'):
        _wrong(f'{name}: both tabs pass it on')
    else:
        _wrong(f'{name!r} is not an argument of BERTModel')


def check_recalls(
    recalls: Sequence[float] | None, confusion: ArrayLike
) -> None:
    """Check the share of each class that was recognised.

    `confusion`: a row for each class, a column for each answer.
    """
    if recalls is None:
        print(NOT_YET)
        return
    confusion = np.asarray(confusion)
    found, right = np.asarray(recalls), np.diag(confusion)
    if found.shape != right.shape:
        _wrong(f'shape {found.shape}: expected a number for each class')
    elif _alike(found, right / confusion.sum(axis=1)):
        _right(', '.join(f'{recall:.3f}' for recall in found))
    elif _alike(found, right / confusion.sum()):
        _wrong('these are shares of all pairs, not of those of a class')
    elif _alike(found, right / np.maximum(1, confusion.sum(axis=0))):
        _wrong('these are shares of what was answered, not of the class')
    else:
        _wrong('not the share that is right of each class')


def _right(what: str) -> None:
    print(f'{RIGHT} {what}')


def _wrong(what: str) -> None:
    print(f'{WRONG} {what}')


def _alike(found: Any, wanted: Any) -> bool:
    return bool(np.allclose(found, wanted, rtol=1e-4, atol=1e-6))


def _softmax(scores: np.ndarray) -> np.ndarray:
    exps = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exps / exps.sum(axis=1, keepdims=True)
