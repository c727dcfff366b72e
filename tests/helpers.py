"""What the tests of several files use; fixtures are in `conftest.py`."""

import contextlib
import functools
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import d2lbert
from d2lbert.data import sample
from d2lbert.data.examples import Batch
from d2lbert.data.text import Corpus, Source
from d2lbert.recipes import get_recipe
from d2lbert.runs.checkpoint import Checkpoints
from d2lbert.runs.trained import WEIGHTS_FILE
from d2lbert.trainer import Trainer
from d2lbert.weights import (
    get_weights,
    initial_weights,
    neutral_shapes,
    set_weights,
)

ROOT = Path(d2lbert.__file__).parents[1]

# ---- the embedded corpus ---------------------------------------------

#: The topics about each kind of crane.
BIRD = {
    'a bird diary',
    'the crane and her nest',
    'the crane watchers',
    'the flight to the south',
    'the life of a crane',
}
MACHINE = {
    'the crane on the quay',
    'the crane on the building site',
    'the crane driver',
    'the log of the foreman',
    'the work of a crane',
}


def sample_paragraphs():
    """The topic and the sentences of each paragraph."""
    lines = sample.read_text().splitlines()
    return [
        (topic.strip('= '), text.removesuffix(' .').split(' . '))
        for topic, text in zip(lines[::2], lines[1::2], strict=True)
    ]


def corpus_of(lines):
    """A corpus of these lines."""
    text = ''.join(line.removesuffix('\n') + '\n' for line in lines)
    return Corpus([Source.of_bytes('lines', text.encode())])


# ---- networks and batches --------------------------------------------

SIZES = {
    'vocab_size': 50,
    'num_hiddens': 12,
    'ffn_num_hiddens': 20,
    'num_heads': 3,
    'num_blks': 2,
    'dropout': 0.1,
    'max_len': 16,
}
_rng = np.random.default_rng(0)
TOKENS = _rng.integers(0, 50, (3, 7))
SEGMENTS = _rng.integers(0, 2, (3, 7))
VALID_LENS = np.array([7, 2, 5], np.float32)
POSITIONS = np.array([[0, 3, 6], [1, 0, 0], [4, 2, 2]])


def new_net(tab, seed=0, devices='cpu', **changes):
    net = tab.BERTModel(**SIZES | changes)
    set_weights(
        net,
        initial_weights(neutral_shapes(net), 'torch', seed),
        tab.BACKEND.devices(devices),
    )
    return net


def forward(net, *arrays):
    """Return the outputs of `net` in NumPy; an input may be `None`."""
    outputs = net.backend.trace(net, arrays)
    return [outputs.get(f'output {i}') for i in range(3)]


def make_batch(
    num_rows,
    seed=0,
    num_tokens=16,
    num_slots=4,
    vocab_size=SIZES['vocab_size'],
):
    """A batch of rows of all lengths, with padded slots."""
    rng = np.random.default_rng(seed)
    lens = rng.integers(3, num_tokens + 1, num_rows)
    lens[0] = num_tokens
    padded = np.arange(num_tokens) >= lens[:, None]
    num_real = rng.integers(1, num_slots + 1, num_rows)
    real = np.arange(num_slots) < num_real[:, None]
    tokens = rng.integers(0, vocab_size, (num_rows, num_tokens))
    segments = rng.integers(0, 2, (num_rows, num_tokens))
    positions = rng.integers(1, lens[:, None], (num_rows, num_slots))
    labels = rng.integers(0, vocab_size, (num_rows, num_slots))
    return Batch(
        np.where(padded, 0, tokens).astype(np.int32),
        np.where(padded, 0, segments).astype(np.int32),
        lens.astype(np.float32),
        (positions * real).astype(np.int32),
        real.astype(np.float32),
        (labels * real).astype(np.int32),
        rng.integers(0, 2, num_rows).astype(np.int32),
    )


def new_trainer(tab, recipe='corrected', devices='cpu', **options):
    sizes = {'dropout': 0.3, 'num_blks': 2}
    sizes = {name: options.pop(name, size) for name, size in sizes.items()}
    net = new_net(tab, devices=devices, **sizes)
    return Trainer(
        net, get_recipe(recipe), lr=options.pop('lr', 0.01),
        devices=net.backend.devices(devices), **options,
    )  # fmt: skip


def train(trainer, sizes=(9, 9, 7)):
    batches = [make_batch(size, seed) for seed, size in enumerate(sizes)]
    steps = list(trainer.train(batches, len(batches)))
    losses = [[step.mlm_loss, step.nsp_loss] for step in steps]
    return np.array(losses), get_weights(trainer.net)


def losses_and_gradients(trainer, batch):
    gradients = trainer.value_and_grad(batch)
    return gradients.losses(), gradients.arrays()


def check_equal(fast, plain):
    losses, gradients = fast
    np.testing.assert_allclose(losses, plain[0], rtol=1e-5)
    for name, expected in plain[1].items():
        scale = max(1, abs(expected).max())
        np.testing.assert_allclose(
            gradients[name], expected, atol=1e-5 * scale, err_msg=name
        )


#: The frameworks in which the book has the chapter, to run a test in each.
BOOK_BACKENDS = [
    pytest.param(name, marks=getattr(pytest.mark, name))
    for name in ('mxnet', 'torch')
]


def skip_beyond_the_book(tab):
    """Skip a test of what only the tabs of the book have."""
    if tab.BACKEND.name == 'jax':
        pytest.skip('the book has no cells for JAX: see test_jax.py')


def set_num_cores(monkeypatch, tab, num_cores):
    """Let a backend use so many cores from now on."""
    monkeypatch.setattr(
        f'backends.{tab.BACKEND.name}_training.num_cores', lambda: num_cores
    )


# ---- the book's programs ---------------------------------------------


def run_cells(cells):
    """Run cells one after the other in one namespace, as a notebook does."""
    names = {'__name__': '__main__'}
    for number, cell in enumerate(cells, 1):
        exec(compile(cell, f'<cell {number}>', 'exec'), names)
    return names


# ---- runs ------------------------------------------------------------

RUN_SIZES = {
    'batch_size': 8,
    'max_len': 32,
    'num_hiddens': 8,
    'ffn_num_hiddens': 16,
    'devices': 'cpu',
}


def write_text(path):
    """A corpus about cranes, of a hundred paragraphs."""
    rng = random.Random(0)
    words = ['a', 'the', 'crane', 'driver', 'he', 'left', 'is', 'flying']
    paragraphs = (
        ' . '.join(
            ' '.join(rng.choices(words, k=rng.randint(2, 12)))
            for _ in range(rng.randint(2, 4))
        )
        for _ in range(100)
    )
    path.write_text(''.join(f'{p} .\n' for p in paragraphs), 'utf-8')
    return path


def same_weights(weights, others):
    assert weights.keys() == others.keys()
    return all(np.array_equal(weights[name], others[name]) for name in others)


@contextlib.contextmanager
def stopping_at(step):
    """Ctrl-C while that step is taken."""
    launch = Trainer.launch

    def interrupted(self, batch):
        if self.num_steps + 1 == step:
            signal.raise_signal(signal.SIGINT)
        return launch(self, batch)

    Trainer.launch = interrupted
    try:
        yield
    finally:
        Trainer.launch = launch


def assert_same_runs(out, other, load=d2lbert.load_run):
    """All that two runs have come to is equal, the times aside."""
    found, expected = (
        Checkpoints(path).load().arrays for path in (out, other)
    )
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        if name == 'steps':
            found[name][:, -1] = array[:, -1] = 0
        assert np.array_equal(found[name], array), name
    assert (out / WEIGHTS_FILE).read_bytes() == (
        other / WEIGHTS_FILE
    ).read_bytes()
    run, expected_run = load(out), load(other)
    assert run.history == expected_run.history
    assert run.evaluations == expected_run.evaluations


# ---- the command -----------------------------------------------------

TINY = (
    '--batch-size=8',
    '--max-len=32',
    '--num-hiddens=8',
    '--ffn-num-hiddens=16',
    '--devices=cpu',
)
# What NumPy's OpenBLAS calls a processor with OPENBLAS_CORETYPE=Prescott
OLDEST_KIND = (
    'Katmai' if np.lib.NumpyVersion(np.__version__) >= '2.4.0' else 'Prescott'
)
MAIN = 'from d2lbert.cli import main; main()'
unix = pytest.mark.skipif(os.name == 'nt', reason='Windows has other signals')


class Done(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str


def python(code, *args, inside=None, **variables):
    """Start a new Python that has this d2lbert.

    `inside`: a network namespace.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.getenv('PYTHONPATH'))))
    place = ['ip', 'netns', 'exec', inside] if inside else []
    return subprocess.Popen(
        [*place, sys.executable, '-c', code, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {'PYTHONPATH': path} | variables,
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    return Done(process.returncode, out.decode(), err.decode())


def assert_refused(done, *words, status=2):
    """One clear line and nothing else."""
    assert done.status == status
    assert done.out == ''
    assert done.err.startswith('d2lbert: ') and done.err.count('\n') == 1
    for word in words:
        assert str(word) in done.err


# ---- runs ------------------------------------------------------------


def trained_once(train, folder, **options):
    """What trains a run once for each backend, and gives its own folder."""

    @functools.cache
    def trained(backend_name):
        out = folder / backend_name
        train(backend_name, out=out, **options)
        return out

    return trained


def resuming(train, folder):
    """What goes on with the run in a folder, by default in this one."""

    def resume(out=folder, **options):
        return train(out=out, resume=True, progress=False, **options)

    return resume
