"""Fixtures that all tests share; see also `d2lbert.pytest_plugin`."""

import os
import signal
import sys
import tempfile

import hypothesis
import pytest

import backends
import d2lbert
from d2lbert import cli
from d2lbert.frameworks import load_tab
from d2lbert.pytest_plugin import require

pytest.register_assert_rewrite('helpers')

import helpers  # noqa: E402
from helpers import (  # noqa: E402
    RUN_SIZES,
    Done,
    trained_once,
    write_text,
)

pytest_plugins = ['d2lbert.pytest_plugin']

# An example takes long where another process has the core
hypothesis.settings.register_profile('d2lbert', deadline=None)
hypothesis.settings.load_profile('d2lbert')

# Only the tests that ask for the real corpus get it, from any folder
WIKITEXT2 = os.path.abspath(
    os.environ.pop('D2LBERT_WIKITEXT2', '')
    or os.environ.get('D2LBERT_TESTS_WIKITEXT2', 'unset')
)
# The processes of pytest-xdist inherit this one
os.environ['D2LBERT_TESTS_WIKITEXT2'] = WIKITEXT2

# A shell's background job, as these tests may be, ignores Ctrl-C, and so
# would whatever it starts
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Nor do they read or fill the user's cache
_cache = tempfile.TemporaryDirectory(prefix='d2lbert-tests-')
os.environ['D2LBERT_CACHE'] = _cache.name


# JAX compiles in half the time, and each program once for all processes
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')
os.environ.setdefault(
    'JAX_COMPILATION_CACHE_DIR', str(helpers.ROOT / '.pytest_cache' / 'jax')
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_COMPILATION_CACHE_MAX_SIZE', str(1 << 30))


# Tests that start processes, and those of what another file tries in each
# framework, try one framework by default; JAX, which compiles each network,
# is tried by default where it differs
ONE_FRAMEWORK = {
    'test_faults',
    'test_memory',
    'test_processes',
    'test_resumed_finetuning',
    'test_signals',
    'test_threads',
}
WITH_JAX = {'test_backends'}
# They have many shapes, or processes, and JAX compiles for each
LONG_IN_JAX = {
    'test_cli',
    'test_memory',
    'test_parity_shards',
    'test_corrected_does_not_depend_on_the_shards',
    'test_micro_batches_change_nothing',
}
# They train for minutes, or wait for processes
LONG_IN_MXNET = {'test_notebooks', 'test_processes', 'test_soak'}
# They begin, so that no process waits for the last of them at the end
TAKE_LONGEST = (
    'test_trainer',
    'test_mxnet_import',
    'test_notebooks',
    'test_resume',
    'test_soak',
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the other frameworks' variants of a test as slow.

    Those of a slow test take longest in JAX, and a few in MXNet. The modules
    that take longest come first.
    """
    items.sort(key=lambda item: item.module.__name__ not in TAKE_LONGEST)
    for item in items:
        name, module = framework_of(item), item.module.__name__
        is_slow = item.get_closest_marker('slow')
        if name == 'jax':
            names = {module, item.originalname}
            is_long = is_slow or names & LONG_IN_JAX
            is_slow = module not in WITH_JAX
        elif name == 'mxnet':
            is_long = is_slow and module in LONG_IN_MXNET
            is_slow = module in ONE_FRAMEWORK
        else:
            continue
        if is_long:
            item.add_marker(pytest.mark.long)
        elif is_slow:
            item.add_marker(pytest.mark.slow)


def framework_of(item):
    """The framework that a test was parametrized with, or `None`."""
    call = getattr(item, 'callspec', None)
    values = call.params.values() if call else ()
    return next((name for name in values if name in backends.names()), None)


def tabs(*names):
    for name in names:
        require(name)
    return [load_tab(name) for name in names]


@pytest.fixture
def both_tabs():
    """The book's tabs: MXNet and PyTorch."""
    return tabs('mxnet', 'torch')


@pytest.fixture
def all_tabs():
    return tabs(*backends.names())


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


@pytest.fixture(scope='session')
def text_file(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp('corpus') / 'cranes.txt')


@pytest.fixture
def held_out(tmp_path):
    """The path of another text than the one that is trained on."""
    path = write_text(tmp_path / 'held_out.txt')
    lines = path.read_text('utf-8').splitlines(keepends=True)
    path.write_text(''.join(lines[::-1][:40]), 'utf-8')
    return path


@pytest.fixture(scope='session')
def train(text_file):
    """Trains a tiny network on a small text."""

    def train(backend_name, **options):
        require(backend_name)
        options = RUN_SIZES | {'corpus': text_file, 'steps': 2} | options
        return d2lbert.pretrain(
            backend=backend_name, progress=False, **options
        )

    return train


@pytest.fixture(scope='session')
def saved(train, tmp_path_factory):
    """Trains a run once for each backend and gives its folder."""
    return trained_once(train, tmp_path_factory.mktemp('runs'))


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs the command in this process."""
    handlers = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM)
    }

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['d2lbert', *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return Done(exit.value.code or 0, *capsys.readouterr())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)
