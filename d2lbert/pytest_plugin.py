"""Fixtures that run a test once for each framework.

In your `conftest.py`:

    pytest_plugins = ['d2lbert.pytest_plugin']

A test that takes `backend_name`, `backend` or `tab` then runs once for each
framework. Tests of a framework that is not installed are skipped and name
the reason. Where the environment variable `D2LBERT_REQUIRE_BACKENDS` is set,
to any value, they fail instead. `pytest -m mxnet` and `-m torch` choose one
framework.

This module has no assertions, so pytest need not rewrite it and may import
it early: PYTEST_DONT_REWRITE.
"""

from __future__ import annotations

import os

import pytest

import backends
from backends.base import Backend
from d2lbert.frameworks import FRAMEWORKS, Tab, load_tab

REQUIRED = bool(os.environ.get('D2LBERT_REQUIRE_BACKENDS'))


def pytest_configure(config: pytest.Config) -> None:
    """Register a marker for each framework."""
    for name in FRAMEWORKS:
        config.addinivalue_line('markers', f'{name}: needs {name}')


def require(name: str) -> None:
    """Skip a test whose framework is missing; fail where it is required."""
    if name in backends.installed():
        return
    reason = f'{name} is not installed: {FRAMEWORKS[name].install}'
    if REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(
    params=[
        pytest.param(name, marks=getattr(pytest.mark, name))
        for name in FRAMEWORKS
    ]
)
def backend_name(request: pytest.FixtureRequest) -> str:
    """The name of each backend in turn, such as `'torch'`."""
    require(request.param)
    return request.param


@pytest.fixture
def backend(backend_name: str) -> Backend:
    """Each backend in turn."""
    return backends.load(backend_name)


@pytest.fixture
def tab(backend_name: str) -> Tab:
    """The tab of each backend in turn, a module such as `d2lbert.torch`."""
    return load_tab(backend_name)
