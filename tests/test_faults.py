"""The command on a machine that is full, poor, or set up in an odd way."""

import os
import subprocess
import sys

import pytest

from helpers import ROOT, Done, assert_refused, unix

pytestmark = unix


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


@pytest.mark.parametrize('closed', ['>&-', '2>&-', '<&-', '>&- 2>&- <&-'])
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
