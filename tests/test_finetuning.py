"""Fine-tuning: one curve in every framework, runs, inference, commands."""

import json

import numpy as np
import pytest

import d2lbert
import nli
from d2lbert import pretrained
from d2lbert.data.nli import NLIBatch
from d2lbert.data.snli import LABELS
from d2lbert.errors import InputError, RunError
from d2lbert.finetuning.recipes import RECIPES
from d2lbert.finetuning.trainer import ClassifierTrainer, logits_of
from d2lbert.frameworks import load_tab
from d2lbert.pytest_plugin import require
from d2lbert.weights import (
    get_weights,
    initial_weights,
    neutral_shapes,
    set_weights,
)
from helpers import SIZES, assert_refused, new_net

PAIRS = [
    ('a crane is flying', 'the crane left'),
    ('he left', 'a driver is flying'),
]


@pytest.fixture(scope='module')
def finetune(saved):
    """Fine-tunes a tiny run on a few of the embedded pairs."""

    def finetune(backend_name, source=None, **options):
        options = {
            'epochs': 2, 'batch_size': 9, 'num_pairs': 20, 'lr': 0.01,
            'devices': 'cpu', 'progress': False,
        } | options  # fmt: skip
        return d2lbert.finetune(
            source or saved(backend_name), backend=backend_name, **options
        )

    return finetune


@pytest.fixture(scope='module')
def finetuned(finetune, tmp_path_factory):
    """The folder of a run, made once for each backend."""
    folders = {}

    def finetuned(backend_name):
        if backend_name not in folders:
            folder = tmp_path_factory.mktemp('finetuned') / backend_name
            finetune(backend_name, out=folder)
            folders[backend_name] = folder
        return folders[backend_name]

    return finetuned


def new_classifier(tab, **changes):
    net = tab.BERTClassifier(new_net(tab, **changes))
    shapes = neutral_shapes(net)
    set_weights(
        net, initial_weights(shapes, 'torch', 1), tab.BACKEND.devices('cpu')
    )
    return net


def make_pairs(num_rows, seed=0, num_tokens=16):
    rng = np.random.default_rng(seed)
    lens = rng.integers(5, num_tokens + 1, num_rows)
    shape = num_rows, num_tokens
    padded = np.arange(num_tokens) >= lens[:, None]
    tokens = rng.integers(0, SIZES['vocab_size'], shape)
    return NLIBatch(
        np.where(padded, 0, tokens).astype(np.int32),
        np.where(padded, 0, rng.integers(0, 2, shape)).astype(np.int32),
        lens.astype(np.float32),
        rng.integers(0, 3, num_rows).astype(np.int32),
    )


# ---- the classifier and its trainer ----------------------------------


def test_the_losses_are_those_of_the_logits(tab):
    """Cut to the longest row and without the other positions."""
    batch, net = make_pairs(7), new_classifier(tab, dropout=0.0)
    trainer = ClassifierTrainer(
        net, RECIPES['mxnet'], lr=0.01, devices=tab.BACKEND.devices('cpu'),
        micro_batch=3,
    )  # fmt: skip
    found = trainer.value_and_grad(batch).losses()
    (logits,) = tab.BACKEND.evaluate(net, [batch[:3]])
    log_odds = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    loss = -log_odds[np.arange(7), batch.labels].mean()
    right = (logits.argmax(1) == batch.labels).mean()
    np.testing.assert_allclose(found, [loss, right], rtol=1e-5)
    np.testing.assert_allclose(
        logits_of(net, batch, pad=0), logits, atol=1e-5
    )


def test_the_book_gives_one_list(tab):
    net = new_classifier(tab)
    batch = [tab.BACKEND.tensor(X) for X in make_pairs(4)[:3]]
    with_mode = tab.BACKEND.evaluate(net, [make_pairs(4)[:3]])[0]
    assert with_mode.shape == (4, 3)
    assert tuple(net(batch).shape) == tuple(net(*batch).shape) == (4, 3)


def test_the_encoder_is_shared(tab):
    bert = new_net(tab)
    net = tab.BERTClassifier(bert)
    assert net.encoder is bert.encoder and net.hidden is bert.hidden
    names = tab.BACKEND.parameter_shapes(net)
    assert not any(name.startswith(('mlm', 'nsp')) for name in names)
    assert len(names) == len(tab.BACKEND.parameter_shapes(bert)) - 8 + 2


@pytest.mark.parametrize(
    ('name', 'value'),
    [('tokens', 50), ('segments', 2), ('valid_lens', 0), ('labels', 3)],
)
def test_a_batch_is_checked(one_backend, name, value):
    tab = load_tab(one_backend)
    trainer = ClassifierTrainer(
        new_classifier(tab), RECIPES['mxnet'], lr=0.01,
        devices=tab.BACKEND.devices('cpu'),
    )  # fmt: skip
    batch = make_pairs(3)
    getattr(batch, name)[1] = value
    with pytest.raises(InputError, match=name):
        trainer.step(batch)
    with pytest.raises(InputError, match='of the same B examples'):
        trainer.step(batch._replace(labels=batch.labels[:2]))


# ---- recipes, and one curve ------------------------------------------


@pytest.mark.parametrize('recipe', RECIPES.values(), ids=RECIPES)
def test_one_curve(both_tabs, saved, recipe, finetune):
    check_curves(both_tabs, saved, recipe.name, finetune)


@pytest.mark.slow
def test_one_curve_in_all(all_tabs, saved, finetune):
    check_curves(all_tabs, saved, 'mxnet', finetune)


def check_curves(tabs, saved, recipe, finetune):
    histories = {}
    for tab in tabs:
        name = tab.BACKEND.name
        # All begin with the same run
        run = finetune(name, saved('torch'), recipe=recipe)
        histories[name] = np.array(run.history)
        assert len(run.test_accuracies) == 2
    for history in histories.values():
        np.testing.assert_allclose(history, histories['torch'], atol=1e-4)


def test_shards_and_micro_batches_change_nothing(finetune, one_backend):
    runs = [
        finetune(one_backend, **options)
        for options in ({}, {'devices': 'cpu:2'}, {'micro_batch': 2})
    ]
    for run in runs[1:]:
        np.testing.assert_allclose(run.history, runs[0].history, atol=1e-4)


def test_what_a_recipe_stands_for():
    shapes = {'output.weight': (3, 100), 'output.bias': (3,)}
    gluon, torch = (
        RECIPES[name].output_weights(shapes, 0)
        for name in ('mxnet', 'pytorch')
    )
    assert (gluon['output.bias'] == 0).all()
    assert 0.06 < abs(gluon['output.weight']).max() <= 0.07
    assert 0.09 < abs(torch['output.weight']).max() <= 0.1
    assert (torch['output.bias'] != 0).all()
    assert [r.dropout for r in RECIPES.values()] == [0.1, 0.2]


def test_scratch_begins_with_other_weights(finetune, one_backend):
    known, scratch = (
        finetune(one_backend, scratch=scratch) for scratch in (False, True)
    )
    assert known.history[0] != scratch.history[0]


# ---- runs ------------------------------------------------------------


def test_a_run_is_read_in_any_framework(finetuned, one_backend, all_tabs):
    folder = finetuned(one_backend)
    runs = [
        d2lbert.load_finetuned(folder, tab.BACKEND.name) for tab in all_tabs
    ]
    odds = [d2lbert.infer(run.net, run.vocab, PAIRS) for run in runs]
    for run, probabilities in zip(runs, odds, strict=True):
        np.testing.assert_allclose(probabilities, odds[0], atol=1e-5)
        np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
        assert run.summary() == runs[0].summary()
    assert (folder / 'finetuning.png').exists()


def test_a_read_run_can_be_saved(finetuned, one_backend, tmp_path):
    run = d2lbert.load_finetuned(finetuned(one_backend))
    run.save(tmp_path / 'copy')
    copy = d2lbert.load_finetuned(tmp_path / 'copy')
    assert copy.results() == run.results()
    for name, W in get_weights(run.net).items():
        np.testing.assert_array_equal(get_weights(copy.net)[name], W)
    with pytest.raises(InputError, match='holds a run already'):
        run.save(tmp_path / 'copy')


@pytest.mark.parametrize(
    'name', ['finetuned.json', 'weights.safetensors', 'vocab.txt']
)
def test_a_damaged_run_is_noticed(finetuned, one_backend, tmp_path, name):
    run = d2lbert.load_finetuned(finetuned(one_backend))
    run.save(tmp_path / 'copy')
    path = tmp_path / 'copy' / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError):
        d2lbert.load_finetuned(tmp_path / 'copy')


def test_the_two_kinds_of_runs_are_told_apart(finetuned, saved, one_backend):
    with pytest.raises(InputError, match='holds no run'):
        d2lbert.load_run(finetuned(one_backend))
    with pytest.raises(InputError, match='holds no fine-tuned run'):
        d2lbert.load_finetuned(saved(one_backend))


def test_the_books_network(tmp_path, monkeypatch, one_backend):
    """From the cache, where it has the SHA-1 of the table."""
    tab = load_tab(one_backend)
    data = nli.small_zip(
        'bert.small', nli.params(nli.small_weights(tab), 'mxnet')
    )
    monkeypatch.setenv('D2LBERT_CACHE', str(tmp_path))
    (tmp_path / 'bert.small.zip').write_bytes(data)
    address, _ = pretrained.ARCHIVES['bert.small']
    monkeypatch.setitem(
        pretrained.ARCHIVES, 'bert.small', (address, nli.sha1(data))
    )
    for source in ('bert.small', tmp_path / 'bert.small.zip'):
        run = d2lbert.finetune(
            source, backend=one_backend, num_pairs=4, epochs=1,
            devices='cpu', progress=False,
        )  # fmt: skip
        assert run.sizes['num_heads'] == 4 and run.sizes['max_len'] == 512


def test_an_archive_of_something_else(tmp_path, one_backend):
    path = tmp_path / 'x.zip'
    for data, tokens, words in (
        (b'text', nli.TOKENS, 'no file of weights'),
        (b'text', {'a': 1}, 'no file of weights|no list of tokens'),
    ):
        path.write_bytes(nli.small_zip('x', data, tokens))
        with pytest.raises(RunError, match=words):
            d2lbert.finetune(path, backend=one_backend, progress=False)
    with pytest.raises(
        InputError, match=r'expected the folder .*bert\.small'
    ):
        d2lbert.finetune('bert.tiny', backend=one_backend)


@pytest.mark.parametrize(
    'options',
    [
        {'task': 'qa'}, {'recipe': 'corrected'}, {'epochs': 0},
        {'batch_size': 0}, {'dropout': 1}, {'lr': 0}, {'max_len': 4},
        {'max_len': 2000}, {'data': 5}, {'scratch': 1}, {'seed': -1},
        {'num_pairs': 0}, {'devices': 'tpu'}, {'num_pairs': 1,
         'devices': 'cpu:2'},
    ],
)  # fmt: skip
def test_bad_options(finetune, one_backend, options, tmp_path):
    with pytest.raises(InputError):
        finetune(one_backend, out=tmp_path / 'out', **options)
    assert not (tmp_path / 'out').exists()


# ---- inference -------------------------------------------------------


@pytest.mark.parametrize(
    ('pair', 'words'),
    [
        ('a crane', 'a tuple of a premise'),
        (('a crane',), 'a tuple of a premise'),
        (('', ''), 'has no words'),
        (('xyz', 'xyz'), 'no word of'),
        (('a ' * 2000, 'a'), 'longer than'),
    ],
)
def test_pairs_that_cannot_be(finetuned, one_backend, pair, words):
    run = d2lbert.load_finetuned(finetuned(one_backend))
    with pytest.raises(InputError, match=words):
        d2lbert.infer(run.net, run.vocab, [pair])


def test_one_pair_among_many(finetuned, one_backend):
    run = d2lbert.load_finetuned(finetuned(one_backend))
    many = d2lbert.infer(run.net, run.vocab, PAIRS * 3)
    (alone,) = d2lbert.infer(run.net, run.vocab, PAIRS[1:])
    np.testing.assert_allclose(many[1::2], [alone] * 3, atol=1e-5)
    assert d2lbert.infer(run.net, run.vocab, []).shape == (0, 3)


# ---- the commands ----------------------------------------------------


def test_commands(run, saved, one_backend, tmp_path):
    out = tmp_path / 'out'
    done = run(
        'finetune', saved(one_backend), '--backend', one_backend,
        '--num-pairs', 8, '--epochs', 1, '--devices', 'cpu', '--out', out,
        '--json',
    )  # fmt: skip
    assert done.status == 0, done.err
    loss, speed, results = done.out.splitlines()
    assert loss.startswith('loss ') and 'examples/sec on [' in speed
    assert json.loads(results)['test_accuracies']
    done = run('infer', out, *PAIRS[0], '--json')
    assert done.status == 0, done.err
    *lines, odds = done.out.splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(LABELS)
    assert json.loads(odds).keys() == set(LABELS)
    shown = [float(line.split()[1]) for line in lines]
    assert shown == sorted(shown, reverse=True)


def test_errors_are_one_line(run, saved, one_backend, tmp_path):
    folder = saved(one_backend)
    assert_refused(run('infer', folder, 'a', 'b'), 'no fine-tuned run')
    done = run('finetune', tmp_path / 'none', '--backend', one_backend)
    assert_refused(done, 'expected the folder')
    done = run('finetune', folder, '--backend', one_backend, '--out', folder)
    assert_refused(done, 'holds')


@pytest.mark.long
@pytest.mark.torch
def test_pretraining_is_worth_it(tmp_path):
    """The embedded pairs after pretraining on the embedded corpus."""
    require('torch')
    d2lbert.pretrain(
        recipe='corrected', lr=0.001, batch_size=64, steps=1500,
        devices='cpu', progress=False, out=tmp_path / 'run',
    )  # fmt: skip
    known, scratch = (
        d2lbert.finetune(
            tmp_path / 'run', batch_size=32, lr=3e-4, devices='cpu',
            progress=False, scratch=scratch,
        ).test_accuracy
        for scratch in (False, True)
    )  # fmt: skip
    assert known > 0.7 > 0.62 > scratch
