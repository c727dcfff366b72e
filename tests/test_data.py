"""From text to minibatches."""

import random
import tracemalloc
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2lbert.book import textbook
from d2lbert.data import examples, sample
from d2lbert.data.batches import Batches
from d2lbert.data.examples import load_examples, read_paragraphs
from d2lbert.data.vocab import CLS, MASK, PAD, RESERVED_TOKENS, SEP, Vocab
from d2lbert.errors import CorpusError, InputError

words = st.text('abcdefgh', min_size=1, max_size=2)


@pytest.fixture(scope='module')
def loaded():
    return load_examples(sample.lines(), 64, random.Random(0))


# ---- vocabulary ------------------------------------------------------


def test_vocab_is_sorted_and_has_what_is_frequent():
    vocab = Vocab([['b', 'a', 'b'], ['b', 'c', 'a']], 2, ['<pad>'])
    assert vocab.idx_to_token == ['<pad>', '<unk>', 'a', 'b']
    assert vocab.token_freqs[0] == ('b', 3)
    assert vocab['c'] == vocab.unk == 1
    assert vocab[['a', 'z', ['b']]] == [2, 1, [3]]
    assert vocab.to_tokens([2, 3]) == ['a', 'b']
    assert vocab.to_tokens(2) == 'a'


@given(st.lists(words), st.integers(0, 4))
def test_vocab_round_trip(tokens, min_freq):
    vocab = Vocab(tokens, min_freq, RESERVED_TOKENS)
    counts = Counter(tokens)
    for token in tokens:
        known = counts[token] >= min_freq
        assert vocab.to_tokens(vocab[token]) == (token if known else '<unk>')
    assert vocab.idx_to_token == sorted(set(vocab.idx_to_token))
    again = Vocab.from_tokens(vocab.idx_to_token)
    assert again.token_to_idx == vocab.token_to_idx
    counted = Vocab(counts, min_freq, RESERVED_TOKENS)
    assert vars(counted) == vars(vocab)


# ---- text ------------------------------------------------------------


def test_read_paragraphs():
    lines = ['One . Two .\n', ' = Heading = \n', '\n', 'A b . \n', 'X . y']
    assert read_paragraphs(lines) == [['one', 'two .'], ['a b .'], ['x', 'y']]


def test_no_example():
    with pytest.raises(CorpusError, match='no example'):
        load_examples(['one sentence only'], 64)


@pytest.mark.parametrize('max_len', [-1, 0, 4])
def test_max_len_without_room(max_len):
    with pytest.raises(InputError, match=f'max_len = {max_len}'):
        load_examples(sample.lines(), max_len)


# ---- examples --------------------------------------------------------


def test_arrays(loaded):
    batch, _ = loaded
    size = len(batch.tokens)
    assert size > 3000
    assert [array.shape for array in batch] == [
        (size, 64), (size, 64), (size,), (size, 10), (size, 10), (size, 10),
        (size,),
    ]  # fmt: skip
    assert [str(array.dtype) for array in batch] == [
        'int32', 'int32', 'float32', 'int32', 'float32', 'int32', 'int32',
    ]  # fmt: skip


def unmasked(batch):
    """The tokens as they were: a random word may be any token."""
    tokens = batch.tokens.copy()
    real = batch.mlm_weights == 1
    rows = np.repeat(np.arange(len(real)), real.sum(1))
    tokens[rows, batch.pred_positions[real]] = batch.mlm_labels[real]
    return tokens


def test_every_example_is_well_formed(loaded):
    batch, vocab = loaded
    steps = np.arange(64)
    valid = steps < batch.valid_lens[:, None]
    is_sep = unmasked(batch) == vocab[SEP]
    assert (batch.tokens[:, 0] == vocab[CLS]).all()
    assert (is_sep.sum(1) == 2).all()
    assert (batch.tokens[~valid] == vocab[PAD]).all()
    assert (batch.segments[~valid] == 0).all()
    # The second segment starts after the first <sep>, ends with the second
    first, last = is_sep.argmax(1), 63 - is_sep[:, ::-1].argmax(1)
    assert (last == batch.valid_lens - 1).all()
    expected = (steps > first[:, None]) & valid
    np.testing.assert_array_equal(batch.segments, expected)


def test_predictions_are_well_formed(loaded):
    batch, vocab = loaded
    real = batch.mlm_weights == 1
    expected = [max(1, round(n * 0.15)) for n in batch.valid_lens.tolist()]
    assert real.sum(1).tolist() == expected
    assert ((batch.mlm_weights == 0) == ~real).all()
    assert not batch.pred_positions[~real].any()
    assert not batch.mlm_labels[~real].any()
    rows = np.repeat(np.arange(len(real)), real.sum(1))
    hidden = batch.tokens[rows, batch.pred_positions[real]]
    labels = batch.mlm_labels[real]
    special = {vocab[CLS], vocab[SEP], vocab[PAD], vocab[MASK]}
    assert not special & set(labels.tolist())
    assert abs((hidden == vocab[MASK]).mean() - 0.8) < 0.01
    assert abs((hidden == labels).mean() - 0.1) < 0.01
    for row, slots in zip(batch.pred_positions[:99], real, strict=False):
        assert (np.diff(row[slots]) > 0).all()


def test_half_of_the_pairs_follow(loaded):
    batch, _ = loaded
    assert abs(batch.nsp_labels.mean() - 0.5) < 0.03


def test_seed_decides_the_examples():
    lines = sample.lines()[:200]
    a, b, c = (
        load_examples(lines, 48, random.Random(seed))[0] for seed in (3, 3, 4)
    )
    for ours, theirs in zip(a, b, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(a.tokens) != len(c.tokens) or (a.tokens != c.tokens).any()


@settings(max_examples=30)
@given(
    st.lists(
        st.lists(
            st.lists(words, min_size=1, max_size=9), min_size=2, max_size=4
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(5, 40),
    st.integers(0, 5),
)
def test_any_text(paragraphs, max_len, seed):
    lines = [' . '.join(map(' '.join, p)) + ' .\n' for p in paragraphs]
    try:
        batch, vocab = load_examples(lines, max_len, random.Random(seed))
    except CorpusError:
        return
    assert batch.valid_lens.min() >= 5
    assert batch.valid_lens.max() <= max_len
    assert 0 <= batch.tokens.min() <= batch.tokens.max() < len(vocab)
    assert batch.mlm_weights.sum(1).min() >= 1
    assert (batch.pred_positions < batch.valid_lens[:, None]).all()


def test_one_sentence_and_two():
    assert examples.join_pair(['a'], None, CLS, SEP) == (
        [CLS, 'a', SEP],
        [0, 0, 0],
    )
    assert examples.join_pair(['a'], ['b', 'c'], CLS, SEP) == (
        [CLS, 'a', SEP, 'b', 'c', SEP],
        [0, 0, 0, 1, 1, 1],
    )


def plain(paragraphs, max_len):
    """What the chapter's functions make of paragraphs, word by word."""
    texts = [textbook.tokenize(paragraph) for paragraph in paragraphs]
    vocab = Vocab(list(chain(*texts)), examples.MIN_FREQ, RESERVED_TOKENS)
    pairs = [
        pair
        for text in texts
        for pair in textbook._get_nsp_data_from_paragraph(
            text, texts, vocab, max_len
        )
    ]
    data = [
        (
            *textbook._get_mlm_data_from_tokens(tokens, vocab),
            segments,
            is_next,
        )
        for tokens, segments, is_next in pairs
    ]
    return textbook.pad_bert_inputs(data, max_len, vocab), vocab


sentences = st.lists(
    words | st.sampled_from([*RESERVED_TOKENS, '<unk>']), max_size=30
).map(' '.join)


@settings(max_examples=40)
@given(
    st.lists(st.lists(sentences, min_size=1, max_size=8), max_size=5),
    st.integers(5, 70),
    st.integers(),
)
def test_whole_text_as_word_by_word(paragraphs, max_len, seed):
    random.seed(seed)
    expected, expected_vocab = plain(paragraphs, max_len)
    rng = random.Random(seed)
    text, vocab = examples.number_words(paragraphs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examples, 'BLOCK', 3)
        try:
            batch = examples.make_examples(text, vocab, max_len, rng)
        except CorpusError:
            batch = expected.rows([])
    assert vars(vocab) == vars(expected_vocab)
    for ours, theirs in zip(batch, expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert rng.getstate() == random.getstate()


@pytest.mark.parametrize(
    'size', [0, 1, 2, 3, 4, 64, 500, examples.NUM_DRAWS, 1001, 1500]
)
def test_shuffle(size):
    ours, theirs = list(range(size)), list(range(size))
    rng, python = random.Random(size), random.Random(size)
    examples.shuffle(ours, rng)
    python.shuffle(theirs)
    assert ours == theirs
    assert rng.getstate() == python.getstate()


def test_module_random_is_a_generator_too():
    random.seed(5)
    here, _ = load_examples(sample.lines()[:100], 64)
    there, _ = load_examples(sample.lines()[:100], 64, random.Random(5))
    np.testing.assert_array_equal(here.tokens, there.tokens)


def test_memory_is_little_more_than_the_arrays():
    lines = sample.lines() * 2
    tracemalloc.start()
    batch, _ = load_examples(lines, 64, random.Random(0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * sum(array.nbytes for array in batch)


def test_wikitext2(wikitext2):
    from d2lbert.data.corpus import read_lines

    batch, vocab = load_examples(read_lines(wikitext2), 64, random.Random(0))
    assert len(vocab) == 20256
    assert 43_300 < len(batch.tokens) < 43_900
    assert abs(batch.valid_lens.mean() - 46.2) < 0.3
    assert abs(batch.mlm_weights.sum(1).mean() - 6.94) < 0.05


# ---- batches ---------------------------------------------------------


def small(loaded, size):
    return loaded[0].rows(slice(size))


@pytest.mark.parametrize('size', [1, 7, 8, 9])
def test_an_epoch_has_every_example_once(loaded, size):
    train_iter = Batches(small(loaded, size), 4)
    epoch = list(train_iter)
    assert len(epoch) == len(train_iter)
    assert [len(batch.tokens) for batch in epoch[:-1]] == [4] * (
        len(epoch) - 1
    )
    seen = np.concatenate([batch.tokens for batch in epoch])
    assert sorted(map(tuple, seen)) == sorted(
        map(tuple, small(loaded, size).tokens)
    )


def test_epochs_differ_and_seeds_decide_them(loaded):
    def epochs(seed):
        train_iter = Batches(small(loaded, 40), 40, seed)
        return [next(iter(train_iter)).tokens for _ in range(2)]

    first, second = epochs(0)
    assert (first != second).any()
    np.testing.assert_array_equal(second, epochs(0)[1])
    assert (first != epochs(1)[0]).any()


@pytest.mark.parametrize('step', [0, 1, 2, 3, 5, 6])
def test_from_any_step(loaded, step):
    def take(start, stop):
        batches = Batches(small(loaded, 10), 4).from_step(start)
        return [next(batches) for _ in range(stop - start)]

    for ours, theirs in zip(take(step, 8), take(0, 8)[step:], strict=True):
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)


def test_batch_size_must_be_positive(loaded):
    with pytest.raises(InputError, match='batch_size = 0'):
        Batches(loaded[0], 0)
