"""Processes that measure, taking turns, and the ratios of neighbours."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import workload
from d2lbert.data.corpus import read_lines

ROOT = Path(__file__).parent.parent
WIKITEXT = 'D2LBERT_WIKITEXT2'
PACKAGES = ('numpy', 'torch', 'mxnet')
VERSIONS = """
import importlib.metadata as m, platform
print('Python', platform.python_version())
for name in {names}:
    try:
        print(name, m.version(name))
    except m.PackageNotFoundError:
        pass
"""


class Ratio(NamedTuple):
    """The median of paired ratios, and the least and the greatest."""

    median: float
    least: float
    greatest: float


def paired(
    numerators: Sequence[float], denominators: Sequence[float]
) -> Ratio:
    """Divide pair by pair, each measured one right after the other."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def progress(message: str) -> None:
    """Say on stderr what is being done."""
    print(time.strftime('%H:%M:%S'), message, file=sys.stderr, flush=True)


def in_turn(
    rounds: int, sides: Mapping[str, Callable[[], Any]]
) -> dict[str, list[Any]]:
    """Let each side measure once a round; return each one's results."""
    results: dict[str, list[Any]] = {name: [] for name in sides}
    for i in range(rounds):
        for name, measure in sides.items():
            progress(f'  round {i + 1} of {rounds}: {name}')
            results[name].append(measure())
    return results


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    corpus: str = 'wikitext-2'
    rounds: int = 3
    #: Of the textbook's MXNet, which takes a minute to load.
    loading_rounds: Mapping[str, int] = field(
        default_factory=lambda: {'torch': 3, 'mxnet': 2}
    )
    batch_size: int = workload.BATCH_SIZE
    steps: Mapping[str, int] = field(
        default_factory=lambda: {'torch': 10, 'mxnet': 6}
    )
    warmup_steps: int = 2
    profile_steps: int = 2
    num_sentences: int = 10_000
    num_single_sentences: int = 1000
    matrix_size: int = 2048
    growth_base: Mapping[str, int] = field(
        default_factory=lambda: {
            'batch_size': 32,
            'length': 32,
            'vocabulary': 2000,
            'hidden': 64,
        }
    )
    growth_factors: Sequence[int] = (1, 2, 4, 8)
    growth_steps: int = 4
    corpus_copies: Sequence[int] = (1, 3, 10)
    imports: int = 5
    shows: int = 15


#: To see that everything runs; the numbers mean nothing.
QUICK = Settings(
    corpus='sample',
    rounds=2,
    loading_rounds={'torch': 2, 'mxnet': 1},
    batch_size=8,
    steps={'torch': 2, 'mxnet': 2},
    warmup_steps=1,
    profile_steps=1,
    num_sentences=40,
    num_single_sentences=5,
    matrix_size=256,
    growth_base={
        'batch_size': 2,
        'length': 8,
        'vocabulary': 50,
        'hidden': 8,
    },
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
                self.pythons[side],
                *('-W', 'ignore', '-m', 'benchmarks.measure'),
                *(side, framework, name, json.dumps(options)),
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

    def examples(self, framework: str) -> dict[str, Any]:
        """Return what a training is given: both sides the same examples.

        The textbook's PyTorch tab makes them.
        """
        path = self.folder / 'examples.npz'
        if not path.exists():
            progress('  making the examples')
            self.measure(
                'textbook',
                'torch',
                'loading',
                corpus=self.corpus(),
                save=str(path),
                num_saved=self.settings.batch_size
                * (
                    self.settings.warmup_steps
                    + max(self.settings.steps.values())
                ),
            )
        return {
            'examples': str(path),
            'batch_size': self.settings.batch_size,
            'num_warmup': self.settings.warmup_steps,
            'num_steps': self.settings.steps[framework],
        }

    def machine(self) -> dict[str, Any]:
        """Describe the machine and both environments."""
        return {
            'processor': processor(),
            'cores': os.cpu_count(),
            'memory_bytes': os.sysconf('SC_PAGE_SIZE')
            * os.sysconf('SC_PHYS_PAGES'),
            'system': platform.platform(),
            'versions': {
                side: versions(python)
                for side, python in self.pythons.items()
            },
            'variables': {
                name: value
                for name, value in sorted(os.environ.items())
                if name.startswith(('OMP_', 'MKL_', 'MALLOC_', 'MXNET_'))
            },
        }


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line for line in lines if line.startswith('model name')]
    return names[0].partition(':')[2].strip() if names else platform.machine()


def versions(python: str) -> str:
    """Return the versions in an environment, in words."""
    packages = (*PACKAGES, 'd2l')
    done = subprocess.run(
        [python, '-c', VERSIONS.format(names=packages)],
        check=True,
        capture_output=True,
        text=True,
    )
    return ', '.join(done.stdout.splitlines())
