"""Text in, representations out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import d2lbert
from d2lbert.data.vocab import RESERVED_TOKENS, UNKNOWN, Vocab
from d2lbert.errors import InputError
from d2lbert.representation import batches_of, to_tokens
from d2lbert.runs.config import Config
from d2lbert.runs.run import new_net

WORDS = ['a', 'crane', 'driver', 'came', 'flying', 'he', 'is', 'just', 'left']
VOCAB = Vocab.from_tokens([*RESERVED_TOKENS, UNKNOWN, *WORDS])
SENTENCE = 'a crane is flying'
PAIR = ('a crane driver came', 'he just left')


def make_net(tab, **options):
    options = {'num_hiddens': 16, 'ffn_num_hiddens': 32, 'seed': 1} | options
    config = Config(
        backend=tab.BACKEND.name, recipe='pytorch', dropout=0.5, **options
    )
    return new_net(tab, config, VOCAB, tab.BACKEND.devices('cpu'))


@pytest.fixture
def net(tab):
    return make_net(tab)


def represent(net, *texts, **options):
    return d2lbert.represent(net, VOCAB, list(texts), **options)


# ---- tokens ----------------------------------------------------------


def test_another_networks_vocabulary_is_refused(net):
    other = Vocab.from_tokens([*RESERVED_TOKENS, UNKNOWN, *WORDS, 'more'])
    with pytest.raises(
        InputError, match=rf'vocab_size = {len(other)}: this network has'
    ):
        d2lbert.represent(net, other, [WORDS[0]])


def test_texts_may_come_one_by_one(net):
    (X,) = d2lbert.represent(net, VOCAB, iter([WORDS[0]]))
    np.testing.assert_array_equal(X, represent(net, WORDS[0])[0])


def test_the_tokens_of_a_sentence():
    assert to_tokens(SENTENCE) == (
        ['<cls>', 'a', 'crane', 'is', 'flying', '<sep>'],
        [0] * 6,
    )


def test_the_tokens_of_a_pair():
    tokens, segments = to_tokens(PAIR)
    assert ' '.join(tokens) == (
        '<cls> a crane driver came <sep> he just left <sep>'
    )
    assert segments == [0] * 6 + [1] * 4


def test_spaces_and_upper_case_do_not_matter():
    assert to_tokens('  A\tCrane \n is flying ') == to_tokens(SENTENCE)


# ---- representations -------------------------------------------------


def test_the_shapes_of_the_chapter(tab):
    net = make_net(tab, num_hiddens=128, ffn_num_hiddens=256)
    X, X_pair = represent(net, SENTENCE, PAIR)
    assert X.shape == (6, 128) and X_pair.shape == (10, 128)
    assert X.dtype == X_pair.dtype == np.float32


def test_a_representation_depends_on_the_context(net):
    X, X_pair, X_other = represent(net, SENTENCE, PAIR, (PAIR[0], 'is left'))
    assert abs(X[2] - X_pair[2]).max() > 0.01
    assert abs(X_other[2] - X_pair[2]).max() > 0.001


def test_segments_count(net):
    one, two = represent(net, 'a crane <sep> came', ('a crane', 'came'))
    assert len(one) == len(two) == 6
    assert abs(one - two).max() > 0.01


texts = st.lists(
    st.sampled_from(WORDS), min_size=1, max_size=12
).map(' '.join)  # fmt: skip


@pytest.mark.parametrize('batch_size', [None, 1, 3, 256])
def test_many_texts_are_as_one_at_a_time(net, batch_size):
    @settings(max_examples=8, derandomize=True)
    @given(st.lists(texts | st.tuples(texts, texts), max_size=8))
    def check(many):
        together = represent(net, *many, batch_size=batch_size)
        assert len(together) == len(many)
        for text, X in zip(many, together, strict=True):
            (alone,) = represent(net, text)
            assert X.shape == alone.shape
            np.testing.assert_allclose(X, alone, atol=1e-5)

    check()


@settings(derandomize=True)
@given(
    st.lists(st.integers(3, 200), max_size=40),
    st.integers(1, 300),
    st.none() | st.integers(1, 9),
)
def test_every_text_is_in_one_batch_that_is_not_too_large(
    lens, num_tokens, batch_size
):
    batches = batches_of(lens, num_tokens, batch_size)
    assert sorted(i for batch in batches for i in batch) == list(
        range(len(lens))
    )
    for batch in batches:
        most = batch_size or max(1, num_tokens // max(lens[i] for i in batch))
        assert len(batch) <= most


def test_all_frameworks_represent_alike(all_tabs):
    many = [SENTENCE, PAIR, 'a ' * 500, 'crane']
    first, *others = (represent(make_net(tab), *many) for tab in all_tabs)
    for results in others:
        for ours, theirs in zip(first, results, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_there_is_no_dropout(net):
    first, second = represent(net, SENTENCE), represent(net, SENTENCE)
    assert np.array_equal(first, second)


@pytest.mark.torch
def test_the_mode_of_the_network_is_restored():
    tab = pytest.importorskip('d2lbert.torch')
    net = make_net(tab)
    for training in (True, False):
        net.train(training)
        represent(net, SENTENCE)
        assert net.training is training


def test_as_long_as_the_network_has_positions(net):
    (X,) = represent(net, 'crane ' * 998)
    assert len(X) == 1000
    assert represent(net) == []


# ---- bad input -------------------------------------------------------


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'no words'),
        (' \t\n', 'no words'),
        (('a crane', ''), 'no words'),
        ((), 'a sentence'),
        (('a', 'crane', 'is'), 'a sentence'),
        (['a', 'crane'], 'a sentence'),
        (['a', 'crane', 'is', 'flying'], 'a sentence'),
        (5, 'a sentence'),
        (None, 'a sentence'),
        (b'a crane', 'a sentence'),
        (('a crane', 5), 'a sentence'),
        ('kranich', 'no word of .* is in the vocabulary of 14 tokens'),
        (('kranich', 'grue'), 'no word of'),
        ('<cls> <sep>', 'no word of'),
        ('crane ' * 1000, 'text of 1002 tokens.* 1000 .*: cut 2 words'),
    ],
)
def test_a_text_that_cannot_be_represented(net, text, message):
    with pytest.raises(InputError, match=message):
        represent(net, SENTENCE, text)


def test_one_text_instead_of_a_list(net):
    with pytest.raises(InputError, match='put the one text into a list'):
        d2lbert.represent(net, VOCAB, SENTENCE)


def test_a_batch_without_texts(net):
    with pytest.raises(InputError, match='batch_size = 0'):
        represent(net, SENTENCE, batch_size=0)


def test_some_words_may_be_unknown(net):
    known, unknown, other = represent(
        net, SENTENCE, 'a kranich is flying', 'a grue is flying'
    )
    assert np.array_equal(unknown, other)
    assert abs(known - unknown).max() > 0.01
