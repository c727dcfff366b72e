"""Fixtures that run a test once for each framework.

In your `conftest.py`:

    pytest_plugins = ['d2lbert.pytest_plugin']

A test that takes `backend_name`, `backend` or `tab` then runs once in MXNet
and once in PyTorch. Where a framework is not installed its tests are skipped
and say so; with the environment variable `D2LBERT_REQUIRE_BACKENDS` set to
anything, as in CI, they fail instead. `pytest -m mxnet` and `-m torch` choose
one framework.

There is no assertion in this module, so importing it early is no harm:
PYTEST_DONT_REWRITE.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

import backends
from backends.base import Backend
from d2lbert.runs.run import load_tab

REQUIRED = bool(os.environ.get('D2LBERT_REQUIRE_BACKENDS'))


def pytest_configure(config: pytest.Config) -> None:
    """Tell pytest of a marker for each framework."""
    for name in backends.names():
        config.addinivalue_line('markers', f'{name}: needs {name}')


def require(name: str) -> None:
    """Skip a test whose framework is missing, or fail where it must not."""
    if name in backends.installed():
        return
    reason = f"{name} is not installed: pip install '.[{name}]'"
    if REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(
    params=[
        pytest.param(name, marks=getattr(pytest.mark, name))
        for name in backends.names()
    ]
)
def backend_name(request: pytest.FixtureRequest) -> str:
    """The name of each backend in turn, `'mxnet'` and `'torch'`."""
    require(request.param)
    return request.param


@pytest.fixture
def backend(backend_name: str) -> Backend:
    """Each backend in turn."""
    return backends.load(backend_name)


@pytest.fixture
def tab(backend_name: str) -> Any:
    """Each tab in turn: the module `d2lbert.mxnet`, then `d2lbert.torch`."""
    return load_tab(backend_name)
