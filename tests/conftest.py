"""Fixtures that all tests share; see also `d2lbert.pytest_plugin`."""

import os

import pytest

import backends
from d2lbert.pytest_plugin import require
from d2lbert.run import load_tab

pytest_plugins = ['d2lbert.pytest_plugin']

WIKITEXT2 = os.environ.get('D2LBERT_WIKITEXT2', '')


@pytest.fixture
def both_tabs():
    for name in backends.names():
        require(name)
    return [load_tab(name) for name in backends.names()]


@pytest.fixture
def wikitext2():
    """The path of the real corpus."""
    if not os.path.exists(WIKITEXT2):
        pytest.skip('D2LBERT_WIKITEXT2 does not name a copy of WikiText-2')
    return WIKITEXT2
