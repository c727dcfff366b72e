"""The MXNet tab: `from d2lbert import mxnet as d2l`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from backends.mxnet import BACKEND, Module, autograd, gluon
from backends.types import Device
from d2lbert import bert, classifier
from d2lbert.book import ch13, chapter, nli, transformer
from d2lbert.book.animator import Accumulator, Animator, Timer
from d2lbert.book.editions import Spellings
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
from d2lbert.weights import MXNET_LAYERS, MXNET_NAMES

data: Any = gluon.data

num_gpus = BACKEND.num_gpus
try_gpu = BACKEND.try_gpu
try_all_gpus = BACKEND.try_all_gpus
masked_softmax = BACKEND.masked_softmax


class DotProductAttention(bert.DotProductAttention, Module):
    __doc__ = bert.DotProductAttention.__doc__


class MultiHeadAttention(bert.MultiHeadAttention, Module):
    __doc__ = bert.MultiHeadAttention.__doc__
    Attention = DotProductAttention

    def __init__(
        self,
        num_hiddens: int,
        num_heads: int,
        dropout: float,
        use_bias: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(num_hiddens, num_heads, dropout, use_bias, **others)


class PositionWiseFFN(bert.PositionWiseFFN, Module):
    __doc__ = bert.PositionWiseFFN.__doc__


class AddNorm(bert.AddNorm, Module):
    __doc__ = bert.AddNorm.__doc__

    def __init__(self, dropout: float, norm_shape: int | None = None) -> None:
        super().__init__(norm_shape, dropout)


class TransformerEncoderBlock(bert.TransformerEncoderBlock, Module):
    __doc__ = bert.TransformerEncoderBlock.__doc__
    Attention = MultiHeadAttention
    FFN = PositionWiseFFN
    AddNorm = AddNorm


# The name in editions before 1.0
EncoderBlock = TransformerEncoderBlock


class PositionalEncoding(transformer.PositionalEncoding, Module):
    __doc__ = transformer.PositionalEncoding.__doc__
    DEVICE = 'ctx'


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

    def forward(self, X: Any) -> Any:
        """`(B, …)` to logits `(B, 2)`, from all numbers of an example.

        The textbook's layer does that: `nn.Dense(2)` flattens its input.
        """
        return super().forward(X.reshape((len(X), -1)))


class BERTModel(Spellings, bert.BERTModel, Module):
    __doc__ = bert.BERTModel.__doc__
    Encoder = BERTEncoder
    MaskLM = MaskLM
    NextSentencePred = NextSentencePred
    NEUTRAL_NAMES = MXNET_NAMES
    NEUTRAL_LAYERS = MXNET_LAYERS


class BERTClassifier(classifier.BERTClassifier, Module):
    __doc__ = classifier.BERTClassifier.__doc__
    NEUTRAL_NAMES = MXNET_NAMES
    NEUTRAL_LAYERS = MXNET_LAYERS


class _WikiTextDataset(chapter.WikiTextDataset, data.Dataset):
    __doc__ = chapter.WikiTextDataset.__doc__
    backend = BACKEND


def _get_batch_loss_bert(
    net: Any,
    loss: Any,
    vocab_size: int,
    tokens_X_shards: Sequence[Any],
    segments_X_shards: Sequence[Any],
    valid_lens_x_shards: Sequence[Any],
    pred_positions_X_shards: Sequence[Any],
    mlm_weights_X_shards: Sequence[Any],
    mlm_Y_shards: Sequence[Any],
    nsp_y_shards: Sequence[Any],
) -> tuple[list[Any], list[Any], list[Any]]:
    """Return each shard's loss of each task, and their sums.

    The first is the mean over the shard's real predictions, the second over
    its rows; `loss`: `gluon.loss.SoftmaxCELoss()`.
    """
    mlm_ls, nsp_ls = [], []
    shards = zip(
        tokens_X_shards, segments_X_shards, valid_lens_x_shards,
        pred_positions_X_shards, mlm_weights_X_shards, mlm_Y_shards,
        nsp_y_shards, strict=True,
    )  # fmt: skip
    for tokens, segments, lens, positions, weights, mlm_Y, nsp_y in shards:
        _, mlm_Y_hat, nsp_Y_hat = net(
            tokens, segments, lens.reshape(-1), positions
        )
        losses = loss(
            mlm_Y_hat.reshape((-1, vocab_size)),
            mlm_Y.reshape(-1),
            weights.reshape((-1, 1)),
        )
        # The constant keeps a shard without any prediction from being 0 / 0
        mlm_ls.append(losses.sum() / (weights.sum() + 1e-8))
        nsp_ls.append(loss(nsp_Y_hat, nsp_y).mean())
    ls = [mlm_l + nsp_l for mlm_l, nsp_l in zip(mlm_ls, nsp_ls, strict=True)]
    return mlm_ls, nsp_ls, ls


def _recipe_of(loss: Any) -> Recipe:
    """Return the recipe that a loss object stands for."""
    published = gluon.loss.SoftmaxCELoss()
    if type(loss) is type(published) and all(
        getattr(loss, name) == getattr(published, name)
        for name in ('_axis', '_sparse_label', '_from_logits', '_weight')
    ):
        return RECIPES['mxnet']
    raise InputError(
        f'loss = {loss!r}: expected gluon.loss.SoftmaxCELoss(); for another '
        'loss write the loop yourself, with _get_batch_loss_bert'
    )


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
    REALS = ('premises', 'hypotheses', 'labels')


class SNLIBERTDataset(nli.SNLIBERTDataset, data.Dataset):
    __doc__ = nli.SNLIBERTDataset.__doc__
    backend = BACKEND
    REALS = ('valid_lens', 'labels')


def _loader(dataset: Any, batch_size: int, shuffle: bool) -> Any:
    return data.DataLoader(
        dataset, batch_size, shuffle, num_workers=get_dataloader_workers()
    )


_nli = nli.Functions(BERTModel, SNLIDataset, _loader)
load_data_snli = _nli.load_data_snli
load_pretrained_model = _nli.load_pretrained_model

Split = Callable[[Any, Any, Sequence[Device]], tuple[Any, Any]]


def _split(X: Any, devices: Sequence[Device]) -> list[Any]:
    return gluon.utils.split_and_load(X, devices, even_split=False)


def split_batch(
    X: Any, y: Any, devices: Sequence[Device]
) -> tuple[list[Any], list[Any]]:
    """Return a part of the features and of the labels for each device.

    `X`: one array. The number of rows need be no multiple of the devices'.
    """
    if len(X) != len(y):
        raise InputError(f'{len(X)} rows of features for {len(y)} labels')
    return _split(X, devices), _split(y, devices)


def split_batch_multi_inputs(
    X: Sequence[Any], y: Any, devices: Sequence[Device]
) -> tuple[list[Any], list[Any]]:
    """Return a part of each of several features, and of the labels.

    The first result has a tuple of arrays for each device.
    """
    parts = [_split(feature, devices) for feature in X]
    return list(zip(*parts, strict=True)), _split(y, devices)


def evaluate_accuracy_gpus(
    net: Any, data_iter: Any, split_f: Split = split_batch
) -> float:
    """Return the share of a set's labels that a network predicts.

    It runs without dropout on the devices of its parameters.
    """
    devices = next(iter(net.collect_params().values())).list_ctx()
    num_right, num_labels = 0.0, 0
    for features, labels in data_iter:
        X_shards, y_shards = split_f(features, labels, devices)
        # All devices compute before the first answer is waited for
        shards = [net(X) for X in X_shards]
        num_right += sum(map(accuracy, shards, y_shards))
        num_labels += labels.size
    return num_right / num_labels


def train_batch_ch13(
    net: Any,
    features: Any,
    labels: Any,
    loss: Any,
    trainer: Any,
    devices: Sequence[Device],
    split_f: Split = split_batch,
) -> tuple[float, float]:
    """Take a step; return the sum of the losses and how many were right.

    `features`, `split_f`: what it takes; `loss`: a loss of Gluon for each
    row. The gradient is that of the mean.
    """
    X_shards, y_shards = split_f(features, labels, devices)
    with autograd.record():
        shards = [net(X) for X in X_shards]
        losses = [loss(*pair) for pair in zip(shards, y_shards, strict=True)]
    autograd.backward(losses)
    # A layer that the loss does not depend on has no new gradient
    trainer.step(len(labels), ignore_stale_grad=True)
    loss_sum = sum(float(shard.sum().item()) for shard in losses)
    return loss_sum, sum(map(accuracy, shards, y_shards))


def train_ch13(
    net: Any,
    train_iter: Any,
    test_iter: Any,
    loss: Any,
    trainer: Any,
    num_epochs: int,
    devices: Sequence[Device] | None = None,
    split_f: Split = split_batch,
) -> None:
    """Train a classifier, plot its curves and print the book's two lines.

    `devices`: where `net` has its parameters, by default all GPUs; each
    takes a shard of a batch; `split_f`: cuts the batches.
    """
    devices = devices or try_all_gpus()
    ch13.train(
        train_iter,
        num_epochs,
        devices,
        lambda X, y: train_batch_ch13(
            net, X, y, loss, trainer, devices, split_f
        ),
        lambda: evaluate_accuracy_gpus(net, test_iter, split_f),
    )
