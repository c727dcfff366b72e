"""Ctrl-C, SIGTERM and SIGKILL while the command trains."""

import contextlib
import os
import shutil
import signal
import subprocess
import threading

import pytest

import d2lbert
from d2lbert.errors import InputError, Stopped
from d2lbert.runs.checkpoint import Checkpoints
from d2lbert.runs.run import Run
from d2lbert.runs.signals import StopSignals
from helpers import (
    MAIN,
    TINY,
    assert_refused,
    assert_same_runs,
    finish,
    python,
    stopping_at,
    unix,
)

pytestmark = unix
LONG = ('--steps=1000000',)

slow = pytest.mark.slow


def start(backend_name, out, *args, code=MAIN):
    return python(
        code, 'pretrain', '--backend', backend_name, '--out', out, *args
    )


def wait_for(process, shows):
    """Read what a process says until it says that."""
    shown = b''
    while shows not in shown:
        new = os.read(process.stderr.fileno(), 1000)
        assert new, shown.decode()
        shown += new


def python_that_is_sent(number):
    """Return code that sends itself a signal while it takes step 3."""
    return f"""
import os
from d2lbert.trainer import Trainer
launch = Trainer.launch
def interrupted(self, batch):
    if self.num_steps == 2:
        os.kill(os.getpid(), {int(number)})
    return launch(self, batch)
Trainer.launch = interrupted
{MAIN}"""


def test_a_stopped_training_goes_on(text_file, train, backend_name, tmp_path):
    number, status = {
        'jax': (signal.SIGTERM, 143),
        'mxnet': (signal.SIGINT, 130),
        'torch': (signal.SIGTERM, 143),
    }[backend_name]
    out = tmp_path / 'the run'
    options = (*TINY, '--steps=5', f'--corpus={text_file}')
    code = python_that_is_sent(number)
    done = finish(start(backend_name, out, *options, code=code))
    assert done.status == status and done.out == '', done.err
    assert 'Traceback' not in done.err
    assert done.err.splitlines()[-1] == (
        f'd2lbert: stopped by {number.name} after step 3 of 5. '
        f"Continue with: d2lbert pretrain --resume --out '{out}'"
    )
    assert Checkpoints(out).find() == [3]
    with pytest.raises(InputError, match='was stopped'):
        d2lbert.load_run(out)
    done = finish(python(MAIN, 'pretrain', '--resume', '--out', out))
    assert done.status == 0, done.err
    train(backend_name, out=tmp_path / 'uninterrupted', steps=5, save_every=5)
    assert_same_runs(out, tmp_path / 'uninterrupted')


# A network whose step does not end
HANGING = """
import sys, time
from d2lbert.trainer import Trainer
launch = Trainer.launch
def hang(self, batch):
    result = launch(self, batch)
    if self.num_steps == 2:
        print('hanging', file=sys.stderr, flush=True)
        time.sleep(600)
    return result
Trainer.launch = hang
"""


def test_a_second_signal_leaves_at_once(text_file, one_backend, tmp_path):
    process = start(
        *(one_backend, tmp_path, *TINY, *LONG, f'--corpus={text_file}'),
        code=HANGING + MAIN,
    )
    with contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        wait_for(process, b'hanging')
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == -signal.SIGTERM
        process.communicate()


def test_a_signal_before_the_training_leaves_at_once(one_backend, tmp_path):
    code = f"""
import os, signal
import d2lbert.runs.run
def load(*args):
    os.kill(os.getpid(), signal.SIGTERM)
d2lbert.runs.run.open_corpus = load
{MAIN}"""
    done = finish(start(one_backend, tmp_path, code=code))
    assert done.status == 143
    assert done.err == 'd2lbert: stopped by SIGTERM before the end\n'


def test_a_killed_training_goes_on(text_file, train, one_backend, tmp_path):
    out = tmp_path / 'run'
    options = (*TINY, f'--corpus={text_file}', '--save-every=1', '--steps=5')
    code = python_that_is_sent(signal.SIGKILL)
    done = finish(start(one_backend, out, *options, code=code))
    assert done.status == -signal.SIGKILL
    assert Checkpoints(out).find() == [2, 1]
    d2lbert.pretrain(out=out, resume=True, progress=False)
    train(one_backend, out=tmp_path / 'uninterrupted', steps=5, save_every=5)
    assert_same_runs(out, tmp_path / 'uninterrupted')


@slow
def test_two_trainings_in_one_folder(text_file, one_backend, tmp_path):
    options = (*TINY, f'--corpus={text_file}', '--save-every=1')
    first = start(one_backend, tmp_path, *options, *LONG, code=HANGING + MAIN)
    with contextlib.ExitStack() as stack:
        stack.callback(first.communicate)
        stack.callback(first.kill)
        wait_for(first, b'hanging')
        assert Checkpoints(tmp_path).find()
        second = finish(start(one_backend, tmp_path, *options, '--resume'))
        assert_refused(second, 'another process is using')
        shutil.rmtree(tmp_path / 'checkpoints')
        third = finish(start(one_backend, tmp_path, *options))
        assert_refused(third, 'another process is using')


# ---- the library -----------------------------------------------------


def test_the_library_stops_between_steps(train, backend_name, tmp_path):
    with stopping_at(2), pytest.raises(Stopped, match='step 2 of 9') as info:
        train(backend_name, out=tmp_path, steps=9)
    assert info.value.number == signal.SIGINT
    assert Checkpoints(tmp_path).find() == [2]
    for steps in (9, 2):  # without a folder, and in the last step
        with stopping_at(2), pytest.raises(Stopped, match='keeps') as info:
            train(backend_name, steps=steps)
        assert len(info.value.run.history) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_in_the_last_step_keeps_the_run(
    train, one_backend, tmp_path
):
    with stopping_at(2), pytest.raises(Stopped, match=r'2 of 2\. The run is'):
        train(one_backend, out=tmp_path, steps=2)
    assert len(d2lbert.load_run(tmp_path).steps) == 2


def test_a_signal_while_the_run_is_written_stops_afterwards(
    train, one_backend, tmp_path, monkeypatch
):
    write = Run.write

    def interrupted(self, *args):
        signal.raise_signal(signal.SIGINT)
        write(self, *args)

    monkeypatch.setattr(Run, 'write', interrupted)
    with pytest.raises(Stopped, match=r'2 of 2\. The run is whole') as info:
        train(one_backend, out=tmp_path, steps=2)
    run = d2lbert.load_run(tmp_path)
    assert info.value.run.history == run.history and len(run.steps) == 2


# A process that gets a signal while it draws its first picture
DRAWING = """
import os
from d2lbert.runs import display
draw = display.save_figure
def interrupted(*args):
    os.kill(os.getpid(), {number})
    return draw(*args)
display.save_figure = interrupted
"""


@slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_picture_is_drawn_stops_at_once(
    text_file, both_tabs, tmp_path, number
):
    done = finish(
        python(
            DRAWING.format(number=int(number)) + MAIN,
            *('chapter', '--batch-size=8', '--max-len=32', '--steps=1'),
            *('--devices=cpu', f'--corpus={text_file}', '--out', tmp_path),
        )
    )
    assert done.status == 128 + number, done.err
    (folder,) = tmp_path.iterdir()
    assert len(d2lbert.load_run(folder).steps) == 1
    assert not list(folder.glob('losses*'))


def test_ctrl_c_while_a_picture_is_drawn_ends_a_loop(
    train, one_backend, tmp_path, monkeypatch
):
    def interrupted(*args):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr('d2lbert.runs.display.save_figure', interrupted)
    with pytest.raises(KeyboardInterrupt):
        for seed in range(3):
            train(one_backend, out=tmp_path / str(seed), seed=seed)
    assert len(d2lbert.load_run(tmp_path / '0').steps) == 2
    assert len(list(tmp_path.iterdir())) == 1


# Less memory than a picture takes, which OpenBLAS waits for without end
WITHOUT_MEMORY = """
import mmap, resource
from pathlib import Path
from d2lbert.runs.run import Run
draw = Run.draw
def limited(*args):
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    limit = pages * mmap.PAGESIZE + (1 << 25)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    draw(*args)
Run.draw = limited
"""


@slow
@pytest.mark.skipif(
    not os.path.exists('/proc/self/statm'), reason='only Linux tells'
)
def test_without_memory_for_a_picture_it_does_not_wait(
    text_file, one_backend, tmp_path
):
    options = (*TINY, '--steps=1', f'--corpus={text_file}')
    process = start(
        one_backend, tmp_path, *options, code=WITHOUT_MEMORY + MAIN
    )
    with contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        done = finish(process)
    assert done.status == 0, done.err
    assert 'not be drawn: Cannot allocate memory' in done.err
    assert len(d2lbert.load_run(tmp_path).steps) == 1


def test_a_signal_while_a_checkpoint_is_written(
    train, one_backend, tmp_path, monkeypatch
):
    save = Checkpoints.save

    def interrupted(self, checkpoint):
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)
        save(self, checkpoint)

    monkeypatch.setattr(Checkpoints, 'save', interrupted)
    with pytest.raises(Stopped, match='step 2 of 9'):
        train(one_backend, out=tmp_path, steps=9, save_every=2)
    assert Checkpoints(tmp_path).find() == [2]


def test_a_second_ctrl_c_spares_a_notebook():
    with pytest.raises(KeyboardInterrupt), StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_leaves_signals_alone():
    found = []

    def look():
        with StopSignals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]
