"""The library in another thread than the one that imported it, and in a
process that was forked after a training."""

import os
import threading

import numpy as np
import pytest

import d2lbert
from helpers import finish, python

slow = pytest.mark.slow


def in_a_thread(function):
    """Return what a function gives in a thread of its own."""
    results = []

    def run():
        try:
            results.append(function())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    (result,) = results
    if isinstance(result, BaseException):
        raise result
    return result


def test_pretrain_in_a_thread(train, backend_name):
    here = train(backend_name)
    there = in_a_thread(lambda: train(backend_name))
    assert there.history == here.history


def test_load_run_and_represent_in_a_thread(saved, backend_name):
    out = saved(backend_name)
    texts = ['a crane is flying']

    def represent():
        run = d2lbert.load_run(out)
        return d2lbert.represent(run.net, run.vocab, texts)[0]

    np.testing.assert_array_equal(in_a_thread(represent), represent())


def test_a_network_of_one_thread_in_another(train, backend_name):
    run = in_a_thread(lambda: train(backend_name))
    texts = ['a crane is flying']

    def represent():
        return d2lbert.represent(run.net, run.vocab, texts)[0]

    np.testing.assert_array_equal(in_a_thread(represent), represent())


# ---- forks -----------------------------------------------------------

FORK = """
import os, sys
import d2lbert

options = dict(
    backend={backend!r}, steps=3, batch_size=64, num_blks=1, num_hiddens=32,
    corpus='sample', progress=False,
)
texts = ['a crane is flying'] * 500
if {before!r} == 'load_run':
    run = d2lbert.load_run({out!r})
else:
    run = d2lbert.pretrain(**options)

def compute():
    if {after!r} == 'pretrain':
        return d2lbert.pretrain(**options).history
    X = d2lbert.represent(run.net, run.vocab, texts)
    return [X[0].tolist(), X[-1].tolist()]

pid = os.fork()
if pid == 0:
    try:
        print(compute(), flush=True)
    except RuntimeError as error:
        print(error, file=sys.stderr, flush=True)
    finally:
        os._exit(0)
os.waitpid(pid, 0)
print(compute())
"""


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system has no fork')
@pytest.mark.parametrize(
    ('before', 'after'),
    [
        pytest.param('pretrain', 'pretrain', marks=slow),
        pytest.param('pretrain', 'represent', marks=slow),
        ('load_run', 'represent'),
    ],
)
def test_a_forked_process(backend_name, before, after, tmp_path):
    """A server may load a network once and fork its workers then."""
    if before == 'load_run':
        d2lbert.pretrain(
            backend=backend_name, steps=1, batch_size=64, corpus='sample',
            out=tmp_path / 'run', progress=False,
        )  # fmt: skip
    code = FORK.format(
        backend=backend_name, before=before, after=after,
        out=str(tmp_path / 'run'),
    )  # fmt: skip
    done = finish(python(code))
    assert done.status == 0, done.err
    if backend_name == 'jax':
        # Its threads are not there in the child
        assert 'start a new process instead of a fork' in done.err
        return
    child, parent = done.out.splitlines()[-2:]
    assert child == parent


# ---- what the environment says of threads ----------------------------


@pytest.mark.parametrize(
    'wanted',
    [
        '4,2',
        *(
            pytest.param(text, marks=slow)
            for text in ('abc', '9' * 30, '64', '')
        ),
    ],
)
def test_omp_num_threads_of_any_kind(backend_name, wanted):
    """MXNet ends the process where it is not one number."""
    code = (
        'import os, sys, d2lbert; d2lbert.pretrain(backend=sys.argv[1], '
        "steps=2, batch_size=4, num_hiddens=16, corpus='sample'); "
        "print(os.environ['OMP_NUM_THREADS'])"
    )
    done = finish(python(code, backend_name, OMP_NUM_THREADS=wanted))
    assert done.status == 0, done.err
    assert done.out.splitlines()[-1] == wanted
