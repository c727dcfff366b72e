"""Measure training in two processes, for docs/scaling.md.

    python docs/scaling_runs.py [--backends torch mxnet jax] [--rounds 6]
    python docs/scaling_runs.py --preset bert-base [--backends torch mxnet]

The first command trains the chapter's network on WikiText-2 in one process
and in two, in turn, and prints what two processes of a thread do of what is
expected of them. The second takes steps of a large network in two processes,
and prints their time and each process's peak memory. Nothing else should run.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

NUM_WARMUP = 2  # steps that are not counted
COMMAND = (sys.executable, '-m', 'd2lbert', 'pretrain')


def free_port() -> str:
    """Return a port of this machine that nobody uses."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        return str(server.getsockname()[1])


def variables(framework: str, num_processes: int) -> list[dict[str, str]]:
    """Return what the launcher of a framework tells each of its processes.

    Those that train come first.
    """
    if num_processes == 1:
        return [{}]
    port, ranks = free_port(), range(num_processes)
    if framework == 'torch':
        common = {
            'MASTER_ADDR': '127.0.0.1',
            'MASTER_PORT': port,
            'WORLD_SIZE': str(num_processes),
        }
        return [common | {'RANK': str(rank)} for rank in ranks]
    if framework == 'jax':
        common = {
            'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
            'JAX_NUM_PROCESSES': str(num_processes),
        }
        return [common | {'JAX_PROCESS_ID': str(rank)} for rank in ranks]
    common = {
        'DMLC_PS_ROOT_URI': '127.0.0.1',
        'DMLC_PS_ROOT_PORT': port,
        'DMLC_NUM_SERVER': '1',
        'DMLC_NUM_WORKER': str(num_processes),
    }
    roles = ['worker'] * num_processes + ['server', 'scheduler']
    return [common | {'DMLC_ROLE': role} for role in roles]


def train(
    framework: str, num_processes: int, num_threads: int, *options: object
) -> tuple[list[float], list[float]]:
    """Train in processes; return seconds of steps, and peaks in GB.

    The peaks are those of the processes that train.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / 'run'
        log = Path(folder) / 'log'
        with open(log, 'w') as lines:
            processes = [
                subprocess.Popen(
                    [
                        *COMMAND,
                        *map(str, ('--backend', framework, '--out', out)),
                        *map(str, options),
                    ],
                    env=os.environ
                    | {'OMP_NUM_THREADS': str(num_threads)}
                    | given,
                    stdout=lines,
                    stderr=lines,
                )
                for given in variables(framework, num_processes)
            ]
        peaks = []
        for process in processes:
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                sys.exit(f'{framework}: {log.read_text()}')
            peaks.append(usage.ru_maxrss / 1e6)
        steps = (out / 'metrics.jsonl').read_text().splitlines()
        seconds = [json.loads(step)['seconds'] for step in steps]
    return seconds[NUM_WARMUP:], peaks[:num_processes]


def scaling(framework: str, num_rounds: int) -> None:
    """Print rows of the table: ratios of pairs a second, in order."""
    options = ('--corpus', 'wikitext-2', '--devices', 'cpu')
    options = (*options, '--steps', 8)
    ratios: dict[str, list[float]] = {'strong': [], 'weak': []}
    for _ in range(num_rounds):
        two, _ = train(framework, 2, 1, *options, '--batch-size', 512)
        one, _ = train(framework, 1, 2, *options, '--batch-size', 512)
        half, _ = train(framework, 1, 1, *options, '--batch-size', 256)
        ratios['strong'].append(median(one) / median(two))
        ratios['weak'].append(median(half) / median(two))
        print(framework, median(two), median(one), median(half), flush=True)
    for name, values in ratios.items():
        cells = ', '.join(f'{value:.2f}' for value in sorted(values))
        print(f'| {framework} | {name} | {cells} | {median(values):.2f} |')


def large(framework: str, preset: str) -> None:
    """Print a row of the table: seconds of a step, and each peak."""
    options = ('--preset', preset, '--corpus', 'wikitext-2', '--batch-size')
    seconds, peaks = train(framework, 2, 1, *options, 2, '--steps', 4)
    cells = ' and '.join(f'{peak:.2f}' for peak in peaks)
    print(
        f'| {preset} | {framework} | {median(seconds):.1f} s | {cells} GB |'
    )


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--backends', nargs='+', default=['torch', 'mxnet'])
    parser.add_argument('--rounds', type=int, default=6)
    parser.add_argument('--preset')
    options = parser.parse_args()
    for framework in options.backends:
        if options.preset:
            large(framework, options.preset)
        else:
            scaling(framework, options.rounds)


if __name__ == '__main__':
    main()
