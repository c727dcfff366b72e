"""`import mxnet` under this NumPy, and nothing else changed by it.

Each test starts Pythons of its own: what an import does to a process can
only be seen in a fresh one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest

import mxnet_matrix
from backends import mxnet_import

ROOT = Path(mxnet_import.__file__).parents[1]

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec('torch') is None, reason='torch not installed'
)
needs_mxnet = [
    pytest.mark.mxnet,
    pytest.mark.skipif(
        importlib.util.find_spec('mxnet') is None,
        reason='mxnet not installed',
    ),
]


def mxnet_test(function):
    for mark in needs_mxnet:
        function = mark(function)
    return function


def run(code, *, python=sys.executable, cwd=None, path=(ROOT,), status=0):
    """Run code in a new Python that finds `path`; give what it printed."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, path)))
    done = subprocess.run(
        [python, '-c', textwrap.dedent(code)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def fake_mxnet(folder, **files):
    """A package called mxnet, that does what the test needs."""
    package = folder / 'mxnet'
    package.mkdir(parents=True)
    for name, code in files.items():
        (package / f'{name}.py').write_text(textwrap.dedent(code))
    return folder


def is_of_packages(entry):
    return Path(entry).name in ('site-packages', 'dist-packages')


# --- the mend --------------------------------------------------------------


@pytest.mark.slow
@mxnet_test
def test_a_training_step_leaves_numpy_as_it_was(tmp_path):
    run(f"""
        import sys
        sys.path.insert(0, {str(ROOT / 'tests')!r})
        from backends import mxnet_import
        mxnet_import.install()
        from pathlib import Path
        import mxnet_matrix
        mxnet_matrix.step(Path({str(tmp_path)!r}))
        """)


@pytest.mark.slow
@mxnet_test
@needs_torch
@pytest.mark.torch
@pytest.mark.parametrize(
    'first', ['mxnet', pytest.param('torch', marks=pytest.mark.slow)]
)
def test_torch_in_either_order(first):
    imports = ['import torch', 'mx = mxnet_import.import_mxnet()']
    if first == 'mxnet':
        imports.reverse()
    assert (
        run(
            '\n'.join(
                [
                    'from backends import mxnet_import',
                    *imports,
                    'import numpy',
                    'a = numpy.arange(3, dtype="float32")',
                    'assert torch.from_numpy(a).numpy() is not None',
                    'print((torch.tensor(a) * 2).tolist())',
                    'print((mx.np.array(a) * 2).tolist())',
                ]
            )
        ).split('\n')[-3:-1]
        == ['[0.0, 2.0, 4.0]'] * 2
    )


@mxnet_test
def test_numpy_stays_and_nothing_is_printed_and_twice_is_once():
    assert (
        run("""
        import warnings
        warnings.simplefilter('error')
        from backends import mxnet_import
        import sys, builtins
        real = builtins.__import__, builtins.str
        mx = mxnet_import.import_mxnet()
        finders = list(sys.meta_path)
        assert mxnet_import.import_mxnet() is mx is sys.modules['mxnet']
        assert mxnet_import.install() in finders
        assert sys.meta_path == finders
        assert (builtins.__import__, builtins.str) == real
        import numpy
        assert sys.modules['numpy'] is numpy
        assert numpy is not mxnet_import.numpy_for_mxnet()
        assert numpy.testing.assert_allclose and numpy.linalg.norm
        assert (str((numpy.int64(3), 4)) == '(3, 4)') == (
            int(numpy.__version__[0]) < 2)
        """)
        == ''
    )


@pytest.mark.slow
@mxnet_test
def test_it_recovers_from_an_import_that_failed_before():
    run("""
        try:
            import mxnet
        except AttributeError:
            pass  # with NumPy 1.24 and later
        from backends import mxnet_import
        mx = mxnet_import.import_mxnet()
        assert mx.base is __import__('sys').modules['mxnet.base']
        assert mx.np.ones(3).sum().item() == 3
        """)


@pytest.mark.slow
@mxnet_test
def test_two_threads_import_it_at_once():
    assert (
        run("""
        from concurrent.futures import ThreadPoolExecutor
        from backends import mxnet_import
        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(mxnet_import.import_mxnet) for _ in range(4)]
            print(len({id(job.result()) for job in jobs}))
        """)
        == '1\n'
    )


def test_variables_of_two_threads_at_once(monkeypatch):
    """Each thread finds the user's variables, not the other thread's."""
    monkeypatch.setenv('OMP_WAIT_POLICY', 'ACTIVE')
    first_is_in = threading.Event()
    seen = []

    def first():
        with mxnet_import.omp_variables():
            first_is_in.set()
            time.sleep(0.1)

    def second():
        first_is_in.wait()
        with mxnet_import.omp_variables():
            seen.append(os.environ['OMP_WAIT_POLICY'])
            time.sleep(0.2)

    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(first), pool.submit(second)]:
            job.result()
    assert seen == ['PASSIVE']
    assert os.environ['OMP_WAIT_POLICY'] == 'ACTIVE'


def test_only_mxnet_sees_it(tmp_path):
    """Not what mxnet imports, and not what imports mxnet."""
    fake_mxnet(
        tmp_path,
        __init__="""
        import numpy as np
        from distutils.version import LooseVersion
        import neighbour
        assert LooseVersion(np.__version__) >= LooseVersion('1.17')
        assert not LooseVersion('1.9.1') >= LooseVersion('1.17')
        def late():
            import numpy.linalg
            return numpy
        """,
    )
    (tmp_path / 'neighbour.py').write_text('import numpy\n')
    run(
        """
        from backends import mxnet_import
        mxnet_import.install()
        import numpy, mxnet, neighbour, sys
        assert neighbour.numpy is numpy
        assert mxnet.np is mxnet.late() is mxnet_import.numpy_for_mxnet()
        assert mxnet.np.ndarray is numpy.ndarray
        assert mxnet.np.bool is bool and mxnet.np.PZERO == 0
        assert mxnet.np.testing is numpy.testing
        assert 'distutils.version' not in sys.modules
        try:
            mxnet.np.nonsense
        except AttributeError:
            pass
        """,
        path=(ROOT, tmp_path),
    )


def test_a_failing_import_shows_its_own_error_and_leaves_nothing(tmp_path):
    fake_mxnet(
        tmp_path,
        __init__='from . import base',
        base="""
        import numpy
        raise OSError('libquadmath.so.0: cannot open shared object file')
        """,
    )
    error = run(
        """
        import sys
        from backends import mxnet_import
        import numpy
        before = dict(vars(numpy))
        try:
            mxnet_import.import_mxnet()
        except OSError:
            assert dict(vars(numpy)) == before
            assert sys.modules['numpy'] is numpy
            assert not [m for m in sys.modules if m.startswith('mxnet')]
        mxnet_import.import_mxnet()
        """,
        path=(ROOT, tmp_path),
        status=1,
    )
    assert error.splitlines()[-1].startswith('OSError: libquadmath.so.0')


def test_mxnet_that_is_not_installed(tmp_path):
    assert 'absent' in run("""
        import sys
        from backends import mxnet_import
        sys.path[:] = [entry for entry in sys.path
                       if '-packages' not in entry]
        try:
            mxnet_import.import_mxnet()
        except ModuleNotFoundError as error:
            assert error.name == 'mxnet'
            print('absent')
        """)


def test_importing_the_mend_imports_nothing_heavy():
    assert (
        run("""
        import sys
        from backends import mxnet_import
        mxnet_import.install()
        print([name for name in ('numpy', 'mxnet', 'torch')
               if name in sys.modules])
        """)
        == '[]\n'
    )


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        (numpy.float32(0.1), '0.1'),
        (numpy.int64(3), '3'),
        ((numpy.int64(3), 4), '(3, 4)'),
        ((numpy.int64(3),), '(3,)'),
        (
            [numpy.float64(1e-5), (numpy.bool_(1), None)],
            '[1e-05, (True, None)]',
        ),
        ([numpy.float32(0.5)], '[0.5]'),
        (('a', numpy.int8(1)), "('a', 1)"),
        ((), '()'),
        ([], '[]'),
        ('text', 'text'),
        (None, 'None'),
        (True, 'True'),
        ({'a': 1}, "{'a': 1}"),
    ],
)
def test_text_is_what_str_wrote_before_numpy_2(value, text):
    written = mxnet_import.Text(value)
    assert written == text and type(written) is str
    assert isinstance(text, mxnet_import.Text)
    assert not isinstance(3, mxnet_import.Text)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_the_names_that_numpy_removed():
    names = mxnet_import.numpy_for_mxnet()
    x = numpy.array([[3.0, 1.0], [2.0, 4.0]])
    assert names.product(x) == 24 and names.alltrue(x > 0)
    assert names.sometrue(x > 3) and names.round_(x).shape == x.shape
    assert names.msort(x).tolist() == [[2, 1], [3, 4]]
    assert names.in1d(x, [1.0, 4.0]).tolist() == [False, True, False, True]
    assert names.trapz([1.0, 2.0, 3.0]) == 4 and names.isneginf(names.NINF)
    assert names.row_stack([[1], [2]]).tolist() == [[1], [2]]
    assert names.isinf(names.Inf) and names.isnan(names.NaN)
    with pytest.raises(RuntimeError, match='numpy-financial'):
        names.pv(0.1, 1, 1)


# --- the hook at interpreter start -----------------------------------------


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
    """A throwaway environment that sees this one's packages."""
    folder = tmp_path_factory.mktemp('environment')
    subprocess.run(
        [sys.executable, '-m', 'venv', '--without-pip', str(folder)],
        check=True,
    )
    python = folder / 'bin' / 'python'
    site_packages = Path(
        run(
            'import sysconfig; print(sysconfig.get_path("purelib"))',
            python=python,
        ).strip()
    )
    (site_packages / 'packages_of_the_tests.pth').write_text(
        '\n'.join(filter(is_of_packages, sys.path))
    )
    return python, site_packages


@pytest.fixture
def hooked(environment):
    """The environment with the hook on; off again after the test."""
    python, site_packages = environment
    mxnet_import.enable(site_packages)
    yield python, site_packages
    mxnet_import.disable(site_packages)


@pytest.mark.slow
@mxnet_test
def test_a_reader_who_imports_mxnet_first(hooked, tmp_path):
    python, _ = hooked
    assert (
        run(
            'import mxnet as mx, numpy; print(mx.np.ones((2, 3)).sum())',
            python=python,
            cwd=tmp_path,
            path=(),
        )
        == '6.0\n'
    )


@pytest.mark.slow
@mxnet_test
@pytest.mark.parametrize(
    'code',
    [
        """
        import mxnet
        from backends import mxnet_import
        assert mxnet_import.import_mxnet() is mxnet
        """,
        pytest.param(
            """
        from backends import mxnet_import
        mx = mxnet_import.import_mxnet()
        import mxnet
        assert mxnet is mx
        """,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            """
        import importlib.util, sys
        assert importlib.util.find_spec('mxnet')
        before = list(sys.meta_path)
        from backends import mxnet_import
        mxnet_import.import_mxnet()
        assert sys.meta_path == before  # one finder of ours
        """,
            marks=pytest.mark.slow,
        ),
    ],
    ids=['hook first', 'import_mxnet first', 'find_spec first'],
)
def test_the_hook_and_import_mxnet_agree(hooked, code):
    run(code, python=hooked[0])


def test_enabling_twice_and_disabling_twice(environment):
    _, site_packages = environment
    before = sorted(site_packages.iterdir())
    assert not mxnet_import.hook_path(site_packages).exists()
    pth = mxnet_import.enable(site_packages)
    assert pth == mxnet_import.hook_path(site_packages)
    assert pth.suffix == '.pth' and pth.parent == site_packages
    after = sorted(site_packages.iterdir())
    assert mxnet_import.enable(site_packages) == pth
    assert sorted(site_packages.iterdir()) == after
    assert mxnet_import.disable(site_packages) is True
    assert mxnet_import.disable(site_packages) is False
    assert sorted(site_packages.iterdir()) == before


def test_disabling_leaves_no_trace_in_a_new_interpreter(environment):
    python, site_packages = environment
    see = (
        'import sys; print(any(one.__name__ == '
        f'{mxnet_import.HOOK!r} for one in sys.meta_path))'
    )
    mxnet_import.enable(site_packages)
    assert run(see, python=python, path=()) == 'True\n'
    mxnet_import.disable(site_packages)
    assert run(see, python=python, path=()) == 'False\n'
    traces = list(site_packages.rglob(f'{mxnet_import.HOOK}*'))
    assert traces == []


def test_the_hook_costs_a_start_no_import(hooked):
    modules = 'import sys, json; print(json.dumps(list(sys.modules)))'
    python, site_packages = hooked
    with_hook = json.loads(run(modules, python=python, path=()))
    mxnet_import.disable(site_packages)
    without = json.loads(run(modules, python=python, path=()))
    assert with_hook == without


def test_the_hook_survives_the_end_of_d2lbert(hooked, tmp_path):
    python, site_packages = hooked
    pth = mxnet_import.hook_path(site_packages)
    pth.write_text(
        pth.read_text().replace('mxnet_import.py', 'no_longer_there.py')
    )
    fake_mxnet(tmp_path, __init__='import numpy')
    assert (
        run(
            'import mxnet, numpy; print(mxnet.numpy is numpy)',
            python=python,
            path=(tmp_path,),
        )
        == 'True\n'
    )


def test_a_readers_own_package_called_backends(hooked, tmp_path):
    """The hook must not take the reader's `backends` for ours."""
    fake_mxnet(tmp_path, __init__='import numpy')
    (tmp_path / 'backends').mkdir()
    (tmp_path / 'backends' / '__init__.py').write_text('raise OSError\n')
    assert (
        run(
            'import mxnet, numpy; print(mxnet.numpy.bool is bool)',
            python=hooked[0],
            path=(tmp_path,),
        )
        == 'True\n'
    )


def test_a_folder_that_cannot_be_written_to(tmp_path):
    with pytest.raises(FileNotFoundError, match='virtual environment'):
        mxnet_import.enable(tmp_path / 'absent')
    if os.geteuid() == 0:
        mxnet_import.hook_path(tmp_path).mkdir()  # root writes it all
    else:
        tmp_path.chmod(0o500)
    with pytest.raises(OSError, match='virtual environment'):
        mxnet_import.enable(tmp_path)
    assert not list(tmp_path.glob('*.part'))


# --- the matrix ------------------------------------------------------------


def marked(combination):
    """`make test-all` tries the oldest pair and the newest."""
    oldest, *_, newest = mxnet_matrix.NUMPYS[combination.python]
    first, *_, last = mxnet_matrix.MXNETS
    at_an_end = combination[1:] in [(first, oldest), (last, newest)]
    mark = pytest.mark.slow if at_an_end else pytest.mark.long
    return pytest.param(combination, marks=mark)


@pytest.mark.mxnet
@pytest.mark.parametrize(
    'combination', [*map(marked, mxnet_matrix.COMBINATIONS)], ids=str
)
def test_trainings_on_each_combination(combination, request, tmp_path):
    if mxnet_matrix.find_python(combination.python) is None:
        pytest.skip(f'no Python {combination.python} here')
    cache = Path(
        os.environ.get(
            'D2LBERT_MATRIX_CACHE', request.config.cache.mkdir('mxnet-matrix')
        )
    )
    result = mxnet_matrix.check(combination, cache)
    assert result['losses'][-1] < result['losses'][0]
    here = mxnet_matrix.pretrain(sys.executable, tmp_path)
    assert len(here) == 3
    numpy.testing.assert_allclose(result['pretrain'], here, rtol=1e-4)
