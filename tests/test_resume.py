"""A run that is cut and resumed equals the uninterrupted one, bit by bit."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

import d2lbert
from d2lbert.data.batches import Batches
from d2lbert.data.files import read_arrays, write_arrays
from d2lbert.errors import InputError, RunError, RunWarning
from d2lbert.runs.checkpoint import Checkpoints
from d2lbert.runs.folder import LOCK
from d2lbert.runs.trained import RUN_FILE, WEIGHTS_FILE
from d2lbert.weights import get_weights
from helpers import assert_same_runs, resuming, same_weights, trained_once

pytestmark = pytest.mark.filterwarnings('error::d2lbert.errors.RunWarning')


@pytest.fixture
def resume(train, tmp_path):
    """Goes on with the run in `tmp_path`, or another folder."""
    return resuming(d2lbert.pretrain, tmp_path)


@pytest.fixture(scope='session')
def begun_once(train, tmp_path_factory):
    """Trains a run once for each backend and gives its folder."""
    folder = tmp_path_factory.mktemp('begun')
    return trained_once(train, folder, save_every=1)


@pytest.fixture
def begun(begun_once, one_backend, tmp_path):
    """A run of two steps with checkpoints, in `tmp_path`."""
    shutil.copytree(begun_once(one_backend), tmp_path, dirs_exist_ok=True)
    return d2lbert.load_run(tmp_path)


@pytest.fixture
def begun_in_each(begun_once, backend_name, tmp_path):
    """A run like `begun`, in each framework."""
    shutil.copytree(begun_once(backend_name), tmp_path, dirs_exist_ok=True)
    return d2lbert.load_run(tmp_path)


def _read(path):
    return path.read_bytes()


def edit(folder, change):
    """Change checkpoints: what `change` does to arrays and manifest."""
    checkpoints = Checkpoints(folder)
    for step in checkpoints.find():
        arrays, about = read_arrays(checkpoints.path(step))
        change(arrays, about)
        write_arrays(checkpoints.path(step), arrays, about)


# ---- bit by bit ------------------------------------------------------


@pytest.mark.parametrize(
    ('recipe', 'devices'),
    [
        ('corrected', 'cpu:2'),
        pytest.param('mxnet', 'cpu', marks=pytest.mark.slow),
        pytest.param('mxnet', 'cpu:2', marks=pytest.mark.slow),
        pytest.param('corrected', 'cpu', marks=pytest.mark.slow),
    ],
)
def test_a_run_in_pieces_equals_the_uncut_one(
    train, resume, backend_name, recipe, devices, tmp_path, monkeypatch
):
    options = {
        'devices': devices,
        'recipe': recipe,
        'batch_size': 60,
        'save_every': 10,
        'num_blks': 1,
    }
    epochs = []
    rows = Batches.__iter__

    def counted(self):
        epochs.append(self.epoch)
        return rows(self)

    monkeypatch.setattr(Batches, '__iter__', counted)
    train(backend_name, out=tmp_path / 'uninterrupted', steps=7, **options)
    assert epochs[-1] >= 1, 'the run should be longer than an epoch'
    out = tmp_path / 'cut'
    train(backend_name, out=out, steps=1, **options)
    for steps in (2, 5, 7):
        assert len(resume(out, steps=steps).history) == steps
    assert_same_runs(out, tmp_path / 'uninterrupted')


@pytest.mark.slow
def test_the_end_of_an_epoch_and_its_uneven_last_batch(
    train, resume, backend_name, tmp_path
):
    with pytest.warns(RunWarning, match='each step takes all'):
        run = train(backend_name, batch_size=10**6, steps=1)
    num_examples = run.steps[0].num_pairs
    # Two batches an epoch, the second with five rows for three devices
    options = {
        'batch_size': num_examples - 5,
        'devices': 'cpu:3',
        'num_blks': 1,
        'save_every': 1,
        'recipe': 'corrected',
    }
    run = train(
        backend_name, out=tmp_path / 'uninterrupted', steps=4, **options
    )
    assert [step.num_pairs for step in run.steps] == [num_examples - 5, 5] * 2
    out = tmp_path / 'cut'
    train(backend_name, out=out, steps=2, **options)
    resume(out, steps=4)
    assert_same_runs(out, tmp_path / 'uninterrupted')
    with pytest.raises(
        InputError, match=r'last batch .* 1 rows for 3 devices'
    ):
        train(
            backend_name,
            **options | {'batch_size': num_examples - 1, 'save_every': None},
        )


@pytest.mark.slow
def test_a_run_cut_in_its_warm_up_equals_the_uncut_one(
    train, resume, backend_name, tmp_path
):
    options = {
        'recipe': 'bert',
        'warmup': 3,
        'clip_norm': 0.5,
        'num_blks': 1,
        'save_every': 10,
    }
    train(backend_name, out=tmp_path / 'uninterrupted', steps=5, **options)
    out = tmp_path / 'cut'
    train(backend_name, out=out, steps=2, schedule_steps=5, **options)
    resume(out, steps=5)
    assert_same_runs(out, tmp_path / 'uninterrupted')
    with pytest.raises(InputError, match=r'steps = 6: .* the 5 steps'):
        resume(out, steps=6)
    with pytest.raises(InputError, match=r'schedule_steps is 6, was 5'):
        resume(out, steps=6, schedule_steps=6)


@pytest.mark.slow
def test_from_an_older_checkpoint_where_the_newest_is_damaged(
    train, resume, backend_name, tmp_path
):
    train(backend_name, out=tmp_path / 'uninterrupted', steps=5, save_every=2)
    out = shutil.copytree(tmp_path / 'uninterrupted', tmp_path / 'cut')
    newest = Checkpoints(out).path(5)
    newest.write_bytes(_read(newest)[:-1])
    with pytest.warns(RunWarning, match='Going on from step 4'):
        run = resume(out)
    assert len(run.history) == 5
    assert_same_runs(out, tmp_path / 'uninterrupted')


# ---- at the end, and beyond ------------------------------------------


def test_a_finished_run_is_left_as_it_is(begun, resume, tmp_path):
    def everything():
        return {
            path: (_read(path), path.stat().st_mtime_ns)
            for path in tmp_path.rglob('*')
            # Some versions of filelock touch what they lock
            if path.is_file() and path.name != LOCK
        }

    before = everything()
    with pytest.warns(RunWarning, match='all of its 2 steps.*nothing to do'):
        run = resume()
    assert run.history == begun.history and everything() == before


@pytest.mark.parametrize('name', [RUN_FILE, WEIGHTS_FILE])
def test_a_finished_run_that_is_not_whole_is_mended(
    begun, resume, tmp_path, name
):
    (tmp_path / name).write_bytes(b'damaged')
    assert resume().history == begun.history
    assert d2lbert.load_run(tmp_path).history == begun.history


def test_more_steps(begun_in_each, resume, tmp_path):
    run = resume(steps=4)
    assert len(run.history) == 4 and run.history[:2] == begun_in_each.history
    assert d2lbert.load_run(tmp_path).history == run.history


def test_fewer_steps_than_taken(begun, resume):
    with pytest.raises(
        InputError, match=r'steps = 1: .* taken 2 steps already'
    ):
        resume(steps=1)


def test_the_options_are_those_it_was_begun_with(begun, resume, tmp_path):
    run = resume(steps=3, keep=3)
    assert run.config.as_dict() == begun.config.as_dict() | {
        'steps': 3,
        'keep': 3,
    }
    assert Checkpoints(tmp_path).find() == [3, 2, 1]


# ---- another framework, or another machine ---------------------------


@pytest.mark.slow
def test_another_framework_goes_on(train, resume, all_tabs, tmp_path):
    names = [tab.BACKEND.name for tab in all_tabs]
    # Each hands over to the next one
    for name, other in zip(names, [*names[1:], names[0]], strict=True):
        out = tmp_path / name
        options = {'recipe': 'corrected', 'save_every': 1}
        train(name, out=out, steps=2, **options)
        with pytest.warns(RunWarning, match='rounding: backend is') as warned:
            run = resume(out, steps=4, backend=other)
        assert other in str(warned[0].message)
        assert run.net.backend.name == other
        whole = tmp_path / f'{name}-uninterrupted'
        uninterrupted = train(name, out=whole, steps=4, **options)
        assert run.history[:2] == uninterrupted.history[:2]
        np.testing.assert_allclose(
            run.history, uninterrupted.history, atol=1e-4
        )
        arrays, expected = (
            Checkpoints(path).load().arrays for path in (out, whole)
        )
        assert arrays.keys() == expected.keys()
        assert np.isclose(
            arrays['m.mlm.mlp.3.weight'],
            expected['m.mlm.mlp.3.weight'],
            rtol=1e-2,
            atol=1e-5,
        ).all()


@pytest.mark.parametrize(
    ('option', 'value'), [('devices', 'cpu:2'), ('micro_batch', 2)]
)
def test_another_cut_of_the_batch_is_told(begun, resume, option, value):
    with pytest.warns(RunWarning, match=f'rounding: {option} is .* was'):
        resume(steps=3, **{option: value})


@pytest.mark.parametrize(
    ('name', 'value'),
    [('workers', 77), ('numpy', '0.9'), ('d2lbert', '0'), ('machine', 'vax')],
)
def test_another_machine_or_version_is_told(
    begun, resume, tmp_path, name, value
):
    def change(arrays, about):
        about['environment'][name] = value

    edit(tmp_path, change)
    with pytest.warns(RunWarning, match=f'rounding: {name} is .* {value!r}'):
        resume(steps=3)


# ---- numbers that are not finite -------------------------------------


def test_the_last_update_is_checked(begun_in_each, resume, tmp_path):
    def change(arrays, about):
        arrays['m.hidden.0.weight'][:] = 3e38

    edit(tmp_path, change)
    with pytest.raises(RunError, match=r'at step 3: the parameter hidden\.0'):
        resume(steps=3)
    assert Checkpoints(tmp_path).find() == [2, 1]
    assert d2lbert.load_run(tmp_path).history == begun_in_each.history


@pytest.mark.parametrize(
    ('name', 'value'),
    [('m.nsp.output.bias', np.nan), ('v.nsp.output.bias', -1e-9)],
)
def test_moments_that_cannot_be(begun, resume, tmp_path, name, value):
    def change(arrays, about):
        arrays[name][0] = value

    edit(tmp_path, change)
    with pytest.raises(RunError, match=f'{name} is n'):
        resume(steps=3)


# ---- what is refused -------------------------------------------------


def test_a_folder_with_checkpoints_is_not_begun_again(
    begun, train, one_backend, tmp_path
):
    with pytest.raises(InputError, match='holds a run already'):
        train(one_backend, out=tmp_path)
    (tmp_path / RUN_FILE).unlink()
    with pytest.raises(InputError, match=r'holds checkpoints.*--resume'):
        train(one_backend, out=tmp_path)
    with pytest.raises(InputError, match=r'was stopped.*--resume'):
        d2lbert.load_run(tmp_path)


def test_nothing_to_resume(resume, tmp_path):
    for out in (tmp_path, tmp_path / 'nowhere', tmp_path / 'file'):
        (tmp_path / 'file').write_text('mine')
        with pytest.raises(InputError, match='holds no checkpoint'):
            resume(out)
    assert not (tmp_path / 'nowhere').exists()


def test_options_that_need_a_folder(train, one_backend):
    for option in ({'resume': True}, {'save_every': 1}):
        with pytest.raises(InputError, match='give out'):
            train(one_backend, **option)


def test_weights_alone_are_not_resumed(train, resume, one_backend, tmp_path):
    train(one_backend, out=tmp_path)
    with pytest.raises(InputError, match='no state of the optimizer'):
        resume(steps=3)


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        ('recipe', 'corrected'),
        ('batch_size', 9),
        ('max_len', 31),
        ('num_hiddens', 16),
        ('ffn_num_hiddens', 8),
        ('num_heads', 1),
        ('num_blks', 1),
        ('dropout', 0.1),
        ('lr', 0.02),
        ('seed', 1),
    ],
)
def test_another_configuration(begun, resume, tmp_path, option, value):
    before = Checkpoints(tmp_path).load()
    with pytest.raises(InputError, match=f'{option} is {value!r}, was'):
        resume(steps=3, **{option: value})
    after = Checkpoints(tmp_path).load()
    assert vars(before).keys() == vars(after).keys()
    assert d2lbert.load_run(tmp_path).history == begun.history


def test_all_differences_are_listed(begun, resume):
    with pytest.raises(InputError, match=r'dropout.*; seed.*; examples is'):
        resume(seed=3, dropout=0)


def test_the_same_option_in_other_words(begun, resume):
    assert len(resume(steps=3, lr=0.01).history) == 3


def test_another_corpus(begun, resume, tmp_path):
    lines = Path(begun.config.corpus).read_text('utf-8').splitlines()
    other = tmp_path / 'other.txt'
    other.write_text('\n'.join(lines[:-20]), 'utf-8')
    with pytest.raises(InputError, match=r'examples is .* was'):
        resume(corpus=other)
    other.write_text(
        '\n'.join(lines).replace('driver', 'pilot') + '\n', 'utf-8'
    )
    with pytest.raises(InputError, match=r'vocabulary is .* was'):
        resume(corpus=other)


def test_a_corpus_may_move(begun, resume, tmp_path):
    moved = shutil.copy(begun.config.corpus, tmp_path / 'moved.txt')
    assert len(resume(steps=3, corpus=moved).history) == 3


def test_arrays_that_do_not_fit_are_all_listed(
    begun_in_each, resume, tmp_path
):
    before = get_weights(begun_in_each.net)

    def change(arrays, about):
        del arrays['m.mlm.mlp.3.weight']
        arrays['weights.more'] = np.zeros(2, np.float32)
        arrays['v.nsp.output.bias'] = np.zeros(3, np.float32)
        name = 'weights.encoder.pos_embedding'
        arrays[name] = arrays[name].astype(np.float64)

    edit(tmp_path, change)
    with pytest.raises(RunError, match='does not fit') as error:
        resume(steps=3)
    for words in (
        'm.mlm.mlp.3.weight is missing',
        "weights.more is ((2,), 'float32') instead of not there",
        "v.nsp.output.bias is ((3,), 'float32') instead of ((2,)",
        "weights.encoder.pos_embedding is ((1, 1000, 8), 'float64')",
    ):
        assert words in str(error.value)
    assert same_weights(get_weights(begun_in_each.net), before)


def test_a_checkpoint_without_moments(begun, resume, tmp_path):
    def change(arrays, about):
        for name in [*arrays]:
            if name[:2] in ('m.', 'v.'):
                del arrays[name]

    edit(tmp_path, change)
    with pytest.raises(RunError, match=r'm\.mlm\.mlp\.3\.weight is missing'):
        resume(steps=3)


@pytest.mark.parametrize('config', [[], {'more': 1}, {'steps': 'many'}])
def test_options_that_cannot_be(begun, resume, tmp_path, config):
    edit(tmp_path, lambda arrays, about: about.update(config=config))
    with pytest.raises(RunError, match='cannot be used'):
        resume(steps=3)


def test_a_newer_format(begun, resume, tmp_path):
    newer = save({}, {'manifest': '{"format": 9}'})
    Checkpoints(tmp_path).path(2).write_bytes(newer)
    with pytest.raises(RunError, match='has format 9'):
        resume()


def test_a_training_that_diverges_keeps_what_was_before(
    train, backend_name, tmp_path
):
    with pytest.raises(RunError, match='diverged'):
        train(backend_name, lr=1e30, steps=9, out=tmp_path, save_every=1)
    for step in Checkpoints(tmp_path).find():
        arrays = Checkpoints(tmp_path).read(step).arrays
        assert np.isfinite(arrays['steps'][:, :2]).all()
