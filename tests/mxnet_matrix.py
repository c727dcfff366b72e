"""Trainings in MXNet on each Python, NumPy and MXNet we promise.

    python tests/mxnet_matrix.py                     # all of them: a table
    python tests/mxnet_matrix.py --python 3.13 --numpy 2.2.6

Each Python and MXNet get a virtual environment under `--cache`; NumPy is
changed in place. MXNet's metadata forbids NumPy 2, hence pip's `--no-deps`.
The hook of `d2lbert doctor --enable-mxnet` is turned on in the environment.
Then a reader's own training is run, with a plain `import mxnet`, and our
command `d2lbert pretrain`.

This file needs the standard library only: the environments run it too.
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Combination(NamedTuple):
    python: str
    mxnet: str
    numpy: str

    def __str__(self) -> str:
        return f'py{self.python}-mxnet{self.mxnet}-numpy{self.numpy}'


# The NumPy releases that have a wheel for each Python: the oldest and newest
# of those we promise, and what lies on both sides of every removal.
NUMPYS = {
    '3.10': ('1.23.5', '1.24.4', '1.26.4', '2.0.2', '2.2.6'),
    '3.11': ('1.23.5', '1.24.4', '1.26.4', '2.0.2', '2.2.6', '2.4.6'),
    '3.12': ('1.26.4', '2.0.2', '2.2.6', '2.4.6', '2.5.5'),
    '3.13': ('2.1.3', '2.2.6', '2.4.6', '2.5.5'),
}
MXNETS = ('1.9.1', '2.0.0b1')
COMBINATIONS = tuple(
    Combination(python, mxnet, numpy)
    for python, numpys in NUMPYS.items()
    for mxnet in MXNETS
    for numpy in numpys
)


def find_python(version: str) -> str | None:
    """The PATH's interpreter of this version (such as '3.12'), or None."""
    if version == f'{sys.version_info.major}.{sys.version_info.minor}':
        return sys.executable
    found = shutil.which(f'python{version}')
    # A version manager's stand-in for one that is not chosen only fails
    works = (
        found
        and not subprocess.run(
            [found, '-c', ''], capture_output=True
        ).returncode
    )
    return found if works else None


def make_environment(combination: Combination, cache: Path) -> str:
    """The interpreter of an environment with exactly these versions."""
    folder = cache / f'py{combination.python}-mxnet{combination.mxnet}'
    python = str(folder / 'bin' / 'python')
    if not (folder / 'complete').exists():
        base = find_python(combination.python)
        if base is None:
            raise FileNotFoundError(f'no Python {combination.python} here')
        _run(base, '-m', 'venv', '--clear', str(folder))
        _pip(python, 'graphviz', *requirements())
        _pip(python, '--no-deps', f'mxnet=={combination.mxnet}')
        (folder / 'complete').touch()
    _pip(python, '--only-binary=numpy', f'numpy=={combination.numpy}')
    return python


def requirements() -> list[str]:
    """What d2lbert needs, but NumPy."""
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    needed = config['options']['install_requires'].split('\n')
    # The newest release of Matplotlib's helper that has NumPy 1.23
    return ['contourpy==1.3.2'] + [
        name for name in needed if name and not name.startswith('numpy')
    ]


def _pip(python: str, *arguments: str) -> None:
    _run(
        python,
        '-m',
        'pip',
        'install',
        '--quiet',
        '--disable-pip-version-check',
        *arguments,
    )


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or 'Warning:' in done.stderr:
        raise RuntimeError(
            f'{" ".join(command)} ended with '
            f'{done.returncode}:\n{done.stderr[-2000:]}'
        )
    return done.stdout


def turn_hook(python: str, state: str) -> None:
    """Turn the hook of the environment of `python` on or off."""
    name = {'on': 'enable', 'off': 'disable'}[state]
    _run(
        python,
        '-c',
        'import sys; sys.path.insert(0, sys.argv[1]); '
        f'from backends import mxnet_import as m; m.{name}()',
        str(ROOT),
    )


def alone(python: str) -> str:
    """What `import mxnet` gives with no help: 'works' or its error."""
    done = subprocess.run(
        [python, '-c', 'import mxnet'], capture_output=True, text=True
    )
    if done.returncode == 0:
        return 'works'
    errors = re.findall(r'^\w*Error: .*', done.stderr, re.MULTILINE)
    return errors[-1] if errors else f'ended with {done.returncode}'


def check(combination: Combination, cache: Path) -> dict[str, Any]:
    """Make the environment, run the step in it, and say what came out."""
    python = make_environment(combination, cache)
    turn_hook(python, 'off')
    result = {'alone': alone(python)}
    turn_hook(python, 'on')
    with tempfile.TemporaryDirectory() as scratch:
        out = _run(python, __file__, '--step', scratch)
        result.update(json.loads(out.splitlines()[-1]))
        result['pretrain'] = pretrain(python, Path(scratch))
    return result


def pretrain(python: str, scratch: Path) -> list[list[float]]:
    """Both losses of each step of a short `d2lbert pretrain`."""
    command = (
        'pretrain --backend mxnet --recipe mxnet --steps 3 --batch-size 16 '
        '--num-hiddens 16 --num-blks 1 --out'
    )
    done = subprocess.run(
        [python, '-m', 'd2lbert', *command.split(), scratch / 'run'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(
            f'{command} ended with {done.returncode}:\n{done.stderr[-2000:]}'
        )
    lines = (scratch / 'run' / 'metrics.jsonl').read_text().splitlines()
    steps = map(json.loads, lines)
    return [[step['mlm_loss'], step['nsp_loss']] for step in steps]


# --- what runs inside the environment --------------------------------------


def step(scratch: Path) -> dict[str, Any]:
    """Train a small network with MXNet; raise if anything is not right."""
    import numpy

    # MXNet imports it where it is there, and it imports parts of NumPy
    with contextlib.suppress(ImportError):
        import scipy.sparse  # noqa: F401
    before, names = dict(vars(numpy)), dir(numpy)
    options = str(numpy.get_printoptions())
    import mxnet as mx

    losses = _train(mx, scratch)
    _convert(mx)
    _same_numpy(before, names)
    assert sys.modules['numpy'] is numpy
    assert str(numpy.get_printoptions()) == options
    return {
        'mxnet': mx.__version__,
        'numpy': numpy.__version__,
        'losses': losses,
    }


def _same_numpy(before: dict[str, Any], names: list[str]) -> None:
    import numpy

    assert dir(numpy) == names
    after = dict(vars(numpy))
    changed = [name for name in before if after[name] is not before[name]]
    assert not changed, changed
    added = [
        name
        for name in after
        if name not in before
        and sys.modules.get(f'numpy.{name}') is not after[name]
    ]
    assert not added, added


def _train(mx: Any, scratch: Path) -> list[float]:
    import numpy
    from mxnet import autograd, gluon, init, np, npx

    npx.set_np()
    mx.random.seed(0)
    net = gluon.nn.HybridSequential()
    net.add(
        gluon.nn.Embedding(numpy.int64(20), 8),
        gluon.nn.Dense(16, activation='relu', flatten=False),
        gluon.nn.LayerNorm(),
        gluon.nn.Dropout(0.1),
        gluon.nn.Dense(numpy.int64(4)),
    )
    net.initialize(init.Xavier())
    net.hybridize()
    rng = numpy.random.RandomState(0)
    X = np.array(rng.randint(0, 20, (6, 5)))
    y = np.array(rng.randint(0, 4, 6))
    loss = gluon.loss.SoftmaxCELoss()
    trainer = gluon.Trainer(
        net.collect_params(), 'adam', {'learning_rate': numpy.float64(0.01)}
    )
    losses = []
    for _ in range(3):
        with autograd.record():
            value = loss(net(X), y).mean()
        value.backward()
        trainer.step(numpy.int64(1))
        losses.append(float(value))
    assert numpy.isfinite(losses).all() and losses[-1] < losses[0], losses
    net.save_parameters(str(scratch / 'net.params'))
    expected = net(X).asnumpy()
    net.initialize(init.Zero(), force_reinit=True)
    net.load_parameters(str(scratch / 'net.params'))
    numpy.testing.assert_array_equal(net(X).asnumpy(), expected)
    return losses


def _convert(mx: Any) -> None:
    """Arrays and scalars to and fro; scalars in operators' arguments."""
    import numpy

    np, npx = mx.np, mx.npx
    two = numpy.int64(2)
    for given in (
        [1, 2],
        numpy.float32(2),
        numpy.int64(3),
        numpy.arange(4),
        numpy.ones((2, 3), 'float16'),
        [numpy.float32(1)],
    ):
        numpy.testing.assert_array_equal(np.array(given).asnumpy(), given)
    x = np.arange(12).reshape(two, numpy.int64(6)).astype('float32')
    assert x.shape == (2, 6)
    assert np.zeros((two, 3)).shape == (2, 3)
    assert x.sum(axis=(numpy.int64(0), numpy.int64(1))).item() == 66
    assert np.transpose(x, (numpy.int64(1), 0)).shape == (6, 2)
    assert npx.topk(x, k=two, axis=numpy.int64(1)).shape == (2, 2)
    assert npx.softmax(x, axis=numpy.int64(1)).shape == (2, 6)
    assert (x * numpy.float32(2))[1, 5].item() == 22
    assert x[numpy.int64(1), numpy.array([0, 2])].tolist() == [6, 8]
    assert isinstance(numpy.mean(x), np.ndarray)
    assert np.array([True], dtype=numpy.bool_).dtype == numpy.bool_
    variable = mx.sym.var('a', shape=(two, 3))
    assert variable.list_attr()['__shape__'] == '(2, 3)'
    mx.random.seed(two)
    assert np.random.uniform(size=(two, 3)).shape == (2, 3)
    shards = mx.gluon.utils.split_and_load(
        np.ones((5, 2)), [mx.cpu(0), mx.cpu(1)], even_split=False
    )
    assert [len(shard) for shard in shards] in ([3, 2], [2, 3])
    assert '1.' in repr(np.ones(3)) and str(np.ones(2)) == '[1. 1.]'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--python', choices=NUMPYS)
    parser.add_argument('--mxnet', choices=MXNETS)
    parser.add_argument('--numpy')
    parser.add_argument('--cache', type=Path, default=ROOT / '.mxnet-matrix')
    parser.add_argument('--step', type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        print(json.dumps(step(given.step)))
        return 0
    return table(
        [
            one
            for one in COMBINATIONS
            if given.python in (None, one.python)
            and given.mxnet in (None, one.mxnet)
            and given.numpy in (None, one.numpy)
        ],
        given.cache,
    )


def table(combinations: list[Combination], cache: Path) -> int:
    """Print a row for each combination; return the number that failed."""
    print('| Python | MXNet | NumPy | alone | mended | pretrain |')
    print('| --- | --- | --- | --- | --- | --- |')
    failed = 0
    for one in combinations:
        try:
            result = check(one, cache)
            alone = result['alone'].replace('|', ' ')
            mended = ' → '.join(f'{loss:.3f}' for loss in result['losses'])
            ours = ' → '.join(f'{loss:.3f}' for loss, _ in result['pretrain'])
        except (RuntimeError, FileNotFoundError) as error:
            failed += 1
            reason = str(error).strip().splitlines()[-1]
            alone, mended, ours = '', f'FAILED: {reason}', ''
        print(
            f'| {one.python} | {one.mxnet} | {one.numpy} | {alone} '
            f'| {mended} | {ours} |',
            flush=True,
        )
    return failed


if __name__ == '__main__':
    sys.exit(main())
