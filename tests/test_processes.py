"""Several processes that train one run: real ones, on loopback.

They are started with the variables that `torchrun` and MXNet's launchers
set; `torchrun` itself starts some of them, too.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

import d2lbert
from d2lbert.data.files import read_header
from d2lbert.pytest_plugin import require
from d2lbert.recipes import RECIPES
from d2lbert.runs.checkpoint import Checkpoints
from helpers import (
    MAIN,
    TINY,
    Done,
    assert_same_runs,
    finish,
    python,
    unix,
    write_text,
)

pytestmark = unix
slow = pytest.mark.slow
#: Seconds; a busy machine needs some to import a framework.
TIMEOUT = 40


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as server:
        return str(server.getsockname()[1])


def variables_of(backend_name, num_ranks):
    """The variables of each process, those of the ranks first."""
    one_core, port = {'OMP_NUM_THREADS': '1'}, free_port()
    if backend_name == 'torch':
        common = {
            'MASTER_ADDR': '127.0.0.1',
            'MASTER_PORT': port,
            'WORLD_SIZE': str(num_ranks),
        }
        return [
            one_core | common | {'RANK': str(rank)}
            for rank in range(num_ranks)
        ]
    common = {
        'DMLC_PS_ROOT_URI': '127.0.0.1',
        'DMLC_PS_ROOT_PORT': port,
        'DMLC_NUM_SERVER': '1',
        'DMLC_NUM_WORKER': str(num_ranks),
    }
    roles = ['worker'] * num_ranks + ['server', 'scheduler']
    return [one_core | common | {'DMLC_ROLE': role} for role in roles]


@pytest.fixture
def launch(text_file):
    """Starts the command as several processes and waits for their ends.

    `last`: options of the last rank alone; `code`: what each runs.
    """
    started = []

    def launch(backend_name, num_ranks, *args, code=MAIN, last=(), stopped=0):
        options = (f'--backend={backend_name}', *TINY)
        options += (f'--corpus={text_file}', f'--timeout={TIMEOUT}', *args)
        for i, variables in enumerate(variables_of(backend_name, num_ranks)):
            own = last if i == num_ranks - 1 else ()
            started.append(
                python(code, 'pretrain', *options, *own, **variables)
            )
        # One that has stopped itself does not end
        end = time.monotonic() + 120
        waiting = list(started)
        while len(waiting) > stopped and time.monotonic() < end:
            waiting = [each for each in waiting if each.poll() is None]
            time.sleep(0.05)
        for each in waiting:
            each.kill()
        return [finish(each) for each in started]

    yield launch
    for process in started:
        process.kill()
        process.communicate()


def at_step_3(rank, action):
    """Code in which one rank does something while it takes step 3."""
    return f"""
import os, sys, time
import d2lbert.trainer
launch = d2lbert.trainer.Trainer.launch
def interrupted(self, batch):
    if self.num_steps == 2 and self.parallel.group.rank == {rank}:
        {action}
    return launch(self, batch)
d2lbert.trainer.Trainer.launch = interrupted
{MAIN}"""


def send(number):
    return f'os.kill(os.getpid(), {int(number)})'


def last_lines(done):
    """The last line that each process has said, none of them a traceback."""
    for each in done:
        assert 'Traceback' not in each.err
    return [each.err.splitlines()[-1] if each.err else '' for each in done]


def assert_done(done):
    for each in done:
        assert each.status == 0, each.err
    # Rank 0 alone speaks
    first, *others = sorted(done, key=lambda each: not each.out)
    assert 'MLM loss' in first.out
    assert [(each.out, each.err) for each in others] == [('', '')] * len(
        others
    )


# ---- one curve -------------------------------------------------------

CASES = [
    pytest.param('pytorch', 2, 'cpu', (), id='pytorch'),
    pytest.param('mxnet', 2, 'cpu', (), id='mxnet', marks=slow),
    pytest.param('corrected', 2, 'cpu', (), id='corrected', marks=slow),
    pytest.param(
        *('pytorch', 2, 'cpu', ('--micro-batch=3',)),
        id='micro-batches',
        marks=slow,
    ),
]


@pytest.mark.parametrize(('recipe', 'num_ranks', 'devices', 'more'), CASES)
def test_two_processes_draw_the_curve_of_one(
    launch, train, text_file, backend_name, tmp_path, monkeypatch,
    recipe, num_ranks, devices, more,
):  # fmt: skip
    """Bit for bit, with dropout and a smaller last batch."""
    out, alone = tmp_path / 'two', tmp_path / 'one'
    options = (f'--recipe={recipe}', '--steps=4', '--save-every=4', *more)
    options += ('--batch-size=47',)
    done = launch(
        *(backend_name, num_ranks, *options, '--json', '--out', out)
    )
    assert_done(done)
    results = json.loads(max(each.out for each in done).splitlines()[-1])
    assert results['processes'] == 2
    # One process in which each shard has a core, as it has in the two
    done = finish(
        python(
            *(MAIN, 'pretrain', '--backend', backend_name, *TINY, *options),
            *('--devices=cpu:2', '--corpus', text_file, '--out', alone),
            OMP_NUM_THREADS='2',
        )
    )
    assert done.status == 0, done.err
    history = d2lbert.load_run(alone).history
    assert len(history) == 4
    assert results['history'] == history
    assert_same_runs(out, alone)


@slow
@pytest.mark.parametrize('recipe', RECIPES)
@pytest.mark.parametrize('more', [(), ('--micro-batch=2',)])
def test_more_shards_stay_within_rounding(
    launch, train, backend_name, tmp_path, recipe, more
):
    """Three processes with two devices each, against one with six."""
    options = {'steps': 5, 'batch_size': 23, 'recipe': recipe}
    alone = train(backend_name, devices='cpu:6', lr=0.001, **options)
    assert len({step.num_pairs for step in alone.steps}) == 1
    out = tmp_path / 'run'
    done = launch(
        *(backend_name, 3, '--steps=5', '--batch-size=23', '--lr=0.001'),
        *(f'--recipe={recipe}', '--devices=cpu:2', '--out', out, *more),
    )
    assert_done(done)
    history = d2lbert.load_run(out).history
    np.testing.assert_allclose(history, alone.history, rtol=0, atol=1e-4)


# ---- a process that fails --------------------------------------------

LONG = ('--steps=1000', '--save-every=1')
ENDS = [
    pytest.param(1, send(signal.SIGKILL), 'does not answer', id='killed'),
    pytest.param(
        *(0, send(signal.SIGKILL), 'does not answer'),
        id='rank 0 killed',
        marks=slow,
    ),
    pytest.param(
        *(1, send(signal.SIGSTOP), 'does not answer'),
        id='stopped',
        marks=slow,
    ),
    pytest.param(
        *(1, 'raise MemoryError("no more")', 'no more'),
        id='out of memory',
        marks=slow,
    ),
]


@pytest.mark.parametrize(('rank', 'action', 'reason'), ENDS)
def test_the_others_end_and_name_it(
    launch, train, backend_name, tmp_path, rank, action, reason
):
    out = tmp_path / 'run'
    start = time.monotonic()
    done = launch(
        *(backend_name, 3, *LONG, '--out', out),
        code=at_step_3(rank, action),
        stopped=int(action == send(signal.SIGSTOP)),
    )
    print(time.monotonic() - start, *done, sep='\n')
    assert_named(done, rank, reason)
    # Nothing is half written, and the newest checkpoint goes on
    assert Checkpoints(out).find() == [2, 1]
    with pytest.warns(d2lbert.errors.RunWarning, match='processes is 1'):
        run = d2lbert.pretrain(out=out, resume=True, steps=4, progress=False)
    assert len(run.history) == 4


def assert_named(done, rank, reason):
    """All processes but the one that is gone name it, in one line."""
    lines = last_lines(done)
    silent = [line for line in lines if 'd2lbert: ' not in line]
    assert len(silent) <= 1, lines
    for each, line in zip(done, lines, strict=True):
        assert each.status
        assert line in silent or (f'rank {rank}' in line and reason in line)


@pytest.mark.parametrize(
    ('last', 'words'),
    [
        pytest.param(('--seed=1',), 'seed is 1 instead of 0', marks=slow),
        ('corpus', 'examples is'),
    ],
)
def test_a_process_with_something_else(
    launch, backend_name, tmp_path, last, words
):
    if last == 'corpus':
        text = write_text(tmp_path / 'other.txt')
        text.write_text(text.read_text('utf-8')[::-1], 'utf-8')
        last = (f'--corpus={text}',)
    out = tmp_path / 'run'
    done = launch(backend_name, 2, *LONG, '--out', out, last=last)
    print(*done, sep='\n')
    assert {each.status for each in done} <= {1, 2}
    for line in last_lines(done):
        assert 'rank ' in line
    assert any(
        words in line or words == 'seed is 1' for line in last_lines(done)
    )
    # The new folder is gone, because nothing was trained
    assert not out.exists()
