"""Train long, kill often: the end must be that of an undisturbed run.

    python tests/soak.py --steps 20000 --picture docs/images/soak.png

For each backend the command trains once undisturbed, and once stopped again
and again by SIGKILL or SIGTERM, after a number of steps that the seed
decides, and resumed. Parameters, moments and losses must be equal bit by
bit, and a process must not need more memory the longer it runs.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import backends
from d2lbert.frameworks import label_of
from d2lbert.runs.checkpoint import Checkpoints

ROOT = Path(__file__).parents[1]
SIZES = (
    '--batch-size=8',
    '--max-len=32',
    '--num-hiddens=8',
    '--ffn-num-hiddens=16',
    '--devices=cpu',
)
#: By how much memory may grow from the third quarter of a run to the last.
#: Before, JAX compiles for a shape of batches that occurs for the first time.
MOST_GROWTH = 0.025


class Process:
    """The command while it trains; samples its memory."""

    def __init__(self, out, *options):
        self.process = subprocess.Popen(
            [
                *(sys.executable, '-m', 'd2lbert', 'pretrain'),
                *('--out', str(out), *map(str, options)),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {'PYTHONPATH': str(ROOT)},
        )
        os.set_blocking(self.process.stderr.fileno(), False)
        self.said = b''
        self.memory = []

    def is_alive(self):
        """Wait a little, and look."""
        time.sleep(0.02)
        self.said = (self.said + (self.process.stderr.read() or b''))[-2000:]
        statm = Path(f'/proc/{self.process.pid}/statm')
        if self.process.poll() is None and statm.exists():
            pages = int((statm.read_text() or '0 0').split()[1])
            if pages:
                megabytes = pages * os.sysconf('SC_PAGE_SIZE') / 1e6
                self.memory.append((time.monotonic(), megabytes))
        return self.process.poll() is None

    def end(self):
        """Wait for the end; return the exit status."""
        while self.is_alive():
            pass
        return self.process.returncode


def newest(out):
    """Return the step of the newest checkpoint, 0 before the first."""
    return max(Checkpoints(out).find(), default=0)


def disturbed(backend, out, steps, save_every, num_stops, rng):
    """Train with stops; return the processes and how each was stopped."""
    options = (*SIZES, '--backend', backend, '--save-every', save_every)
    targets = sorted(rng.sample(range(save_every, steps), num_stops))
    processes, stops = [], []
    for target in [*targets, None]:
        more = ['--resume'] if newest(out) else options
        process = Process(out, *more, '--steps', steps)
        processes.append(process)
        if target is None:
            break
        while newest(out) + save_every <= target and process.is_alive():
            pass
        time.sleep(rng.random() / 50)
        number = rng.choice([signal.SIGKILL, signal.SIGTERM])
        process.process.send_signal(number)
        status = process.end()
        assert status in (-signal.SIGKILL, 143, 0), process.said.decode()
        stops.append((newest(out), status))
    assert processes[-1].end() == 0, processes[-1].said.decode()
    return processes, stops


def undisturbed(backend, out, steps):
    """Train in one piece; return the process."""
    options = (*SIZES, '--backend', backend, '--save-every', steps)
    process = Process(out, *options, '--steps', steps)
    assert process.end() == 0, process.said.decode()
    return process


def assert_equal(out, other):
    """See that two runs have come to the same, the times aside."""
    found, expected = (
        Checkpoints(path).load().arrays for path in (out, other)
    )
    assert found.keys() == expected.keys()
    losses, others = (
        arrays.pop('steps')[:, :2] for arrays in (found, expected)
    )
    (apart,) = np.nonzero((losses != others).any(axis=1))
    assert not len(apart), f'from step {apart[0] + 1} on the losses differ'
    for name, array in expected.items():
        assert np.array_equal(found[name], array), f'{name} differs'


def growth(process):
    """Return by which share memory grew after the first half."""
    sizes = np.array([megabytes for _, megabytes in process.memory])
    quarter = len(sizes) // 4
    early, late = sizes[2 * quarter : 3 * quarter], sizes[-quarter:]
    return float(np.median(late) / np.median(early) - 1)


def draw(curves, path):
    """Draw the memory of all processes as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout='constrained')
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (backend, processes) in zip(
        panels, curves.items(), strict=True
    ):
        for i, process in enumerate(processes):
            start = (processes[0] if i == 0 else processes[1]).memory[0][0]
            panel.plot(
                [(when - start) / 60 for when, _ in process.memory],
                [megabytes for _, megabytes in process.memory],
                color='0.3' if i == 0 else '#d9480f',
                linewidth=1,
                label=('undisturbed', 'stopped and resumed')[i]
                if i < 2
                else None,
            )
        title = label_of(backend)
        panel.set(title=title, xlabel='minutes', ylabel='resident MB')
        panel.set_ylim(0)
        panel.grid(alpha=0.25)
    # Below, where it covers no curve
    handles = panel.get_legend_handles_labels()
    figure.legend(
        *handles, loc='outside lower center', ncols=2, frameon=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=144)


def soak(folder, backend, steps, save_every, num_stops, seed):
    """Do it for a backend; return its processes and what happened."""
    rng = random.Random(seed)
    whole = undisturbed(backend, folder / 'whole', steps)
    pieces, stops = disturbed(
        backend, folder / 'cut', steps, save_every, num_stops, rng
    )
    assert_equal(folder / 'cut', folder / 'whole')
    return [whole, *pieces], stops


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--steps', type=int, default=5000)
    parser.add_argument('--save-every', type=int, default=5)
    parser.add_argument('--stops', type=int, default=25)
    parser.add_argument('--backend', action='append')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--picture', type=Path)
    args = parser.parse_args()
    curves = {}
    for backend in args.backend or backends.installed():
        with tempfile.TemporaryDirectory() as folder:
            curves[backend], stops = soak(
                *(Path(folder), backend, args.steps, args.save_every),
                *(args.stops, args.seed),
            )
        kills = sum(status == -signal.SIGKILL for _, status in stops)
        grown = growth(curves[backend][0])
        print(
            f'{backend}: {args.steps} steps, {kills} SIGKILL and '
            f'{len(stops) - kills} SIGTERM, at the end equal bit by bit; '
            f'memory grew by {grown:.2%}',
            flush=True,
        )
        assert grown < MOST_GROWTH
    if args.picture:
        draw(curves, args.picture)


if __name__ == '__main__':
    main()
