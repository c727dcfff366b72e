"""What `d2lbert doctor` says, of this environment and of broken ones."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from backends import mxnet_import
from d2lbert.frameworks import FRAMEWORKS
from d2lbert.tools import doctor
from d2lbert.tools.doctor import Finding
from helpers import OLDEST_KIND, assert_refused

ROOT = Path(mxnet_import.__file__).parents[1]

EXAMINE = """
import sys
from d2lbert.tools import doctor
found = doctor.examine(patience=60)
print(doctor.report(found))
sys.exit(bool(doctor.problems(found)))
"""


def package(folder, name, code):
    """A package of that name which does what the test needs."""
    (folder / name).mkdir()
    (folder / name / '__init__.py').write_text(textwrap.dedent(code))


def examine(path, code=EXAMINE, **environment):
    """Run the doctor in a new Python that finds `path` first."""
    done = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            'PYTHONPATH': f'{path}{os.pathsep}{ROOT}',
            'D2LBERT_CACHE': str(path),
            **environment,
        },
    )
    assert not done.stderr, done.stderr
    return done.returncode, ' '.join(done.stdout.split())


WORKING = """
    __version__ = '9.9'
    class cuda:
        device_count = staticmethod(lambda: 2)
    class context:
        num_gpus = staticmethod(lambda: 3)
    devices = list
"""


def working(folder, *others):
    """Packages that stand for the frameworks but some, and import fast."""
    for name in ({*FRAMEWORKS, 'flax', 'optax'}).difference(others):
        package(folder, name, WORKING)


def test_both_frameworks_work(tmp_path):
    working(tmp_path)
    status, text = examine(tmp_path)
    assert status == 0 and 'No problems found.' in text
    assert 'torch 9.9, imports' in text and 'mxnet 9.9, imports' in text
    assert 'mxnet sees 3; torch sees 2' in text
    assert 'WikiText-2 not fetched yet' in text


def test_neither_framework_is_installed(tmp_path):
    for name in FRAMEWORKS:  # as Python does where there is none
        package(tmp_path, name, f'raise ModuleNotFoundError(name={name!r})')
    status, text = examine(tmp_path)
    assert status == 1
    for framework in FRAMEWORKS.values():
        assert framework.install in text
    assert 'Problems found: backends.' in text


def test_a_framework_that_crashes_or_hangs(tmp_path):
    working(tmp_path, 'mxnet', 'torch')
    package(
        tmp_path,
        'torch',
        """
        import os, signal
        os.kill(os.getpid(), signal.SIGSEGV)
        """,
    )
    package(tmp_path, 'mxnet', 'import time; time.sleep(600)')
    status, text = examine(tmp_path, EXAMINE.replace('60', '1'))
    assert status == 1
    assert 'the import crashed (SIGSEGV)' in text
    assert 'not imported within 1 seconds' in text
    assert 'Problems found: mxnet, torch' in text


def test_a_library_that_is_missing(tmp_path):
    package(tmp_path, 'torch', WORKING)  # imported faster than the real one
    package(
        tmp_path,
        'mxnet',
        """
        raise OSError('libquadmath.so.0: cannot open shared object file: '
                      'No such file or directory')
        """,
    )
    status, text = examine(tmp_path)
    assert status == 1
    assert 'OSError: libquadmath.so.0: cannot open shared' in text
    assert 'mend: apt install libquadmath0' in text


def test_mxnet_that_only_d2lbert_can_import(tmp_path):
    """Not a problem: the environment has not asked for the hook."""
    package(tmp_path, 'torch', WORKING)
    package(
        tmp_path,
        'mxnet',
        """
    import numpy, sys
    if numpy is sys.modules['numpy']:  # as the real one with NumPy 2
        raise AttributeError("module 'numpy' has no attribute 'bool'.")
    """
        + WORKING,
    )
    if mxnet_import.hook_path().exists():
        pytest.skip('the hook is on in this environment')
    status, text = examine(tmp_path)
    assert status == 0
    assert 'imports through d2lbert; `import mxnet` before d2lbert' in text
    assert 'AttributeError: module' in text
    assert 'mend: d2lbert doctor --enable-mxnet' in text


ENDS = """
    import sys
    print('a last word', file=sys.stderr)
    sys.exit(3)
"""


def test_an_import_that_ends_python(tmp_path):
    package(tmp_path, 'torch', ENDS)
    package(tmp_path, 'mxnet', 'import nonsense')
    status, text = examine(tmp_path)
    assert status == 1 and 'Problems found: mxnet, torch.' in text
    assert 'the import ended Python with status 3 a last word' in text
    assert "ModuleNotFoundError: No module named 'nonsense'" in text


def test_an_import_that_ends_python_well_or_prints(tmp_path):
    package(tmp_path, 'torch', 'import os; os._exit(0)')
    package(
        tmp_path,
        'mxnet',
        WORKING
        + """
    import atexit
    atexit.register(print, 'a last word')
    print('a first word', end='')
    """,
    )
    status, text = examine(tmp_path)
    assert status == 1 and 'Problems found: torch.' in text
    assert 'the import ended Python with status 0' in text
    assert 'mxnet 9.9, imports' in text


def test_a_file_that_hides_a_framework(tmp_path, monkeypatch):
    (tmp_path / 'packages').mkdir()
    working(tmp_path / 'packages')
    for name in ('torch', 'json'):
        (tmp_path / f'{name}.py').write_text('open("it ran", "w")')
    monkeypatch.chdir(tmp_path)
    code = f'import sys; sys.path.remove("")\n{EXAMINE}'
    status, text = examine(tmp_path / 'packages', code)
    assert status == 1 and 'Problems found: folder.' in text
    assert f'{tmp_path / "torch.py"} hides the framework torch' in text
    assert 'torch 9.9, imports' in text
    assert not (tmp_path / 'it ran').exists()


@pytest.mark.parametrize('option', ['--enable-mxnet', '--disable-mxnet'])
def test_site_packages_that_cannot_be_written(
    run, tmp_path, monkeypatch, option
):
    pth = tmp_path / 'nowhere' / f'{mxnet_import.HOOK}.pth'
    if option == '--disable-mxnet':
        pth.mkdir(parents=True)  # a folder cannot be unlinked
    monkeypatch.setattr(mxnet_import, 'hook_path', lambda *_: pth)
    done = run('doctor', option)
    assert_refused(done, f'cannot write {pth}', 'venv', status=1)


def test_a_home_folder_that_the_doctor_does_not_know(tmp_path):
    working(tmp_path)
    status, text = examine(tmp_path, D2LBERT_CACHE='~nosuchuser/x')
    assert status == 1 and 'Problems found: cache.' in text
    assert 'D2LBERT_CACHE=~nosuchuser/x: the home folder' in text


def test_a_hook_that_is_broken(tmp_path):
    """As one whose module was removed; a reader's own import runs it."""
    working(tmp_path)
    (tmp_path / 'sitecustomize.py').write_text(
        'import sys\n'
        'class Hook:\n'
        '    def find_spec(name, path=None, target=None):\n'
        "        if name == 'mxnet':\n"
        '            import module_that_is_gone\n'
        f'Hook.__name__ = {mxnet_import.HOOK!r}\n'
        'sys.meta_path.insert(0, Hook)\n'
    )
    pth = tmp_path / 'x.pth'
    pth.touch()
    code = (
        'from pathlib import Path\n'
        'from backends import mxnet_import\n'
        f'mxnet_import.hook_path = lambda: Path({str(pth)!r})\n'
    )
    status, text = examine(tmp_path, code + EXAMINE)
    assert status == 1 and 'Problems found: mxnet hook.' in text
    assert 'imports through d2lbert; `import mxnet` before d2lbert' in text
    assert "No module named 'module_that_is_gone'" in text
    assert 'mend: d2lbert doctor --enable-mxnet' in text


def test_a_cache_that_cannot_be_written(tmp_path):
    working(tmp_path)
    (tmp_path / 'file').touch()
    cache = str(tmp_path / 'file' / 'cache')
    status, text = examine(tmp_path, D2LBERT_CACHE=cache)
    assert status == 0 and 'cannot be written: nothing is kept' in text


def test_a_corpus_that_is_and_is_not_there(tmp_path):
    archive = tmp_path / 'wikitext.zip'
    working(tmp_path)
    status, text = examine(tmp_path, D2LBERT_WIKITEXT2=str(archive))
    assert status == 1 and 'which is not there' in text
    archive.write_bytes(b'')
    status, text = examine(tmp_path, D2LBERT_WIKITEXT2=str(archive))
    assert status == 0 and f'WikiText-2 at {archive}' in text
    at_home = {'HOME': str(tmp_path), 'D2LBERT_WIKITEXT2': '~/wikitext.zip'}
    status, text = examine(tmp_path, **at_home)
    assert status == 0 and f'WikiText-2 at {archive}' in text


@pytest.mark.slow
@pytest.mark.mxnet
@pytest.mark.skipif(
    importlib.util.find_spec('mxnet') is None, reason='mxnet not installed'
)
def test_the_mxnet_that_is_here():
    found = doctor.probe(FRAMEWORKS['mxnet'])
    assert found.error == '' and found.version and found.gpus >= 0


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.skipif(
    importlib.util.find_spec('torch') is None, reason='torch not installed'
)
def test_the_torch_that_is_here():
    found = doctor.probe(FRAMEWORKS['torch'])
    assert found.error == '' and found.version and found.gpus >= 0


def test_the_report_fits_a_terminal():
    findings = [
        Finding('Python', 'word ' * 50),
        Finding('a long subject', 'first\nsecond', 'problem', 'do this'),
    ]
    lines = doctor.report(findings).splitlines()
    assert max(map(len, lines)) <= 78
    assert '! a long subject  first' in lines
    assert ' ' * 18 + 'mend: do this' in lines
    assert lines[-1] == 'Problems found: a long subject.'
    assert doctor.report(findings[:1]).endswith('No problems found.')


@pytest.mark.parametrize(
    ('error', 'mend'),
    [
        (
            'OSError: libgomp.so.1: cannot open shared object file',
            'apt install libgomp1',
        ),
        (
            "ModuleNotFoundError: No module named 'requests'",
            'pip install requests',
        ),
        ('the import crashed (SIGSEGV)', '--force-reinstall'),
    ],
)
def test_what_to_do(error, mend):
    assert mend in doctor.mend_of(error, FRAMEWORKS['mxnet'].reinstall)


def test_products_for_an_old_processor(tmp_path):
    code = (
        'from d2lbert.tools import doctor\n'
        'print(doctor.report(list(doctor._about_products()) or '
        "[doctor.Finding('a', 'b')]))"
    )
    _, text = examine(tmp_path, code, OPENBLAS_CORETYPE='Prescott')
    assert f'for a {OLDEST_KIND}: its matrix products' in text
    assert 'set OPENBLAS_CORETYPE=' in text
    _, text = examine(tmp_path, code, OPENBLAS_CORETYPE='Haswell')
    assert OLDEST_KIND not in text
