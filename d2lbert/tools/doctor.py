"""What is installed, what is broken, and how to repair it.

`d2lbert doctor` prints `examine().text()` and exits with its `exit_status`.
Each import of a framework runs in a process of its own, so that the doctor
can report one that crashes or hangs.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from backends import mxnet_import
from d2lbert.frameworks import FRAMEWORKS, Framework

#: Seconds that an import may take; from a cold disk it takes around 20.
PATIENCE = 120.0
MARKS = {'ok': ' ', 'note': '*', 'problem': '!'}
ENABLE = 'd2lbert doctor --enable-mxnet'


@dataclass(frozen=True)
class Finding:
    """One entry of the report; `mend`: what to do, or the command."""

    subject: str
    status: Literal['ok', 'note', 'problem']
    text: str
    mend: str = ''

    def lines(self, width: int) -> list[str]:
        """Return the lines to print, with subjects of `width` characters."""
        text = self.text + (f'\nmend: {self.mend}' if self.mend else '')
        head = f'{MARKS[self.status]} {self.subject:<{width}}  '
        wrapper = textwrap.TextWrapper(
            78 - len(head), break_long_words=False, break_on_hyphens=False
        )
        first, *rest = (
            part for line in text.splitlines() for part in wrapper.wrap(line)
        )
        return [head + first, *(' ' * len(head) + part for part in rest)]


@dataclass(frozen=True)
class Report:
    """What `examine` found, in the order in which it is printed."""

    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings about something that is broken."""
        return tuple(one for one in self.findings if one.status == 'problem')

    @property
    def exit_status(self) -> int:
        """1 where anything is broken, else 0."""
        return 1 if self.problems else 0

    def text(self) -> str:
        """Return the report as it is printed."""
        width = max(len(one.subject) for one in self.findings)
        lines = [line for one in self.findings for line in one.lines(width)]
        verdict = 'No problems found.'
        if self.problems:
            subjects = ', '.join(one.subject for one in self.problems)
            verdict = f'Problems found: {subjects}.'
        return '\n'.join([*lines, '', verdict])


def examine(patience: float = PATIENCE) -> Report:
    """Examine this environment, which imports all frameworks.

    `patience`: how many seconds each import may take. Whatever is broken
    becomes a finding and raises nothing.
    """
    known = FRAMEWORKS.values()
    run = partial(probe, patience=patience)
    with ThreadPoolExecutor() as pool:
        probes = pool.map(run, FRAMEWORKS, [one.probe for one in known])
        plains = pool.map(run, FRAMEWORKS, [one.plain for one in known])
    found, plain = (
        dict(zip(FRAMEWORKS, results, strict=True))
        for results in (probes, plains)
    )
    return Report(
        (
            *_about_python(),
            *(_about(one, found[one.name], plain[one.name]) for one in known),
            *_about_backends(found),
            _about_hook(plain['mxnet']),
            _about_gpus(found),
            *_about_extras(),
            *_about_corpus(),
        )
    )


# ---- imports, each in a process of its own ---------------------------

_FIND_BACKENDS = 'import sys; sys.path.insert(0, sys.argv[1]); gpus = 0; '
_PRINT = (
    '; import json; print(); print(json.dumps([framework.__version__, gpus]))'
)


@dataclass(frozen=True)
class Probe:
    """The result of an import.

    `error`: the framework's own, or how its process ended; `absent`: nothing
    was there to import.
    """

    version: str = ''
    gpus: int = 0
    error: str = ''
    absent: bool = False


def probe(name: str, code: str, patience: float = PATIENCE) -> Probe:
    """Import a framework by `code` in a new process, where there is any."""
    if util.find_spec(name) is None or not code:
        return Probe(absent=True)
    code = _FIND_BACKENDS + code + _PRINT
    folder = Path(mxnet_import.__file__).parents[1]
    try:
        done = subprocess.run(
            [sys.executable, '-c', code, str(folder)],
            capture_output=True,
            text=True,
            timeout=patience,
        )
    except subprocess.TimeoutExpired:
        return Probe(error=f'not imported within {patience:g} seconds')
    if done.returncode < 0:
        crash = signal.Signals(-done.returncode).name
        return Probe(error=f'the import crashed ({crash})')
    if done.returncode:
        ended = f'ended with status {done.returncode}'
        return Probe(error=error_of(done.stderr) or ended)
    version, gpus = json.loads(done.stdout.splitlines()[-1])
    return Probe(version=version, gpus=gpus)


def error_of(traceback: str) -> str:
    """Return the last error of a printed traceback, without its frames."""
    pattern = r'^[A-Za-z_][\w.]*(?:Error|Exception|Exit)\b'
    starts = [one.start() for one in re.finditer(pattern, traceback, re.M)]
    return traceback[starts[-1] if starts else 0 :].strip()


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
    yield Finding(
        'Python', 'ok', f'{platform.python_version()} at {sys.executable}'
    )
    yield Finding('platform', 'ok', platform.platform())
    if numpy := _version_of('numpy'):
        yield Finding('NumPy', 'ok', numpy)
    else:
        yield Finding(
            'NumPy', 'problem', 'not installed', 'pip install numpy'
        )


def _about(known: Framework, found: Probe, plain: Probe) -> Finding:
    name = known.name
    if found.absent:
        return Finding(name, 'note', 'not installed', known.install)
    if found.error:
        text = f'installed, but cannot be imported:\n{found.error}'
        mend = mend_of(found.error, known.reinstall)
        return Finding(name, 'problem', text, mend)
    text = f'{found.version}, imports'
    if plain.error:
        text += (
            f' through d2lbert; `import {name}` before d2lbert fails:\n'
            f'{plain.error}'
        )
        return Finding(name, 'note', text, ENABLE)
    return Finding(name, 'ok', text)


def _about_backends(found: dict[str, Probe]) -> Iterator[Finding]:
    if all(one.absent for one in found.values()):
        text = 'no framework is installed, so nothing can be trained'
        yield Finding('backends', 'problem', text, "pip install '.[torch]'")


def _about_hook(plain: Probe) -> Finding:
    state, fault = mxnet_import.hook_state(), ''
    if state == 'stale':
        fault = ', but the d2lbert that wrote it is gone'
    elif state == 'on' and plain.error:
        fault = ', and `import mxnet` still fails'
    on = 'off' if state == 'off' else 'on'
    text = f'{on} in {sysconfig.get_path("purelib")}{fault}'
    if fault:
        return Finding('mxnet hook', 'problem', text, ENABLE)
    return Finding('mxnet hook', 'ok', text)


def _about_gpus(found: dict[str, Probe]) -> Finding:
    cards = _nvidia_cards()
    counts = [
        f'{name} sees {one.gpus}'
        for name, one in found.items()
        if one.version
    ]
    text = '; '.join([f'{len(cards)} on this machine', *counts])
    text = '\n'.join([text, *cards])
    if cards and not any(one.gpus for one in found.values()):
        mend = 'install a build of the framework for CUDA'
        return Finding('GPUs', 'note', text, mend)
    return Finding('GPUs', 'ok', text)


def _nvidia_cards() -> list[str]:
    try:
        done = subprocess.run(
            ['nvidia-smi', '-L'], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r'^(GPU .*?)(?: \(UUID.*)?$', done.stdout, re.M)


def _about_extras() -> Iterator[Finding]:
    """Find which of d2lbert's extras have all their requirements."""
    version = _version_of('d2lbert')
    if not version:
        text = 'run from a folder, not installed'
        yield Finding('d2lbert', 'note', text, 'pip install -e .')
        return
    yield Finding('d2lbert', 'ok', version)
    for extra in metadata.metadata('d2lbert').get_all('Provides-Extra') or ():
        lacks = [one for one in _required_by(extra) if not _version_of(one)]
        text = f'lacks {", ".join(lacks)}' if lacks else 'complete'
        mend = f"pip install '.[{extra}]'" if lacks else ''
        yield Finding(f'extra [{extra}]', 'ok', text, mend)


def _required_by(extra: str) -> list[str]:
    """Return the packages that one extra alone requires."""
    from packaging.requirements import Requirement

    return [
        one.name
        for one in map(Requirement, metadata.requires('d2lbert') or ())
        if one.marker
        and one.marker.evaluate({'extra': extra})
        and not one.marker.evaluate({'extra': ''})
    ]


def _version_of(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ''


def _about_corpus() -> Iterator[Finding]:
    from d2lbert.data import corpus

    try:
        cache = corpus.cache_folder()
    except ImportError as error:
        text = f'd2lbert needs {error.name}, which is not installed'
        yield Finding('cache', 'problem', text, f'pip install {error.name}')
        return
    if can_be_written(cache):
        yield Finding('cache', 'ok', str(cache))
    else:
        text = (
            f'{cache} cannot be written: nothing is kept there, and '
            'WikiText-2 cannot be fetched'
        )
        mend = 'name another folder in D2LBERT_CACHE'
        yield Finding('cache', 'note', text, mend)
    given = os.environ.get('D2LBERT_WIKITEXT2')
    path = os.path.expanduser(given or cache / corpus.ARCHIVE)
    if os.path.exists(path):
        yield Finding('WikiText-2', 'ok', f'at {path}')
    elif given:
        text = f'D2LBERT_WIKITEXT2 names {given}, which is not there'
        mend = 'name the archive, or unset the variable'
        yield Finding('WikiText-2', 'problem', text, mend)
    else:
        text = 'not fetched yet; the first training fetches it'
        yield Finding('WikiText-2', 'ok', text)


def can_be_written(folder: Path) -> bool:
    """Say whether a folder, or the place to make it, can be written to."""
    there = next(p for p in (folder, *folder.parents) if os.path.exists(p))
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)
