"""The chapter's functions beside the model, written once for both tabs.

`Functions` has them. They take what the chapter's cells give them; the shared
trainer and data layer do the work.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from backends.base import Backend
from backends.types import Array, Device
from d2lbert.bert import BERTModel
from d2lbert.book import editions
from d2lbert.book.animator import Accumulator, Animator
from d2lbert.book.textbook import (
    _read_wiki,
    get_tokens_and_segments,
    pad_bert_inputs,
)
from d2lbert.data import examples
from d2lbert.data.batches import Batches
from d2lbert.data.checks import to_int32
from d2lbert.data.examples import Batch
from d2lbert.data.vocab import PAD, Vocab
from d2lbert.errors import InputError, check_positive
from d2lbert.recipes import Recipe
from d2lbert.representation import check_vocab_size, encode, encoder_inputs
from d2lbert.trainer import Step, Trainer

#: The learning rate of the editions since 0.17.1.
LR = 0.01
#: That of older ones; those until 0.14 have the argument `log_interval`.
OLDER_LR = 0.001


def native_array(name: str) -> property:
    """Return a property: one of a dataset's seven arrays, all examples."""

    def array(self: WikiTextDataset) -> Array:
        return self.backend.tensor(getattr(self.examples, name))

    return property(array, doc=f'`{name}` of all examples, copied.')


class WikiTextDataset:
    """Pretraining examples of a text; `dataset[i]` is seven native arrays.

    `paragraphs`: a list of sentences each, as `_read_wiki` returns them.
    The arrays, in order: token indices `(max_len,)`, segments `(max_len,)`,
    valid length `()`, predicted positions, their weights and their labels
    `(round(0.15 · max_len),)`, and 1 where the second sentence follows `()`.
    """

    backend: Backend

    # By the textbook's names
    all_token_ids = native_array('tokens')
    all_segments = native_array('segments')
    valid_lens = native_array('valid_lens')
    all_pred_positions = native_array('pred_positions')
    all_mlm_weights = native_array('mlm_weights')
    all_mlm_labels = native_array('mlm_labels')
    nsp_labels = native_array('nsp_labels')

    def __init__(
        self, paragraphs: Sequence[Sequence[str]], max_len: int
    ) -> None:
        examples.check_max_len(max_len)
        text, self.vocab = examples.number_words(paragraphs)
        self.examples = examples.make_examples(text, self.vocab, max_len)

    def __len__(self) -> int:
        return len(self.examples.tokens)

    def __getitem__(self, index: int) -> tuple[Array, ...]:
        return tuple(
            self.backend.tensor(array[index]) for array in self.examples
        )


class TrainIter:
    """Minibatches of a dataset: lists of seven native arrays.

    Each epoch has another order, which Python's `random` decides at the
    time of making.
    """

    def __init__(self, dataset: WikiTextDataset, batch_size: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.batches = Batches(dataset.examples, batch_size, random_seed())

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Array]]:
        for batch in self.batches:
            yield [self.dataset.backend.tensor(array) for array in batch]


def random_seed() -> int:
    """Return a seed that `random.seed` decides, without drawing from it.

    So a reader's seed decides order and dropout too, and what the reader
    draws afterwards is what the textbook's package would leave.
    """
    copy = random.Random()
    copy.setstate(random.getstate())
    return copy.getrandbits(63)


def numpy_batches(
    backend: Backend, train_iter: Iterable[Any]
) -> Iterator[Batch]:
    """Yield the batches of `train_iter` in NumPy, epoch after epoch.

    `train_iter`: what `load_data_wiki` returns, or anything that gives
    batches of seven native arrays in the chapter's order.
    """
    while True:
        if isinstance(train_iter, TrainIter):
            epoch = iter(train_iter.batches)
        else:
            epoch = (as_batch(backend, arrays) for arrays in train_iter)
        first = next(epoch, None)
        if first is None:
            raise InputError('train_iter gave no batch')
        yield first
        yield from epoch


def as_batch(backend: Backend, arrays: Sequence[Array]) -> Batch:
    """Return seven native arrays as a checked `Batch`."""
    if len(arrays) != len(Batch._fields):
        raise InputError(
            f'a batch of {len(arrays)} arrays: expected '
            f'{len(Batch._fields)}, ' + ', '.join(Batch._fields)
        )
    tokens, segments, lens, positions, weights, labels, is_next = (
        backend.to_numpy(array) for array in arrays
    )
    return Batch(
        to_int32('tokens', tokens),
        to_int32('segments', segments),
        lens.reshape(-1).astype(np.float32),
        to_int32('pred_positions', positions),
        weights.astype(np.float32),
        to_int32('mlm_labels', labels),
        to_int32('nsp_labels', is_next.reshape(-1)),
    )


def training_steps(
    train_iter: Iterable[Any],
    net: BERTModel,
    recipe: Recipe,
    devices: Sequence[Device],
    num_steps: int,
    lr: float = LR,
    precision: str = 'float32',
) -> Iterator[Step]:
    """Train `net` and yield what each step reports."""
    batches = numpy_batches(net.backend, train_iter)
    trainer = Trainer(
        net, recipe, lr=lr, devices=devices, seed=random_seed(),
        precision=precision,
    )  # fmt: skip
    with closing(trainer):
        yield from trainer.train(batches, num_steps)


def model_of(net: Any, vocab_size: int) -> BERTModel:
    """Return the `BERTModel` that a reader gives, checked.

    `net`: a `BERTModel`, which may be inside of an `nn.DataParallel`;
    `vocab_size`: of the vocabulary that it is used with. Raises `InputError`
    for a network of another kind or for another vocabulary.
    """
    net = getattr(net, 'module', net)
    if not isinstance(net, BERTModel):
        raise InputError(
            f'net is a {type(net).__module__}.{type(net).__qualname__}: '
            'expected d2l.BERTModel or a subclass; for another network write '
            'the loop yourself, with _get_batch_loss_bert'
        )
    check_vocab_size(net, vocab_size)
    return net


class Functions:
    """The chapter's functions of one tab.

    `dataset`: the tab's `_WikiTextDataset`; `recipe_of`: returns the recipe
    that a loss object of the framework stands for.
    """

    def __init__(
        self,
        dataset: type[WikiTextDataset],
        recipe_of: Callable[[Any], Recipe],
    ) -> None:
        self.dataset = dataset
        self.backend = dataset.backend
        self.recipe_of = recipe_of
        # The chapter's get_bert_encoding takes it from the notebook
        self.last_vocab: Vocab | None = None

    def cpu(self) -> Device:
        """Return the processor."""
        return self.backend.device('cpu', 0)

    def gpu(self, i: int = 0) -> Device:
        """Return GPU `i`, whether there is one or not."""
        return self.backend.device('gpu', i)

    def pad_bert_inputs(
        self, examples: Any, max_len: int, vocab: Vocab
    ) -> tuple[Array, ...]:
        """Pad examples to `max_len`: seven native arrays, a row for each.

        An example is its masked tokens, predicted positions, true tokens
        there, segments and whether the second sentence follows.
        """
        batch = pad_bert_inputs(examples, max_len, vocab)
        return tuple(map(self.backend.tensor, batch))

    def load_data_wiki(
        self, batch_size: int, max_len: int, corpus: str = 'wikitext-2'
    ) -> tuple[TrainIter, Vocab]:
        """Return the minibatches of a corpus and its vocabulary.

        `batch_size`: examples a minibatch; `max_len`: tokens an example;
        `corpus`: see `d2lbert.data.corpus.read_lines`. Python's `random`
        decides the examples, as in the textbook.
        """
        train_set = self.dataset(_read_wiki(corpus), max_len)
        self.last_vocab = train_set.vocab
        return TrainIter(train_set, batch_size), train_set.vocab

    def train_bert(
        self,
        train_iter: Iterable[Any],
        net: Any,
        loss: Any,
        vocab_size: int,
        devices: Sequence[Device] | None = None,
        num_steps: int | None = None,
        *older: int,
        ctx: Sequence[Device] | None = None,
        log_interval: int | None = None,
        lr: float | None = None,
        precision: str = 'float32',
    ) -> None:
        """Pretrain BERT and plot both losses.

        Prints the learning rate at the start and the chapter's two lines at
        the end.

        `train_iter`, `vocab_size`: from `load_data_wiki`; `net`: a
        `BERTModel`, initialised in MXNet, which may be inside of an
        `nn.DataParallel` in PyTorch; `loss`: in MXNet
        `gluon.loss.SoftmaxCELoss()`, in PyTorch `nn.CrossEntropyLoss()`, or
        one with `reduction='none'`, which leaves padding out; `devices`: a
        shard of each batch for each; `num_steps`: how many batches to train
        on; `lr`: Adam's learning rate, by default 0.01; `precision`:
        `'tf32'` and `'bf16'` are inexact, and faster on CUDA cards in
        PyTorch; `'bf16'` also on processors that have it, and in JAX.

        The edition of 2020 calls the devices `ctx` and takes `log_interval`
        before `num_steps`; with `log_interval` the default of `lr` is 0.001,
        as there. `docs/editions.md` has the rate of each edition.
        """
        if len(older) > 1:
            raise TypeError(
                f'train_bert takes 7 arguments at most, got {6 + len(older)}'
            )
        recipe = self.recipe_of(loss)
        if older:
            # 2020: train_bert(…, ctx, log_interval, num_steps)
            log_interval, num_steps = num_steps, *older
        devices = editions.one_of(devices=devices, ctx=ctx)
        num_steps = editions.one_of(num_steps=num_steps)
        draw_interval = 1 if log_interval is None else log_interval
        check_positive(num_steps=num_steps, log_interval=draw_interval)
        if lr is None:
            lr = LR if log_interval is None else OLDER_LR
        print(f'Adam, learning rate {lr:g}')
        steps = training_steps(
            train_iter, model_of(net, vocab_size), recipe, devices, num_steps,
            lr, precision,
        )  # fmt: skip
        animator = Animator(
            'step', 'loss', legend=['mlm', 'nsp'], xlim=[1, num_steps]
        )
        # Sums of both losses, of sentence pairs, of seconds
        metric = Accumulator(4)
        for i, step in enumerate(steps, 1):
            metric.add(
                step.mlm_loss, step.nsp_loss, step.num_pairs, step.seconds
            )
            means = metric[0] / i, metric[1] / i
            if i % draw_interval == 0 or i == num_steps:
                animator.add(i, means)
        print(f'MLM loss {means[0]:.3f}, NSP loss {means[1]:.3f}')
        speed = metric[2] / metric[3]
        print(f'{speed:.1f} sentence pairs/sec on {list(devices)}')

    def get_bert_encoding(
        self,
        net: Any,
        tokens_a: list[str],
        tokens_b: list[str] | None = None,
        vocab: Vocab | None = None,
    ) -> Array:
        """Return BERT's encoding of one list of words or two, `(1, T, H)`.

        The T tokens are `<cls>`, the words and a `<sep>` after each list.
        `vocab`: by default the one that `load_data_wiki` has made last. The
        network is in evaluation mode meanwhile.
        """
        vocab = vocab or self.last_vocab
        if vocab is None:
            raise InputError(
                'no vocabulary yet: call load_data_wiki first, or give vocab='
            )
        net = model_of(net, len(vocab))
        tokens, segments = get_tokens_and_segments(tokens_a, tokens_b)
        indices = vocab[tokens]
        inputs = encoder_inputs(net, [(indices, segments)], vocab[PAD])
        (X,) = encode(net, [inputs])
        X = X[:, : len(indices)]
        return self.backend.tensor(X, self.backend.device_of(net))
