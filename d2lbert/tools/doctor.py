"""What is installed, what is broken, and how to repair it.

`d2lbert doctor` prints `report(examine())`. Each framework is imported in a
process of its own, so that the doctor can report one that crashes or hangs.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Literal

from backends import blas, mxnet_import, processor
from d2lbert import __version__
from d2lbert.errors import InputError, expand_home
from d2lbert.frameworks import FRAMEWORKS, Framework

#: Where the packages d2lbert and backends are.
ROOT = Path(mxnet_import.__file__).parents[1]
#: Seconds that an import may take; from a cold disk it takes around 20.
PATIENCE = 120.0
MARKS = {'ok': ' ', 'note': '*', 'problem': '!'}
ENABLE = 'd2lbert doctor --enable-mxnet'


@dataclass(frozen=True)
class Finding:
    """One entry of the report; `mend`: what to do, or the command."""

    subject: str
    text: str
    status: Literal['ok', 'note', 'problem'] = 'ok'
    mend: str = ''


def examine(patience: float = PATIENCE) -> list[Finding]:
    """Examine this environment, which imports all frameworks.

    `patience`: how many seconds each import may take. Whatever is broken
    becomes a finding and raises nothing.
    """
    found = {
        name: probe(framework, patience)
        for name, framework in FRAMEWORKS.items()
    }
    return [
        *_about_python(),
        *_about_frameworks(found),
        *_about_folder(),
        _about_hook(found['mxnet']),
        _about_gpus(found),
        *_about_corpus(),
    ]


def problems(findings: Sequence[Finding]) -> list[str]:
    """Return the subjects of the findings about something broken."""
    return [one.subject for one in findings if one.status == 'problem']


def report(findings: Sequence[Finding]) -> str:
    """Return the findings as they are printed."""
    width = max(len(one.subject) for one in findings)
    lines = []
    for one in findings:
        head = f'{MARKS[one.status]} {one.subject:<{width}}  '
        mend = [f'mend: {one.mend}'] if one.mend else []
        for text in one.text.splitlines() + mend:
            lines += textwrap.wrap(
                head + text,
                78,
                subsequent_indent=' ' * len(head),
                break_long_words=False,
                break_on_hyphens=False,
            )
            head = ' ' * len(head)
    broken = ', '.join(problems(findings))
    verdict = f'Problems found: {broken}.' if broken else 'No problems found.'
    return '\n'.join([*lines, '', verdict])


# ---- imports, each in a process of its own ---------------------------

#: What precedes the result of an import among all that it prints.
_RESULT = 'd2lbert has found '
# A reader's own import comes first. It may fail where d2lbert's does not.
# Files of the current folder, '', hide nothing: `_about_folder` names them
_IMPORT = """
import sys
sys.path[:] = [sys.argv[1], *filter(None, sys.path)]
import json
found = {{}}
try:
    import {name}
except Exception as error:
    found['own_error'] = f'{{type(error).__name__}}: {{error}}'
try:
    {probe}
    found.update(version=framework.__version__, gpus=gpus)
except Exception as error:
    found = {{'error': f'{{type(error).__name__}}: {{error}}'}}
    if isinstance(error, ModuleNotFoundError) and error.name == '{name}':
        found = {{}}
print('\\n{result}' + json.dumps(found), flush=True)
"""


@dataclass(frozen=True)
class Probe:
    """The result of an import; all is empty where there is no framework.

    `own_error`: of a reader's own import, before that of d2lbert; `error`:
    of d2lbert's, or how its process ended.
    """

    version: str = ''
    gpus: int = 0
    own_error: str = ''
    error: str = ''


def probe(framework: Framework, patience: float = PATIENCE) -> Probe:
    """Import a framework in a new process."""
    code = _IMPORT.format(
        name=framework.name, probe=framework.probe, result=_RESULT
    )
    try:
        done = subprocess.run(
            [sys.executable, '-c', code, str(ROOT)],
            capture_output=True,
            errors='replace',
            timeout=patience,
        )
    except subprocess.TimeoutExpired:
        return Probe(error=f'not imported within {patience:g} seconds')
    if done.returncode < 0:
        crash = signal.Signals(-done.returncode).name
        return Probe(error=f'the import crashed ({crash})')
    results = re.findall(f'^{_RESULT}(.*)$', done.stdout, re.MULTILINE)
    if done.returncode or not results:
        ended = f'the import ended Python with status {done.returncode}'
        return Probe(error=f'{ended}\n{done.stderr}'.strip())
    return Probe(**json.loads(results[-1]))


def mend_of(error: str, reinstall: str) -> str:
    """Return what to do about an error of an import.

    It names a library as Debian and Ubuntu name its package, or else the
    missing module, or else the command that installs the framework again.
    """
    if library := re.search(r'(lib\w+)\.so\.(\d+): cannot open', error):
        return f'apt install {library[1]}{library[2]} (or similar)'
    if module := re.search(r"No module named '([\w.]+)'", error):
        return f'pip install {module[1]}'
    return reinstall


# ---- the findings ----------------------------------------------------


def _about_python() -> Iterator[Finding]:
    python = f'{platform.python_version()} at {sys.executable}'
    yield Finding('Python', python)
    yield Finding('platform', platform.platform())
    yield Finding('d2lbert', f'{__version__} at {ROOT}')
    try:
        yield Finding('NumPy', metadata.version('numpy'))
    except metadata.PackageNotFoundError:
        mend = 'pip install numpy'
        yield Finding('NumPy', 'not installed', 'problem', mend)
    else:
        yield from _about_products()
    yield _about_bf16()


def _about_products() -> Iterator[Finding]:
    chosen, best = blas.slow_kind(), blas.best_kind()
    mend = (
        f'set {blas.VARIABLE}={best} before Python starts, or install a '
        'newer NumPy'
    )
    if chosen:
        text = (
            f"NumPy's OpenBLAS takes this processor for a {chosen}: its "
            'matrix products are several times slower than they could be'
        )
        yield Finding('OpenBLAS', text, 'note', mend)
    elif blas.is_new():
        text = (
            "NumPy's OpenBLAS may not know this processor. The command "
            'd2lbert mends this for itself, but not for your own programs'
        )
        yield Finding('OpenBLAS', text, 'note', mend)


def _about_bf16() -> Finding:
    instructions = processor.bf16_instructions()
    if instructions:
        text = (
            f'this processor multiplies it ({instructions}): with PyTorch '
            'and JAX --precision bf16 is faster, and inexact'
        )
        return Finding('bf16', text)
    text = 'this processor does not multiply it: --precision bf16 is refused'
    return Finding('bf16', text)


def _about_frameworks(found: Mapping[str, Probe]) -> Iterator[Finding]:
    for name, one in found.items():
        known = FRAMEWORKS[name]
        if one.error:
            text = f'installed, but cannot be imported:\n{one.error}'
            mend = mend_of(one.error, known.reinstall)
            yield Finding(name, text, 'problem', mend)
        elif not one.version:
            yield Finding(name, 'not installed', 'note', known.install)
        elif one.own_error:
            text = (
                f'{one.version}, imports through d2lbert; `import {name}` '
                f'before d2lbert fails:\n{one.own_error}'
            )
            yield Finding(name, text, 'note', ENABLE)
        else:
            yield Finding(name, f'{one.version}, imports')
    if not any(one.version or one.error for one in found.values()):
        text = 'no framework is installed, so nothing can be trained'
        yield Finding('backends', text, 'problem', "pip install '.[torch]'")


def _about_folder() -> Iterator[Finding]:
    folder = os.getcwd()
    for name in FRAMEWORKS:
        # A folder without code has no origin, and hides nothing
        spec = PathFinder.find_spec(name, [folder])
        is_own = folder == str(mxnet_import.hook_path().parent)
        if spec and spec.origin and not is_own:
            text = (
                f'{spec.origin} hides the framework {name} from programs '
                'in this folder'
            )
            mend = 'rename it, or run from another folder'
            yield Finding('folder', text, 'problem', mend)


def _about_hook(mxnet: Probe) -> Finding:
    pth = mxnet_import.hook_path()
    is_on = os.path.exists(pth)
    text = f'{"on" if is_on else "off"} in {pth.parent}'
    if is_on and mxnet.own_error:
        text += ', and `import mxnet` still fails'
        return Finding('mxnet hook', text, 'problem', ENABLE)
    return Finding('mxnet hook', text)


def _about_gpus(found: Mapping[str, Probe]) -> Finding:
    text = '; '.join(f'{name} sees {one.gpus}' for name, one in found.items())
    any_seen = any(one.gpus for one in found.values())
    if shutil.which('nvidia-smi') and not any_seen:
        text += "; but NVIDIA's driver is here (nvidia-smi)"
        mend = 'install a build of the framework for CUDA'
        return Finding('GPUs', text, 'note', mend)
    return Finding('GPUs', text)


def _about_corpus() -> Iterator[Finding]:
    from d2lbert.data import corpus

    given = os.environ.get('D2LBERT_WIKITEXT2')
    try:
        cache = corpus.cache_folder()
        path = expand_home(
            given or str(cache / corpus.ARCHIVE), 'D2LBERT_WIKITEXT2='
        )
    except InputError as error:
        yield Finding('cache', str(error), 'problem')
        return
    there = next(p for p in (cache, *cache.parents) if os.path.exists(p))
    if os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK):
        yield Finding('cache', str(cache))
    else:
        text = (
            f'{cache} cannot be written: nothing is kept there, and '
            'WikiText-2 cannot be fetched'
        )
        mend = 'name another folder in D2LBERT_CACHE'
        yield Finding('cache', text, 'note', mend)
    if os.path.exists(path):
        yield Finding('WikiText-2', f'at {path}')
    elif given:
        text = f'D2LBERT_WIKITEXT2 names {given}, which is not there'
        mend = 'name the archive, or unset the variable'
        yield Finding('WikiText-2', text, 'problem', mend)
    else:
        text = 'not fetched yet; the first training fetches it'
        yield Finding('WikiText-2', text)
