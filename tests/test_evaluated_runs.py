"""Runs that are evaluated while they are trained."""

import json
from pathlib import Path

import numpy as np
import pytest

import d2lbert
from d2lbert.errors import CorpusError, InputError
from d2lbert.runs.checkpoint import Checkpoints
from d2lbert.runs.trained import BEST_FILE
from d2lbert.weights import get_weights
from helpers import assert_refused, assert_same_runs, same_weights, write_text


@pytest.fixture(scope='module')
def held_out(tmp_path_factory):
    path = write_text(tmp_path_factory.mktemp('held_out') / 'other.txt')
    lines = path.read_text('utf-8').splitlines(keepends=True)
    path.write_text(''.join(lines[:30]), 'utf-8')
    return str(path)


@pytest.fixture
def options(held_out):
    # At this rate the loss on the held-out text goes up and down
    return {'evaluate_every': 2, 'split': held_out, 'lr': 0.05, 'steps': 6}


@pytest.mark.slow
@pytest.mark.parametrize('devices', ['cpu', 'cpu:2'])
def test_an_evaluation_is_that_of_the_run_at_this_step(
    train, backend_name, options, devices
):
    run = train(backend_name, **options | {'devices': devices, 'steps': 4})
    assert [found['step'] for found in run.evaluations] == [2, 4]
    for steps, found in zip((2, 4), run.evaluations, strict=True):
        plain = train(
            backend_name, lr=options['lr'], steps=steps, devices=devices
        )
        again = d2lbert.evaluate(plain, options['split'], progress=False)
        assert found == {'step': steps, **again.as_dict()}
        if steps == run.best_step:
            assert same_weights(run.best_weights, get_weights(plain.net))
    assert plain.history == run.history
    assert same_weights(get_weights(plain.net), get_weights(run.net))


def test_the_run_is_kept_with_its_evaluations(
    train, one_backend, options, tmp_path
):
    out = tmp_path / 'run'
    run = train(one_backend, out=out, **options)
    lines = (out / 'metrics.jsonl').read_text('utf-8').splitlines()
    lines = list(map(json.loads, lines))
    assert [line['step'] for line in lines if 'evaluation' in line] == [
        2, 4, 6,
    ]  # fmt: skip
    read = d2lbert.load_run(out)
    assert read.evaluations == run.evaluations
    assert read.best_step == run.best_step
    assert same_weights(read.best_weights, run.best_weights)
    best = d2lbert.load_run(out, best=True)
    assert same_weights(get_weights(best.net), run.best_weights)
    found = d2lbert.evaluate(out, options['split'], best=True, progress=False)
    assert found.as_dict() == {
        name: value
        for name, value in min(
            run.evaluations, key=lambda one: one['mlm_loss'] + one['nsp_loss']
        ).items()
        if name != 'step'
    }
    read.save(tmp_path / 'copy')
    copy = d2lbert.load_run(tmp_path / 'copy')
    assert same_weights(copy.best_weights, run.best_weights)


@pytest.mark.slow
def test_a_resumed_run_is_evaluated_as_an_uninterrupted_one(
    train, one_backend, options, tmp_path
):
    whole, pieces = tmp_path / 'whole', tmp_path / 'pieces'
    options |= {'save_every': 3}
    train(one_backend, out=whole, **options)
    train(one_backend, out=pieces, **options | {'steps': 3})
    d2lbert.pretrain(out=pieces, resume=True, steps=6, progress=False)
    assert_same_runs(pieces, whole)
    runs = d2lbert.load_run(pieces), d2lbert.load_run(whole)
    assert runs[0].evaluations == runs[1].evaluations
    assert (pieces / BEST_FILE).read_bytes() == (
        whole / BEST_FILE
    ).read_bytes()


def test_a_resumed_run_has_the_same_held_out_text(
    train, one_backend, options, held_out, tmp_path
):
    out, text = tmp_path / 'run', Path(held_out).read_text('utf-8')
    options |= {'steps': 2, 'save_every': 2}
    train(one_backend, out=out, **options)

    def resume(steps, **options):
        return d2lbert.pretrain(
            out=out, resume=True, progress=False, steps=steps, **options
        )

    moved = tmp_path / 'moved.txt'
    moved.write_text(text, 'utf-8')
    assert len(resume(4, split=moved).evaluations) == 2
    moved.write_text(text.replace('crane', 'driver'), 'utf-8')
    with pytest.raises(InputError, match=r'held-out examples is .*, was'):
        resume(6)
    # Also where it was not read meanwhile
    resume(6, evaluate_every=None)
    with pytest.raises(InputError, match=r'held-out examples is .*, was'):
        resume(8, evaluate_every=2)
    moved.write_text(text, 'utf-8')
    assert len(resume(8, evaluate_every=2).evaluations) == 3


def test_the_text_is_free_before_the_first_evaluation(
    train, one_backend, options, tmp_path
):
    out, split = tmp_path / 'run', options['split']
    train(one_backend, out=out, steps=2, save_every=2)
    run = d2lbert.pretrain(
        out=out, resume=True, progress=False, steps=4, evaluate_every=2,
        split=split,
    )  # fmt: skip
    assert [found['split'] for found in run.evaluations] == [split]


def test_checkpoints_are_as_often_as_without_evaluations(
    train, one_backend, options, tmp_path
):
    train(one_backend, out=tmp_path / 'a', **options)
    assert Checkpoints(tmp_path / 'a').find() == []
    train(one_backend, out=tmp_path / 'b', save_every=4, keep=9, **options)
    assert Checkpoints(tmp_path / 'b').find() == [6, 4]


def test_the_picture_has_both_curves(
    train, one_backend, options, tmp_path, monkeypatch
):
    from d2lbert.runs import display

    drawn = {}

    def keep(figure, path, write):
        for axes in figure.axes:
            for line in axes.lines:
                drawn[line.get_label()] = np.array(line.get_xydata())
        return []

    run = train(one_backend, **options)
    monkeypatch.setattr(display, 'save_figure', keep)
    display.draw_losses([run], tmp_path / 'losses')
    (label,) = (name for name in drawn if name.endswith('other.txt'))
    assert drawn[label].tolist() == [
        [one['step'], one['nsp_loss']] for one in run.evaluations
    ]
    levels = run.evaluations[0]['frequencies']
    assert drawn['word frequencies'][0, 1] == levels['nsp_loss']
    run.evaluations.clear()
    display.draw_losses([run], tmp_path / 'losses')
    level = drawn[display.frequencies_label(run.config)][0, 1]
    assert level == run.frequencies['nsp_loss'] != levels['nsp_loss']


def test_the_command_evaluates_while_it_trains(
    run, one_backend, text_file, held_out, tmp_path
):
    done = run(
        *('pretrain', '--batch-size=8', '--max-len=32', '--num-hiddens=8'),
        *('--ffn-num-hiddens=16', '--devices=cpu', '--backend', one_backend),
        *('--steps=4', '--evaluate-every=2', '--corpus', text_file),
        *('--split', held_out, '--out', tmp_path / 'run'),
    )
    assert done.status == 0
    assert 'valid=' in done.err
    *_, best = done.out.splitlines()
    assert best.startswith(f'best on {held_out} after step ')
    done = run('evaluate', tmp_path / 'run', '--best', '--split', held_out)
    assert done.status == 0


def test_what_cannot_be_evaluated(train, one_backend, saved, run):
    with pytest.raises(CorpusError, match=r'cranes\.txt has no such part'):
        train(one_backend, evaluate_every=1)
    with pytest.raises(InputError, match='evaluate_every = 0'):
        train(one_backend, evaluate_every=0)
    with pytest.raises(InputError, match="split = ''"):
        train(one_backend, evaluate_every=1, split='')
    done = run('evaluate', saved(one_backend), '--best')
    assert_refused(done, 'no best weights', '--evaluate-every')
