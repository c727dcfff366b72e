"""Masks filled, and which sentence follows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import d2lbert
from d2lbert.errors import InputError, RunError
from d2lbert.evaluation import fill_mask
from test_representation import VOCAB, WORDS, make_net

TEXTS = [
    'a <mask> is flying',
    ('a crane <mask> came', '<mask> just left'),
    'a ' * 40 + '<mask>',
]
PAIRS = [('a crane came', 'he left'), ('he left', 'a ' * 40 + 'crane')]


@pytest.fixture
def net(tab):
    return make_net(tab)


def test_each_mask_has_its_candidates(net):
    one, two, _ = d2lbert.fill(net, VOCAB, TEXTS, top=3)
    assert one.tokens == ['<cls>', 'a', '<mask>', 'is', 'flying', '<sep>']
    assert one.positions.tolist() == [2] and two.positions.tolist() == [3, 6]
    assert two.probabilities.shape == (2, 3)
    assert two.probabilities.dtype == np.float32
    assert [len(words) for words in two.candidates] == [3, 3]
    assert (np.diff(two.probabilities) <= 0).all()


def test_the_probabilities_are_those_of_all_tokens(net):
    (filling,) = d2lbert.fill(net, VOCAB, TEXTS[:1], top=len(VOCAB))
    assert filling.probabilities.sum() == pytest.approx(1, abs=1e-6)
    assert sorted(filling.candidates[0]) == sorted(VOCAB.idx_to_token)


def test_it_follows_or_it_does_not(net):
    result = d2lbert.follows(net, VOCAB, PAIRS)
    assert result.follows.shape == (2,)
    assert result.follows.dtype == result.does_not.dtype == np.float32
    np.testing.assert_allclose(sum(result), 1, atol=1e-6)


def test_the_answers_are_those_of_the_network(net):
    """The same as its `forward` for a text by itself."""
    tokens = np.array(
        [VOCAB[['<cls>', 'a', '<mask>', '<sep>', 'is', '<sep>']]]
    )
    segments = np.array([[0, 0, 0, 0, 1, 1]])
    outputs = net.backend.trace(
        net, (tokens, segments, np.array([6.0], np.float32), np.array([[2]]))
    )
    expected = [np.exp(outputs[f'output {i}']).ravel() for i in (1, 2)]
    mlm, nsp = (X / X.sum() for X in expected)
    (filling,) = d2lbert.fill(net, VOCAB, [('a <mask>', 'is')], top=1)
    assert filling.candidates == [[VOCAB.idx_to_token[mlm.argmax()]]]
    assert filling.probabilities[0, 0] == pytest.approx(mlm.max(), abs=1e-6)
    result = d2lbert.follows(net, VOCAB, [('a <mask>', 'is')])
    assert result.follows[0] == pytest.approx(nsp[1], abs=1e-6)


@pytest.mark.slow
def test_all_frameworks_answer_alike(all_tabs):
    first, *others = (
        (
            d2lbert.fill(make_net(tab), VOCAB, TEXTS),
            d2lbert.follows(make_net(tab), VOCAB, PAIRS),
        )
        for tab in all_tabs
    )
    for fillings, following in others:
        np.testing.assert_allclose(following, first[1], atol=1e-5)
        for ours, theirs in zip(first[0], fillings, strict=True):
            np.testing.assert_allclose(
                ours.probabilities, theirs.probabilities, atol=1e-5
            )


@pytest.fixture
def calls(net, monkeypatch):
    """The outputs of each call of `evaluate`, which two cores serve."""
    calls = []

    def evaluate(net, batches):
        outputs = type(net.backend).evaluate(net.backend, net, batches)
        calls.append(outputs)
        return outputs

    monkeypatch.setattr(net.backend, 'evaluate', evaluate)
    monkeypatch.setattr(net.backend, 'num_cores', lambda: 2)
    return calls


def test_as_many_batches_at_a_time_as_cores(net, calls):
    d2lbert.fill(net, VOCAB, TEXTS, batch_size=1)
    assert [len(outputs) for outputs in calls] == [2, 1]
    d2lbert.follows(net, VOCAB, PAIRS * 2, batch_size=1)
    assert [len(outputs) for outputs in calls[2:]] == [2, 2]
    # Which sentence follows takes no logits over the vocabulary
    for outputs in calls[2:]:
        assert all(mlm_Y_hat is None for _, mlm_Y_hat, _ in outputs)


def test_few_logits_exist_at_a_time(net, calls, monkeypatch):
    expected = d2lbert.fill(net, VOCAB, TEXTS * 3)
    calls.clear()
    monkeypatch.setattr(fill_mask, 'NUM_LOGITS', 4 * len(VOCAB))
    found = d2lbert.fill(net, VOCAB, TEXTS * 3)
    most = max(Y.size for outputs in calls for _, Y, _ in outputs)
    assert most <= 4 * len(VOCAB)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            ours.probabilities, theirs.probabilities, atol=1e-5
        )


def texts_of(words):
    return st.lists(
        st.sampled_from(words), min_size=1, max_size=12
    ).map(' '.join)  # fmt: skip


masked = texts_of([*WORDS, '<mask>']).map('<mask> '.__add__)


@pytest.mark.parametrize('batch_size', [None, 1, 3])
def test_neighbours_do_not_matter(net, batch_size):
    # Each shape is compiled anew
    few = 2 if net.backend.compiles else 6

    @settings(max_examples=few, derandomize=True)
    @given(st.lists(masked | st.tuples(masked, texts_of(WORDS)), max_size=6))
    def check(many):
        together = d2lbert.fill(net, VOCAB, many, batch_size=batch_size)
        pairs = [one for one in many if isinstance(one, tuple)]
        following = d2lbert.follows(net, VOCAB, pairs, batch_size)
        for text, filling in zip(many, together, strict=True):
            (alone,) = d2lbert.fill(net, VOCAB, [text])
            assert filling.tokens == alone.tokens
            np.testing.assert_allclose(
                filling.probabilities, alone.probabilities, atol=1e-5
            )
        for pair, follows in zip(pairs, following.follows, strict=True):
            alone = d2lbert.follows(net, VOCAB, [pair]).follows[0]
            assert follows == pytest.approx(alone, abs=1e-5)

    check()


@pytest.mark.parametrize(
    ('text', 'top', 'message'),
    [
        ('a crane', 5, 'has no mask: write <mask>'),
        ('a <mask>', 0, 'top = 0'),
        ('a <mask>', 15, 'top = 15: the vocabulary has 14 tokens'),
        ('<mask> ' * 1000, 5, 'cut 2 words'),
        ('', 5, 'no words'),
    ],
)
def test_a_text_that_cannot_be_filled(net, text, top, message):
    with pytest.raises(InputError, match=message):
        d2lbert.fill(net, VOCAB, [TEXTS[0], text], top)


@pytest.mark.parametrize('pair', ['a crane', ('a',), ('a', 'b', 'c'), 5])
def test_what_is_no_pair(net, pair):
    with pytest.raises(InputError, match='a tuple of two sentences'):
        d2lbert.follows(net, VOCAB, [pair])


def test_logits_that_are_not_finite(net):
    arrays = net.backend.get_parameters(net)
    bad = {name: np.full_like(X, np.nan) for name, X in arrays.items()}
    net.backend.set_parameters(net, bad)
    with pytest.raises(RunError, match='the logits are not finite'):
        d2lbert.fill(net, VOCAB, TEXTS)
    with pytest.raises(RunError, match='the logits are not finite'):
        d2lbert.follows(net, VOCAB, PAIRS)
