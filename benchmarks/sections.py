"""What is compared, section by section."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import workload
from benchmarks.compare import WIKITEXT, Bench, MeasurementError, in_turn
from benchmarks.workload import FRAMEWORKS
from d2lbert.data.corpus import ARCHIVE, cache_folder, read_lines

Results = dict[str, Any]
GROWING = ('batch_size', 'length', 'vocabulary', 'hidden')
SHARDS = ('cpu', 'cpu:2', 'cpu:4')
#: The arguments of Python.
IMPORTS = {
    'python -c pass': ('-c', 'pass'),
    'import d2lbert': ('-c', 'import d2lbert'),
    'from d2lbert import torch': ('-c', 'from d2lbert import torch'),
    'from d2lbert import mxnet': ('-c', 'from d2lbert import mxnet'),
    'd2lbert --help': (
        str(Path(sys.executable).parent / 'd2lbert'),
        '--help',
    ),
}


def training(bench: Bench) -> Results:
    """Time the chapter's `train_bert` of each tab."""
    given = bench.chapter()
    results: Results = {'batch_size': bench.settings.batch_size}
    for framework in FRAMEWORKS:
        options = {'framework': framework, 'name': 'training', **given}
        results[framework] = {
            'num_steps': given['num_steps'],
            'flops_per_step': flops_per_step(**given),
            **in_turn(
                f'training, {framework}',
                bench.settings.rounds,
                {
                    'rate': partial(matrix_rate, bench),
                    'textbook': partial(bench.measure, 'textbook', **options),
                    'ours': partial(bench.measure, 'ours', **options),
                },
            ),
        }
    return results


def flops_per_step(
    examples: str, batch_size: int, num_warmup: int, num_steps: int
) -> float:
    """Return the mean over the steps that are timed."""
    read = workload.read_examples(examples)
    batches = read.batches(batch_size)[num_warmup : num_warmup + num_steps]
    return sum(
        workload.useful_flops(batch, read.vocab_size) for batch in batches
    ) / len(batches)


def matrix_rate(bench: Bench) -> Any:
    """Return the machine's rate of float32 matrix products."""
    size = bench.settings.matrix_size
    return bench.measure(
        'ours', 'torch', 'matrix_rate', size=size, repeats=10
    )


def loading(bench: Bench) -> Results:
    """Time `load_data_wiki` of each tab; examples have to be equal."""
    corpora = {'textbook': bench.corpus(), 'ours': bench.settings.corpus}
    results = {
        framework: in_turn(
            f'loading, {framework}',
            bench.settings.rounds,
            {
                side: partial(
                    bench.measure, side, framework, 'loading', corpus=corpus
                )
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
    measure = partial(
        bench.measure,
        *('ours', 'torch', 'reloading', variables),
        corpus=bench.settings.corpus,
    )
    results = {
        **in_turn('reloading', 1, {'made': measure}),
        **in_turn('reloading', bench.settings.rounds, {'read': measure}),
    }
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
    texts = bench.folder / 'sentences.txt'
    number = bench.settings.num_sentences
    few = bench.settings.num_single_sentences
    lines = workload.sentences(read_lines(bench.settings.corpus), number)
    texts.write_text('\n'.join(lines), 'utf-8')
    # With <cls> and <sep>
    flops = workload.encoding_flops(len(line.split()) + 2 for line in lines)
    results: Results = {'sentences': number, 'sample': few, 'flops': flops}
    for framework in FRAMEWORKS:
        given = {'framework': framework, 'texts': str(texts)}
        results[framework] = in_turn(
            f'representing, {framework}',
            bench.settings.rounds,
            {
                'rate': partial(matrix_rate, bench),
                **{
                    f'{side}, one at a time': partial(
                        bench.measure,
                        side,
                        name='encoding',
                        number=few,
                        **given,
                    )
                    for side in ('textbook', 'ours')
                },
                'represent': partial(
                    bench.measure, 'ours', name='representing', **given
                ),
            },
        )
    return results


def importing(bench: Bench) -> Results:
    """Time whole processes that import, or show the command's help."""

    def timed(arguments: tuple[str, ...]) -> float:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            env=bench.environment(),
        )
        return time.perf_counter() - start

    for arguments in IMPORTS.values():
        timed(arguments)  # reads the files, and compiles what is not yet
    return in_turn(
        'importing',
        bench.settings.imports,
        {name: partial(timed, given) for name, given in IMPORTS.items()},
    )


def growth(bench: Bench) -> Results:
    """Time a step against each size that decides its arithmetic."""
    settings = bench.settings
    base = dict(zip(GROWING, settings.growth_base, strict=True))
    curves = {
        name: [size * by for by in settings.growth_factors]
        for name, size in base.items()
    }
    measure = partial(
        bench.measure,
        'ours',
        name='growth',
        base=base,
        curves=curves,
        num_steps=settings.growth_steps,
    )
    return {
        'base': base,
        'curves': curves,
        **in_turn(
            'growth',
            settings.rounds,
            {name: partial(measure, framework=name) for name in FRAMEWORKS},
        ),
    }


def corpus(bench: Bench) -> Results:
    """Time loading a corpus, and more of it."""
    measure = partial(
        bench.measure, 'ours', 'torch', 'loading', fingerprints=False
    )
    return in_turn(
        'corpus',
        bench.settings.rounds,
        {
            str(copies): partial(measure, corpus=bench.corpus(copies))
            for copies in bench.settings.corpus_copies
        },
    )


def shards(bench: Bench) -> Results:
    """Time training in one shard, in two and in four."""
    measure = partial(
        bench.measure, 'ours', name='training', **bench.chapter()
    )
    return {
        framework: in_turn(
            f'shards, {framework}',
            bench.settings.rounds,
            {
                devices: partial(
                    measure, framework=framework, devices=devices
                )
                for devices in SHARDS
            },
        )
        for framework in FRAMEWORKS
    }


def profile(bench: Bench) -> Results:
    """Say where a step's time goes, on one thread."""
    steps = {'num_warmup': 1, 'num_steps': bench.settings.profile_steps}
    measure = partial(
        bench.measure,
        name='profile',
        variables={
            'OMP_NUM_THREADS': '1',
            'MXNET_ENGINE_TYPE': 'NaiveEngine',
        },
        **bench.chapter() | steps,
    )
    results: Results = {}
    for framework in FRAMEWORKS:
        sides = {
            side: partial(measure, side, framework)
            for side in ('textbook', 'ours')
        }
        found = in_turn(f'profile, {framework}', 1, sides)
        results[framework] = {side: run for side, (run,) in found.items()}
    return results


def display(bench: Bench) -> Results:
    """Time what a reader sees of a step."""
    shows = {'num_shows': bench.settings.shows, 'pause': 0.25}
    return dict(bench.measure('ours', 'torch', 'display', **shows))


SECTIONS: Mapping[str, Callable[[Bench], Results]] = {
    function.__name__: function
    for function in (
        training,
        loading,
        reloading,
        representing,
        importing,
        growth,
        corpus,
        shards,
        profile,
        display,
    )
}
