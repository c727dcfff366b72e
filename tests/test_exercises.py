"""The checks of the notebooks tell right answers from wrong ones."""

import math
import random
import re

import numpy as np
import pytest

from d2lbert.classroom import exercises


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
