"""What a network scores on a text, beside what less knowledge gives."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import d2lbert
from d2lbert.data.archives import TRAIN_FILE
from d2lbert.data.vocab import RESERVED_TOKENS, UNKNOWN, Vocab
from d2lbert.errors import CorpusError, InputError, RunError
from d2lbert.evaluation import evaluate as evaluation
from d2lbert.evaluation.evaluate import (
    MEASURES,
    Evaluator,
    cross_entropies,
    standard_error,
)
from d2lbert.evaluation.levels import (
    Answers,
    Frequencies,
    answers_of,
    chance,
    count_frequencies,
    entropies,
    frequent,
    unmasked,
)
from helpers import (
    assert_refused,
    forward,
    make_batch,
    new_net,
    write_text,
)

VOCAB = Vocab.from_tokens(
    [*RESERVED_TOKENS, UNKNOWN, *(f'word{i}' for i in range(45))]
)
BATCH = make_batch(37, seed=3)
FREQUENCIES = Frequencies(np.arange(50), np.array([3, 2]))


@pytest.fixture
def evaluator():
    return Evaluator(BATCH, VOCAB, FREQUENCIES, 'valid')


def assert_alike(found, expected, atol=1e-5):
    for name in MEASURES:
        scale = max(1, abs(expected.network[name]))
        assert abs(found.network[name] - expected.network[name]) < (
            atol * scale
        ), name


# ---- the network -----------------------------------------------------


def test_the_scores_are_those_of_the_networks_outputs(tab, evaluator):
    net = new_net(tab)
    _, mlm_Y_hat, nsp_Y_hat = forward(net, *BATCH[:4])
    real = BATCH.mlm_weights > 0

    def scores(logits, labels):
        logits = logits.astype(float)
        rows = np.arange(len(labels))
        losses = np.log(np.exp(logits).sum(1)) - logits[rows, labels]
        ranks = (-logits).argsort(axis=1, kind='stable').argsort(axis=1)
        ranks = ranks[rows, labels]
        return losses.mean(), (ranks == 0).mean(), (ranks < 5).mean()

    mlm = scores(mlm_Y_hat[real], BATCH.mlm_labels[real])
    nsp = scores(nsp_Y_hat, BATCH.nsp_labels)
    expected = [mlm[0], math.exp(mlm[0]), *mlm[1:], *nsp[:2]]
    found = evaluator.evaluate(net)
    np.testing.assert_allclose(
        [found.network[name] for name in MEASURES], expected, rtol=1e-5
    )
    assert (found.num_pairs, found.num_predictions) == (37, real.sum())


def test_all_frameworks_score_alike(all_tabs, evaluator):
    first, *others = (evaluator.evaluate(new_net(tab)) for tab in all_tabs)
    for found in others:
        assert_alike(found, first)
        assert found.chance == first.chance
        assert found.frequencies == first.frequencies


@pytest.mark.parametrize(
    ('batch_size', 'devices'), [(1, 'cpu'), (5, 'cpu:2'), (1000, 'cpu:2')]
)
def test_neither_batches_nor_devices_matter(
    tab, evaluator, batch_size, devices
):
    expected = evaluator.evaluate(new_net(tab))
    net = new_net(tab, devices=devices)
    assert_alike(evaluator.evaluate(net, batch_size), expected)


def test_few_logits_exist_at_a_time(tab, evaluator, monkeypatch):
    net, most = new_net(tab), 0

    def run(net, batches):
        nonlocal most
        outputs = type(net.backend).evaluate(net.backend, net, batches)
        most = max(most, *(mlm_Y_hat.size for _, mlm_Y_hat, _ in outputs))
        return outputs

    expected = evaluator.evaluate(net)
    monkeypatch.setattr(evaluation, 'NUM_LOGITS', 3 * 4 * 50)
    monkeypatch.setattr(net.backend, 'evaluate', run)
    assert_alike(evaluator.evaluate(net, 1000), expected)
    assert most == 3 * 4 * 50


def test_a_network_that_is_not_finite_is_refused(one_backend, evaluator):
    net = new_net(d2lbert.frameworks.load_tab(one_backend))
    backend = net.backend
    weights = backend.get_parameters(net)
    name = next(name for name in weights if name.endswith('pos_embedding'))
    weights[name] = np.full_like(weights[name], np.nan)
    backend.set_parameters(net, weights)
    with pytest.raises(RunError, match=r'not finite.*smaller --lr'):
        evaluator.evaluate(net)


def test_a_batch_needs_a_row(one_backend, evaluator):
    with pytest.raises(InputError, match='batch_size = 0'):
        evaluator.evaluate(None, 0)


@settings(derandomize=True)
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(2, 7)),
        elements=st.sampled_from([-3e4, -1.5, 0.0, 0.25, 2.0, 3e4]),
    ),
    st.data(),
)
def test_cross_entropies_and_ranks(logits, data):
    num_rows, num_classes = logits.shape
    label = st.integers(0, num_classes - 1)
    labels = np.array([data.draw(label) for _ in range(num_rows)])
    losses, ranks = cross_entropies(logits, labels)
    assert np.isfinite(losses).all() and (losses >= 0).all()
    for row, label, loss, rank in zip(
        logits, labels, losses, ranks, strict=True
    ):
        shifted = row.astype(float) - row.max()
        expected = np.log(np.exp(shifted).sum()) - shifted[label]
        assert math.isclose(loss, expected, rel_tol=1e-12, abs_tol=1e-12)
        assert rank == np.argsort(-row, kind='stable').tolist().index(label)


# ---- levels ----------------------------------------------------------


def test_chance():
    assert np.allclose(
        chance(20256),
        [math.log(20256), 1 / 20256, 5 / 20256, math.log(2), 0.5],
    )
    assert chance(3).mlm_top5 == 1


def test_the_frequencies_know_how_often_a_token_occurs():
    tokens = np.array([0, 6, 2, 0, 1, 2, 1])
    answers = Answers(
        np.array([0, 0, 1]),
        np.array([0, 1, 0]),
        np.array([1, 2, 0]),
        np.array([1, 0]),
    )
    found = frequent(Frequencies(tokens, np.array([1, 3])), answers)
    probabilities = [7 / 19, 3 / 19, 1 / 19]
    np.testing.assert_allclose(found.mlm_loss, -np.log(probabilities))
    assert found.mlm_accuracy.tolist() == [1, 0, 0]
    # In order: 1, 2, 5, 4, 6, and then 0
    assert found.mlm_top5.tolist() == [1, 1, 0]
    np.testing.assert_allclose(found.nsp_loss, -np.log([4 / 6, 2 / 6]))
    assert found.nsp_accuracy.tolist() == [1, 0]


def test_the_counted_tokens_are_those_of_the_text(tmp_path):
    text = write_text(tmp_path / 'text.txt')
    examples, vocab = d2lbert.data.examples.load_examples(
        text.read_text().splitlines(), 64
    )
    found = count_frequencies(examples, vocab)
    assert found.tokens.sum() == (examples.valid_lens - 3).sum()
    assert not found.tokens[vocab[list(RESERVED_TOKENS)]].any()
    assert found.pairs[1] == examples.nsp_labels.sum()
    assert found.pairs.sum() == examples.num_examples
    words = {w for row in unmasked(examples) for w in vocab.to_tokens(row)}
    assert '<mask>' not in words and {'crane', '<sep>'} <= words


def test_padded_slots_are_not_asked():
    answers = answers_of(BATCH)
    assert len(answers.rows) == BATCH.mlm_weights.sum()
    assert (
        answers.mlm_labels == BATCH.mlm_labels[answers.rows, answers.slots]
    ).all()


@pytest.mark.parametrize('num_rows', [1, 5, 1000])
def test_the_entropies_are_the_least_losses_of_one_guess_for_all(
    num_rows, monkeypatch
):
    monkeypatch.setattr('d2lbert.evaluation.levels.ROWS', num_rows)
    answers, found = answers_of(BATCH), entropies(BATCH, 50)
    tokens = np.bincount(answers.mlm_labels) / len(answers.mlm_labels)
    pairs = np.bincount(answers.nsp_labels) / len(answers.nsp_labels)
    mlm_loss = -np.log(tokens[answers.mlm_labels]).mean()
    nsp_loss = -np.log(pairs[answers.nsp_labels]).mean()
    assert math.isclose(found['mlm_loss'], mlm_loss)
    assert math.isclose(found['nsp_loss'], nsp_loss)
    slots = entropies(BATCH, 50, 'slots')
    share = (BATCH.mlm_weights > 0).mean()
    assert math.isclose(slots['mlm_loss'], share * mlm_loss)
    assert slots['nsp_loss'] == found['nsp_loss']


# ---- standard errors -------------------------------------------------


def test_one_value_a_row_has_the_usual_standard_error():
    values = np.random.default_rng(0).normal(size=50)
    expected = values.std(ddof=1) / math.sqrt(50)
    assert math.isclose(standard_error(values, np.arange(50)), expected)


def test_equal_values_in_a_row_count_once():
    values = np.random.default_rng(0).normal(size=50)
    once = standard_error(values, np.arange(50))
    rows = np.repeat(np.arange(50), 7)
    assert math.isclose(standard_error(np.repeat(values, 7), rows), once)


def test_a_single_row_has_no_standard_error():
    assert math.isnan(standard_error(np.array([1.0, 2.0]), np.array([0, 0])))


class Counts:
    """The frequencies as a network."""

    vocab_size, max_len = 50, 16

    class backend:
        name, compiles = 'torch', False

        def num_cores():
            return 1

        def evaluate(net, batches):
            mlm = np.log(FREQUENCIES.tokens + 1.0)
            nsp = np.log(FREQUENCIES.pairs + 1.0)
            return [
                (None, np.tile(mlm, (*P.shape, 1)), np.tile(nsp, (len(P), 1)))
                for *_, P in batches
            ]


def test_a_network_that_knows_the_frequencies_scores_as_they_do(evaluator):
    found = evaluator.evaluate(Counts)
    for name, better in MEASURES.items():
        assert math.isclose(found.network[name], found.frequencies[name])
        assert not better or found.errors_above['frequencies'][name] == 0
    assert found.errors_above['chance']['mlm_loss'] * (
        found.standard_errors['mlm_loss']
    ) == pytest.approx(found.chance['mlm_loss'] - found.network['mlm_loss'])


# ---- runs ------------------------------------------------------------


def test_the_command_evaluates_a_run(run, saved, held_out, tmp_path):
    folder, out = saved('torch'), tmp_path / 'out'
    done = run(
        'evaluate', folder, '--split', held_out, '--out', out, '--json'
    )
    assert done.status == 0, done.err
    first, *table, picture, last = done.out.splitlines()
    assert first.endswith(f'pairs of sentences ({held_out})')
    assert len(table) == 7 and table[1].startswith('MLM loss ')
    assert picture == f'Picture: {out / "evaluation.png"}'
    assert (out / 'evaluation.svg').exists()
    results = json.loads(last)
    for scores in (results, results['chance'], results['frequencies']):
        assert [name for name in scores if name in MEASURES] == [*MEASURES]
    assert math.isclose(results['perplexity'], math.exp(results['mlm_loss']))
    assert results['num_predictions'] > results['num_pairs'] > 20
    again = d2lbert.evaluate(folder, held_out, progress=False)
    assert again.as_dict() == results
    assert_refused(
        run('evaluate', folder, '--out', out), 'evaluation.png', 'already'
    )


@pytest.mark.parametrize('split', ['valid', 'test'])
def test_a_text_without_such_a_part(run, saved, split):
    done = run('evaluate', saved('torch'), '--split', split)
    assert_refused(
        done, 'cranes.txt has no such part', 'path of a text', status=1
    )


def test_the_sample_has_one_part(train):
    tiny = train('torch', corpus='sample', steps=1)
    found = d2lbert.evaluate(tiny, progress=False)
    assert found.num_pairs > 20
    assert found.frequencies['mlm_loss'] < found.chance['mlm_loss']
    with pytest.raises(CorpusError, match='sample has no such part'):
        d2lbert.evaluate(tiny, 'test', progress=False)


def test_the_training_text_may_be_elsewhere_but_not_another(
    saved, text_file, held_out, tmp_path
):
    run = d2lbert.load_run(saved('torch'))
    moved = tmp_path / 'moved.txt'
    moved.write_bytes(text_file.read_bytes())
    found = d2lbert.evaluate(run, held_out, corpus=moved, progress=False)
    assert found == d2lbert.evaluate(run, held_out, progress=False)
    with pytest.raises(InputError, match='another vocabulary'):
        d2lbert.evaluate(run, held_out, corpus='sample', progress=False)


def test_a_run_in_memory_has_its_framework(saved):
    run = d2lbert.load_run(saved('torch'))
    with pytest.raises(InputError, match='give its folder'):
        d2lbert.evaluate(run, backend='torch')


def test_the_run_is_as_it_was(train, held_out):
    run = train('torch')
    freqs = list(run.vocab.token_freqs)
    d2lbert.evaluate(run, held_out, progress=False)
    assert freqs and run.vocab.token_freqs == freqs


def test_parts_of_wikitext_2(wikitext2, monkeypatch):
    monkeypatch.setenv('D2LBERT_WIKITEXT2', wikitext2)
    from d2lbert.data.corpus import open_corpus

    valid, test = (
        list(open_corpus(split=split).lines()) for split in ('valid', 'test')
    )
    assert (len(valid), len(test)) == (3760, 4358)
    assert valid[1] == ' = Homarus gammarus = \n'
    checksums = {
        open_corpus(split=split).sha256()
        for split in ('train', 'valid', 'test')
    }
    assert len(checksums) == 3


def test_a_part_stands_beside_the_training_text(tmp_path):
    from d2lbert.data.corpus import open_corpus

    for split in ('train', 'valid'):
        path = tmp_path / f'wiki.{split}.tokens'
        path.write_text(f'{split} . text .\n')
    for corpus in (tmp_path, tmp_path / TRAIN_FILE):
        lines = open_corpus(corpus, 'valid').lines()
        assert list(lines) == ['valid . text .\n']
        with pytest.raises((InputError, CorpusError), match=r'wiki\.test'):
            open_corpus(corpus, 'test')
