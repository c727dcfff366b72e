"""Fixtures that run a test once for each framework."""

import os

import pytest

import backends
from d2lbert.run import load_tab

REQUIRED = bool(os.environ.get('D2LBERT_REQUIRE_BACKENDS'))
WIKITEXT2 = os.environ.get('D2LBERT_WIKITEXT2', '')


def require(name):
    """Skip a test whose framework is missing, or fail where it must not."""
    if name in backends.installed():
        return
    reason = f"{name} is not installed: pip install 'd2lbert[{name}]'"
    if REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(
    params=[
        pytest.param(name, marks=getattr(pytest.mark, name))
        for name in backends.names()
    ]
)
def backend_name(request):
    require(request.param)
    return request.param


@pytest.fixture
def backend(backend_name):
    return backends.load(backend_name)


@pytest.fixture
def tab(backend_name):
    return load_tab(backend_name)


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
