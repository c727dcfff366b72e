"""Ctrl-C, SIGTERM and SIGKILL while the command trains."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time

import pytest

import backends
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
    unix,
)

pytestmark = unix
LONG = ('--steps=1000000',)


def start(backend_name, out, *args, code=MAIN):
    return python(
        code, 'pretrain', '--backend', backend_name, '--out', out, *args
    )


def wait_for_step(process, shows=b'mlm='):
    """Read the progress bar until it shows a loss, or something else."""
    shown = b''
    while shows not in shown:
        new = os.read(process.stderr.fileno(), 1000)
        assert new, shown.decode()
        shown += new


def wait_for_checkpoint(process, out):
    """Read the progress bar until there is a checkpoint as well."""
    wait_for_step(process)
    while not Checkpoints(out).find():
        assert process.poll() is None
        time.sleep(0.01)


def train_and_send(numbers, *args, code=MAIN):
    """Start a training, send it signals after a step; return its end."""
    process = start(*args, code=code)
    with contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        wait_for_step(process)
        for number in numbers:
            process.send_signal(number)
        done = finish(process)
    assert done.out == '' and 'Traceback' not in done.err
    return done


def test_a_stopped_training_goes_on(text_file, train, backend_name, tmp_path):
    number, status = {
        'mxnet': (signal.SIGINT, 130),
        'torch': (signal.SIGTERM, 143),
    }[backend_name]
    out = tmp_path / 'the run'
    done = train_and_send(
        [number], backend_name, out, *TINY, *LONG, f'--corpus={text_file}'
    )
    assert done.status == status
    last = done.err.splitlines()[-1]
    found = re.fullmatch(
        rf'd2lbert: stopped by {number.name} after step (\d+) of 1000000. '
        rf"Continue with: d2lbert (pretrain --resume --out '{out}')",
        last,
    )
    assert found, last
    steps = int(found[1])
    assert Checkpoints(out).find() == [steps]
    with pytest.raises(InputError, match='was stopped'):
        d2lbert.load_run(out)
    more = ('pretrain', '--resume', '--out', out, f'--steps={steps + 2}')
    done = finish(python(MAIN, *more))
    assert done.status == 0, done.err
    train(
        backend_name,
        out=tmp_path / 'uncut',
        steps=steps + 2,
        save_every=10**6,
    )
    assert_same_runs(out, tmp_path / 'uncut')


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


def test_a_second_signal_leaves_at_once(text_file, backend_name, tmp_path):
    numbers = [signal.SIGTERM, signal.SIGTERM]
    process = start(
        *(backend_name, tmp_path, *TINY, *LONG, f'--corpus={text_file}'),
        code=HANGING + MAIN,
    )
    with contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        wait_for_step(process, b'hanging')
        process.send_signal(numbers[0])
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(numbers[1])
        assert process.wait(5) == -signal.SIGTERM
        process.communicate()


def test_a_signal_before_the_training_leaves_at_once(backend_name, tmp_path):
    code = f"""
import os, signal
import d2lbert.runs.pretraining
def load(*args):
    os.kill(os.getpid(), signal.SIGTERM)
d2lbert.runs.pretraining.read_lines = load
{MAIN}"""
    done = finish(start(backend_name, tmp_path, code=code))
    assert done.status == 143
    assert done.err == 'd2lbert: stopped by SIGTERM before the end\n'


def test_a_killed_training_goes_on(text_file, train, tmp_path):
    name = backends.installed()[0]
    out = tmp_path / 'run'
    options = (*TINY, f'--corpus={text_file}', '--save-every=1')
    process = start(name, out, *options, *LONG)
    with contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        wait_for_checkpoint(process, out)
    assert finish(process).status == -signal.SIGKILL
    steps = Checkpoints(out).find()[0] + 2
    done = finish(start(name, out, '--resume', f'--steps={steps}'))
    assert done.status == 0, done.err
    train(name, out=tmp_path / 'uncut', steps=steps, save_every=10**6)
    assert_same_runs(out, tmp_path / 'uncut')


def test_two_trainings_in_one_folder(text_file, tmp_path):
    name = backends.installed()[0]
    options = (*TINY, f'--corpus={text_file}', '--save-every=1')
    first = start(name, tmp_path, *options, *LONG)
    with contextlib.ExitStack() as stack:
        stack.callback(first.wait)
        stack.callback(first.kill)
        wait_for_checkpoint(first, tmp_path)
        first.send_signal(signal.SIGSTOP)
        for more in (['--resume'], []):
            done = finish(start(name, tmp_path, *options, *more))
            words = 'another process is using', 'holds checkpoints'
            assert_refused(done, words[not more])
        shutil.rmtree(tmp_path / 'checkpoints')
        assert_refused(
            finish(start(name, tmp_path, *options)), 'another process'
        )


# ---- the library -----------------------------------------------------


def test_the_library_stops_between_steps(train, backend_name, tmp_path):
    with stopping_at(2), pytest.raises(Stopped, match='step 2 of 9') as info:
        train(backend_name, out=tmp_path, steps=9)
    assert info.value.number == signal.SIGINT
    assert Checkpoints(tmp_path).find() == [2]
    with stopping_at(2), pytest.raises(Stopped, match='nothing is kept'):
        train(backend_name, steps=9)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_after_the_last_step_is_too_late(
    train, backend_name, tmp_path, monkeypatch
):
    write = Run.write

    def interrupted(self, folder):
        signal.raise_signal(signal.SIGINT)
        write(self, folder)

    monkeypatch.setattr(Run, 'write', interrupted)
    run = train(backend_name, out=tmp_path, steps=2)
    assert len(run.steps) == len(d2lbert.load_run(tmp_path).steps) == 2


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


@contextlib.contextmanager
def stopping_at(step):
    """Ctrl-C while that step is taken."""
    from d2lbert.trainer import Trainer

    launch = Trainer.launch

    def interrupted(self, batch):
        if self.num_steps + 1 == step:
            signal.raise_signal(signal.SIGINT)
        return launch(self, batch)

    Trainer.launch = interrupted
    try:
        yield
    finally:
        Trainer.launch = launch


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
