"""What is compared, section by section."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from backends.cores import available_cores
from benchmarks import workload
from benchmarks.compare import (
    WIKITEXT,
    Bench,
    MeasurementError,
    busy_processes,
    in_turn,
)
from benchmarks.workload import FRAMEWORKS
from d2lbert.data.corpus import ARCHIVE, cache_folder, read_lines
from d2lbert.frameworks import FRAMEWORKS as ALL_FRAMEWORKS

Results = dict[str, Any]
SIDES = ('textbook', 'ours')
GROWING = ('batch_size', 'length', 'vocabulary', 'hidden')
COMMAND = str(Path(sys.executable).parent / 'd2lbert')
#: The arguments of Python.
IMPORTS = {
    'python -c pass': ('-c', 'pass'),
    'import d2lbert': ('-c', 'import d2lbert'),
    'import torch': ('-c', 'import torch'),
    'from d2lbert import torch': ('-c', 'from d2lbert import torch'),
    'from d2lbert import mxnet': ('-c', 'from d2lbert import mxnet'),
    'd2lbert --help': (COMMAND, '--help'),
}


def training(bench: Bench) -> Results:
    """Time the chapter's `train_bert` of each tab."""
    given = bench.chapter()
    read = workload.read_examples(given['examples'])
    first, last = (
        given['num_warmup'],
        given['num_warmup'] + given['num_steps'],
    )
    flops = [
        workload.useful_flops(batch, read.vocab_size)
        for batch in read.batches(given['batch_size'])[first:last]
    ]
    results: Results = {'batch_size': given['batch_size']}
    for framework in FRAMEWORKS:
        results[framework] = {
            'num_steps': given['num_steps'],
            'flops_per_step': sum(flops) / len(flops),
        } | bench.in_turn(
            f'training, {framework}',
            {
                'rate': bench.matrix_rate(),
                'products': bench.job(
                    *('ours', framework, 'training_products'), **given
                ),
                **{
                    side: bench.job(side, framework, 'training', **given)
                    for side in SIDES
                },
            },
        )
    return results


def loading(bench: Bench) -> Results:
    """Time `load_data_wiki` of each tab; examples have to be equal."""
    corpora = {'textbook': bench.corpus(), 'ours': bench.settings.corpus}
    results = {
        framework: bench.in_turn(
            f'loading, {framework}',
            {
                side: bench.job(side, framework, 'loading', corpus=corpus)
                for side, corpus in corpora.items()
            },
        )
        for framework in FRAMEWORKS
    }
    check_equal_examples(results)
    return results


def reloading(bench: Bench) -> Results:
    """Time making the examples of a run, and reading them again."""
    bench.corpus()  # fetches it, if need be, into the usual cache
    variables = {
        WIKITEXT: str(cache_folder() / ARCHIVE),
        **bench.environment(),
        'D2LBERT_CACHE': str(bench.folder / 'cache'),
    }
    job = bench.job(
        *('ours', 'torch', 'reloading', variables),
        corpus=bench.settings.corpus,
    )
    made = in_turn('reloading', 1, {'made': job})
    results = made | bench.in_turn('reloading', {'read': job})
    check_equal_examples({'torch': results})
    return results


def check_equal_examples(results: Results) -> None:
    """Raise `MeasurementError` unless all have made the same examples."""
    (first, *_), *_ = results[FRAMEWORKS[0]].values()
    for framework, sides in results.items():
        for side, runs in sides.items():
            for run in runs:
                for name in ('sha256', 'examples', 'vocabulary'):
                    if run[name] != first[name]:
                        raise MeasurementError(
                            f'{framework}, {side}: {name} of the examples is '
                            f'{run[name]}; expected {first[name]}'
                        )


def representing(bench: Bench) -> Results:
    """Time many sentences at once, and one at a time."""
    path = bench.folder / 'sentences.txt'
    number = bench.settings.num_sentences
    few = bench.settings.num_single_sentences
    lines = workload.sentences(read_lines(bench.settings.corpus), number)
    path.write_text('\n'.join(lines), 'utf-8')
    # With <cls> and <sep>
    flops = workload.encoding_flops(len(line.split()) + 2 for line in lines)
    results: Results = {'sentences': number, 'sample': few, 'flops': flops}
    for framework in FRAMEWORKS:
        job = partial(bench.job, framework=framework, texts=str(path))
        single = partial(job, name='encoding', number=few)
        results[framework] = bench.in_turn(
            f'representing, {framework}',
            {
                'rate': bench.matrix_rate(),
                'products': job('ours', name='encoding_products'),
                **{f'{side}, one at a time': single(side) for side in SIDES},
                'represent': job('ours', name='representing'),
            },
        )
    return results


def importing(bench: Bench) -> Results:
    """Time processes that import, show the help, or take a first step."""

    def timed(arguments: tuple[str, ...]) -> float:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            env=bench.environment(),
        )
        return time.perf_counter() - start

    jobs = {
        **{name: partial(timed, given) for name, given in IMPORTS.items()},
        **{
            f'd2lbert pretrain --backend {name}': partial(
                to_first_step, bench, name
            )
            for name in ALL_FRAMEWORKS
        },
    }
    for job in jobs.values():
        job()  # reads the files, and compiles what is not yet
    return in_turn('importing', bench.settings.imports, jobs)


def to_first_step(bench: Bench, framework: str) -> float:
    """Return when `d2lbert pretrain` shows its first step, in seconds.

    It trains on the sample, with the options that it has by itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = ('--out', f'{folder}/run')
        start = time.perf_counter()
        with subprocess.Popen(
            [
                *(sys.executable, COMMAND, 'pretrain', '--steps', '1'),
                *('--backend', framework, *out),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=bench.environment(),
        ) as process:
            assert process.stderr
            shown = b''
            while b'mlm=' not in shown:
                part = process.stderr.read1()
                if not part:
                    raise MeasurementError(
                        f'd2lbert pretrain showed no step: {shown.decode()}'
                    )
                shown += part
            seconds = time.perf_counter() - start
            process.stderr.read()
    return seconds


def growth(bench: Bench) -> Results:
    """Time a step against each size that decides its arithmetic."""
    settings = bench.settings
    base = dict(zip(GROWING, settings.growth_base, strict=True))
    curves = {
        name: [size * by for by in settings.growth_factors]
        for name, size in base.items()
    }
    steps = settings.growth_steps
    given = {'base': base, 'curves': curves, 'num_steps': steps}
    jobs = {
        framework: bench.job('ours', framework, 'growth', **given)
        for framework in FRAMEWORKS
    }
    curves_of = bench.in_turn('growth', jobs)
    return {'base': base, 'curves': curves, **curves_of}


def corpus(bench: Bench) -> Results:
    """Time loading a corpus, and more of it."""
    job = partial(bench.job, 'ours', 'torch', 'loading', fingerprints=False)
    jobs = {
        str(copies): job(corpus=bench.corpus(copies))
        for copies in bench.settings.corpus_copies
    }
    return bench.in_turn('corpus', jobs)


def shards(bench: Bench) -> Results:
    """Time training in one shard, in two and in four."""
    job = partial(bench.job, 'ours', name='training', **bench.chapter())
    return {
        framework: bench.in_turn(
            f'shards, {framework}',
            {
                devices: job(framework=framework, devices=devices)
                for devices in ('cpu', 'cpu:2', 'cpu:4')
            },
        )
        for framework in FRAMEWORKS
    }


def company(bench: Bench) -> Results:
    """Time training alone and beside busy processes.

    The chapter's batch, and of our side one of an eighth of its size.
    """
    cores = available_cores()
    chapter = bench.chapter()
    large = chapter['batch_size']
    small = large // 8
    trainings = {
        ('textbook', large): chapter,
        ('ours', large): chapter,
        ('ours', small): chapter
        | {'batch_size': small, 'num_steps': 4 * chapter['num_steps']},
    }

    def beside(busy: int, side: str, framework: str, given: Any) -> Any:
        with busy_processes(busy):
            return bench.measure(side, framework, 'training', **given)

    return {
        'cores': cores,
        'batch_sizes': [large, small],
        **{
            framework: bench.in_turn(
                f'company, {framework}',
                {
                    f'{side} {size} {busy}': partial(
                        beside, busy, side, framework, given
                    )
                    for (side, size), given in trainings.items()
                    for busy in (0, cores, 2 * cores)
                },
            )
            for framework in FRAMEWORKS
        },
    }


def profile(bench: Bench) -> Results:
    """Say where a step's time goes, on one thread."""
    variables = {'OMP_NUM_THREADS': '1', 'MXNET_ENGINE_TYPE': 'NaiveEngine'}
    steps = {'num_warmup': 1, 'num_steps': bench.settings.profile_steps}
    given = bench.chapter() | steps
    return {
        framework: {
            side: bench.measure(
                side, framework, 'profile', variables, **given
            )
            for side in SIDES
        }
        for framework in FRAMEWORKS
    }


def display(bench: Bench) -> Results:
    """Time what a reader sees of a step."""
    shows: Any = {'num_shows': bench.settings.shows, 'pause': 0.25}
    return dict(bench.measure('ours', 'torch', 'display', **shows))


SECTIONS: Mapping[str, Callable[[Bench], Results]] = {
    'training': training,
    'loading': loading,
    'reloading': reloading,
    'representing': representing,
    'importing': importing,
    'growth': growth,
    'corpus': corpus,
    'shards': shards,
    'company': company,
    'profile': profile,
    'display': display,
}
