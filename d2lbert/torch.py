"""The PyTorch tab: `from d2lbert import torch as d2l`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import data

from backends.torch import BACKEND, Module
from d2lbert import bert
from d2lbert.book import chapter
from d2lbert.book.animator import Accumulator, Animator, Timer
from d2lbert.book.editions import Spellings
from d2lbert.book.textbook import (
    _get_mlm_data_from_tokens,
    _get_next_sentence,
    _get_nsp_data_from_paragraph,
    _read_wiki,
    _replace_mlm_tokens,
    get_tokens_and_segments,
    pad_bert_inputs,
    tokenize,
)
from d2lbert.data.vocab import Vocab
from d2lbert.errors import InputError
from d2lbert.recipes import RECIPES, Recipe

num_gpus = BACKEND.num_gpus
try_gpu = BACKEND.try_gpu
try_all_gpus = BACKEND.try_all_gpus


class DotProductAttention(bert.DotProductAttention, Module):
    __doc__ = bert.DotProductAttention.__doc__


class MultiHeadAttention(bert.MultiHeadAttention, Module):
    __doc__ = bert.MultiHeadAttention.__doc__
    Attention = DotProductAttention


class PositionWiseFFN(bert.PositionWiseFFN, Module):
    __doc__ = bert.PositionWiseFFN.__doc__


class AddNorm(bert.AddNorm, Module):
    __doc__ = bert.AddNorm.__doc__


class TransformerEncoderBlock(bert.TransformerEncoderBlock, Module):
    __doc__ = bert.TransformerEncoderBlock.__doc__
    Attention = MultiHeadAttention
    FFN = PositionWiseFFN
    AddNorm = AddNorm


class BERTEncoder(Spellings, bert.BERTEncoder, Module):
    __doc__ = bert.BERTEncoder.__doc__
    Block = TransformerEncoderBlock


class MaskLM(bert.MaskLM, Module):
    __doc__ = bert.MaskLM.__doc__


class NextSentencePred(bert.NextSentencePred, Module):
    __doc__ = bert.NextSentencePred.__doc__


class BERTModel(Spellings, bert.BERTModel, Module):
    __doc__ = bert.BERTModel.__doc__
    Encoder = BERTEncoder
    MaskLM = MaskLM
    NextSentencePred = NextSentencePred


class _WikiTextDataset(chapter.WikiTextDataset, data.Dataset):
    __doc__ = chapter.WikiTextDataset.__doc__
    backend = BACKEND


def _pad_bert_inputs(
    examples: Any, max_len: int, vocab: Vocab
) -> tuple[Any, ...]:
    """Pad examples to `max_len`: seven native arrays, a row for each."""
    return tuple(
        map(BACKEND.tensor, pad_bert_inputs(examples, max_len, vocab))
    )


def load_data_wiki(
    batch_size: int, max_len: int, corpus: str = 'wikitext-2'
) -> tuple[chapter.TrainIter, Vocab]:
    """Return the minibatches of a corpus and its vocabulary.

    `batch_size`: examples a minibatch; `max_len`: tokens an example;
    `corpus`: see `d2lbert.data.corpus.read_lines`. Python's `random`
    decides the examples, as in the textbook.
    """
    return chapter.load_data_wiki(
        _WikiTextDataset, batch_size, max_len, corpus
    )


def _get_batch_loss_bert(
    net: nn.Module,
    loss: nn.Module,
    vocab_size: int,
    tokens_X: torch.Tensor,
    segments_X: torch.Tensor,
    valid_lens_x: torch.Tensor,
    pred_positions_X: torch.Tensor,
    mlm_weights_X: torch.Tensor,
    mlm_Y: torch.Tensor,
    nsp_y: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a batch's loss of each task, and their sum.

    With `loss = nn.CrossEntropyLoss()` the first is averaged before the
    weights apply: over all slots, padding included, as the chapter has it.
    With `reduction='none'` it is the mean over the real predictions.
    """
    _, mlm_Y_hat, nsp_Y_hat = net(
        tokens_X, segments_X, valid_lens_x.reshape(-1), pred_positions_X
    )
    weights = mlm_weights_X.reshape(-1)
    losses = loss(mlm_Y_hat.reshape(-1, vocab_size), mlm_Y.reshape(-1))
    # The constant keeps a batch without any prediction from being 0 / 0
    mlm_l = (losses * weights).sum() / (weights.sum() + 1e-8)
    nsp_l = loss(nsp_Y_hat, nsp_y).mean()
    return mlm_l, nsp_l, mlm_l + nsp_l


def train_bert(
    train_iter: Iterable[Any],
    net: nn.Module,
    loss: nn.Module,
    vocab_size: int,
    devices: Sequence[torch.device] | None = None,
    num_steps: int | None = None,
    *older: int,
    ctx: Sequence[torch.device] | None = None,
    log_interval: int | None = None,
    precision: str = 'float32',
) -> None:
    """Pretrain BERT, plotting both losses, and print the chapter's lines.

    `train_iter`, `vocab_size`: from `load_data_wiki`; `net`: a `BERTModel`,
    which may be inside of `nn.DataParallel`; `loss`:
    `nn.CrossEntropyLoss()`, the chapter's, or one with `reduction='none'`,
    which leaves padding out; `devices`: a shard of each batch for each;
    `num_steps`: how many batches to train on; `precision`: `'tf32'` and
    `'bf16'` are faster on CUDA cards, and inexact.

    The edition of 2020 calls the devices `ctx`, takes `log_interval` before
    `num_steps`, and learns at 0.001 instead of 0.01.
    """
    net = net.module if isinstance(net, nn.DataParallel) else net
    chapter.train_bert(
        train_iter, net, _recipe_of(loss), vocab_size, devices, num_steps,
        *older, ctx=ctx, log_interval=log_interval, precision=precision,
    )  # fmt: skip


def _recipe_of(loss: nn.Module) -> Recipe:
    """Return the recipe that a loss object stands for."""
    plain = type(loss) is nn.CrossEntropyLoss and (
        loss.weight is None
        and loss.ignore_index == -100
        and loss.label_smoothing == 0
    )
    if plain and loss.reduction == 'none':
        return RECIPES['corrected']
    if plain and loss.reduction == 'mean':
        warnings.warn(
            'nn.CrossEntropyLoss() averages the masked language modelling '
            'loss over padding too, as the chapter prints it; reduction='
            "'none' leaves padding out (README: why the book prints 7.3 and "
            '5.2)',
            stacklevel=3,
        )
        return RECIPES['pytorch']
    raise InputError(
        f'loss = {loss!r}: expected nn.CrossEntropyLoss(), or with '
        "reduction='none'; for another loss write the loop yourself, with "
        '_get_batch_loss_bert'
    )


def get_bert_encoding(
    net: nn.Module,
    tokens_a: list[str],
    tokens_b: list[str] | None = None,
    vocab: Vocab | None = None,
) -> torch.Tensor:
    """Return BERT's encoding of one list of words or two, `(1, T, H)`.

    The T tokens are `<cls>`, the words and a `<sep>` after each list.
    `vocab`: by default the one that `load_data_wiki` has made last.
    """
    net = net.module if isinstance(net, nn.DataParallel) else net
    return chapter.get_bert_encoding(net, tokens_a, tokens_b, vocab)
