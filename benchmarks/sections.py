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
from benchmarks.compare import (
    WIKITEXT,
    Bench,
    MeasurementError,
    in_turn,
    progress,
)
from benchmarks.workload import FRAMEWORKS
from d2lbert.data.corpus import ARCHIVE, cache_folder, read_lines

Results = dict[str, Any]
CURVES = ('vocabulary', 'length', 'batch_size', 'hidden')
SHARDS = ('cpu', 'cpu:2', 'cpu:4')
IMPORTS = {
    'python -c pass': ('-c', 'pass'),
    'import d2lbert': ('-c', 'import d2lbert'),
    'from d2lbert import torch': ('-c', 'from d2lbert import torch'),
    'from d2lbert import mxnet': ('-c', 'from d2lbert import mxnet'),
}


def training(bench: Bench) -> Results:
    """Time the chapter's `train_bert` of each tab."""
    results: Results = {'batch_size': bench.settings.batch_size}
    for framework in FRAMEWORKS:
        given = bench.examples(framework)
        progress(f'training, {framework}')
        results[framework] = {
            'num_steps': given['num_steps'],
            'flops_per_step': flops_per_step(**given),
            **in_turn(
                bench.settings.rounds,
                {
                    'rate': partial(matrix_rate, bench),
                    **{
                        side: partial(
                            bench.measure,
                            side,
                            framework,
                            'training',
                            **given,
                        )
                        for side in ('textbook', 'ours')
                    },
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
    return bench.measure(
        'ours',
        'torch',
        'matrix_rate',
        size=bench.settings.matrix_size,
        repeats=10,
    )


def loading(bench: Bench) -> Results:
    """Time `load_data_wiki` of each tab; examples have to be equal."""
    results = {}
    for framework in FRAMEWORKS:
        progress(f'loading, {framework}')
        results[framework] = in_turn(
            bench.settings.loading_rounds[framework],
            {
                'textbook': partial(
                    bench.measure,
                    'textbook',
                    framework,
                    'loading',
                    corpus=bench.corpus(),
                ),
                'ours': partial(
                    bench.measure,
                    'ours',
                    framework,
                    'loading',
                    corpus=bench.settings.corpus,
                ),
            },
        )
    check_equal_examples(results)
    return results


def reloading(bench: Bench) -> Results:
    """Time making the examples of a run, and reading them again."""
    progress('reloading')
    bench.corpus()  # fetches it, if need be, into the usual cache
    measure = partial(
        bench.measure,
        'ours',
        'torch',
        'reloading',
        {
            WIKITEXT: str(cache_folder() / ARCHIVE),
            **bench.environment(),
            'D2LBERT_CACHE': str(bench.folder / 'cache'),
        },
        corpus=bench.settings.corpus,
    )
    results = {
        **in_turn(1, {'made': measure}),
        **in_turn(bench.settings.rounds, {'read': measure}),
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
    lines = workload.sentences(read_lines(bench.settings.corpus), number)
    texts.write_text('\n'.join(lines), 'utf-8')
    results: Results = {
        'sentences': number,
        'sample': bench.settings.num_single_sentences,
        # With <cls> and <sep>
        'flops': workload.encoding_flops(
            len(line.split()) + 2 for line in lines
        ),
    }
    for framework in FRAMEWORKS:
        progress(f'representing, {framework}')
        one_at_a_time = {
            f'{side}, one at a time': partial(
                bench.measure,
                side,
                framework,
                'encoding',
                texts=str(texts),
                number=bench.settings.num_single_sentences,
            )
            for side in ('textbook', 'ours')
        }
        together = partial(
            bench.measure, 'ours', framework, 'representing', texts=str(texts)
        )
        results[framework] = in_turn(
            bench.settings.rounds,
            {
                'rate': partial(matrix_rate, bench),
                **one_at_a_time,
                'represent': together,
            },
        )
    return results


def importing(bench: Bench) -> Results:
    """Time whole processes that import, or show the command's help."""
    progress('importing')
    commands = {
        name: [sys.executable, *arguments]
        for name, arguments in IMPORTS.items()
    }
    script = Path(sys.executable).with_name('d2lbert')
    commands['d2lbert --help'] = [str(script), '--help']

    def timed(command: list[str]) -> float:
        start = time.perf_counter()
        subprocess.run(
            command,
            check=True,
            stdout=subprocess.DEVNULL,
            env=bench.environment(),
        )
        return time.perf_counter() - start

    for command in commands.values():
        timed(command)  # reads the files, and compiles what is not yet
    return in_turn(
        bench.settings.imports,
        {name: partial(timed, command) for name, command in commands.items()},
    )


def growth(bench: Bench) -> Results:
    """Time a step against each size that decides its arithmetic."""
    progress('growth')
    base = bench.settings.growth_base
    curves = {
        name: [base[name] * by for by in bench.settings.growth_factors]
        for name in CURVES
    }
    return {
        'base': dict(base),
        'curves': curves,
        **in_turn(
            bench.settings.rounds,
            {
                framework: partial(
                    bench.measure,
                    'ours',
                    framework,
                    'growth',
                    base=dict(base),
                    curves=curves,
                    num_steps=bench.settings.growth_steps,
                )
                for framework in FRAMEWORKS
            },
        ),
    }


def corpus(bench: Bench) -> Results:
    """Time loading a corpus, and more of it."""
    progress('corpus')
    return in_turn(
        bench.settings.rounds,
        {
            str(copies): partial(
                bench.measure,
                'ours',
                'torch',
                'loading',
                corpus=bench.corpus(copies),
                fingerprints=False,
            )
            for copies in bench.settings.corpus_copies
        },
    )


def shards(bench: Bench) -> Results:
    """Time training in one shard, in two and in four."""
    results = {}
    for framework in FRAMEWORKS:
        given = bench.examples(framework)
        progress(f'shards, {framework}')
        results[framework] = in_turn(
            bench.settings.rounds,
            {
                devices: partial(
                    bench.measure,
                    'ours',
                    framework,
                    'training',
                    devices=devices,
                    **given,
                )
                for devices in SHARDS
            },
        )
    return results


def profile(bench: Bench) -> Results:
    """Say where a step's time goes, on one thread."""
    results: Results = {}
    variables = {'OMP_NUM_THREADS': '1', 'MXNET_ENGINE_TYPE': 'NaiveEngine'}
    for framework in FRAMEWORKS:
        given = bench.examples(framework) | {
            'num_warmup': 1,
            'num_steps': bench.settings.profile_steps,
        }
        progress(f'profile, {framework}')
        results[framework] = {
            side: bench.measure(
                side, framework, 'profile', variables, **given
            )
            for side in ('textbook', 'ours')
        }
    return results


def display(bench: Bench) -> Results:
    """Time what a reader sees of a step."""
    progress('display')
    shown = bench.measure(
        'ours',
        'torch',
        'display',
        num_shows=bench.settings.shows,
        pause=0.25,
    )
    return dict(shown)


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
