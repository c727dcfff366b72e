"""How many cores a process may use."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backends import cores
from helpers import ROOT


@pytest.mark.parametrize(
    ('wanted', 'expected'),
    [
        ('1', 1),
        ('2,1', 2),
        (' 1 ', 1),
        # More threads than cores would only wait for each other
        ('3', 2),
        ('9' * 30, 2),
        ('', 2),
        ('0', 2),
        ('x', 2),
        ('٣', 2),
    ],
)
def test_omp_num_threads(monkeypatch, wanted, expected):
    monkeypatch.setenv('OMP_NUM_THREADS', wanted)
    monkeypatch.setattr(
        'os.sched_getaffinity', lambda pid: {0, 5}, raising=False
    )
    monkeypatch.setattr('backends.cores.cpu_quota', lambda: math.inf)
    assert cores.num_cores() == expected


@pytest.mark.parametrize(
    ('groups', 'files', 'expected'),
    [
        # Version 2: of a container, of a group in a group, without a limit
        ('0::/\n', {'cpu.max': '150000 100000'}, 1.5),
        ('0::/a/b\n', {'a/cpu.max': '50000 100000'}, 0.5),
        (
            '0::/a/b\n',
            {'a/cpu.max': '300000 100000', 'a/b/cpu.max': '200000 100000'},
            2,
        ),
        ('0::/\n', {'cpu.max': 'max 100000'}, math.inf),
        # Version 1
        (
            '3:cpuset:/\n2:cpu,cpuacct:/a\n0::/\n',
            {
                'cpu/a/cpu.cfs_quota_us': '400000\n',
                'cpu/a/cpu.cfs_period_us': '100000\n',
            },
            4,
        ),
        (
            '1:cpu:/\n',
            {
                'cpu/cpu.cfs_quota_us': '-1\n',
                'cpu/cpu.cfs_period_us': '100000\n',
            },
            math.inf,
        ),
        # What nobody can read is no limit
        ('', {}, math.inf),
        ('0::/\n', {'cpu.max': 'much'}, math.inf),
        ('nothing', {}, math.inf),
        ('0::/../..\n', {'cpu.max': '100000 100000'}, 1),
    ],
)
def test_quota(tmp_path, groups, files, expected):
    own = tmp_path / 'own'
    own.write_text(groups)
    for name, text in files.items():
        path = tmp_path / 'mounted' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cores.cpu_quota(tmp_path / 'mounted', own) == expected


def test_no_control_groups(tmp_path):
    assert cores.cpu_quota(tmp_path, tmp_path / 'none') == math.inf


COUNT = 'from backends import cores; print(cores.num_cores())'


@pytest.mark.skipif(
    not hasattr(os, 'sched_setaffinity'), reason='this system has no affinity'
)
def test_affinity():
    core = min(os.sched_getaffinity(0))
    code = f'import os; os.sched_setaffinity(0, [{core}]); {COUNT}'
    done = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        cwd=ROOT,
        check=True,
    )
    assert int(done.stdout) == 1


def test_a_real_quota():
    """A control group with half a core, which only root can make."""
    if cores.available_cores() < 2:
        pytest.skip('this process has one core')
    folder = Path('/sys/fs/cgroup/cpu/d2lbert-test')
    try:
        folder.mkdir()
        (folder / 'cpu.cfs_quota_us').write_text('50000')
    except OSError as error:
        pytest.skip(f'no control group of version 1 can be made: {error}')
    code = f'open("{folder}/tasks", "w").write("0"); {COUNT}'
    try:
        done = subprocess.run(
            [sys.executable, '-c', code],
            capture_output=True, cwd=ROOT, check=True,
        )  # fmt: skip
        assert int(done.stdout) == 1
    finally:
        folder.rmdir()
