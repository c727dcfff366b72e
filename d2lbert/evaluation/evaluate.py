"""How well a network predicts text, beside what less knowledge gives.

The network runs in its framework and gives logits. All else is computed in
NumPy, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import tee
from typing import Any

import numpy as np

from backends.groups import ALONE, Group
from d2lbert.bert import BERTModel
from d2lbert.data.cache import Progress, Silence
from d2lbert.data.checks import check_batch
from d2lbert.data.examples import Batch, Examples
from d2lbert.data.vocab import Vocab
from d2lbert.errors import RunError, check_positive
from d2lbert.evaluation.levels import (
    TOP,
    Answers,
    Frequencies,
    Scores,
    answers_of,
    chance,
    frequent,
)
from d2lbert.representation import evaluate_in_turn

#: The measures, and whether more is better.
MEASURES = {
    'mlm_loss': False,
    'perplexity': False,
    'mlm_accuracy': True,
    'mlm_top5': True,
    'nsp_loss': False,
    'nsp_accuracy': True,
}
TITLES = {
    'mlm_loss': 'MLM loss',
    'perplexity': 'perplexity',
    'mlm_accuracy': 'MLM accuracy',
    'mlm_top5': 'MLM in top 5',
    'nsp_loss': 'NSP loss',
    'nsp_accuracy': 'NSP accuracy',
}
#: So many logits over the vocabulary exist at a time, for each core.
NUM_LOGITS = 1 << 22

#: The numbers of some rows, and the rows.
Chunk = tuple[np.ndarray, Batch]


@dataclass(frozen=True)
class Evaluation:
    """What a network scores on a text.

    `network`, `chance`, `frequencies`: the scores of each, by the names of
    `MEASURES`; `standard_errors`: those of the network's scores, without
    the perplexity; `errors_above`: by how many standard errors the network
    is better than a level, by level and measure.
    """

    backend: str
    split: str
    num_pairs: int
    num_predictions: int
    network: Mapping[str, float]
    chance: Mapping[str, float]
    frequencies: Mapping[str, float]
    standard_errors: Mapping[str, float]
    errors_above: Mapping[str, Mapping[str, float]]

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON.

        A number that is not finite is `None`: JSON has none such.
        """
        return {
            'backend': self.backend,
            'split': self.split,
            'num_pairs': self.num_pairs,
            'num_predictions': self.num_predictions,
            **finite_or_none(self.network),
            'chance': finite_or_none(self.chance),
            'frequencies': finite_or_none(self.frequencies),
            'standard_errors': finite_or_none(self.standard_errors),
            'errors_above': {
                level: finite_or_none(above)
                for level, above in self.errors_above.items()
            },
        }

    def table(self) -> str:
        """Return a line for each measure, and a heading."""
        heading = '', 'network', 'chance', '', 'word frequencies', ''
        rows: list[tuple[str, ...]] = [heading]
        for name, title in TITLES.items():
            cells = [title, number(name, self.network[name])]
            for level, above in self.errors_above.items():
                cells += [
                    number(name, getattr(self, level)[name]),
                    f'({above[name]:+.1f} SE)',
                ]
            rows.append(tuple(cells))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            '  '.join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(
                    zip(row, widths, strict=True)
                )
            ).rstrip()
            for row in rows
        )
        return '\n'.join(lines)


class Evaluator:
    """Evaluates networks on the same examples.

    `frequencies`: those of the training examples; `split`: what to call the
    text.
    """

    def __init__(
        self,
        examples: Examples,
        vocab: Vocab,
        frequencies: Frequencies,
        split: str,
    ) -> None:
        self.examples = examples
        self.split = split
        self.answers = answers_of(examples)
        self.levels = {
            'chance': chance(len(vocab)),
            'frequencies': frequent(frequencies, self.answers),
        }

    def evaluate(
        self,
        net: BERTModel,
        batch_size: int | None = None,
        progress: Progress | None = None,
        group: Group = ALONE,
    ) -> Evaluation:
        """Return what a network of any tab scores, in evaluation mode.

        `batch_size`: the most rows that go through it at a time; they are
        fewer where there would be more than `NUM_LOGITS` logits; `progress`:
        is told how many pairs are done; `group`: the processes that share
        the examples, each of which gets all numbers.

        Raises `InputError` for a network that does not fit the examples, and
        `RunError` for losses that are not finite.
        """
        if batch_size is not None:
            check_positive(batch_size=batch_size)
        chunks = chunks_of(net, self.examples, batch_size, group)
        with (progress or Silence()).bar(
            f'evaluation on {self.split}', self.examples.num_examples, 'pair'
        ) as show:
            scores = score(net, chunks, self.answers, show, group)
        if not all(np.isfinite(values).all() for values in scores):
            raise RunError(
                'the losses are not finite: the parameters of the network '
                'are too large or not finite themselves, as after a training '
                'that diverged; train again with a smaller --lr'
            )
        above = {
            name: errors_above(scores, level, self.answers)
            for name, level in self.levels.items()
        }
        return Evaluation(
            net.backend.name,
            self.split,
            len(self.answers.nsp_labels),
            len(self.answers.mlm_labels),
            means(scores),
            **{name: means(level) for name, level in self.levels.items()},
            standard_errors=standard_errors(scores, self.answers),
            errors_above=above,
        )


# ---- the network -----------------------------------------------------


def score(
    net: BERTModel,
    chunks: Iterator[Chunk],
    answers: Answers,
    show: Callable[[int], None] = lambda num_done: None,
    group: Group = ALONE,
) -> Scores:
    """Return what a network scores for each answer.

    `chunks`, `group`: see `chunks_of`; `show`: is called with how many rows
    are done.
    """
    num_pairs = len(answers.nsp_labels)
    slots = num_pairs, 1 + answers.slots.max(initial=0)
    mlm_loss, mlm_ranks = np.zeros(slots), np.zeros(slots)
    nsp_loss, nsp_ranks = np.zeros(num_pairs), np.zeros(num_pairs)
    num_done = 0
    chunks, again = tee(chunks)
    outputs = evaluate_in_turn(
        net, (inputs_of(net, batch) for _, batch in again)
    )
    for (rows, batch), (_, mlm_Y_hat, nsp_Y_hat) in zip(
        chunks, outputs, strict=True
    ):
        row, slot = np.nonzero(batch.mlm_weights)
        asked = rows[row], slot
        mlm_loss[asked], mlm_ranks[asked] = cross_entropies(
            mlm_Y_hat[row, slot], batch.mlm_labels[row, slot]
        )
        nsp_loss[rows], nsp_ranks[rows] = cross_entropies(
            nsp_Y_hat, batch.nsp_labels
        )
        num_done += len(rows) * group.size
        show(min(num_done, num_pairs))
    # What another process has computed is zero here
    group.all_reduce([mlm_loss, mlm_ranks, nsp_loss, nsp_ranks])
    asked = answers.rows, answers.slots
    return Scores(
        mlm_loss[asked],
        (mlm_ranks[asked] == 0).astype(float),
        (mlm_ranks[asked] < TOP).astype(float),
        nsp_loss,
        (nsp_ranks == 0).astype(float),
    )


def chunks_of(
    net: BERTModel,
    examples: Examples,
    batch_size: int | None,
    group: Group = ALONE,
) -> Iterator[Chunk]:
    """Yield rows that go through a network together, and their numbers.

    `group`: the processes that share them; these are the rows of this one.

    Each has rows of similar length, cut to the longest, so that little is
    padding. Where each shape is compiled, all have one shape: the first rows
    come again in the last one.
    """
    lens = examples.column('valid_lens', slice(None))
    num_slots = examples.column('mlm_labels', slice(1)).shape[1]
    most = max(1, NUM_LOGITS // (num_slots * net.vocab_size))
    # Each process has some
    size = min(batch_size or most, most, math.ceil(len(lens) / group.size))
    order = np.argsort(-lens, kind='stable')
    for start in range(0, len(order), size)[group.rank :: group.size]:
        rows = order[start : start + size]
        if net.backend.compiles:
            rows = np.resize(rows, size)
        batch = examples.rows(rows)
        check_batch(batch, net.vocab_size, net.max_len)
        yield rows, batch


def inputs_of(net: BERTModel, batch: Batch) -> tuple[np.ndarray, ...]:
    """Return the arguments of `BERTModel.forward`."""
    tokens, segments, valid_lens, pred_positions, *_ = batch
    num_tokens = tokens.shape[1]
    if not net.backend.compiles:
        num_tokens = int(valid_lens.max())
    return (
        tokens[:, :num_tokens],
        segments[:, :num_tokens],
        valid_lens,
        pred_positions,
    )


def cross_entropies(
    logits: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the cross-entropy and the rank of each label, `(N,)` each.

    `logits`: `(N, num_classes)`; `labels`: `(N,)`. The rank of a class is
    how many have a larger logit, or an equal one and a smaller index, so
    that the class of rank 0 is that of `argmax`.
    """
    found = logits[np.arange(len(labels)), labels][:, None]
    largest = logits.max(axis=1, keepdims=True)
    with np.errstate(invalid='ignore'):  # the caller refuses NaN
        gaps = np.subtract(logits, largest, dtype=np.float64)
        losses = np.log(np.exp(gaps, out=gaps).sum(axis=1))
        losses += np.subtract(largest, found, dtype=np.float64)[:, 0]
    ranks = np.count_nonzero(logits > found, axis=1)
    rows, classes = np.nonzero(logits == found)
    np.add.at(ranks, rows, classes < labels[rows])
    return losses, ranks


# ---- statistics ------------------------------------------------------


def means(scores: Scores) -> dict[str, float]:
    """Return the mean of each measure, and the perplexity."""
    found = {
        name: float(np.mean(values))
        for name, values in scores._asdict().items()
    }
    with np.errstate(over='ignore'):
        perplexity = float(np.exp(found['mlm_loss']))
    return {
        name: perplexity if name == 'perplexity' else found[name]
        for name in MEASURES
    }


def standard_errors(scores: Scores, answers: Answers) -> dict[str, float]:
    """Return the standard error of the mean of each measure but perplexity.

    The examples are the independent draws: predictions of one example are
    not independent of each other.
    """
    each = np.arange(len(answers.nsp_labels))
    return {
        name: standard_error(
            values, answers.rows if name.startswith('mlm') else each
        )
        for name, values in scores._asdict().items()
    }


def standard_error(values: np.ndarray, rows: np.ndarray) -> float:
    """Return the standard error of the mean of values from some rows.

    That of a ratio estimator whose clusters are the rows (Cochran,
    "Sampling Techniques", 1977, chapter 6); NaN for a single row.
    """
    sums = np.bincount(rows, values - values.mean())
    num_rows = len(sums)
    if num_rows < 2:
        return math.nan
    variance = (sums**2).sum() * num_rows / (num_rows - 1)
    return float(np.sqrt(variance) / len(values))


def errors_above(
    scores: Scores, level: Scores, answers: Answers
) -> dict[str, float]:
    """Return by how many standard errors scores are better than a level.

    The error is that of the difference, answer by answer. Perplexity has
    that of the loss, whose exponential it is.
    """
    better = Scores(
        *(
            (ours - theirs) * (1 if MEASURES[name] else -1)
            for name, ours, theirs in zip(
                Scores._fields, scores, level, strict=True
            )
        )
    )
    errors = standard_errors(better, answers)
    found = {
        name: ratio(float(np.mean(values)), errors[name])
        for name, values in better._asdict().items()
    }
    return {
        name: found['mlm_loss' if name == 'perplexity' else name]
        for name in MEASURES
    }


def ratio(difference: float, error: float) -> float:
    """Return a difference in standard errors; equal scores are 0 apart."""
    if difference == 0:
        return 0.0
    if error == 0:
        return math.copysign(math.inf, difference)
    return difference / error


def finite_or_none(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Return numbers for JSON, `None` for one that is not finite."""
    return {
        name: value if math.isfinite(value) else None
        for name, value in scores.items()
    }


def number(name: str, value: float) -> str:
    """Return a score of a measure in text."""
    if name == 'perplexity':
        return f'{value:,.1f}'
    return f'{value:.2%}' if MEASURES[name] else f'{value:.4f}'
