"""The JAX tab: `from d2lbert import jax as d2l`.

The networks are modules of `flax.nnx`. The chapter has no cells for JAX:
these are its names, in the idiom of a JAX reader. Layers are made with their
parameters: a size that other tabs leave to the first input is by default that
of the output.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from backends.jax import BACKEND, Module
from backends.jax_arrays import random_numbers
from backends.jax_programs import keep_programs
from backends.types import Array, Device
from d2lbert import bert, classifier
from d2lbert.book import ch13, chapter, nli, transformer
from d2lbert.book.animator import Accumulator, Animator, Timer
from d2lbert.book.batches import DataLoader
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
from d2lbert.data.corpus import cache_folder
from d2lbert.data.vocab import Vocab
from d2lbert.errors import InputError
from d2lbert.recipes import RECIPES, Recipe

num_gpus = BACKEND.num_gpus
try_gpu = BACKEND.try_gpu
try_all_gpus = BACKEND.try_all_gpus
masked_softmax = BACKEND.masked_softmax


class Rngs:
    """Takes `rngs`, an `nnx.Rngs`, from which the parameters are drawn.

    By default it is `nnx.Rngs(0)`.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """Let the class have the signature of the definition, and `rngs`."""
        super().__init_subclass__(**options)
        follows = cls.__mro__[cls.__mro__.index(Rngs) + 1]
        names = inspect.signature(follows).parameters
        named = {
            name: value
            for name, value in names.items()
            if value.kind is not value.VAR_KEYWORD
        }
        rngs = inspect.Parameter(
            'rngs', inspect.Parameter.KEYWORD_ONLY, default=None
        )
        signature = inspect.Signature([*named.values(), rngs])
        cls.__signature__ = signature  # type: ignore[attr-defined]

    def __init__(
        self, *arguments: Any, rngs: nnx.Rngs | None = None, **others: Any
    ) -> None:
        with random_numbers(rngs):
            super().__init__(*arguments, **others)


class DotProductAttention(Rngs, bert.DotProductAttention, Module):
    __doc__ = bert.DotProductAttention.__doc__


class MultiHeadAttention(Rngs, bert.MultiHeadAttention, Module):
    __doc__ = bert.MultiHeadAttention.__doc__
    Attention = DotProductAttention

    def __init__(
        self,
        num_hiddens: int,
        *arguments: Any,
        num_inputs: int | None = None,
        **others: Any,
    ) -> None:
        num_inputs = num_inputs or num_hiddens
        super().__init__(
            num_hiddens, *arguments, num_inputs=num_inputs, **others
        )


class PositionWiseFFN(Rngs, bert.PositionWiseFFN, Module):
    __doc__ = bert.PositionWiseFFN.__doc__

    def __init__(
        self,
        ffn_num_hiddens: int,
        ffn_num_outputs: int,
        *,
        ffn_num_inputs: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__(
            ffn_num_hiddens,
            ffn_num_outputs,
            ffn_num_inputs=ffn_num_inputs or ffn_num_outputs,
            **others,
        )


class AddNorm(Rngs, bert.AddNorm, Module):
    __doc__ = bert.AddNorm.__doc__


class TransformerEncoderBlock(Rngs, bert.TransformerEncoderBlock, Module):
    __doc__ = bert.TransformerEncoderBlock.__doc__
    Attention = MultiHeadAttention
    FFN = PositionWiseFFN
    AddNorm = AddNorm


class PositionalEncoding(Rngs, transformer.PositionalEncoding, Module):
    __doc__ = transformer.PositionalEncoding.__doc__

    def forward(self, X: Array) -> Array:
        """`(B, T, num_hiddens)` to the same shape."""
        return self.dropout(X + self.table[:, : X.shape[1]])


class TransformerEncoder(Rngs, transformer.TransformerEncoder, Module):
    __doc__ = transformer.TransformerEncoder.__doc__
    Block = TransformerEncoderBlock
    PositionalEncoding = PositionalEncoding


class BERTEncoder(Rngs, Spellings, bert.BERTEncoder, Module):
    __doc__ = bert.BERTEncoder.__doc__
    Block = TransformerEncoderBlock


class MaskLM(Rngs, bert.MaskLM, Module):
    __doc__ = bert.MaskLM.__doc__

    def __init__(
        self,
        vocab_size: int,
        num_hiddens: int,
        num_inputs: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__(
            vocab_size, num_hiddens, num_inputs or num_hiddens, **others
        )


class NextSentencePred(Rngs, bert.NextSentencePred, Module):
    __doc__ = bert.NextSentencePred.__doc__


class BERTModel(Rngs, Spellings, bert.BERTModel, Module):
    __doc__ = bert.BERTModel.__doc__
    Encoder = BERTEncoder
    MaskLM = MaskLM
    NextSentencePred = NextSentencePred


class BERTClassifier(Rngs, classifier.BERTClassifier, Module):
    __doc__ = classifier.BERTClassifier.__doc__


class _WikiTextDataset(chapter.WikiTextDataset):
    __doc__ = chapter.WikiTextDataset.__doc__
    backend = BACKEND


def _get_batch_loss_bert(
    net: nnx.Module,
    loss: Any,
    vocab_size: int,
    tokens_X: jax.Array,
    segments_X: jax.Array,
    valid_lens_x: jax.Array,
    pred_positions_X: jax.Array,
    mlm_weights_X: jax.Array,
    mlm_Y: jax.Array,
    nsp_y: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return a batch's loss of each task, and their sum.

    `loss`: `optax.softmax_cross_entropy_with_integer_labels`. The first is
    the mean over the real predictions, the second over the rows.
    """
    _, mlm_Y_hat, nsp_Y_hat = net(
        tokens_X, segments_X, valid_lens_x.reshape(-1), pred_positions_X
    )
    weights = mlm_weights_X.reshape(-1)
    losses = loss(mlm_Y_hat.reshape((-1, vocab_size)), mlm_Y.reshape(-1))
    # The constant keeps a batch without any prediction from being 0 / 0
    mlm_l = (losses * weights).sum() / (weights.sum() + 1e-8)
    nsp_l = jnp.mean(loss(nsp_Y_hat, nsp_y))
    return mlm_l, nsp_l, mlm_l + nsp_l


def _recipe_of(loss: Any) -> Recipe:
    """Return the recipe that a loss function stands for."""
    if loss is optax.softmax_cross_entropy_with_integer_labels:
        return RECIPES['corrected']
    raise InputError(
        f'loss = {loss!r}: expected '
        'optax.softmax_cross_entropy_with_integer_labels; for another loss '
        'write the loop yourself, with _get_batch_loss_bert'
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


class SNLIDataset(nli.SNLIDataset):
    __doc__ = nli.SNLIDataset.__doc__
    backend = BACKEND


class SNLIBERTDataset(nli.SNLIBERTDataset):
    __doc__ = nli.SNLIBERTDataset.__doc__
    backend = BACKEND


_nli = nli.Functions(BERTModel, SNLIDataset, DataLoader)
load_data_snli = _nli.load_data_snli
load_pretrained_model = _nli.load_pretrained_model


def evaluate_accuracy_gpu(
    net: nnx.Module, data_iter: Any, device: Device = None
) -> float:
    """Return the share of a set's labels that a network predicts.

    `device`: by default that of the parameters. The network is then in
    evaluation mode.
    """
    net.eval()
    device = device or BACKEND.device_of(net)
    num_right, num_labels = 0.0, 0
    for X, y in data_iter:
        num_right += accuracy(_predict(net, jax.device_put(X, device)), y)
        num_labels += y.size
    return num_right / num_labels


@nnx.jit
def _predict(net: Any, X: Any) -> Array:
    return net(X)


def train_batch_ch13(
    net: nnx.Module,
    X: Any,
    y: jax.Array,
    loss: Any,
    trainer: nnx.Optimizer,
    devices: Sequence[Device],
) -> tuple[jax.Array, float]:
    """Take a step; return the sum of the losses and how many were right.

    `X`: an array, or a list of arrays; `loss`: a function of logits and
    labels that gives a number for each row; `trainer`: an `nnx.Optimizer` of
    `net`; `devices`: of which the first computes. The gradient is that of
    the sum.
    """
    net.train()
    X, y = jax.device_put((X, y), devices[0])
    loss_sum, y_hat = _step(net, trainer, X, y, loss)
    return loss_sum, accuracy(y_hat, y)


@partial(nnx.jit, static_argnums=4)
def _step(net: Any, trainer: Any, X: Any, y: Any, loss: Any) -> Any:
    def total(net: Any) -> tuple[Array, Array]:
        y_hat = net(X)
        return loss(y_hat, y).sum(), y_hat

    outputs, gradients = nnx.value_and_grad(total, has_aux=True)(net)
    trainer.update(net, gradients)
    return outputs


def train_ch13(
    net: nnx.Module,
    train_iter: Any,
    test_iter: Any,
    loss: Any,
    trainer: nnx.Optimizer,
    num_epochs: int,
    devices: Sequence[Device] | None = None,
) -> None:
    """Train a classifier, plot its curves and print the book's two lines.

    `loss`, `trainer`: see `train_batch_ch13`; `devices`: the first of them
    computes, by default a GPU.
    """
    devices = devices or try_all_gpus()
    ch13.train(
        train_iter,
        num_epochs,
        devices,
        lambda X, y: train_batch_ch13(net, X, y, loss, trainer, devices),
        lambda: evaluate_accuracy_gpu(net, test_iter),
    )


# Whoever has no cache can compute all the same
with suppress(InputError):
    keep_programs(cache_folder() / 'jax')
