"""Processes that measure and take turns."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import workload
from d2lbert.data.corpus import read_lines

ROOT = Path(__file__).parent.parent
WIKITEXT = 'D2LBERT_WIKITEXT2'
VERSIONS = """
import importlib.metadata as m, platform
print('Python', platform.python_version())
for name in ('numpy', 'torch', 'mxnet', 'd2l'):
    for found in m.distributions(name=name):
        print(name, found.version)
"""


def progress(message: str) -> None:
    """Say on stderr what is being done."""
    print(time.strftime('%H:%M:%S'), message, file=sys.stderr, flush=True)


def commit() -> str:
    """Return which commit is measured, or that nobody knows."""
    command = ['git', 'describe', '--always', '--dirty']
    git = subprocess.run(command, capture_output=True, cwd=ROOT)
    return git.stdout.decode().strip() or 'unknown'


def in_turn(
    title: str, rounds: int, sides: Mapping[str, Callable[[], Any]]
) -> dict[str, list[Any]]:
    """Let each side measure once a round; return each one's results."""
    results: dict[str, list[Any]] = {name: [] for name in sides}
    for i in range(rounds):
        for name, measure in sides.items():
            progress(f'{title}, round {i + 1} of {rounds}: {name}')
            results[name].append(measure())
    return results


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Within this context so many other processes compute without a pause."""
    command = [sys.executable, '-S', '-c', 'while True: pass']
    processes = [subprocess.Popen(command) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


class Settings(NamedTuple):
    """How much is measured.

    `growth_base`: batch size, length, vocabulary and hidden size.
    """

    corpus: str = 'wikitext-2'
    rounds: int = 3
    batch_size: int = workload.BATCH_SIZE
    warmup_steps: int = 2
    steps: int = 8
    profile_steps: int = 2
    num_sentences: int = 10_000
    num_single_sentences: int = 1000
    matrix_size: int = 2048
    growth_base: Sequence[int] = (32, 32, 2000, 64)
    growth_factors: Sequence[int] = (1, 2, 4, 8)
    growth_steps: int = 4
    corpus_copies: Sequence[int] = (1, 3, 10)
    imports: int = 5
    shows: int = 15


#: To see that everything runs; the numbers mean nothing.
QUICK = Settings(
    corpus='sample',
    rounds=2,
    batch_size=8,
    warmup_steps=1,
    steps=2,
    profile_steps=1,
    num_sentences=40,
    num_single_sentences=5,
    matrix_size=256,
    growth_base=(2, 8, 50, 8),
    growth_steps=1,
    imports=2,
    shows=2,
)


class MeasurementError(Exception):
    """A process that measures has failed."""


class Bench:
    """Starts the processes, each in the environment of its side.

    `folder`: for files that they share; `textbook`: the interpreter of the
    environment that has d2l.
    """

    def __init__(
        self, folder: Path, settings: Settings, textbook: str
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.pythons = {'ours': sys.executable, 'textbook': textbook}

    def measure(
        self,
        side: str,
        framework: str,
        name: str,
        variables: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Any:
        """Measure in a fresh process; see `benchmarks.measure`.

        `variables`: of its environment. Raises `MeasurementError` with what
        it wrote on stderr where it fails.
        """
        done = subprocess.run(
            [
                *(self.pythons[side], '-W', 'ignore', '-m'),
                *('benchmarks.measure', side, framework, name),
                json.dumps(options),
            ],
            capture_output=True,
            text=True,
            cwd=self.folder,  # the animator writes its picture there
            env=self.environment() | dict(variables or {}),
        )
        if done.returncode:
            raise MeasurementError(
                f'{name}, {framework}, {side} failed:\n{done.stderr}'
            )
        return json.loads(done.stdout.splitlines()[-1])

    def job(self, *args: Any, **options: Any) -> Callable[[], Any]:
        """Return a call of `measure`, for `in_turn`."""
        return partial(self.measure, *args, **options)

    def matrix_rate(self) -> Callable[[], Any]:
        """Return what measures the machine's rate of float32 products."""
        size = self.settings.matrix_size
        return self.job('ours', 'torch', 'matrix_rate', size=size, repeats=10)

    def in_turn(
        self, title: str, jobs: Mapping[str, Callable[[], Any]]
    ) -> dict[str, list[Any]]:
        """Let the jobs take turns, as many rounds as is set."""
        return in_turn(title, self.settings.rounds, jobs)

    def environment(self) -> dict[str, str]:
        """Return the variables of each process."""
        given = os.environ.get(WIKITEXT)
        return {
            **os.environ,
            # Processes run elsewhere
            **({WIKITEXT: os.path.abspath(given)} if given else {}),
            'PYTHONPATH': str(ROOT),
            # The textbook opens its corpus without an encoding
            'PYTHONUTF8': '1',
            'MPLBACKEND': 'Agg',
        }

    def corpus(self, copies: int = 1) -> str:
        """Return a folder with the corpus, as often as asked, as text."""
        folder = self.folder / f'corpus-{copies}'
        if not folder.exists():
            folder.mkdir()
            lines = read_lines(self.settings.corpus)
            text = ''.join(line.removesuffix('\n') + '\n' for line in lines)
            path = folder / 'wiki.train.tokens'
            path.write_bytes(text.encode() * copies)
        return str(folder)

    def chapter(self) -> dict[str, Any]:
        """Return the options of a training: the same for both sides.

        The textbook's PyTorch tab makes the examples.
        """
        path, settings = self.folder / 'examples.npz', self.settings
        num_steps = settings.warmup_steps + settings.steps
        if not path.exists():
            progress('making the examples')
            self.measure(
                *('textbook', 'torch', 'loading'),
                corpus=self.corpus(),
                save=str(path),
                num_saved=settings.batch_size * num_steps,
            )
        return {
            'examples': str(path),
            'batch_size': settings.batch_size,
            'num_warmup': settings.warmup_steps,
            'num_steps': settings.steps,
        }

    def machine(self) -> dict[str, Any]:
        """Describe the machine and both environments."""
        names = ('OMP_', 'MKL_', 'MALLOC_', 'MXNET_')
        pages = os.sysconf('SC_PHYS_PAGES')
        return {
            'processor': processor(),
            'cores': os.cpu_count(),
            'memory_bytes': os.sysconf('SC_PAGE_SIZE') * pages,
            'system': platform.platform(),
            'versions': {x: versions(self.pythons[x]) for x in self.pythons},
            'variables': {
                name: value
                for name, value in sorted(os.environ.items())
                if name.startswith(names)
            },
        }


def processor() -> str:
    """Return the processor's name."""
    path = Path('/proc/cpuinfo')
    text = path.read_text() if path.exists() else ''
    names = re.findall(r'model name\s*: (.*)', text)
    return names[0] if names else platform.machine()


def versions(python: str) -> str:
    """Return the versions in an environment, in words."""
    command = [python, '-c', VERSIONS]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return ', '.join(done.stdout.splitlines())
