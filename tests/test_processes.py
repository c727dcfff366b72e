"""Several processes that train one run: real ones, on loopback.

They are started with the variables that `torchrun` and MXNet's launchers
set; `torchrun` itself starts some of them, too.
"""

import json
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

import d2lbert
from d2lbert.pytest_plugin import require
from d2lbert.recipes import RECIPES
from d2lbert.runs.checkpoint import Checkpoints
from docs import scaling_runs
from helpers import (
    BOOK_BACKENDS,
    MAIN,
    TINY,
    assert_same_runs,
    finish,
    python,
    unix,
    write_text,
)

pytestmark = unix
long = pytest.mark.long
#: Seconds; a busy machine needs some to import a framework.
TIMEOUT = 30


def variables_of(backend_name, num_ranks):
    """The variables of each process of a core, those of the ranks first."""
    return [
        {'OMP_NUM_THREADS': '1'} | given
        for given in scaling_runs.variables(backend_name, num_ranks)
    ]


@pytest.fixture(params=BOOK_BACKENDS)
def backend_name(request):
    """The frameworks whose launchers promise what is tested here."""
    require(request.param)
    return request.param


@pytest.fixture(
    params=[
        *BOOK_BACKENDS,
        pytest.param('jax', marks=[pytest.mark.jax, long]),
    ]
)
def any_name(request):
    """All frameworks."""
    require(request.param)
    return request.param


@pytest.fixture
def launch(text_file):
    """Starts the command as several processes and waits for their ends.

    `last`: options of the last rank alone; `code`: what each runs;
    `command`: the subcommand, by default a tiny pretraining.
    """
    started = []
    tiny = ('pretrain', *TINY, f'--corpus={text_file}')

    def launch(
        backend_name, num_ranks, *args, code=MAIN, last=(), stopped=0,
        command=tiny,
    ):  # fmt: skip
        options = (f'--backend={backend_name}', f'--timeout={TIMEOUT}')
        for i, variables in enumerate(variables_of(backend_name, num_ranks)):
            own = last if i == num_ranks - 1 else ()
            started.append(
                python(code, *command, *options, *args, *own, **variables)
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


def assert_done(done, shows='MLM loss'):
    """All are; return what rank 0, which alone speaks, has printed."""
    for each in done:
        assert each.status == 0, each.err
    first, *others = sorted(done, key=lambda each: not each.out)
    assert shows in first.out
    assert [(each.out, each.err) for each in others] == [('', '')] * len(
        others
    )
    return first.out


# ---- one curve -------------------------------------------------------

CASES = [
    pytest.param('pytorch', 2, 'cpu', (), id='pytorch'),
    pytest.param('mxnet', 2, 'cpu', (), id='mxnet', marks=long),
    pytest.param('corrected', 2, 'cpu', (), id='corrected', marks=long),
    pytest.param(
        *('pytorch', 2, 'cpu', ('--micro-batch=3',)),
        id='micro-batches',
        marks=long,
    ),
]


@pytest.mark.parametrize(('recipe', 'num_ranks', 'devices', 'more'), CASES)
def test_two_processes_draw_the_curve_of_one(
    launch, train, text_file, backend_name, tmp_path, monkeypatch,
    recipe, num_ranks, devices, more, held_out,
):  # fmt: skip
    """Bit for bit in PyTorch, with dropout and a smaller last batch."""
    out, alone = tmp_path / 'two', tmp_path / 'one'
    options = (f'--recipe={recipe}', '--steps=4', '--save-every=4', *more)
    options += ('--evaluate-every=2', f'--split={held_out}')
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
    if backend_name == 'torch':
        assert results['history'] == history
        assert_same_runs(out, alone)
    np.testing.assert_allclose(results['history'], history, atol=1e-4)


@long
@pytest.mark.jax
def test_two_processes_in_jax(launch, train, tmp_path):
    """To rounding: its threads share out the sums of each process."""
    require('jax')
    options = {'steps': 4, 'batch_size': 48, 'recipe': 'corrected'}
    alone = train('jax', devices='cpu:2', **options)
    done = launch(
        *('jax', 2, '--steps=4', '--batch-size=48', '--recipe=corrected'),
        *('--out', tmp_path / 'run'),
    )
    assert all(each.status == 0 for each in done)
    history = d2lbert.load_run(tmp_path / 'run').history
    np.testing.assert_allclose(history, alone.history, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_two_processes_fine_tune(launch, saved, any_name, tmp_path):
    """With the curve of two shards, bit for bit in PyTorch."""
    folder, out, alone = saved(any_name), tmp_path / 'two', tmp_path / 'one'
    options = ('--num-pairs=20', '--batch-size=10', '--epochs=2')
    options += ('--lr=0.01', '--save-every=3', '--json')
    done = launch(
        *(any_name, 2, *options, '--devices=cpu', '--out', out),
        command=('finetune', folder),
    )
    *_, results = assert_done(done, 'test acc').splitlines()
    assert json.loads(results)['processes'] == 2
    done = finish(
        python(
            *(MAIN, 'finetune', folder, '--backend', any_name, *options),
            *('--devices=cpu:2', '--out', alone),
            OMP_NUM_THREADS='2',
        )
    )
    assert done.status == 0, done.err
    load = d2lbert.load_finetuned
    if any_name == 'torch':
        assert_same_runs(out, alone, load)
    run, expected = load(out), load(alone)
    assert len(run.history) == 4
    np.testing.assert_allclose(run.history, expected.history, atol=1e-4)
    assert Checkpoints(out).find() == [4, 3]


def numbers_in(results):
    """All numbers of an evaluation, in order."""
    for value in results.values():
        if isinstance(value, dict):
            yield from numbers_in(value)
        elif not isinstance(value, str):
            yield value


@pytest.mark.slow
def test_two_processes_evaluate(launch, saved, any_name, held_out, tmp_path):
    folder, out = saved(any_name), tmp_path / 'out'
    done = launch(
        *(any_name, 2, '--split', held_out, '--out', out, '--json'),
        command=('evaluate', folder),
    )
    *_, results = assert_done(done).splitlines()
    assert (out / 'evaluation.png').exists()
    alone = d2lbert.evaluate(folder, held_out, progress=False)
    found = list(numbers_in(json.loads(results)))
    expected = list(numbers_in(alone.as_dict()))
    assert len(expected) > 30
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@long
@pytest.mark.torch
def test_a_process_that_evaluates_something_else(launch, saved, held_out):
    require('torch')
    done = launch(
        *('torch', 2, '--split', held_out),
        command=('evaluate', saved('torch')),
        last=('--batch-size=3',),
    )
    for line in last_lines(done):
        assert 'rank 1 would compute something else than rank 0' in line
        assert 'batch_size is 3 instead of None' in line


TEXTS = [
    ' '.join(['a', 'crane', 'is', 'flying', 'he', 'left'][: 1 + i % 6])
    for i in range(30)
]
#: Represents texts, saves them in each process, and says whether one with
#: other texts is refused.
REPRESENT = """
import json, sys
import numpy as np
import d2lbert
from d2lbert.errors import InputError
from d2lbert.runs.processes import joined
folder, name, texts = sys.argv[1:]
texts = json.loads(texts)
with joined(60) as group:
    run = d2lbert.load_run(folder, name)
    found = d2lbert.represent(
        run.net, run.vocab, texts, batch_size=4, group=group)
    # There are fewer batches than processes
    found += d2lbert.represent(
        run.net, run.vocab, texts[:1], group=group)
    np.save(f'{folder}/{group.rank}.npy', np.concatenate(found))
    try:
        d2lbert.represent(
            run.net, run.vocab, texts[group.rank:], group=group)
    except InputError as error:
        print(error)
"""


@pytest.mark.slow
def test_two_processes_represent_texts(saved, any_name, tmp_path):
    folder = shutil.copytree(saved(any_name), tmp_path / 'run')
    started = [
        python(*(REPRESENT, folder, any_name, json.dumps(TEXTS)), **variables)
        for variables in variables_of(any_name, 2)
    ]
    done = [finish(each) for each in started]
    assert all(each.status == 0 for each in done), done
    for each in done[:2]:
        assert 'rank 1 has other texts, or another network' in each.out
    first, second = (np.load(folder / f'{rank}.npy') for rank in (0, 1))
    np.testing.assert_array_equal(first, second)
    run = d2lbert.load_run(folder)
    alone = d2lbert.represent(run.net, run.vocab, TEXTS, batch_size=4)
    alone += d2lbert.represent(run.net, run.vocab, TEXTS[:1])
    np.testing.assert_allclose(
        first, np.concatenate(alone), rtol=0, atol=1e-6
    )


@long
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
    pytest.param(
        *(1, send(signal.SIGKILL), 'does not answer'),
        id='killed',
        marks=pytest.mark.slow,
    ),
    pytest.param(
        *(0, send(signal.SIGKILL), 'does not answer'),
        id='rank 0 killed',
        marks=long,
    ),
    pytest.param(
        *(1, send(signal.SIGSTOP), 'does not answer'),
        id='stopped',
        marks=long,
    ),
    pytest.param(
        *(0, send(signal.SIGSTOP), 'does not answer'),
        id='rank 0 stopped',
        marks=long,
    ),
    pytest.param(
        *(1, 'raise MemoryError("no more")', 'no more'),
        id='out of memory',
        marks=long,
    ),
]


@pytest.mark.parametrize(('rank', 'action', 'reason'), ENDS)
def test_the_others_end_and_name_it(
    launch, train, any_name, tmp_path, rank, action, reason
):
    out = tmp_path / 'run'
    done = launch(
        *(any_name, 3, *LONG, '--out', out),
        code=at_step_3(rank, action),
        stopped=int(action == send(signal.SIGSTOP)),
    )
    assert_named(done, rank, reason)
    # Nothing is half written, and the newest checkpoint goes on
    assert Checkpoints(out).find() == [2, 1]
    with pytest.warns(d2lbert.errors.RunWarning, match='processes is 1'):
        run = d2lbert.pretrain(out=out, resume=True, steps=4, progress=False)
    assert len(run.history) == 4


def assert_named(done, rank, reason):
    """All processes but the one that is gone name it, in one line."""
    lines = last_lines(done)
    print(*lines, sep='\n')
    assert all(each.status for each in done)
    assert sum('d2lbert: ' not in line for line in lines) <= 1
    # MXNet's scheduler alone sees only that the others are gone
    named = [f'rank {rank}' in line and reason in line for line in lines]
    assert sum(named) >= len(done) - 2
    assert all(named[:3]) or sum(named[:3]) == 2


@long
def test_a_slow_process_is_waited_for(launch, any_name, tmp_path):
    """For longer than the time-out, because it shows that it is alive."""
    out = tmp_path / 'run'
    done = launch(
        *(any_name, 2, '--steps=4', '--timeout=15', '--out', out),
        code=at_step_3(1, 'time.sleep(20)'),
    )
    assert_done(done)
    assert len(d2lbert.load_run(out).history) == 4


#: The rank that is told `--out` twice is another version.
OTHER_VERSION = f"""
import sys, d2lbert
if sys.argv.count('--out') == 2:
    d2lbert.__version__ = '0.0.9'
{MAIN}"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ('last', 'words'),
    [
        pytest.param(('--seed=1',), 'seed is 1 instead of 0', marks=long),
        # A launcher of MXNet does not decide which rank is which
        pytest.param('version', "'0.0.9'", marks=long),
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
    code, out = MAIN, tmp_path / 'run'
    if last == 'version':
        code, last = OTHER_VERSION, ('--out', out)
    done = launch(
        *(backend_name, 2, *LONG, '--out', out), code=code, last=last
    )
    lines = last_lines(done)
    print(*lines, sep='\n')
    assert all(each.status for each in done)
    for line in lines[:2]:
        assert 'rank 1 would compute something else than rank 0' in line
        assert words in line
    # The new folder is gone, because nothing was trained
    assert not out.exists()


# ---- stopping and going on -------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_one_rank_stops_all(
    launch, backend_name, text_file, tmp_path, number
):
    """And the run goes on in one process, or in another framework."""
    if (backend_name == 'torch') == (number == signal.SIGINT):
        pytest.skip('another framework tries this signal')
    out, alone = tmp_path / 'run', tmp_path / 'alone'
    done = launch(
        *(backend_name, 2, '--recipe=corrected', '--steps=5', '--out', out),
        code=at_step_3(1, send(number)),
    )
    lines = last_lines(done)
    assert [each.status for each in done[:2]] == [128 + number] * 2
    for line in lines[:2]:
        assert f'stopped by {number.name} after step 3 of 5' in line
    assert any(f'--resume --out {out}' in line for line in lines)
    assert Checkpoints(out).find() == [3]
    # Uninterrupted, in one process; the rest may differ by rounding
    other = {'torch': 'mxnet', 'mxnet': 'jax'}[backend_name]
    with pytest.warns(d2lbert.errors.RunWarning, match='processes is 1'):
        run = d2lbert.pretrain(
            out=out, resume=True, backend=other, progress=False
        )
    done = finish(
        python(
            *(MAIN, 'pretrain', '--backend', backend_name, *TINY),
            *('--steps=5', '--devices=cpu:2', '--corpus', text_file),
            *('--recipe=corrected', '--out', alone),
        )
    )
    assert done.status == 0, done.err
    np.testing.assert_allclose(
        run.history, d2lbert.load_run(alone).history, atol=1e-3
    )


@long
def test_more_processes_go_on(launch, train, backend_name, tmp_path):
    out = tmp_path / 'run'
    options = {'steps': 2, 'save_every': 2, 'recipe': 'corrected'}
    train(backend_name, out=out, **options)
    done = launch(backend_name, 3, '--resume', '--steps=4', '--out', out)
    assert all(each.status == 0 for each in done), done
    told = [each for each in done if 'processes is 3, was 1' in each.err]
    assert len(told) == 1, done
    alone = train(backend_name, steps=4, recipe='corrected')
    np.testing.assert_allclose(
        d2lbert.load_run(out).history, alone.history, atol=1e-3
    )


def torchrun(out, text_file, *args, code):
    """Start two processes by `torchrun`, which run some code."""
    file = out.with_suffix('.py')
    file.write_text(code)
    launcher = 'from torch.distributed.run import main; main()'
    return python(
        *(
            launcher,
            '--nproc-per-node=2',
            '--master-port',
            scaling_runs.free_port(),
        ),
        *(*args, file, 'pretrain', *TINY, '--corpus', text_file),
        *('--steps=5', '--save-every=1', '--out', out, '--resume'),
    )


@pytest.mark.torch
@long
def test_torchrun_goes_on_by_itself(text_file, train, tmp_path):
    """The first start has nothing to resume from, the second one has."""
    out = tmp_path / 'run'
    once = f"""if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':
            {send(signal.SIGKILL)}"""
    done = finish(
        torchrun(
            *(out, text_file, '--max-restarts=1'), code=at_step_3(1, once)
        )
    )
    assert done.status == 0, done.err
    assert 'rank 0: rank 1 does not answer' in done.err
    options = {'steps': 5, 'devices': 'cpu:2'}
    alone = train('torch', **options)
    np.testing.assert_allclose(
        d2lbert.load_run(out).history, alone.history, atol=1e-4
    )


@long
def test_rank_0_cannot_write(launch, backend_name, tmp_path):
    """A limit of file sizes, as a full disk: the others end, too."""
    out = tmp_path / 'run'
    limit = 'import resource; '
    limit += 'resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))'
    done = launch(
        *(backend_name, 2, *LONG, '--out', out), code=at_step_3(0, limit)
    )
    assert_named(done, 0, 'could not be written')
    assert Checkpoints(out).find() == [2, 1]


@long
@pytest.mark.parametrize(
    ('last', 'words'),
    [
        (('--corpus=nowhere',), 'nowhere'),
        (('--devices=gpu:97',), 'there is no GPU 97'),
    ],
)
def test_a_process_that_cannot_begin(
    launch, backend_name, tmp_path, last, words
):
    out = tmp_path / 'run'
    done = launch(backend_name, 2, *LONG, '--out', out, last=last)
    lines = last_lines(done)
    assert all(each.status for each in done)
    assert all(words in line for line in lines[:2]), lines
    assert sum('has failed' in line for line in lines[:2]) == 1
    assert not out.exists() or not Checkpoints(out).find()


@long
def test_a_process_that_does_not_come(text_file, backend_name, tmp_path):
    first, *_ = variables_of(backend_name, 2)
    done = finish(
        python(
            *(MAIN, 'pretrain', '--backend', backend_name, *TINY),
            *('--corpus', text_file, '--out', tmp_path / 'run'),
            '--timeout=5',
            **first,
        )
    )
    assert done.status == 1
    assert 'not all of the 2 ranks have come within 5 seconds' in done.err
    assert done.err.count('\n') == 1


@pytest.mark.parametrize(
    ('variables', 'words'),
    [
        ({'RANK': 'x', 'WORLD_SIZE': '2'}, "RANK is 'x'"),
        ({'DMLC_ROLE': 'boss'}, "DMLC_ROLE is 'boss'"),
    ],
)
def test_variables_that_cannot_be_used(
    text_file, both_tabs, tmp_path, variables, words
):
    common = dict.fromkeys(
        ('MASTER_ADDR', 'MASTER_PORT', 'DMLC_PS_ROOT_URI'), '1'
    )
    done = finish(
        python(MAIN, 'pretrain', '--out', tmp_path, **common, **variables)
    )
    assert done.status == 2 and words in done.err
    assert done.err.count('\n') == 1


# ---- two machines ----------------------------------------------------


def ip(*args):
    return subprocess.run(
        ['ip', *args], check=True, capture_output=True, text=True
    )


@pytest.fixture
def machines():
    """Two network namespaces with a cable between them."""
    names = [f'd2l-{os.getpid()}-{i}' for i in (1, 2)]
    try:
        for name in names:
            ip('netns', 'add', name)
        ip(
            *('link', 'add', 'eth1', 'netns', names[0], 'type', 'veth'),
            *('peer', 'name', 'eth1', 'netns', names[1]),
        )
        for i, name in enumerate(names, 1):
            ip('-n', name, 'addr', 'add', f'10.77.0.{i}/24', 'dev', 'eth1')
            for device in ('eth1', 'lo'):
                ip('-n', name, 'link', 'set', device, 'up')
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, 'stderr', None) or error
        pytest.skip(f'no two network namespaces here: {why}')
    else:
        yield names
    finally:
        for name in names:
            subprocess.run(['ip', 'netns', 'del', name], capture_output=True)


def start_on(machines, backend_name, *args):
    """Start the command on both machines; return all processes."""
    command = ('d2lbert', 'pretrain', '--backend', backend_name, *args)
    common = {'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': 'eth1'}
    if backend_name == 'torch':
        launcher = 'from torch.distributed.run import main; main()'
        return [
            python(
                *(launcher, '--nnodes=2', f'--node-rank={i}'),
                *('--nproc-per-node=1', '--master-addr=10.77.0.1'),
                *('--master-port=29555', '-m', *command),
                inside=machine,
                **common,
            )
            for i, machine in enumerate(machines)
        ]
    common |= {
        'DMLC_PS_ROOT_URI': '10.77.0.1',
        'DMLC_PS_ROOT_PORT': '9555',
        'DMLC_INTERFACE': 'eth1',
        'DMLC_NUM_SERVER': '1',
        'DMLC_NUM_WORKER': '2',
    }
    first, second = machines
    return [
        python(MAIN, *command[1:], inside=machine, DMLC_ROLE=role, **common)
        for machine, role in [
            *((first, 'worker'), (second, 'worker')),
            *((first, 'server'), (first, 'scheduler')),
        ]
    ]


@long
def test_two_machines(machines, train, text_file, backend_name, tmp_path):
    out = tmp_path / 'run'
    done = [
        finish(each)
        for each in start_on(
            *(machines, backend_name, *TINY, '--steps=4', '--out', out),
            *('--corpus', text_file, '--recipe=corrected'),
        )
    ]
    assert all(each.status == 0 for each in done), done
    alone = train(backend_name, devices='cpu:2', steps=4, recipe='corrected')
    np.testing.assert_allclose(
        d2lbert.load_run(out).history, alone.history, atol=1e-4
    )


@long
def test_a_cut_cable(machines, text_file, backend_name, tmp_path):
    """Each machine ends and says whom it misses; nothing is half written."""
    out = tmp_path / 'run'
    started = start_on(
        *(machines, backend_name, *TINY, *LONG, '--out', out),
        *('--corpus', text_file, f'--timeout={TIMEOUT}'),
    )
    end = time.monotonic() + 120
    while not Checkpoints(out).find() and time.monotonic() < end:
        time.sleep(0.1)
    ip('-n', machines[0], 'link', 'set', 'eth1', 'down')
    try:
        done = [finish(each) for each in started]
    finally:
        for each in started:
            each.kill()
    print(*(each.err for each in done), sep='\n---\n')
    assert all(each.status for each in done)
    for each in done[:2]:
        assert 'does not answer' in each.err
    run = d2lbert.pretrain(
        out=out,
        resume=True,
        steps=Checkpoints(out).find()[0] + 1,
        progress=False,
    )
    assert run.history
