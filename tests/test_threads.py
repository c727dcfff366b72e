"""The library in another thread than the one that imported it, and in a
process that was forked after a training."""

import threading

import numpy as np

import d2lbert


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
