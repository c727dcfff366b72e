"""What is installed here, what is broken and why, and what mends it.

`d2lbert doctor` prints `examine().text()` and exits with its `exit_status`.
Everything that imports a framework runs in a process of its own, so that one
that crashes or hangs is reported like any other fault.
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
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from backends import mxnet_import

PATIENCE = 120.0
"""Seconds that an import may take; a cold disk takes around 20."""

Status = Literal['ok', 'note', 'problem']


@dataclass(frozen=True)
class Finding:
    """One line of the report; `mend` is a command or a sentence."""

    subject: str
    status: Status
    text: str
    mend: str = ''


@dataclass(frozen=True)
class Report:
    """What `examine` found, in the order in which it is printed."""

    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What is broken."""
        return tuple(
            finding
            for finding in self.findings
            if finding.status == 'problem'
        )

    @property
    def exit_status(self) -> int:
        """1 where anything is broken, else 0."""
        return 1 if self.problems else 0

    def text(self) -> str:
        """The report as it is printed."""
        width = max(len(finding.subject) for finding in self.findings)
        lines = [
            line
            for finding in self.findings
            for line in _lines_of(finding, width)
        ]
        return '\n'.join([*lines, '', self._verdict()])

    def _verdict(self) -> str:
        if not self.problems:
            return 'No problems found.'
        subjects = ', '.join(one.subject for one in self.problems)
        return f'Problems found: {subjects}.'


def _lines_of(finding: Finding, width: int) -> Iterator[str]:
    mark = {'ok': ' ', 'note': '*', 'problem': '!'}[finding.status]
    indent = ' ' * (width + 4)
    text = finding.text
    if finding.mend:
        text += f'\nmend: {finding.mend}'
    lines = [
        part
        for line in text.splitlines()
        for part in textwrap.wrap(
            line,
            78 - len(indent),
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]
    yield f'{mark} {finding.subject:<{width}}  {lines[0]}'
    yield from (indent + line for line in lines[1:])


def examine(patience: float = PATIENCE) -> Report:
    """Look at this environment; takes as long as importing the frameworks.

    `patience` is how many seconds each import may take. Raises nothing on
    account of what it finds.
    """
    with ThreadPoolExecutor() as pool:
        torch = pool.submit(probe, 'torch', patience)
        mxnet = pool.submit(probe, 'mxnet', patience)
        plain = pool.submit(probe, 'mxnet-plain', patience)
        probes = torch.result(), mxnet.result(), plain.result()
    return Report(
        (
            *_about_python(),
            *_about_torch(probes[0]),
            *_about_mxnet(probes[1], probes[2]),
            *_about_backends(),
            *_about_hook(probes[2]),
            *_about_gpus(probes[0], probes[1]),
            *_about_extras(),
            *_about_corpus(),
        )
    )


# --- imports, each in a process of its own ---------------------------------

# What each process runs. `mxnet-plain` is what a reader who writes
# `import mxnet` before anything of ours gets, with the hook where it is on.
_IMPORTS = {
    'torch': 'import torch as framework; '
    'gpus = framework.cuda.device_count()',
    'mxnet': 'from backends import mxnet_import; '
    'framework = mxnet_import.import_mxnet(); '
    'gpus = framework.context.num_gpus()',
    'mxnet-plain': 'import mxnet as framework; gpus = 0',
}
_FIND_BACKENDS = 'import sys; sys.path.insert(0, sys.argv[1]); '
_REPORT = (
    '; import json; print(); print(json.dumps([framework.__version__, gpus]))'
)


@dataclass(frozen=True)
class Probe:
    """How the import of a framework went."""

    version: str = ''
    gpus: int = 0
    error: str = ''
    """The framework's own error, or how its process ended."""
    absent: bool = False
    """Not installed at all."""


def probe(name: str, patience: float = PATIENCE) -> Probe:
    """Import 'torch', 'mxnet' or 'mxnet-plain' in a new process."""
    if not _installed(name.partition('-')[0]):
        return Probe(absent=True)
    try:
        done = subprocess.run(
            [
                sys.executable,
                '-c',
                _FIND_BACKENDS + _IMPORTS[name] + _REPORT,
                str(Path(mxnet_import.__file__).parents[1]),
            ],
            capture_output=True,
            text=True,
            timeout=patience,
        )
    except subprocess.TimeoutExpired:
        return Probe(error=f'not imported within {patience:g} seconds')
    if done.returncode:
        return Probe(error=_how_it_ended(done))
    version, gpus = json.loads(done.stdout.splitlines()[-1])
    return Probe(version=version, gpus=gpus)


def _installed(module: str) -> bool:
    return util.find_spec(module) is not None


def _how_it_ended(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f'the import crashed ({name})'
    return error_of(done.stderr) or f'ended with status {done.returncode}'


def error_of(traceback: str) -> str:
    """The error of a printed traceback, without its frames."""
    starts = [
        match.start()
        for match in re.finditer(
            r'^[A-Za-z_][\w.]*(?:Error|Exception|Exit)\b', traceback, re.M
        )
    ]
    return traceback[starts[-1] :].strip() if starts else traceback.strip()


# --- what is said about each -----------------------------------------------


def _about_python() -> Iterator[Finding]:
    version = platform.python_version()
    fine = sys.version_info >= (3, 10)
    yield Finding(
        'Python',
        'ok' if fine else 'problem',
        f'{version} at {sys.executable}',
        '' if fine else 'use Python 3.10 or later',
    )
    yield Finding('platform', 'ok', platform.platform())
    numpy = _version_of('numpy')
    yield Finding(
        'NumPy',
        'ok' if numpy else 'problem',
        numpy or 'not installed',
        '' if numpy else 'pip install numpy',
    )


def _about_torch(torch: Probe) -> Iterator[Finding]:
    if torch.absent:
        yield Finding(
            'torch', 'note', 'not installed', "pip install '.[torch]'"
        )
    elif torch.error:
        yield Finding(
            'torch',
            'problem',
            f'installed, and cannot be imported:\n{torch.error}',
            'pip install --force-reinstall torch',
        )
    else:
        yield Finding('torch', 'ok', f'{torch.version}, imports')


def _about_mxnet(mxnet: Probe, plain: Probe) -> Iterator[Finding]:
    if mxnet.absent:
        yield Finding(
            'mxnet', 'note', 'not installed', "pip install '.[mxnet]'"
        )
    elif mxnet.error:
        yield Finding(
            'mxnet',
            'problem',
            'installed, and cannot be '
            f'imported, by d2lbert either:\n{mxnet.error}',
            mend_of(mxnet.error),
        )
    elif plain.error:
        yield Finding(
            'mxnet',
            'note',
            f'{mxnet.version}, imports through '
            'd2lbert; `import mxnet` before d2lbert fails:\n'
            f'{plain.error}',
            'd2lbert doctor --enable-mxnet',
        )
    else:
        yield Finding('mxnet', 'ok', f'{mxnet.version}, imports')


def mend_of(error: str) -> str:
    """What to do about an error of `import mxnet` that d2lbert cannot mend.

    The libraries are those that the wheels of MXNet 1.9.1 and 2.0.0b1 need
    and do not bring; the packages are named as Debian and Ubuntu name them.
    """
    library = re.search(r'(lib\w+)\.so\.(\d+): cannot open', error)
    if library:
        return f'apt install {library[1]}{library[2]} (or its like)'
    module = re.search(r"No module named '([\w.]+)'", error)
    if module:
        return f'pip install {module[1]}'
    return 'pip install --force-reinstall --no-deps mxnet==1.9.1'


def _about_backends() -> Iterator[Finding]:
    if not _installed('torch') and not _installed('mxnet'):
        yield Finding(
            'backends',
            'problem',
            'neither torch nor mxnet is installed, so nothing can be trained',
            "pip install '.[torch]'",
        )


def _about_hook(plain: Probe) -> Iterator[Finding]:
    where = sysconfig.get_path('purelib')
    state = mxnet_import.hook_state()
    if state == 'off':
        yield Finding('mxnet hook', 'ok', f'off in {where}')
    elif state == 'stale':
        yield Finding(
            'mxnet hook',
            'problem',
            f'on in {where}, but the d2lbert that wrote it is gone',
            'd2lbert doctor --enable-mxnet',
        )
    elif plain.error:
        yield Finding(
            'mxnet hook',
            'problem',
            f'on in {where}, and `import mxnet` still fails',
            'd2lbert doctor --enable-mxnet',
        )
    else:
        yield Finding('mxnet hook', 'ok', f'on in {where}')


def _about_gpus(torch: Probe, mxnet: Probe) -> Iterator[Finding]:
    cards = _nvidia_cards()
    seen = [
        f'{name} sees {one.gpus}'
        for name, one in (('torch', torch), ('mxnet', mxnet))
        if one.version
    ]
    text = f'{len(cards)} on this machine' + ''.join(
        f'; {part}' for part in seen
    )
    unused = cards and not (torch.gpus or mxnet.gpus)
    yield Finding(
        'GPUs',
        'note' if unused else 'ok',
        '\n'.join([text, *cards]),
        'install a build of the framework for CUDA' if unused else '',
    )


def _nvidia_cards() -> list[str]:
    try:
        done = subprocess.run(
            ['nvidia-smi', '-L'], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [
        line.partition(' (UUID')[0]
        for line in done.stdout.splitlines()
        if line.startswith('GPU ')
    ]


def _about_extras() -> Iterator[Finding]:
    """Which of d2lbert's extras have all that they require."""
    try:
        extras = metadata.metadata('d2lbert').get_all('Provides-Extra') or []
    except metadata.PackageNotFoundError:
        yield Finding(
            'd2lbert',
            'note',
            'run from a folder, not installed',
            'pip install -e .',
        )
        return
    yield Finding('d2lbert', 'ok', metadata.version('d2lbert'))
    for extra in extras:
        missing = [
            name for name in _required_by(extra) if not _version_of(name)
        ]
        text = f'lacks {", ".join(missing)}' if missing else 'complete'
        yield Finding(
            f'extra [{extra}]',
            'ok',
            text,
            f"pip install '.[{extra}]'" if missing else '',
        )


def _required_by(extra: str) -> list[str]:
    """The packages that an extra names, those of the extra alone."""
    from packaging.requirements import Requirement

    requirements = map(Requirement, metadata.requires('d2lbert') or [])
    return [
        one.name
        for one in requirements
        if one.marker
        and one.marker.evaluate({'extra': extra})
        and not one.marker.evaluate({'extra': ''})
    ]


def _version_of(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ''


def can_be_written(folder: Path) -> bool:
    """Say whether there is such a folder to write in, or one can be made."""
    there = next(p for p in (folder, *folder.parents) if os.path.exists(p))
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


def _about_corpus() -> Iterator[Finding]:
    from d2lbert.data import corpus

    try:
        cache = corpus.cache_folder()
    except ImportError as error:
        yield Finding(
            'cache',
            'problem',
            f'd2lbert needs {error.name}, which is not installed',
            f'pip install {error.name}',
        )
        return
    if can_be_written(cache):
        yield Finding('cache', 'ok', str(cache))
    else:
        yield Finding(
            'cache',
            'note',
            f'{cache} cannot be written: nothing is kept there, and '
            'WikiText-2 cannot be fetched',
            'name another folder in D2LBERT_CACHE',
        )
    given = os.environ.get('D2LBERT_WIKITEXT2')
    path = os.path.expanduser(given or cache / corpus.ARCHIVE)
    if os.path.exists(path):
        yield Finding('WikiText-2', 'ok', f'at {path}')
    elif given:
        yield Finding(
            'WikiText-2',
            'problem',
            f'D2LBERT_WIKITEXT2 names {given}, which is not there',
            'name the archive, or unset the variable',
        )
    else:
        yield Finding(
            'WikiText-2',
            'ok',
            'not fetched yet; the first training fetches it',
        )
