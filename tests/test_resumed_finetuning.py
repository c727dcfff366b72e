"""A fine-tuning that is cut and resumed equals the uninterrupted one."""

import shutil

import numpy as np
import pytest

import d2lbert
from d2lbert.errors import InputError, RunWarning, Stopped
from d2lbert.runs.checkpoint import Checkpoints
from helpers import (
    assert_refused,
    assert_same_runs,
    resuming,
    stopping_at,
    trained_once,
)

#: Three steps an epoch, the last one of two pairs.
OPTIONS = {
    'batch_size': 9, 'num_pairs': 20, 'lr': 0.01, 'devices': 'cpu',
    'progress': False,
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings('error::d2lbert.errors.RunWarning')


@pytest.fixture(scope='module')
def begin(saved):
    """Fine-tunes a tiny run on a few of the embedded pairs."""

    def begin(backend_name, out, **options):
        source = options.pop('source', None) or saved(backend_name)
        return d2lbert.finetune(
            source, backend=backend_name, out=out, **OPTIONS | options
        )

    return begin


@pytest.fixture
def resume(tmp_path):
    """Goes on with the run in `tmp_path`, or in another folder."""
    return resuming(d2lbert.finetune, tmp_path)


@pytest.fixture(scope='module')
def begun_once(begin, tmp_path_factory):
    """Fine-tunes a run once for each backend and gives its folder."""
    folder = tmp_path_factory.mktemp('begun')
    return trained_once(begin, folder, epochs=1, save_every=2)


@pytest.fixture
def begun(begun_once, one_backend, tmp_path):
    """A run of one epoch with checkpoints, in `tmp_path`."""
    shutil.copytree(begun_once(one_backend), tmp_path, dirs_exist_ok=True)
    return d2lbert.load_finetuned(tmp_path)


def test_a_run_in_pieces_equals_the_uncut_one(
    begin, resume, backend_name, tmp_path
):
    """With dropout, two shards, and a stop inside of an epoch."""
    out, whole = tmp_path / 'cut', tmp_path / 'whole'
    options = {'devices': 'cpu:2', 'save_every': 2}
    begin(backend_name, whole, epochs=3, **options)
    begin(backend_name, out, epochs=1, **options)
    assert Checkpoints(out).find() == [3, 2]
    with stopping_at(5), pytest.raises(Stopped, match='5 of 9') as stopped:
        resume(out, epochs=3)
    assert f'd2lbert finetune --resume --out {out}' in str(stopped.value)
    assert len(stopped.value.run.test_accuracies) == 1
    assert 'test acc ' in stopped.value.run.summary()
    run = resume(out)
    assert len(run.history) == 9 and len(run.test_accuracies) == 3
    assert_same_runs(out, whole, d2lbert.load_finetuned)
    assert (out / 'finetuning.png').exists()


@pytest.mark.slow
def test_another_framework_goes_on(all_tabs, begin, resume, tmp_path):
    """Each hands over to the next one."""
    names = [tab.BACKEND.name for tab in all_tabs]
    for name, other in zip(names, [*names[1:], names[0]], strict=True):
        out = tmp_path / name
        begin(name, out, epochs=1, recipe='mxnet', save_every=3)
        with pytest.warns(RunWarning, match='rounding: backend is'):
            run = resume(out, epochs=2, backend=other)
        assert run.net.backend.name == other
        whole = begin(name, None, epochs=2, recipe='mxnet')
        np.testing.assert_allclose(run.history, whole.history, atol=1e-4)


def test_a_stop_in_the_first_epoch_leaves_no_run(
    begin, saved, one_backend, tmp_path
):
    saved(one_backend)  # else its training would be stopped
    with stopping_at(2), pytest.raises(Stopped, match='2 of 6') as stopped:
        begin(one_backend, tmp_path, epochs=2)
    assert Checkpoints(tmp_path).find() == [2]
    assert 'test acc nan' in stopped.value.run.summary()
    with pytest.raises(InputError, match=r'fine-tuned run: .*--resume'):
        d2lbert.load_finetuned(tmp_path)
    with pytest.raises(InputError, match=r'holds checkpoints.*--resume'):
        begin(one_backend, tmp_path)


def test_a_finished_run_is_left_as_it_is(begun, resume):
    with pytest.warns(RunWarning, match=r'all of its 3 steps.*--epochs'):
        run = resume()
    assert run.history == begun.history
    assert run.test_accuracies == begun.test_accuracies


def test_fewer_epochs_than_taken(begun, resume, tmp_path):
    resume(epochs=2)
    with pytest.raises(InputError, match=r'epochs = 1: .* taken 6 steps'):
        resume(epochs=1)


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        ('recipe', 'mxnet'), ('batch_size', 100), ('num_pairs', 19),
        ('max_len', 30), ('dropout', 0.3), ('lr', 0.02), ('scratch', True),
        ('seed', 1),
    ],
)  # fmt: skip
def test_another_configuration(begun, resume, option, value):
    with pytest.raises(InputError, match=f'{option} is {value!r}, was'):
        resume(epochs=2, **{option: value})


def test_the_pretrained_network_may_move_but_not_change(
    begun, resume, train, tmp_path
):
    moved = shutil.copytree(begun.config.pretrained, tmp_path / 'moved')
    assert len(resume(epochs=2, pretrained=moved).test_accuracies) == 2
    other = tmp_path / 'other'
    train(begun.config.backend, out=other, seed=1)
    with pytest.raises(InputError, match=r'first weights is .*, was'):
        resume(epochs=3, pretrained=other)


def test_other_pairs(begun, resume, tmp_path):
    data = tmp_path / 'data'
    data.mkdir()
    row = 'neutral\t( a crane )\t( he left )\n'
    for part in ('train', 'test'):
        (data / f'snli_1.0_{part}.txt').write_text('header\n' + row * 20)
    with pytest.raises(InputError, match=r'training pairs .*test pairs is'):
        resume(epochs=2, data=data)


def test_the_two_kinds_of_runs_go_on_by_themselves(
    begun, resume, train, one_backend, tmp_path
):
    with pytest.raises(InputError, match='one of d2lbert finetune: '):
        d2lbert.pretrain(out=tmp_path, resume=True)
    train(one_backend, out=tmp_path / 'run', save_every=2)
    with pytest.raises(InputError, match='one of d2lbert pretrain: '):
        resume(tmp_path / 'run')


def test_the_command_goes_on(run, begun, tmp_path):
    done = run('finetune', '--resume', '--epochs', 2, '--out', tmp_path)
    assert done.status == 0, done.err
    assert len(d2lbert.load_finetuned(tmp_path).test_accuracies) == 2
    assert_refused(run('finetune', '--resume'), 'give --out')
    assert_refused(run('finetune'), 'no network to fine-tune', 'bert.small')
    done = run('finetune', begun.config.pretrained, '--save-every', 0)
    assert_refused(done, 'save_every = 0')
