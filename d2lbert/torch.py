"""The PyTorch tab: `from d2lbert import torch as d2l`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import data

from backends.torch import BACKEND, Module
from backends.types import Device
from d2lbert import bert, classifier
from d2lbert.book import ch13, chapter, nli, transformer
from d2lbert.book.animator import Accumulator, Animator, Timer
from d2lbert.book.editions import Spellings, check_implied_sizes
from d2lbert.book.hub import (
    DATA_HUB,
    DATA_URL,
    download,
    download_extract,
    extract,
    get_dataloader_workers,
)
from d2lbert.book.nli import read_snli, truncate_pad
from d2lbert.book.textbook import (
    _get_mlm_data_from_tokens,
    _get_next_sentence,
    _get_nsp_data_from_paragraph,
    _read_wiki,
    _replace_mlm_tokens,
    get_tokens_and_segments,
    tokenize,
)
from d2lbert.data.vocab import Vocab
from d2lbert.errors import InputError
from d2lbert.recipes import RECIPES, Recipe

num_gpus = BACKEND.num_gpus
try_gpu = BACKEND.try_gpu
try_all_gpus = BACKEND.try_all_gpus
masked_softmax = BACKEND.masked_softmax


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


class EncoderBlock(TransformerEncoderBlock):
    """`TransformerEncoderBlock` with the arguments of editions before 1.0.

    Raises `InputError` for a size of the input that is not `num_hiddens`.
    """

    def __init__(
        self,
        key_size: int,
        query_size: int,
        value_size: int,
        num_hiddens: int,
        norm_shape: Any,
        ffn_num_input: int,
        ffn_num_hiddens: int,
        num_heads: int,
        dropout: float,
        use_bias: bool = False,
    ) -> None:
        check_implied_sizes(
            num_hiddens,
            key_size=key_size,
            query_size=query_size,
            value_size=value_size,
            norm_shape=norm_shape,
            ffn_num_input=ffn_num_input,
        )
        super().__init__(
            num_hiddens, ffn_num_hiddens, num_heads, dropout, use_bias
        )


class PositionalEncoding(transformer.PositionalEncoding, Module):
    __doc__ = transformer.PositionalEncoding.__doc__
    DEVICE = 'device'


class TransformerEncoder(transformer.TransformerEncoder, Module):
    __doc__ = transformer.TransformerEncoder.__doc__
    Block = TransformerEncoderBlock
    PositionalEncoding = PositionalEncoding


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


class BERTClassifier(classifier.BERTClassifier, Module):
    __doc__ = classifier.BERTClassifier.__doc__


class _WikiTextDataset(chapter.WikiTextDataset, data.Dataset):
    __doc__ = chapter.WikiTextDataset.__doc__
    backend = BACKEND


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


def _recipe_of(loss: nn.Module) -> Recipe:
    """Return the recipe that a loss object stands for."""
    given = repr(loss)
    if type(loss) is nn.CrossEntropyLoss:
        changed = _changed_arguments(loss)
        if not changed:
            warnings.warn(
                'nn.CrossEntropyLoss() averages the masked language '
                'modelling loss over padding too, as the chapter prints it; '
                "reduction='none' leaves padding out (README: why the book "
                'prints 7.3 and 5.2)',
                stacklevel=3,
            )
            return RECIPES['pytorch']
        if changed == ["reduction='none'"]:
            return RECIPES['corrected']
        given = f'nn.CrossEntropyLoss({", ".join(changed)})'
    raise InputError(
        f"loss = {given}: expected nn.CrossEntropyLoss(), or with reduction='"
        "none'; for another loss write the loop yourself, with "
        '_get_batch_loss_bert'
    )


def _changed_arguments(loss: nn.CrossEntropyLoss) -> list[str]:
    """Return the arguments of a loss that are not the default ones."""
    values = {
        name: getattr(loss, name)
        for name in ('ignore_index', 'reduction', 'label_smoothing')
    }
    default = nn.CrossEntropyLoss()
    changed = [
        f'{name}={value!r}'
        for name, value in values.items()
        if value != getattr(default, name)
    ]
    return changed if loss.weight is None else ['weight=…', *changed]


_functions = chapter.Functions(_WikiTextDataset, _recipe_of)
cpu = _functions.cpu
gpu = _functions.gpu
_pad_bert_inputs = _functions.pad_bert_inputs
load_data_wiki = _functions.load_data_wiki
train_bert = _functions.train_bert
get_bert_encoding = _functions.get_bert_encoding

# ---- natural language inference --------------------------------------

#: Returns how many predictions are right, `y_hat` `(N, C)`, `y` `(N,)`.
accuracy = partial(ch13.accuracy, BACKEND)


class SNLIDataset(nli.SNLIDataset, data.Dataset):
    __doc__ = nli.SNLIDataset.__doc__
    backend = BACKEND


class SNLIBERTDataset(nli.SNLIBERTDataset, data.Dataset):
    __doc__ = nli.SNLIBERTDataset.__doc__
    backend = BACKEND


def _loader(dataset: Any, batch_size: int, shuffle: bool) -> data.DataLoader:
    return data.DataLoader(
        dataset, batch_size, shuffle, num_workers=get_dataloader_workers()
    )


_nli = nli.Functions(BERTModel, SNLIDataset, _loader)
load_data_snli = _nli.load_data_snli
load_pretrained_model = _nli.load_pretrained_model


def _to(X: Any, device: Device) -> Any:
    """Return the features of a batch, an array or a list, on a device."""
    if isinstance(X, (list, tuple)):
        return [x.to(device) for x in X]
    return X.to(device)


def split_batch(
    X: torch.Tensor, y: torch.Tensor, devices: Sequence[Device]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return a part of the features and of the labels for each device."""
    if len(X) != len(y):
        raise InputError(f'{len(X)} rows of features for {len(y)} labels')
    parts = (
        zip(array.chunk(len(devices)), devices, strict=False)
        for array in (X, y)
    )
    X_shards, y_shards = (
        [part.to(device) for part, device in pairs] for pairs in parts
    )
    return X_shards, y_shards


def evaluate_accuracy_gpu(
    net: nn.Module, data_iter: Any, device: Device = None
) -> float:
    """Return the share of a set's labels that a network predicts.

    `device`: by default that of the first parameter. The network is then in
    evaluation mode.
    """
    net.eval()
    device = device or next(iter(net.parameters())).device
    num_right, num_labels = 0.0, 0
    with torch.no_grad():
        for X, y in data_iter:
            num_right += accuracy(net(_to(X, device)), y)
            num_labels += y.numel()
    return num_right / num_labels


def train_batch_ch13(
    net: nn.Module,
    X: Any,
    y: torch.Tensor,
    loss: nn.Module,
    trainer: torch.optim.Optimizer,
    devices: Sequence[Device],
) -> tuple[torch.Tensor, float]:
    """Take a step; return the sum of the losses and how many were right.

    `X`: an array, or a list of arrays; `loss`: with `reduction='none'`. The
    gradient is that of the sum.
    """
    X, y = _to(X, devices[0]), y.to(devices[0])
    net.train()
    trainer.zero_grad()
    y_hat = net(X)
    loss_sum = loss(y_hat, y).sum()
    loss_sum.backward()
    trainer.step()
    return loss_sum.detach(), accuracy(y_hat.detach(), y)


def train_ch13(
    net: nn.Module,
    train_iter: Any,
    test_iter: Any,
    loss: nn.Module,
    trainer: torch.optim.Optimizer,
    num_epochs: int,
    devices: Sequence[Device] | None = None,
) -> None:
    """Train a classifier, plot its curves and print the book's two lines.

    `devices`: a shard of each batch for each, by default all GPUs;
    `loss`: with `reduction='none'`.
    """
    devices = devices or try_all_gpus()
    if len(devices) > 1:
        net = nn.DataParallel(net, device_ids=list(devices))
    net = net.to(devices[0])
    ch13.train(
        train_iter,
        num_epochs,
        devices,
        lambda X, y: train_batch_ch13(net, X, y, loss, trainer, devices),
        lambda: evaluate_accuracy_gpu(net, test_iter),
    )
