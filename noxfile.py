"""The tests on every Python that is here, and with an old JAX.

    make test-matrix

MXNet's metadata forbids NumPy 2, and so Python 3.13, where it works all the
same: hence `--no-deps`. PyTorch comes along where a build for the processor
can be had, the default being gigabytes of CUDA, and JAX where it takes the
same NumPy.
"""

import sys
from pathlib import Path

import nox

sys.path.append(str(Path(__file__).resolve().parent / 'tests'))

from mxnet_matrix import find_python

NUMPYS = {
    '3.10': '1.23.5',
    '3.11': '2.4.6',
    '3.12': '1.26.4',
    '3.13': '2.5.5',
}


PYTHONS = {
    version: python for version in NUMPYS if (python := find_python(version))
}


@nox.session(venv_backend='none')
@nox.parametrize('version', list(PYTHONS))
def tests(session: nox.Session, version: str) -> None:
    """Run the test suite in an environment of its own."""
    folder = Path('.nox') / f'python-{version}'
    python = str(folder / 'bin' / 'python')
    pip = (python, '-m', 'pip', 'install', '--quiet')
    numpy = f'numpy=={NUMPYS[version]}'
    session.run(PYTHONS[version], '-m', 'venv', str(folder))
    session.run(
        *pip, '--editable', '.', 'pytest', 'hypothesis', 'requests',
        'graphviz', numpy,
    )  # fmt: skip
    session.run(*pip, '--no-deps', 'mxnet==1.9.1')
    session.run(
        *pip, '--only-binary=:all:', 'torch==2.13.0+cpu',
        success_codes=[0, 1],
    )  # fmt: skip
    session.run(*pip, '--editable', '.[jax]', numpy, success_codes=[0, 1])
    session.run(python, '-m', 'pytest', *session.posargs)


@nox.session(venv_backend='none')
def oldest_jax(session: nox.Session) -> None:
    """Run the tests of JAX with the oldest that the README promises."""
    if '3.10' not in PYTHONS:
        session.skip('there is no Python 3.10 here')
    folder = Path('.nox') / 'oldest-jax'
    python = str(folder / 'bin' / 'python')
    session.run(PYTHONS['3.10'], '-m', 'venv', str(folder))
    session.run(
        *(python, '-m', 'pip', 'install', '--quiet', '--editable', '.'),
        *('pytest', 'hypothesis', 'jax==0.6.2', 'flax==0.10.7'),
    )
    files = ('test_jax.py', 'test_backends.py', 'test_precision.py')
    paths = (f'tests/{file}' for file in files)
    session.run(python, '-m', 'pytest', *paths, *session.posargs)
