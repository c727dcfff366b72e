"""The helper functions of the chapter's dataset section, by their names.

They work on lists of words and draw from Python's global `random`, as a
reader of the section expects; `d2lbert.data.examples` does the work.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, MutableSequence, Sequence
from itertools import chain
from typing import Any

import numpy as np

from d2lbert.data import examples
from d2lbert.data.corpus import read_lines
from d2lbert.data.examples import Batch
from d2lbert.data.vocab import CLS, MASK, PAD, SEP, Vocab
from d2lbert.errors import InputError

Sentence = list[str]
Paragraph = Sequence[Sentence]


def tokenize(lines: Iterable[str], token: str = 'word') -> list[list[str]]:
    """Split each line into its words, or with `'char'` its characters."""
    if token not in ('word', 'char'):
        raise InputError(f"token = {token!r}: expected 'word' or 'char'")
    return [line.split() if token == 'word' else list(line) for line in lines]


def get_tokens_and_segments(
    tokens_a: Sentence, tokens_b: Sentence | None = None
) -> tuple[list[str], list[int]]:
    """Return BERT's input for one list of words or two, and its segments.

    `['<cls>', *tokens_a, '<sep>', *tokens_b, '<sep>']`, and 0 up to the
    first `<sep>`, 1 after it.
    """
    for tokens in (tokens_a, tokens_b):
        if isinstance(tokens, str):
            raise InputError(
                f'expected a list of tokens, got the string {tokens!r}: '
                'call its split()'
            )
    return examples.join_pair(tokens_a, tokens_b, CLS, SEP)


def _read_wiki(
    data_dir: str | os.PathLike = 'wikitext-2',
) -> list[list[str]]:
    """Return the sentences of each paragraph of a folder's corpus, shuffled.

    `data_dir`: a folder with `wiki.train.tokens`, or any other corpus that
    `d2lbert.data.corpus.read_lines` reads.
    """
    paragraphs = examples.read_paragraphs(read_lines(data_dir))
    random.shuffle(paragraphs)
    return paragraphs


def _get_next_sentence(
    sentence: Sentence, next_sentence: Sentence, paragraphs: list[Paragraph]
) -> tuple[Sentence, Sentence, bool]:
    """Return a pair of sentences and whether the second follows."""
    return examples.next_sentence(sentence, next_sentence, paragraphs, random)


def _get_nsp_data_from_paragraph(
    paragraph: Paragraph,
    paragraphs: list[Paragraph],
    vocab: Vocab,
    max_len: int,
) -> list[tuple[list[str], list[int], bool]]:
    """Return tokens, segments and whether B follows A for each sentence.

    Pairs that do not fit `max_len` with their special tokens are dropped.
    """
    pairs = (
        (*get_tokens_and_segments(tokens_a, tokens_b), is_next)
        for tokens_a, tokens_b, is_next in examples.next_sentences(
            paragraph, paragraphs, random
        )
    )
    return [pair for pair in pairs if len(pair[0]) <= max_len]


def _replace_mlm_tokens(
    tokens: Sentence,
    candidate_pred_positions: MutableSequence[int],
    num_mlm_preds: int,
    vocab: Vocab,
) -> tuple[list[str], list[tuple[int, str]]]:
    """Return the tokens with some replaced, and what was where.

    The second result has a pair of position and true token for each
    prediction, in the order in which they were drawn; the candidates are
    shuffled in place.
    """
    masked = list(tokens)
    examples.shuffle(candidate_pred_positions, random)
    positions = candidate_pred_positions[:num_mlm_preds]
    for i in positions:
        masked[i] = examples.replacement(
            tokens[i], MASK, vocab.idx_to_token, random
        )
    return masked, [(i, tokens[i]) for i in positions]


def _get_mlm_data_from_tokens(
    tokens: Sentence, vocab: Vocab
) -> tuple[list[int], list[int], list[int]]:
    """Return masked input indices, predicted positions, true indices."""
    candidates = [
        i for i, token in enumerate(tokens) if token not in (CLS, SEP)
    ]
    masked, predictions = _replace_mlm_tokens(
        tokens, candidates, examples.num_predictions(len(tokens)), vocab
    )
    predictions.sort()
    return (
        vocab[masked],
        [i for i, _ in predictions],
        vocab[[token for _, token in predictions]],
    )


def pad_bert_inputs(
    data: Sequence[tuple[list[int], list[int], list[int], list[int], bool]],
    max_len: int,
    vocab: Vocab,
) -> Batch:
    """Pad examples to `max_len` and stack them, in NumPy.

    An example is its masked tokens, predicted positions, true tokens there,
    segments and whether the second sentence follows.
    """
    columns: Any = ([example[i] for example in data] for i in range(5))
    tokens, positions, labels, segments, is_next = columns
    slots = examples.num_slots(max_len)
    weights = [[1] * len(row) for row in positions]
    return Batch(
        _pad(tokens, max_len, vocab[PAD]),
        _pad(segments, max_len),
        np.array(list(map(len, tokens)), np.float32),
        _pad(positions, slots),
        _pad(weights, slots).astype(np.float32),
        _pad(labels, slots),
        np.array(is_next, np.int32),
    )


def _pad(
    rows: Sequence[Sequence[int]], width: int, padding: int = 0
) -> np.ndarray:
    values, lengths = list(chain.from_iterable(rows)), list(map(len, rows))
    return examples.padded(values, lengths, width, padding)
