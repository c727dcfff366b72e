"""What both tabs offer a reader of the chapter, beside the model.

`load_data_wiki`, `train_bert` and `get_bert_encoding` take what the chapter's
cells give them; the shared trainer and data layer do the work. A tab module
binds them to its framework.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from backends.base import Backend
from backends.types import Array, Device
from d2lbert.bert import BERTModel
from d2lbert.book import editions
from d2lbert.book.animator import Accumulator, Animator, Timer
from d2lbert.book.textbook import _read_wiki, get_tokens_and_segments
from d2lbert.data import examples
from d2lbert.data.batches import Batches
from d2lbert.data.checks import to_int32
from d2lbert.data.examples import Batch
from d2lbert.data.vocab import PAD, Vocab
from d2lbert.errors import InputError, check_positive
from d2lbert.recipes import Recipe
from d2lbert.representation import check_vocab_size, encoder_inputs
from d2lbert.trainer import Step, Trainer

LR = 0.01
#: The English edition of 2020, whose `train_bert` takes `log_interval`.
LR_2020 = 0.001

#: The vocabulary that `load_data_wiki` has made last in each tab: the
#: chapter's `get_bert_encoding` takes it from the notebook.
last_vocab: dict[str, Vocab] = {}


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


def load_data_wiki(
    dataset: type[WikiTextDataset], batch_size: int, max_len: int, corpus: str
) -> tuple[TrainIter, Vocab]:
    """Return the minibatches of a corpus and its vocabulary."""
    train_set = dataset(_read_wiki(corpus), max_len)
    last_vocab[dataset.backend.name] = train_set.vocab
    return TrainIter(train_set, batch_size), train_set.vocab


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
        empty = True
        if isinstance(train_iter, TrainIter):
            epoch: Iterable[Batch] = train_iter.batches
        else:
            epoch = (as_batch(backend, arrays) for arrays in train_iter)
        for batch in epoch:
            empty = False
            yield batch
        if empty:
            raise InputError('train_iter gave no batch')


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
    trainer = Trainer(
        net,
        recipe,
        lr=lr,
        devices=devices,
        seed=random_seed(),
        precision=precision,
    )
    with closing(trainer):
        yield from trainer.train(
            numpy_batches(net.backend, train_iter), num_steps
        )


def train_bert(
    train_iter: Iterable[Any],
    net: BERTModel,
    recipe: Recipe,
    vocab_size: int,
    devices: Sequence[Device] | None,
    num_steps: int | None,
    *older: int,
    ctx: Sequence[Device] | None = None,
    log_interval: int | None = None,
    precision: str = 'float32',
) -> None:
    """Train as the chapter's `train_bert`, plot, and print its two lines."""
    if len(older) > 1:
        raise TypeError(
            f'train_bert takes 7 arguments at most, got {6 + len(older)}'
        )
    if older:
        # 2020: train_bert(…, ctx, log_interval, num_steps)
        log_interval, num_steps = num_steps, *older
    devices = editions.one_of(devices=devices, ctx=ctx)
    num_steps = editions.one_of(num_steps=num_steps)
    draw_interval = 1 if log_interval is None else log_interval
    check_positive(num_steps=num_steps, log_interval=draw_interval)
    check_net(net, vocab_size)
    animator = Animator(
        xlabel='step',
        ylabel='loss',
        xlim=[1, num_steps],
        legend=['mlm', 'nsp'],
    )
    # Sums of both losses, of sentence pairs and of steps
    metric, timer = Accumulator(4), Timer()
    for step in training_steps(
        train_iter,
        net,
        recipe,
        devices,
        num_steps,
        LR if log_interval is None else LR_2020,
        precision,
    ):
        timer.times.append(step.seconds)
        metric.add(step.mlm_loss, step.nsp_loss, step.num_pairs, 1)
        if metric[3] % draw_interval == 0 or metric[3] == num_steps:
            animator.add(
                metric[3], (metric[0] / metric[3], metric[1] / metric[3])
            )
    print(
        f'MLM loss {metric[0] / metric[3]:.3f}, '
        f'NSP loss {metric[1] / metric[3]:.3f}'
    )
    print(
        f'{metric[2] / timer.sum():.1f} sentence pairs/sec on {list(devices)}'
    )


def check_net(net: object, vocab_size: int) -> None:
    """Raise `InputError` for a network that is none of ours, or not for this.

    `vocab_size`: of the vocabulary that it is used with.
    """
    if not isinstance(net, BERTModel):
        raise InputError(
            f'net is a {type(net).__qualname__}: expected a BERTModel or a '
            'subclass; for another network write the loop yourself, with '
            '_get_batch_loss_bert'
        )
    check_vocab_size(net, vocab_size)


def get_bert_encoding(
    net: BERTModel,
    tokens_a: list[str],
    tokens_b: list[str] | None,
    vocab: Vocab | None,
) -> Array:
    """Return the encoding of one list of words or two, `(1, T, H)`.

    In evaluation mode, whatever mode `net` is in.
    """
    vocab = vocab or last_vocab.get(net.backend.name)
    if vocab is None:
        raise InputError(
            'no vocabulary yet: call load_data_wiki first, or give vocab='
        )
    check_net(net, len(vocab))
    tokens, segments = get_tokens_and_segments(tokens_a, tokens_b)
    backend = net.backend
    inputs = encoder_inputs([(vocab[tokens], segments)], vocab[PAD])
    (X,) = backend.evaluate(net.encoder, [inputs])
    return backend.tensor(X, backend.device_of(net))
