"""The names of the book's sections on natural language inference.

They are written once for all tabs, which join the datasets with the classes
of their frameworks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np

from backends.base import Backend
from backends.types import Array, Device
from d2lbert.book.hub import download
from d2lbert.book.textbook import tokenize
from d2lbert.data.nli import make_nli_examples
from d2lbert.data.snli import Pairs, read_pairs
from d2lbert.data.vocab import PAD, Vocab
from d2lbert.errors import InputError, input_errors
from d2lbert.pretrained import read_pretrained
from d2lbert.weights import set_weights

#: Words of SNLI that are seen less often become `<unk>`.
MIN_FREQ = 5
NUM_STEPS = 50

Token = TypeVar('Token')
#: What `read_snli` returns.
Dataset = Sequence[Sequence[Any]]


def read_snli(data_dir: str | os.PathLike, is_train: bool) -> Pairs:
    """Return the premises, hypotheses and labels of SNLI, three lists.

    `data_dir`: a folder or an archive with SNLI's files, or `'snli'`: see
    `d2lbert.data.snli.read_pairs`; `is_train`: whether for training or for
    testing. Labels: 0 entailment, 1 contradiction, 2 neutral.
    """
    return read_pairs(data_dir, 'train' if is_train else 'test')


def truncate_pad(
    line: Sequence[Token], num_steps: int, padding_token: Token
) -> list[Token]:
    """Return the first `num_steps` tokens of a line, filled with padding."""
    tokens = list(line[:num_steps])
    return tokens + [padding_token] * (num_steps - len(tokens))


class TabDataset:
    """What the datasets of a tab know of it.

    `REALS`: which of the arrays have real numbers: the textbook's MXNet tab
    makes them of lists.
    """

    backend: Backend
    REALS: ClassVar[Sequence[str]] = ()

    def array(self, name: str, values: Any) -> Array:
        """Return numbers as an array of the type that the tab's have."""
        kind = np.float32 if name in self.REALS else np.int32
        return self.backend.tensor(np.asarray(values, kind))


class SNLIDataset(TabDataset):
    """Pairs of SNLI as indices; `dataset[i]` is `((p, h), label)`.

    `dataset`: what `read_snli` returns; `num_steps`: tokens a sentence, cut
    or padded, without a change of case; `vocab`: by default that of the
    pairs' own words that occur at least five times.
    """

    def __init__(
        self, dataset: Dataset, num_steps: int, vocab: Vocab | None = None
    ) -> None:
        self.num_steps = num_steps
        premises, hypotheses = map(tokenize, dataset[:2])
        self.vocab = vocab or Vocab(
            premises + hypotheses, min_freq=MIN_FREQ, reserved_tokens=[PAD]
        )
        self.premises = self.padded('premises', premises)
        self.hypotheses = self.padded('hypotheses', hypotheses)
        self.labels = self.array('labels', dataset[2])
        print(f'read {len(self)} examples')

    def padded(self, name: str, lines: Sequence[Sequence[str]]) -> Array:
        """Return the indices of sentences, `(len(lines), num_steps)`."""
        pad = self.vocab[PAD]
        return self.array(
            name,
            [
                truncate_pad(self.vocab[line], self.num_steps, pad)
                for line in lines
            ],
        )

    def __getitem__(self, index: Any) -> tuple[tuple[Array, Array], Array]:
        features = self.premises[index], self.hypotheses[index]
        return features, self.labels[index]

    def __len__(self) -> int:
        return self.premises.shape[0]


class SNLIBERTDataset(TabDataset):
    """Pairs of SNLI as inputs of BERT.

    `dataset[i]` is `((token indices, segments, valid length), label)`.

    `dataset`: what `read_snli` returns; `max_len`: tokens a pair with its
    special tokens, cut and padded (`d2lbert.data.nli`); `vocab`: that of the
    pretrained network. Sentences are in lower case.
    """

    def __init__(
        self, dataset: Dataset, max_len: int, vocab: Vocab | None = None
    ) -> None:
        if vocab is None:
            raise InputError(
                'SNLIBERTDataset needs a vocabulary: give the vocab of '
                'load_pretrained_model'
            )
        self.max_len, self.vocab = max_len, vocab
        premises, hypotheses = (
            tokenize(sentence.lower() for sentence in sentences)
            for sentences in dataset[:2]
        )
        examples = make_nli_examples(
            premises, hypotheses, dataset[2], vocab, max_len
        )
        self.all_token_ids = self.array('token_ids', examples.tokens)
        self.all_segments = self.array('segments', examples.segments)
        self.valid_lens = self.array('valid_lens', examples.valid_lens)
        self.labels = self.array('labels', examples.labels)
        print(f'read {len(self)} examples')

    def __getitem__(self, index: Any) -> tuple[tuple[Array, ...], Array]:
        features = (
            self.all_token_ids[index],
            self.all_segments[index],
            self.valid_lens[index],
        )
        return features, self.labels[index]

    def __len__(self) -> int:
        return self.all_token_ids.shape[0]


class Functions:
    """The sections' functions of one tab.

    `model`: the tab's `BERTModel`; `dataset`: its `SNLIDataset`; `loader`:
    called with a dataset, a batch size and whether to shuffle, it returns
    the minibatches.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        dataset: type[SNLIDataset],
        loader: Callable[[Any, int, bool], Any],
    ) -> None:
        self.model = model
        self.dataset = dataset
        self.loader = loader

    def load_data_snli(
        self, batch_size: int, num_steps: int = NUM_STEPS
    ) -> tuple[Any, Any, Vocab]:
        """Return SNLI's minibatches for training and testing, and its words.

        Those for training are shuffled. A batch is
        `[premises, hypotheses], labels`.
        """
        train_set = self.dataset(read_snli('snli', True), num_steps)
        test_set = self.dataset(
            read_snli('snli', False), num_steps, train_set.vocab
        )
        return (
            self.loader(train_set, batch_size, True),
            self.loader(test_set, batch_size, False),
            train_set.vocab,
        )

    def load_pretrained_model(
        self,
        pretrained_model: str,
        num_hiddens: int,
        ffn_num_hiddens: int,
        num_heads: int,
        num_blks: int,
        dropout: float,
        max_len: int,
        devices: Sequence[Device],
    ) -> tuple[Any, Vocab]:
        """Return a `BERTModel` with the book's weights, and its vocabulary.

        `pretrained_model`: `'bert.small'`, `'bert.base'` or another name in
        `DATA_HUB` of an archive in either format, or a path of one; the sizes
        are those of `BERTModel`; `devices`: where the parameters shall live.
        All arguments count: the PyTorch tab of the book ignores some.
        """
        archive = (
            pretrained_model
            if os.path.isfile(pretrained_model)
            else download(pretrained_model)
        )
        found = read_pretrained(archive)
        bert = self.model(
            len(found.vocab), num_hiddens=num_hiddens,
            ffn_num_hiddens=ffn_num_hiddens, num_heads=num_heads,
            num_blks=num_blks, dropout=dropout, max_len=max_len,
        )  # fmt: skip
        with input_errors():
            set_weights(bert, found.weights, devices)
        return bert, found.vocab
