"""Fixtures that all tests share; see also `d2lbert.pytest_plugin`."""

import os
import signal
import tempfile

import pytest

import backends
from d2lbert.pytest_plugin import require
from d2lbert.runs.run import load_tab

pytest_plugins = ['d2lbert.pytest_plugin']

# Only the tests that ask for the real corpus get it, from any folder
WIKITEXT2 = os.path.abspath(os.environ.pop('D2LBERT_WIKITEXT2', 'unset'))

# A shell's background job, as these tests may be, ignores Ctrl-C, and so
# would whatever it starts
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Nor do they read or fill the user's cache
_cache = tempfile.TemporaryDirectory(prefix='d2lbert-tests-')
os.environ['D2LBERT_CACHE'] = _cache.name


@pytest.fixture
def both_tabs():
    for name in backends.names():
        require(name)
    return [load_tab(name) for name in backends.names()]


@pytest.fixture
def one_backend():
    """The name of a framework that is here, for what is alike in all."""
    return (backends.installed() or backends.names())[-1]


@pytest.fixture
def wikitext2():
    """The path of the real corpus."""
    if not os.path.exists(WIKITEXT2):
        pytest.skip('D2LBERT_WIKITEXT2 does not name a copy of WikiText-2')
    return WIKITEXT2
