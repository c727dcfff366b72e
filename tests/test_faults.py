"""The command on a machine that is full, poor, or set up in an odd way."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from d2lbert import frameworks
from d2lbert.cli.status import explain
from d2lbert.errors import InputError
from d2lbert.runs.config import LEAST
from d2lbert.runs.folder import to_manifest
from d2lbert.runs.run import load_run
from d2lbert.runs.trained import WEIGHTS_FILE
from helpers import ROOT, TINY, Done, assert_refused, unix

pytestmark = unix

slow = pytest.mark.slow


@pytest.fixture
def command(tmp_path):
    """Runs the command in a process of its own, in an empty folder.

    `before`: lines of a shell, which come before it; `after`: redirections.
    """

    def command(*args, before='', after='', cwd=tmp_path, **variables):
        done = subprocess.run(
            [
                *('sh', '-c', f'{before}\nexec "$@" {after}', 'sh'),
                *(sys.executable, '-m', 'd2lbert', *map(str, args)),
            ],
            capture_output=True,
            text=True,
            encoding='utf-8',
            cwd=cwd,
            env=os.environ | {'PYTHONPATH': str(ROOT)} | variables,
            timeout=120,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return command


# ---- what is printed -------------------------------------------------

full = pytest.mark.skipif(
    not os.path.exists('/dev/full'), reason='only Linux has /dev/full'
)


@pytest.mark.slow
@full
@pytest.mark.parametrize('unbuffered', ['', '1'])
@pytest.mark.parametrize('args', [['--help'], ['encode', 'RUN', 'a crane']])
def test_results_that_cannot_be_printed(
    command, saved, one_backend, args, unbuffered
):
    args = [saved(one_backend) if arg == 'RUN' else arg for arg in args]
    done = command(*args, after='>/dev/full', PYTHONUNBUFFERED=unbuffered)
    assert_refused(done, 'cannot be printed (No space left', status=1)


@full
def test_an_error_that_cannot_be_printed(command):
    done = command('encode', 'nowhere', 'a crane', after='2>/dev/full')
    assert done == (2, '', '')
    assert command('encode', after='2>/dev/full') == (2, '', '')


def test_a_reader_that_has_left():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, '-m', 'd2lbert', '--help'],
        stdout=write,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b'')


@pytest.mark.slow
@pytest.mark.parametrize(
    'closed',
    [
        *(pytest.param(one, marks=slow) for one in ('>&-', '2>&-', '<&-')),
        '>&- 2>&- <&-',
    ],
)
def test_streams_that_are_closed(
    command, saved, one_backend, tmp_path, closed
):
    npy = tmp_path / 'x.npy'
    done = command(
        *('encode', saved(one_backend), 'a crane', '--npy', npy),
        after=closed,
    )
    assert done.status == 0 and done.err == ''
    assert npy.read_bytes().startswith(b'\x93NUMPY')
    assert len(npy.read_bytes()) == 128 + 4 * 8 * 4  # and no text in it


HOSTILE = '\x1b[31mred\x07\x9b\u202e\x7f'


def test_a_terminal_obeys_nothing_that_is_printed(run, saved, one_backend):
    done = run('encode', saved(one_backend), f'a {HOSTILE} crane')
    assert r'\x1b[31mred\x07\x9b\u202e\x7f' in done.out
    assert '\x1b' not in done.out and '\u202e' not in done.out
    done = run('encode', f'{HOSTILE}\r\n', 'a crane')
    assert_refused(done, r'\x1b[31mred\x07\x9b\u202e\x7f\r\n holds no run')
    done = run(HOSTILE)
    assert done.status == 2 and '\x1b' not in done.err


# ---- what there is too little of -------------------------------------


def test_a_current_folder_that_is_gone(command, one_backend, tmp_path):
    for args in (
        ('pretrain', '--backend', one_backend, '--out', tmp_path / 'run'),
        ('doctor',),
    ):
        done = command(*args, before='mkdir gone; cd gone; rmdir ../gone')
        assert_refused(done, 'current folder cannot be found')
    assert not (tmp_path / 'run').exists()
    with pytest.MonkeyPatch.context() as patch:
        (tmp_path / 'gone').mkdir()
        patch.chdir(tmp_path / 'gone')
        (tmp_path / 'gone').rmdir()
        frameworks.check_process.cache_clear()
        with pytest.raises(InputError, match='current folder'):
            frameworks.load_tab(one_backend)


#: Root may start any number of processes; this is no root, but may read.
NOT_ROOT = (
    'set -- setpriv --reuid 54321 --clear-groups '
    '--inh-caps +dac_override --ambient-caps +dac_override "$@"\n'
)


@pytest.mark.skipif(not shutil.which('prlimit'), reason='needs util-linux')
@pytest.mark.parametrize('most', [1, 6])
def test_too_few_threads(command, backend_name, tmp_path, most):
    is_root = os.geteuid() == 0
    done = command(
        *('pretrain', *TINY, '--backend', backend_name, '--out', 'run'),
        before=NOT_ROOT * is_root + f'set -- prlimit --nproc={most} "$@"',
    )
    assert_refused(done, 'does not allow them', 'ulimit -u', status=1)
    assert not (tmp_path / 'run').exists()


def test_a_network_larger_than_the_machine(run, backend_name, tmp_path):
    def refused(*args):
        done = run(
            *('pretrain', *TINY, '--backend', backend_name, *args),
            *('--out', tmp_path / 'run'),
        )
        assert_refused(done, 'memory', 'smaller numbers')
        assert not (tmp_path / 'run').exists()

    refused('--num-hiddens', 4_000_000)
    refused('--ffn-num-hiddens', 2_000_000_000)
    refused('--num-blks', 2_000_000_000)


@slow
@pytest.mark.skipif(not shutil.which('prlimit'), reason='needs util-linux')
def test_memory_that_is_not_there(command, backend_name, tmp_path):
    done = command(
        *('pretrain', *TINY, '--backend', backend_name, '--out', 'run'),
        *('--num-hiddens', 4000, '--num-heads', 1),
        before='set -- prlimit --as=3000000000 "$@"',
    )
    # Before it, the line about the memory of a large training
    *_, last = done.err.splitlines()
    assert last.startswith('d2lbert: ') and 'Traceback' not in done.err
    assert 'memory' in last and 'smaller numbers' in last
    assert done.status in {1, 2} and not (tmp_path / 'run').exists()


def test_a_frameworks_own_traceback():
    lines = 'Traceback (most recent call last):', '  File "a.h"', 'No more'
    for error in ('\n'.join(lines), 'No more'):
        message, status = explain(MemoryError(error))
        assert 'memory (No more): give' in message and status == 1
    message, _ = explain(MemoryError('Traceback'))
    assert 'memory (Traceback): give' in message


@pytest.mark.parametrize('name', sorted({*LEAST} - {'seed'}))
def test_a_number_that_is_huge(run, tmp_path, name):
    option = f'--{name.replace("_", "-")}={10**25}'
    done = run('pretrain', option, '--out', tmp_path / 'run')
    assert_refused(done, f'{name} = 1000', '2147483647')


@pytest.mark.slow
@pytest.mark.parametrize('setting', ['MININTERVAL=x', 'ASCII=1'])
def test_a_progress_bar_set_up_in_an_odd_way(
    command, one_backend, text_file, tmp_path, setting
):
    name, _, value = f'TQDM_{setting}'.partition('=')
    done = command(
        *('pretrain', *TINY, '--backend', one_backend, '--out', 'run'),
        *('--corpus', text_file),
        **{name: value},
    )
    assert_refused(done, name, 'unset')
    assert not (tmp_path / 'run').exists()


def test_weights_of_integers(run, saved, backend_name, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(saved(backend_name), folder)
    weights = load_file(folder / WEIGHTS_FILE)
    name = 'encoder.token_embedding.weight'
    weights[name] = weights[name].astype(np.int64)
    save_file(weights, folder / WEIGHTS_FILE)
    content, files = json.loads((folder / 'run.json').read_text()), {}
    for file in content.pop('files'):
        files[file] = (folder / file).read_bytes()
    content = {k: content[k] for k in ('config', 'results', 'versions')}
    (folder / 'run.json').write_bytes(to_manifest(content, files))
    words = f'{name} has type int64'
    assert_refused(run('encode', folder, 'a crane'), words, status=1)
    for source, status in ((folder, 1), (folder / WEIGHTS_FILE, 2)):
        out = tmp_path / 'out'
        args = ('convert', source, '--to', 'safetensors', '--out', out)
        assert_refused(run(*args), words, status=status)
        assert not out.exists()


# ---- how the machine is set up ---------------------------------------

NO_HOME = '~nosuchuser/x'


@pytest.mark.parametrize(
    'args',
    [
        ('pretrain', *TINY, '--out', NO_HOME),
        ('pretrain', *TINY, '--corpus', NO_HOME, '--out', 'run'),
        ('encode', NO_HOME, 'a crane'),
        ('convert', NO_HOME, '--to', 'safetensors', '--out', 'x'),
    ],
)
def test_a_home_folder_that_is_not_known(
    run, one_backend, tmp_path, monkeypatch, args
):
    monkeypatch.chdir(tmp_path)
    if args[0] == 'pretrain':
        args += ('--backend', one_backend)
    done = run(*args)
    assert done.status == 2 and 'Traceback' not in done.err
    assert f'{NO_HOME}: the home folder of ~nosuchuser is not' in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['D2LBERT_CACHE', 'D2LBERT_WIKITEXT2'])
def test_a_variable_with_a_home_folder_that_is_not_known(
    run, one_backend, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, NO_HOME)
    options = (*TINY, '--backend', one_backend, '--corpus=wikitext-2')
    done = run('pretrain', *options, '--out=run')
    assert_refused(done, f'{name}={NO_HOME}: the home folder of ~nosuchuser')
    assert not list(tmp_path.iterdir())


def test_a_path_below_the_home_folder(
    run, saved, one_backend, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    shutil.copytree(saved(one_backend), tmp_path / 'home' / 'run')
    done = run('encode', '~/run', 'a crane', '--npy=~/x.npy')
    assert done.status == 0
    assert (tmp_path / 'home' / 'x.npy').exists()


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which('setpriv') or os.geteuid(), reason='needs root, setpriv'
)
def test_a_user_without_a_home(command, one_backend, tmp_path):
    done = command(
        *('pretrain', *TINY, '--backend', one_backend, '--out', 'run'),
        before=f'unset HOME D2LBERT_CACHE\n{NOT_ROOT}',
    )
    assert_refused(done, 'home folder of this user', 'D2LBERT_CACHE')
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ('setting', 'content'),
    [
        ('nonsense', b''),
        pytest.param('', b'\xff\xfe', marks=slow),
        pytest.param('', b'backend: nonsense\nfont.size: x\n', marks=slow),
        pytest.param(
            '',
            b'text.usetex: True\ntext.latex.preamble: \\nonsense\n',
            marks=slow,
        ),
    ],
)
def test_settings_of_matplotlib_that_cannot_be_used(
    command, saved, one_backend, text_file, tmp_path, setting, content
):
    (tmp_path / 'matplotlibrc').write_bytes(content)
    done = command(
        *('pretrain', *TINY, '--backend', one_backend, '--out', 'run'),
        *('--corpus', text_file, '--steps=1'),
        MPLBACKEND=setting,
    )
    assert done.status == 0 and 'MLM loss' in done.out
    assert 'Traceback' not in done.err
    drawn = (tmp_path / 'run' / 'losses.png').exists()
    assert drawn != ('could not be drawn' in done.err)
    assert len(load_run(tmp_path / 'run').history) == 1


@slow
@pytest.mark.parametrize('name', ['chapter', 'parity'])
def test_numbers_that_cannot_be_drawn(
    command, both_tabs, text_file, tmp_path, name
):
    done = command(
        *(name, '--steps=1', '--batch-size=8', '--max-len=32'),
        *('--corpus', text_file, '--devices=cpu', '--out', 'out'),
        MPLBACKEND='nonsense',
    )
    assert done.status == 0 and 'could not be drawn' in done.err
    assert 'Curves' not in done.out and 'Traceback' not in done.err
    kept = {path.name for path in (tmp_path / 'out').iterdir()}
    assert kept >= (
        {'mxnet', 'torch'} if name == 'chapter' else {'parity.json'}
    )


@pytest.mark.parametrize('value', ['x', '2,1', '0', '-1', '100000', '9' * 20])
def test_a_number_of_threads_that_mxnet_aborts_for(
    run, tmp_path, monkeypatch, value
):
    name = 'MXNET_CPU_WORKER_NTHREADS'
    monkeypatch.setenv(name, value)
    out = tmp_path / 'run'
    done = run('pretrain', *TINY, '--backend=mxnet', '--out', out)
    assert_refused(done, f'{name} is {value!r}', 'from 1 to 999')
    assert not out.exists()
