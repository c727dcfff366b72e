"""What a network puts for masks, and which sentence it expects next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from d2lbert.bert import BERTModel
from d2lbert.data.vocab import MASK, PAD, Vocab
from d2lbert.errors import InputError, check_positive
from d2lbert.evaluation.evaluate import NUM_LOGITS
from d2lbert.representation import (
    Text,
    check_finite,
    encode_texts,
    encoder_inputs,
    evaluate_in_turn,
    power_of_two,
)


class Filling(NamedTuple):
    """The most probable tokens for the masks of one text.

    `tokens`: those of the text, `<cls>` and `<sep>` among them, where
    `<unk>` stands for an unknown word; `positions`: of the masks among
    them, int64 `(num_masks,)`; `candidates`: `top` tokens for each mask,
    the most probable first; `probabilities`: theirs, among all tokens of
    the vocabulary, float32 `(num_masks, top)`.
    """

    tokens: list[str]
    positions: np.ndarray
    candidates: list[list[str]]
    probabilities: np.ndarray


class Following(NamedTuple):
    """Whether second sentences follow the first ones.

    `follows`: the probability that it does, float32 `(num_pairs,)`;
    `does_not`: that it does not, of the same type and shape.
    """

    follows: np.ndarray
    does_not: np.ndarray


def fill(
    net: BERTModel,
    vocab: Vocab,
    texts: Sequence[Text],
    top: int = 5,
    batch_size: int | None = None,
) -> list[Filling]:
    """Return the most probable tokens for each `<mask>` of many texts.

    `texts`, `batch_size`: see `d2lbert.represent`; each text has one
    `<mask>` or more, which are filled independently of each other. Fewer go
    through at a time where there would be more than `NUM_LOGITS` logits. A
    mask stands for one token: a word, or a piece of a word where the
    vocabulary has pieces. `top`: how many tokens for each mask.

    Raises `InputError` for a text without a mask, a `top` that is not from
    1 to the number of tokens, and what `represent` refuses; `RunError` where
    the logits are not finite.
    """
    check_positive(top=top)
    if top > len(vocab):
        raise InputError(
            f'top = {top}: the vocabulary has {len(vocab)} tokens; '
            'ask for so many at most'
        )
    encoded, batches = encode_texts(net, vocab, texts, batch_size)
    places = [masks_of(tokens, vocab) for tokens, _ in encoded]
    batches = list(of_few_logits(batches, places, len(vocab)))

    def inputs(batch: Sequence[int]) -> tuple[np.ndarray, ...]:
        arrays = encoder_inputs(net, [encoded[i] for i in batch], vocab[PAD])
        return *arrays, padded(
            [places[i] for i in batch], len(arrays[0]), net.backend.compiles
        )

    results: list[Any] = [None] * len(encoded)
    outputs = evaluate_in_turn(net, map(inputs, batches))
    for batch, (_, logits, _) in zip(batches, outputs, strict=True):
        for row, i in enumerate(batch):
            its_logits = logits[row, : len(places[i])]
            check_finite(its_logits, 'logits')
            indices, probabilities = most_probable(its_logits, top)
            results[i] = Filling(
                [vocab.idx_to_token[j] for j in encoded[i][0]],
                np.array(places[i]),
                [[vocab.idx_to_token[j] for j in best] for best in indices],
                probabilities,
            )
    return results


def follows(
    net: BERTModel,
    vocab: Vocab,
    pairs: Sequence[tuple[str, str]],
    batch_size: int | None = None,
) -> Following:
    """Return whether the second sentence of each pair follows the first.

    `pairs`, `batch_size`: see the texts of `d2lbert.represent`. The
    probabilities are those of next sentence prediction.

    Raises `InputError` for what is not a pair and what `represent` refuses;
    `RunError` where the logits are not finite.
    """
    if not isinstance(pairs, str):
        pairs = list(pairs)
        for pair in pairs:
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise InputError(
                    f'{pair!r}: expected a tuple of two sentences'
                )
    encoded, batches = encode_texts(net, vocab, pairs, batch_size)
    probabilities = np.empty((len(encoded), 2), np.float32)
    inputs = (
        encoder_inputs(net, [encoded[i] for i in batch], vocab[PAD])
        for batch in batches
    )
    outputs = evaluate_in_turn(net, inputs)
    for batch, (_, _, logits) in zip(batches, outputs, strict=True):
        its_logits = logits[: len(batch)]
        check_finite(its_logits, 'logits')
        probabilities[batch] = softmax(its_logits)
    return Following(probabilities[:, 1], probabilities[:, 0])


def masks_of(tokens: Sequence[int], vocab: Vocab) -> list[int]:
    """Return the positions of the masks of a text.

    Raises `InputError` where it has none.
    """
    places = [i for i, token in enumerate(tokens) if token == vocab[MASK]]
    if not places:
        words = ' '.join(vocab.idx_to_token[i] for i in tokens)
        raise InputError(
            f'{words!r:.80} has no mask: write {MASK} for each word to '
            'find, with spaces around it'
        )
    return places


def of_few_logits(
    batches: Iterable[list[int]],
    places: Sequence[Sequence[int]],
    vocab_size: int,
) -> Iterator[list[int]]:
    """Yield batches cut so that none gives more than `NUM_LOGITS` logits.

    `batches`: the numbers of texts, one of them at least in each; `places`:
    the positions of the masks of each text.
    """
    for batch in batches:
        num_slots = max(len(places[i]) for i in batch)
        size = max(1, NUM_LOGITS // (num_slots * vocab_size))
        for start in range(0, len(batch), size):
            yield batch[start : start + size]


def padded(
    places: Sequence[Sequence[int]], num_rows: int, compiles: bool
) -> np.ndarray:
    """Return positions as one array `(num_rows, P)`, zeros where none is.

    P is the most that a text has, or where each shape is compiled the next
    power of two.
    """
    num_slots = max(map(len, places))
    if compiles:
        num_slots = power_of_two(num_slots)
    positions = np.zeros((num_rows, num_slots), int)
    for row, its_places in enumerate(places):
        positions[row, : len(its_places)] = its_places
    return positions


def most_probable(
    logits: np.ndarray, top: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return indices and probabilities of the largest logits of each row.

    `logits`: `(N, num_classes)`; both results: `(N, top)`.
    """
    indices = np.argsort(-logits, axis=1, kind='stable')[:, :top]
    return indices, np.take_along_axis(softmax(logits), indices, 1)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of each row, computed in float64, as float32."""
    exps = np.exp(logits - logits.max(1, keepdims=True).astype(float))
    return (exps / exps.sum(1, keepdims=True)).astype(np.float32)


def draw_filling(filling: Filling) -> Any:
    """Return a Matplotlib figure with bars for each mask of a text."""
    from matplotlib.figure import Figure

    num_masks, top = filling.probabilities.shape
    height = num_masks * (0.7 + 0.25 * top)
    figure = Figure((6, 0.6 + height), layout='constrained')
    title = ' '.join(filling.tokens)
    figure.suptitle(title, fontsize='medium', wrap=True, parse_math=False)
    panels = figure.subplots(num_masks, sharex=True, squeeze=False)[:, 0]
    bars = zip(filling.candidates, filling.probabilities, strict=True)
    for number, (axes, (words, values)) in enumerate(
        zip(panels, bars, strict=True), 1
    ):
        drawn = axes.barh(range(top), values)
        axes.bar_label(drawn, fmt='%.3f', padding=3)
        axes.set_yticks(range(top), words, parse_math=False)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.1)
        if num_masks > 1:
            axes.set_title(f'mask {number}', fontsize='medium')
    panels[-1].set_xlabel('probability')
    return figure
