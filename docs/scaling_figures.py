"""Measure and predict training on several machines, for docs/scaling.md.

    python docs/scaling_figures.py
    torchrun --nproc-per-node 2 docs/scaling_figures.py --reduce

The first command draws docs/images/scaling.png from the model below and
prints its table. With `--reduce`, started by `torchrun` or by a launcher of
MXNet, rank 0 prints how long a sum over all processes takes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

import backends
from d2lbert.book.animator import DPI
from d2lbert.runs.processes import joined

IMAGE = Path(__file__).parent / 'images' / 'scaling.png'
SIZES = (10_000, 1_000_000, 5_400_000, 20_000_000)

# ---- the model -------------------------------------------------------

#: Seconds that a message takes from machine to machine, whatever its size.
LATENCY = 30e-6
#: What part of a line's rate a large message gets.
SHARE = 0.8
#: A small step on a card takes as long as launching it, by
#: benchmarks/results-gpu.md.
LEAST_SECONDS = 6e-3
#: Sums of a step: the gradients, the losses, and whether to stop.
NUM_SUMS = 3
MACHINES = 2 ** np.arange(11)
LINES = (10, 100)  # Gbit/s


class Network(NamedTuple):
    """A network and what one machine takes of it in a step.

    `flops`: those of its step, forward and backward.
    """

    name: str
    num_parameters: float
    batch: str
    flops: float


def transformer(
    name: str, num_parameters: float, num_rows: int, max_len: int
) -> Network:
    """Return a network that computes 6 FLOP for a parameter and a token."""
    return Network(
        name,
        num_parameters,
        f'{num_rows} × {max_len} tokens',
        6 * num_parameters * num_rows * max_len,
    )


NETWORKS = (
    # benchmarks/results.md has its arithmetic; most parameters are a table
    Network("The chapter's", 5.4e6, '512 × 64 tokens', 83.8e9),
    transformer('BERT-Base', 110e6, 32, 512),
    transformer('BERT-Large', 340e6, 32, 512),
)
#: Machines, by the FLOP a second that a training gets of them.
COMPUTERS = {
    'two cores, 0.12 TFLOP/s': 0.12e12,
    'many cores, 2 TFLOP/s': 2e12,
    'a card, 100 TFLOP/s': 100e12,
}
COLORS = ('#1f77b4', '#2b8a3e', '#d9480f')


def seconds_of_sum(
    num_parameters: float, num_machines: np.ndarray, line: float
) -> np.ndarray:
    """Return how long the sums of a step take, as a ring makes them.

    Each machine sends 2 (N − 1) messages of an N-th of the gradients.
    `line`: in Gbit/s.
    """
    num_messages = 2 * (num_machines - 1)
    size = 4 * num_parameters / num_machines
    rate = SHARE * line * 1e9 / 8
    return num_messages * (size / rate + NUM_SUMS * LATENCY)


def seconds_alone(network: Network, rate: float) -> float:
    """Return how long one machine computes in a step."""
    return max(network.flops / rate, LEAST_SECONDS)


def efficiency(
    network: Network, rate: float, num_machines: np.ndarray, line: float
) -> np.ndarray:
    """Return what part of its time a machine computes.

    Each machine has as many rows as it would have alone (weak scaling), and
    the sums begin when all have computed.
    """
    computing = seconds_alone(network, rate)
    return computing / (
        computing + seconds_of_sum(network.num_parameters, num_machines, line)
    )


def draw() -> None:
    """Draw the efficiency of each network, machine and line."""
    figure = Figure(figsize=(9, 4.6), layout='constrained')
    figure.suptitle(
        'What part of its time each machine computes (model)',
        fontsize='medium',
    )
    for axes, network in zip(
        figure.subplots(1, 3, sharey=True), NETWORKS, strict=True
    ):
        for (label, rate), color in zip(
            COMPUTERS.items(), COLORS, strict=True
        ):
            for line, style in zip(LINES, ('--', '-'), strict=True):
                axes.plot(
                    MACHINES,
                    efficiency(network, rate, MACHINES, line),
                    style,
                    color=color,
                    label=f'{label}, {line} Gbit/s',
                )
        axes.set_xscale('log', base=2)
        axes.set_xticks(MACHINES[::2], map(str, MACHINES[::2]))
        axes.set(
            title=f'{network.name}:\n{network.batch} each',
            xlabel='machines',
            ylim=(0, 1.03),
        )
        axes.title.set_fontsize('medium')
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel('efficiency')
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc='outside lower center',
        ncols=2,
        frameon=False,
    )
    figure.savefig(IMAGE, dpi=DPI)
    print(IMAGE)


def table() -> Iterator[str]:
    """Yield the lines of the table of docs/scaling.md."""
    counts = np.array([2, 16, 128, 1024])
    yield (
        '| network | machine | Gbit/s | step alone | '
        + ' | '.join(map(str, counts))
        + ' |'
    )
    yield '| --- ' * (4 + len(counts)) + '|'
    for network in NETWORKS:
        for label, rate in COMPUTERS.items():
            for line in LINES:
                values = efficiency(network, rate, counts, line)
                alone = seconds_alone(network, rate)
                cells = [f'{value:.2f}' for value in values]
                yield (
                    f'| {network.name} | {label} | {line} | {alone:.3g} s | '
                    + ' | '.join(cells)
                    + ' |'
                )


# ---- measured --------------------------------------------------------


def reduce() -> None:
    """Print how long sums of several sizes take over all processes."""
    with joined() as group:
        backend = backends.load(group.framework or 'torch')
        print_line = print if group.rank == 0 else lambda *_: None
        for size in SIZES:
            X = backend.tensor(np.ones(size, np.float32))
            large = median(seconds(group.all_reduce, [X]) for _ in range(9))
            small = median(seconds(group.any, False) for _ in range(50))
            print_line(
                f'{group.size} processes, {4 * size / 1e6} MB: '
                f'{1e3 * large:.2f} ms; whether to stop: {1e3 * small:.2f} ms'
            )


def seconds(function, *arguments) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--reduce', action='store_true')
    if parser.parse_args().reduce:
        reduce()
        return
    draw()
    print(*table(), sep='\n')


if __name__ == '__main__':
    main()
