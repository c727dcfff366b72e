"""Examples, losses, representations, attention, memory, for the notebooks.

`d2lbert.classroom.figures` and `charts` draw them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

import backends
from d2lbert.bert import BERTModel
from d2lbert.data import sample
from d2lbert.data.examples import Batch
from d2lbert.data.vocab import CLS, MASK, SEP, Vocab
from d2lbert.errors import InputError
from d2lbert.evaluation.evaluate import cross_entropies
from d2lbert.frameworks import label_of, load_tab
from d2lbert.representation import Text, encode_text, represent
from d2lbert.runs.config import Config
from d2lbert.runs.memory import FLOAT_BYTES, count_parameters
from d2lbert.runs.run import Run, new_net
from d2lbert.runs.trained import versions
from d2lbert.tools import doctor

#: How many arrays of each size a block keeps for the way back.
KEPT_HIDDENS, KEPT_FFN_HIDDENS, KEPT_SCORES = 12, 2, 4
#: The topics of the sample in which a crane is a bird, or a machine.
SENSES = {
    'bird': (
        'a bird diary',
        'the crane and her nest',
        'the crane watchers',
        'the flight to the south',
        'the life of a crane',
    ),
    'machine': (
        'the crane driver',
        'the crane on the building site',
        'the crane on the quay',
        'the log of the foreman',
        'the work of a crane',
    ),
}
#: Rows that go through a network at a time.
ROWS = 64


def check_environment(backend: str) -> None:
    """Print in one line what a notebook runs on: the doctor in short.

    The framework is then imported. Raises `InputError` with the doctor's
    report, which says what to do, where it cannot be.
    """
    try:
        found = backends.load(backend)
    except Exception as error:
        raise InputError(
            f'{label_of(backend)} cannot be imported. The doctor says:\n\n'
            f'{doctor.report(doctor.examine())}\n\n'
            'Do that, restart the kernel and run this cell again'
        ) from error
    software = ', '.join(map(' '.join, versions(backend).items()))
    print(f'{software}, {found.try_all_gpus()}: ready')


# ---- examples --------------------------------------------------------


class Example(NamedTuple):
    """A pretraining example in words, without padding.

    `words`: the tokens as they were; `tokens`: as the network sees them;
    `segments`: 0 or 1 for each; `positions`: those to predict; `is_next`:
    the second sentence follows the first.
    """

    words: list[str]
    tokens: list[str]
    segments: list[int]
    positions: list[int]
    is_next: bool

    def kind(self, position: int) -> str:
        """Return which of `KINDS` a token is."""
        if self.words[position] in (CLS, SEP):
            return 'special'
        if position not in self.positions:
            return 'plain'
        if self.tokens[position] == MASK:
            return 'masked'
        if self.tokens[position] == self.words[position]:
            return 'kept'
        return 'changed'


#: The kinds of tokens of an example.
KINDS = ('special', 'plain', 'masked', 'changed', 'kept')


def unroll(examples: Batch, vocab: Vocab, row: int) -> Example:
    """Return an example of a batch in words."""
    tokens, segments, lens, positions, weights, labels, is_next = (
        array[row] for array in examples
    )
    valid_len, num_predictions = int(lens), int(weights.sum())
    words = tokens[:valid_len].copy()
    words[positions[:num_predictions]] = labels[:num_predictions]
    return Example(
        [vocab.idx_to_token[i] for i in words],
        [vocab.idx_to_token[i] for i in tokens[:valid_len]],
        segments[:valid_len].tolist(),
        positions[:num_predictions].tolist(),
        bool(is_next),
    )


def telling_example(
    examples: Batch, vocab: Vocab, masked: Collection[str] = ()
) -> Example:
    """Return a short example that has every kind of token.

    Its second sentence does not follow the first. `masked`: words of which
    one should be masked, if there is such an example. Raises `InputError`
    where there is none with every kind.
    """
    found = None
    for row in np.argsort(examples.valid_lens, kind='stable'):
        example = unroll(examples, vocab, row)
        kinds = list(map(example.kind, range(len(example.words))))
        if set(kinds) != set(KINDS) or example.is_next:
            continue
        found = found or example
        pairs = zip(example.words, kinds, strict=True)
        if any(word in masked for word, kind in pairs if kind == 'masked'):
            return example
    if found:
        return found
    raise InputError(
        f'none of {len(examples.tokens)} examples has a word of every kind '
        f'({", ".join(KINDS)}): give more of them'
    )


# ---- losses ----------------------------------------------------------


def slot_losses(net: BERTModel, batch: Batch) -> np.ndarray:
    """Return the cross-entropy of each slot, without dropout.

    `batch`: B rows in NumPy. Float64 `(B, P)`, padding included, whose label
    is 0.
    """
    losses = np.empty(batch.mlm_labels.shape)
    for start in range(0, len(losses), ROWS):
        rows = slice(start, start + ROWS)
        inputs = tuple(array[rows] for array in batch[:4])
        ((_, logits, _),) = net.backend.evaluate(net, [inputs])
        labels = batch.mlm_labels[rows]
        found, _ = cross_entropies(
            logits.reshape(labels.size, -1), labels.ravel()
        )
        losses[rows] = found.reshape(labels.shape)
    return losses


def untrained(run: Run) -> BERTModel:
    """Return the network of a run as it was before the first step."""
    tab = load_tab(run.config.backend)
    return new_net(tab, run.config, run.vocab, run.devices)


# ---- representations -------------------------------------------------


def sentences_by_topic(word: str = 'crane') -> dict[str, list[str]]:
    """Return the different sentences of the sample that have a word once.

    By topic, those of `SENSES`, in their order.
    """
    texts = sample.read_text().splitlines()
    found: dict[str, set[str]] = {}
    for topic, text in zip(texts[::2], texts[1::2], strict=True):
        sentences = text.lower().removesuffix(' .').split(' . ')
        found.setdefault(topic.strip('= '), set()).update(
            one for one in sentences if one.split().count(word) == 1
        )
    topics = (topic for sense in SENSES.values() for topic in sense)
    return {topic: sorted(found[topic]) for topic in topics}


def mean_cosines(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean cosine of two vectors from each pair of groups.

    `vectors`: groups of vectors of length 1, `(N, num_hiddens)` each. A
    vector is not compared with itself. Returns `(G, G)` for G groups.
    """
    sums = np.stack([X.sum(axis=0) for X in vectors])
    sizes = np.array(list(map(len, vectors)))
    products, pairs = sums @ sums.T, np.outer(sizes, sizes)
    return (products - np.diag(sizes)) / (pairs - np.diag(sizes))


def word_vectors(
    net: BERTModel, vocab: Vocab, sentences: Sequence[str], word: str
) -> np.ndarray:
    """Return the representation of a word in each of some sentences.

    Float32 `(len(sentences), num_hiddens)`, each of length 1, so that the
    product of two is the cosine of the angle between them. Raises
    `InputError` for a sentence that does not have the word.
    """
    places = []
    for sentence in sentences:
        words = sentence.lower().split()
        if word not in words:
            raise InputError(f'there is no {word!r} in {sentence!r}')
        places.append(1 + words.index(word))  # <cls>
    found = represent(net, vocab, sentences)
    X = np.stack([x[i] for x, i in zip(found, places, strict=True)])
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def attention_weights(net: BERTModel, vocab: Vocab, text: Text) -> np.ndarray:
    """Return the attention weights of every block for a text.

    Float32 `(num_blks, num_heads, T, T)`: a row for each query, a column for
    each key; rows add up to 1.
    """
    inputs = [np.array([row]) for row in encode_text(net, vocab, text)]
    outputs = net.backend.trace(net.encoder, inputs)
    # Dropout, which drops nothing in evaluation, returns the weights
    return np.stack(
        [
            outputs[f'blks.{i}.attention.attention.dropout'][0]
            for i in range(len(net.encoder.blks))
        ]
    )


# ---- memory ----------------------------------------------------------


class Memory(NamedTuple):
    """How many bytes a training takes, part by part."""

    parameters: int
    moments: int
    gradients: int
    activations: int

    @property
    def total(self) -> int:
        """The bytes of all parts."""
        return sum(self)


def estimate_memory(
    vocab_size: int, *, micro_batch: int, num_workers: int = 1, **sizes: Any
) -> Memory:
    """Estimate the memory that a training needs, beside Python's own.

    A framework's temporary arrays come on top: on a processor, for large
    networks, up to a sixth more in PyTorch and two thirds in MXNet.

    `micro_batch`: rows that go through the network at a time;
    `num_workers`: how many micro-batches are computed side by side, one for
    each core of a processor or one for each GPU; `sizes`: options of
    `pretrain`, with its defaults. Rows are taken to be `max_len` tokens
    long; shorter ones take less.
    """
    config = Config(**sizes)
    # For each token of a block: vectors of hidden units and of the
    # feed-forward network, and numbers for each token it looks at
    kept = config.num_blks * (
        KEPT_HIDDENS * config.num_hiddens
        + KEPT_FFN_HIDDENS * config.ffn_num_hiddens
        + KEPT_SCORES * config.num_heads * config.max_len
    )
    parameters = FLOAT_BYTES * count_parameters(config, vocab_size)
    return Memory(
        parameters,
        2 * parameters,
        num_workers * parameters,
        num_workers * FLOAT_BYTES * micro_batch * config.max_len * kept,
    )
