"""The representations of texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from backends.base import PRECISIONS
from backends.groups import ALONE, Group
from d2lbert.bert import BERTModel, HasEncoder
from d2lbert.data.examples import join_pair
from d2lbert.data.vocab import CLS, PAD, SEP, Vocab
from d2lbert.errors import (
    InputError,
    RunError,
    check_choice,
    check_positive,
    input_errors,
)

Text = str | tuple[str, str]

#: So many tokens at a time keep a device busy; more only take memory.
TOKENS_AT_A_TIME = 4096


def represent(
    net: BERTModel,
    vocab: Vocab,
    texts: Sequence[Text],
    batch_size: int | None = None,
    group: Group = ALONE,
    precision: str = 'float32',
) -> list[np.ndarray]:
    """Return BERT's representation of every token of many texts.

    `texts`: sentences, or pairs of them, whose words are separated by
    spaces; upper case does not matter. The vocabulary splits words into
    tokens where it has pieces of words. The network is in evaluation mode
    meanwhile, and serves one caller at a time. `batch_size`: how many texts
    go through it at a time, by default as many as keep the device busy.
    `group`: the processes that share the texts, from
    `d2lbert.runs.processes.joined`; each gives all texts and gets all arrays.
    `precision`: `'bf16'` is faster and inexact, `'tf32'` on a CUDA card too.

    Returns a float32 array `(num_tokens, num_hiddens)` for each text, where
    the tokens are those of `to_tokens`: `<cls>`, the words, `<sep>`.

    Raises `InputError` for a text that is empty, too long for the network,
    or all unknown words, for a vocabulary that is not the network's, and for
    a precision that its framework does not have on its device;
    `RunError` where the network gives numbers that are not finite;
    `InputError` where a process has other texts or another network than rank
    0, and `GroupError` where one does not answer.
    """
    check_precision(net, precision)
    encoded, batches = encode_texts(net, vocab, texts, batch_size)
    inputs = (
        encoder_inputs(net, [encoded[i] for i in batch], vocab[PAD])
        for batch in batches
    )
    if group.size == 1:
        arrays = encode(net, inputs, precision)
    else:
        check_same(net, encoded, batches, group)
        arrays = encode_together(net, list(inputs), group, precision)
    results: list[Any] = [None] * len(encoded)
    for batch, array in zip(batches, arrays, strict=True):
        for row, i in enumerate(batch):
            results[i] = array[row, : len(encoded[i][0])]
    return results


def encode_texts(
    net: BERTModel,
    vocab: Vocab,
    texts: Iterable[Text],
    batch_size: int | None = None,
) -> tuple[list[tuple[list[int], list[int]]], list[list[int]]]:
    """Return `encode_text` of each text, and which ones go together.

    Raises the errors of `represent` for bad texts, another vocabulary and a
    `batch_size` below 1.
    """
    if isinstance(texts, str):
        raise InputError(
            f'texts = {texts!r}: expected a list of texts; '
            'put the one text into a list'
        )
    if batch_size is not None:
        check_positive(batch_size=batch_size)
    check_vocab_size(net, len(vocab))
    encoded = [encode_text(net, vocab, text) for text in texts]
    batches = batches_of(
        [len(tokens) for tokens, _ in encoded], TOKENS_AT_A_TIME, batch_size
    )
    return encoded, batches


def evaluate_in_turn(
    net: HasEncoder, inputs: Iterable[Sequence[np.ndarray]]
) -> Iterator[Any]:
    """Yield what `Backend.evaluate` returns for each of some inputs.

    So many at a time as there are cores: the outputs of all could be more
    than the memory has.
    """
    inputs = iter(inputs)
    while some := list(islice(inputs, net.backend.num_cores())):
        yield from net.backend.evaluate(net, some)


def check_precision(net: HasEncoder, precision: str) -> None:
    """Raise `InputError` for a precision that a network cannot have."""
    check_choice('precision', precision, PRECISIONS)
    if precision != 'float32':  # which every device has
        with input_errors():
            net.backend.evaluate(net.encoder, [], precision)


def encode(
    net: BERTModel,
    inputs: Iterable[Sequence[np.ndarray]],
    precision: str = 'float32',
) -> list[np.ndarray]:
    """Return what the encoder gives for each of some `encoder_inputs`.

    Raises `RunError` for numbers that are not finite.
    """
    arrays = net.backend.evaluate(net.encoder, inputs, precision)
    for X in arrays:
        check_finite(X, 'representations')
    return arrays


def check_finite(X: np.ndarray, what: str) -> None:
    """Raise `RunError` where what a network gives is not finite."""
    if not np.isfinite(X).all():
        raise RunError(
            f'the {what} are not finite: the parameters of the '
            'network are too large or not finite themselves, as after a '
            'training that diverged; train again with a smaller --lr'
        )


def encode_together(
    net: BERTModel,
    inputs: Sequence[Sequence[np.ndarray]],
    group: Group,
    precision: str,
) -> list[np.ndarray]:
    """Return what `encode` does; each process computes its share of it."""
    own = encode(net, inputs[group.rank :: group.size], precision)
    # One without a batch has nothing to tell
    width = max(group.gather(own[0].shape[-1] if own else 0))
    arrays = []
    for i, (tokens, *_) in enumerate(inputs):
        X = np.zeros((*tokens.shape, width), np.float32)
        if i % group.size == group.rank:
            X[...] = own[i // group.size]
        group.all_reduce([X])
        arrays.append(X)
    return arrays


def check_same(
    net: BERTModel, encoded: object, batches: object, group: Group
) -> None:
    """Raise `InputError` where a process has other texts or weights."""
    found = hashlib.sha256(repr((encoded, batches)).encode())
    for name, X in net.backend.get_parameters(net).items():
        found.update(name.encode() + np.ascontiguousarray(X).tobytes())
    first, *others = group.gather(found.hexdigest())
    for rank, other in enumerate(others, 1):
        if other != first:
            raise InputError(
                f'rank {rank} has other texts, or another network, than '
                'rank 0: give all ranks the same texts and the same run'
            )


def to_tokens(
    text: Text, vocab: Vocab | None = None
) -> tuple[list[str], list[int]]:
    """Return the tokens of a sentence or a pair, and their segments.

    They are words where no vocabulary is given.
    """
    tokenize = (vocab or Vocab()).tokenize
    sentences = (text,) if isinstance(text, str) else text
    # A list of two could be the words of one sentence
    is_known = isinstance(sentences, tuple) and len(sentences) in (1, 2)
    if not is_known or not all(isinstance(one, str) for one in sentences):
        raise InputError(
            f'{text!r}: expected a sentence, its words separated by spaces, '
            'or a tuple of two sentences'
        )
    tokens = [tokenize(sentence) for sentence in sentences]
    if not all(tokens):
        raise InputError(
            f'{text!r} has no words: give a sentence of one word or more'
        )
    return join_pair(
        tokens[0], tokens[1] if len(tokens) == 2 else None, CLS, SEP
    )


def encode_text(
    net: HasEncoder, vocab: Vocab, text: Text
) -> tuple[list[int], list[int]]:
    """Return the indices of the tokens of a text, and their segments.

    Raises `InputError` for a text without a known word, and for one that is
    longer than the positions of the network.
    """
    tokens, segments = to_tokens(text, vocab)
    indices = vocab[tokens]
    if {vocab.unk, vocab[CLS], vocab[SEP]}.issuperset(indices):
        raise InputError(
            f'no word of {text!r} is in the vocabulary of {len(vocab):,} '
            'tokens: use words of the corpus, separated by spaces'
        )
    too_many = len(tokens) - net.max_len
    if too_many > 0:
        raise InputError(
            f'a text of {len(tokens)} tokens, {text!r:.40}…, is longer than '
            f'the {net.max_len} positions of the network: cut {too_many} '
            'words or more'
        )
    return indices, segments


def check_vocab_size(net: HasEncoder, vocab_size: int) -> None:
    """Raise `InputError` where a network has another vocabulary."""
    if vocab_size != net.vocab_size:
        raise InputError(
            f'vocab_size = {vocab_size}: this network has {net.vocab_size} '
            'tokens; give it the vocabulary that it was made for'
        )


def batches_of(
    lens: Sequence[int], num_tokens: int, batch_size: int | None
) -> list[list[int]]:
    """Return which texts go through the network together.

    Texts of similar length, so that little is padding: as many as give
    `num_tokens` tokens, padding included, but at least one, or `batch_size`.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lens)), key=lens.__getitem__):
        if not batches or len(batches[-1]) >= (
            batch_size or num_tokens // lens[i]
        ):
            batches.append([])
        batches[-1].append(i)
    return batches


def encoder_inputs(
    net: HasEncoder,
    encoded: Sequence[tuple[list[int], list[int]]],
    pad: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return texts as one padded batch of B rows of T tokens.

    The arguments of `BERTEncoder.forward`: tokens `(B, T)`, segments
    `(B, T)` and valid lengths `(B,)`. Where each shape is compiled, B and T
    are powers of two, or T all positions of `net`; the rows after the last
    text are padding.
    """
    num_rows, num_tokens = len(encoded), max(len(one) for one, _ in encoded)
    if net.backend.compiles:
        num_rows = power_of_two(num_rows)
        num_tokens = min(power_of_two(num_tokens), net.max_len)
    shape = num_rows, num_tokens
    tokens, segments = np.full(shape, pad), np.zeros(shape, int)
    valid_lens = np.ones(num_rows, np.float32)
    valid_lens[: len(encoded)] = [len(one) for one, _ in encoded]
    for row, (its_tokens, its_segments) in enumerate(encoded):
        tokens[row, : len(its_tokens)] = its_tokens
        segments[row, : len(its_tokens)] = its_segments
    return tokens, segments, valid_lens


def power_of_two(number: int) -> int:
    """Return the least power of two that is `number` or more."""
    return 1 << (number - 1).bit_length()
