"""The checks of the notebooks tell right answers from wrong ones."""

import math
import random
import re

import numpy as np
import pytest

from d2lbert.classroom import exercises
from d2lbert.data.nli import cut_pair


def replace(masked, changed):
    """A rule with these shares, the rest as it was."""

    def rule(word, other):
        r = random.random()
        if r < masked:
            return '<mask>'
        return other if r < masked + changed else word

    return rule


def softmax(X, axis):
    exps = np.exp(X)
    return exps / exps.sum(axis=axis, keepdims=True)


def losses(logits, labels, axis=1):
    return -np.log(softmax(logits, axis)[range(len(labels)), labels])


def picked(indices):
    """An answer that takes the tokens with these indices, in their order."""
    return lambda p, tokens, k: [tokens[i] for i in indices(p, k)]


ANSWERS = {
    'replacement': (
        exercises.check_replacement,
        [
            (replace(0.8, 0.1), '✓'),
            (lambda word, other: None, '…'),
            (replace(1, 0), '✗ <mask> comes too often'),
            (replace(0.8, 0.2), '✗ another word comes too often'),
            (replace(0.75, 0.1), '✗ <mask> comes too seldom'),
            (lambda word, other: '<unk>', "✗ replace.*is '<unk>'"),
        ],
    ),
    'most probable': (
        exercises.check_most_probable,
        [
            (picked(lambda p, k: np.argsort(p)[::-1][:k]), '✓'),
            (
                lambda p, tokens, k: np.array(tokens)[np.argsort(-p)[:k]],
                '✓',
            ),
            (lambda p, tokens, k: None, '…'),
            (picked(lambda p, k: np.argsort(p)[:k]), '✗.*the least probable'),
            (picked(lambda p, k: np.argsort(p)[-k:]), '✗.*comes last'),
            (
                picked(lambda p, k: np.sort(np.argsort(-p)[:k])),
                '✗ the right tokens in another order',
            ),
            (picked(lambda p, k: range(k)), '✗ not the most probable'),
            (picked(lambda p, k: np.argsort(-p)[:5]), '✗ k = 8, but 5'),
            (lambda p, tokens, k: np.argsort(-p)[:k], '✗ .* is not a token'),
            (lambda p, tokens, k: np.sort(p)[-k:], '✗ 0.* is not a token'),
            (lambda p, tokens, k: tokens[np.argmax(p)], '✗ str: expected'),
            (lambda p, tokens, k: {*tokens[:k]}, '✗ set: expected a list'),
        ],
    ),
    'attention': (
        exercises.check_attention,
        [
            (lambda Q, K, V: softmax(Q @ K.T / 3, 1) @ V, '✓'),
            (lambda Q, K, V: None, '…'),
            (lambda Q, K, V: softmax(Q @ K.T, 1) @ V, '✗ the longer'),
            (lambda Q, K, V: softmax(Q @ K.T / 3, 0) @ V, '✗.*add up to 1'),
            (lambda Q, K, V: softmax(Q @ K.T / 3, 1), '✗ shape'),
            (lambda Q, K, V: Q @ K.T @ V, '✗ not the weighted'),
        ],
    ),
    'truncation': (
        exercises.check_truncation,
        [
            (cut_pair, '✓'),
            (lambda p, h, most: None, '…'),
            (lambda p, h, most: (p, h), '✗ 7 and 2.*7 and 2 remain'),
            (lambda p, h, most: (p[:1], h[:1]), '✗ 3 and 2.*only 1 and 1'),
            (lambda p, h, most: (p[:3], h[:2]), '✗ 2 and 7.*only 2 and 2'),
            (
                lambda p, h, most: cut_pair(h, p, most)[::-1],
                '✗ 4 and 4.*alike',
            ),
            (
                lambda p, h, most: (p[:most], h[: max(0, most - len(p))]),
                '✗ 7 and 2.*shorter',
            ),
            (
                lambda p, h, most: (p[len(p) + len(h) - most :], h),
                '✗ 7 and 2.*beginning',
            ),
            (lambda p, h, most: p + h, '✗.*two lists'),
        ],
    ),
    'cross-entropy': (
        exercises.check_cross_entropy,
        [
            (lambda X, y: losses(X, y).mean(), '✓.*1.099'),
            (lambda X, y: None, '…'),
            (lambda X, y: losses(X, y), '✗ shape'),
            (lambda X, y: losses(X, y).sum(), '✗.*twice'),
            (
                lambda X, y: -losses(X, y).mean(),
                '✗ -.*negative: a loss is not',
            ),
            (
                lambda X, y: losses(X, y, 0).mean(),
                '✗.*each pair.*add up to 1',
            ),
            (
                lambda X, y: -X[range(len(y)), y].mean(),
                '✗.*grow by 1',
            ),
            (lambda X, y: np.float64('nan'), '✗ nan'),
            # Each pair gets the classes of all pairs
            (
                lambda X, y: -np.log(softmax(X, 1)[:, y]).mean(),
                '✗.*change places',
            ),
            (
                lambda X, y: losses(X, y).mean() / np.log(2),
                '✗ another logarithm',
            ),
            (
                lambda X, y: losses(X, y).sum() / X.size,
                '✗ divided by',
            ),
            (
                lambda X, y: (1 - np.exp(-losses(X, y))).mean(),
                '✗ not the mean',
            ),
        ],
    ),
    'weighted mean': (
        exercises.check_weighted_mean,
        [
            (
                lambda losses, weights: np.average(losses, weights=weights),
                '✓',
            ),
            (lambda losses, weights: None, '…'),
            (lambda losses, weights: losses.mean(), '✗.*another loss'),
            (
                lambda losses, weights: (losses * weights).mean(),
                '✗.*left out',
            ),
            (lambda losses, weights: losses * weights, '✗ shape'),
            (lambda losses, weights: weights.sum() * 0, '✗ not the mean'),
            # As the book's PyTorch tab has it
            (
                lambda losses, weights: (
                    (losses.mean() * weights).sum() / weights.sum()
                ),
                '✗.*another loss',
            ),
        ],
    ),
}
CASES = [
    pytest.param(check, *case, id=f'{name} {i}')
    for name, (check, cases) in ANSWERS.items()
    for i, case in enumerate(cases)
]


@pytest.mark.parametrize(('check', 'answer', 'line'), CASES)
def test_functions(capsys, check, answer, line):
    state = random.getstate()
    check(answer)
    assert random.getstate() == state
    printed = capsys.readouterr().out
    assert printed.count('\n') == 1
    assert re.match(line, printed)


@pytest.mark.parametrize(
    ('mlm', 'nsp', 'line'),
    [
        (math.log(1469), math.log(2), '✓'),
        (np.log(1469), np.float32(np.log(2)), '✓'),
        (None, math.log(2), '…'),
        (math.log(1469), None, '…'),
        (-math.log(1469), math.log(2), '✗ mlm_chance is negative'),
        (math.log2(1469), 1, '✗ mlm_chance: another logarithm'),
        (math.log(1469), math.log10(2), '✗ nsp_chance: another logarithm'),
        (math.log(1469), 0.5, '✗ nsp_chance = 0.500'),
    ],
)
def test_chance(capsys, mlm, nsp, line):
    exercises.check_chance(mlm, nsp, 1469)
    assert capsys.readouterr().out.startswith(line)


def test_total(capsys):
    losses = np.array([[4.0, 8.0, 0.5, 0.5]])
    for total, line in ((None, '…'), (3.25, '✓'), (6, '✗')):
        exercises.check_total(total, losses)
        assert capsys.readouterr().out.startswith(line)


CONFUSION = [[6, 3, 1], [2, 7, 1], [2, 0, 8]]


@pytest.mark.parametrize(
    ('check', 'about', 'answer', 'line'),
    [
        ('classes', [2, 0], [2, 0], '✓'),
        ('classes', [2, 0], [2, None], '…'),
        ('classes', [2, 0], [2, 1], '✗ pair 1: the data has another class'),
        ('classes', [2, 0], [3, 0], '✗ 3 is no class'),
        ('classes', [2, 0], [2], '✗ 1 classes for 2 pairs'),
        ('new_parameters', 128, 387, '✓'),
        ('new_parameters', 128, None, '…'),
        ('new_parameters', 128, 384, '✗ 384: a layer has more than weights'),
        ('new_parameters', 128, 131, '✗ 131: each class looks at all'),
        ('new_parameters', 128, 16899, '✗ 16899: only one layer is new'),
        ('recalls', CONFUSION, [0.6, 0.7, 0.8], '✓ 0.600, 0.700, 0.800'),
        ('recalls', CONFUSION, None, '…'),
        ('recalls', CONFUSION, [0.6, 0.7, 0.8][:2], '✗ shape'),
        ('recalls', CONFUSION, [0.2, 7 / 30, 8 / 30], '✗.*of all pairs'),
        ('recalls', CONFUSION, [0.6, 0.7, 0.8][::-1], '✗ not the share'),
    ],
)
def test_values(capsys, check, about, answer, line):
    getattr(exercises, f'check_{check}')(answer, about)
    printed = capsys.readouterr().out
    assert printed.count('\n') == 1
    assert re.match(line, printed)


@pytest.mark.parametrize(
    ('name', 'line'),
    [
        ('dropout', '✓'),
        (None, '…'),
        ('num_blks', '✗ num_blks: ignored'),
        ('max_len', '✗ max_len: both tabs pass it on'),
        ('lr', "✗ 'lr' is not an argument"),
    ],
)
def test_suspect(capsys, name, line):
    exercises.check_suspect(name)
    assert capsys.readouterr().out.startswith(line)


def test_recalls_are_not_precisions(capsys):
    confusion = np.array([[6, 3, 1], [1, 8, 1], [2, 0, 8]])
    exercises.check_recalls(
        np.diag(confusion) / confusion.sum(axis=0), confusion
    )
    assert re.match('✗.*what was answered', capsys.readouterr().out)
