"""The fixtures for others' tests, as others use them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import backends
import d2lbert

ROOT = Path(d2lbert.__file__).parents[1]
CONFTEST = "pytest_plugins = ['d2lbert.pytest_plugin']\n"
TEST = """
def test_backend(backend_name, backend, tab):
    assert backend.name == backend_name
    assert tab.BACKEND is backend
"""
# Without a test that imports a framework
NAMES = """
def test_name(backend_name):
    assert backend_name
"""
MISSING = """
import backends
backends.installed = lambda: ('torch',)
"""


@pytest.fixture
def check(tmp_path):
    """Runs pytest on a project that uses the plugin."""

    def check(*args, conftest=CONFTEST, test=NAMES, **variables):
        (tmp_path / 'conftest.py').write_text(conftest)
        (tmp_path / 'test_mine.py').write_text(test)
        env = {k: v for k, v in os.environ.items() if 'REQUIRE' not in k}
        done = subprocess.run(
            [sys.executable, '-m', 'pytest', '-v', '-rs', '-W', 'error',
             '--strict-markers', '-p', 'no:cacheprovider', *args],
            cwd=tmp_path,
            env=env | {'PYTHONPATH': str(ROOT)} | variables,
            capture_output=True,
            text=True,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    return check


@pytest.mark.slow
def test_once_for_each_backend(both_tabs, check):
    status, out = check(test=TEST)
    assert status == 0, out
    for name in backends.names():
        assert f'test_backend[{name}] PASSED' in out


@pytest.mark.slow
def test_a_framework_is_missing(both_tabs, check):
    status, out = check(conftest=CONFTEST + MISSING)
    assert status == 0, out
    assert 'test_name[mxnet] SKIPPED' in out
    assert "mxnet is not installed: pip install '.[mxnet]'" in out


def test_a_framework_is_missing_where_it_must_not(both_tabs, check):
    status, out = check(
        conftest=CONFTEST + MISSING, D2LBERT_REQUIRE_BACKENDS='1'
    )
    assert status == 1
    assert "mxnet is not installed: pip install '.[mxnet]'" in out
    assert '2 failed, 1 passed' in out or '1 passed, 2 errors' in out


@pytest.mark.slow
def test_one_framework_by_its_marker(both_tabs, check):
    status, out = check('-m', 'torch')
    assert status == 0, out
    assert '1 passed, 2 deselected' in out
