"""Where a step's time goes: operators by kind of work.

Each framework's own profiler times its operators, and Python's the
functions that compute in NumPy, which no framework sees. What remains of
the time of a step is Python's.
"""

from __future__ import annotations

import cProfile
import pstats
import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

VOCABULARY = 'vocabulary: product and cross-entropy'
PRODUCTS = 'other matrix products'
SOFTMAX = 'attention softmax'
DROPOUT = 'dropout'
NORM = 'layer norm'
EMBEDDING = 'embedding'
ADAM = 'Adam'
ELEMENTWISE = 'other operators: sums, activations, copies'
PYTHON = 'Python, copies for NumPy, and what no profiler saw'
KINDS = [VOCABULARY, PRODUCTS, SOFTMAX, DROPOUT, NORM, EMBEDDING, ADAM]
KINDS += [ELEMENTWISE, PYTHON]
#: Operators by what is in their names, the first that fits.
TORCH_NAMES = {
    EMBEDDING: r'embedding|index_select',
    NORM: r'layer_norm|LayerNorm',
    DROPOUT: r'dropout|bernoulli',
    SOFTMAX: r'_softmax|masked_fill',
    ADAM: r'[Aa]dam|lerp|addcmul|addcdiv|foreach|sqrt',
    PRODUCTS: r'addmm|::mm|bmm|matmul|linear',
}
MXNET_NAMES = {
    VOCABULARY: r'log_softmax|pick|CustomFunction',
    EMBEDDING: r'Embedding|take|gather_nd|scatter',
    NORM: r'LayerNorm|BatchNorm',
    DROPOUT: r'[Dd]ropout|bernoulli|random',
    SOFTMAX: r'softmax|[Mm]ask',
    ADAM: r'adam',
    PRODUCTS: r'FullyConnected|dot|gemm|matmul',
}
#: Our functions that compute in NumPy, by file and name.
NUMPY_FUNCTIONS = {
    'Torch': {DROPOUT: r'randomness\.py'},
    'MXNet': {DROPOUT: r'randomness\.py', VOCABULARY: r'cross_entropy'},
}

#: Seconds by kind of work.
Seconds = defaultdict[str, float]


def kind_of(name: str, patterns: Mapping[str, str]) -> str:
    """Return the kind of work whose pattern is found in a name, or `''`."""
    for kind, pattern in patterns.items():
        if re.search(pattern, name):
            return kind
    return ''


def with_torch(
    train: Callable[[], None], vocab_size: int, num_steps: int
) -> dict[str, Any]:
    """Profile PyTorch's operators; return seconds a step by kind."""
    from torch import profiler

    with profiler.profile(
        activities=[profiler.ProfilerActivity.CPU], record_shapes=True
    ) as operators:
        total, python = time_python(train)
    seconds: Seconds = defaultdict(float)
    for event in operators.key_averages(group_by_input_shape=True):
        kind = torch_kind(event.key, event.input_shapes, vocab_size)
        seconds[kind] += event.self_cpu_time_total / 1e6
    return by_step('Torch', total, seconds, python, num_steps)


def torch_kind(
    name: str, shapes: Sequence[Sequence[int]], vocab_size: int
) -> str:
    """Return the kind of work of an operator on arrays of these shapes.

    Logits end in the vocabulary's size, and a product with it in a shape is
    what makes them or takes their gradient back.
    """
    kind = kind_of(name, TORCH_NAMES) or ELEMENTWISE
    if kind in (SOFTMAX, ELEMENTWISE):
        logits = any(shape[-1:] == [vocab_size] for shape in shapes)
        return VOCABULARY if logits else kind
    if kind == PRODUCTS and any(vocab_size in shape for shape in shapes):
        return VOCABULARY
    return kind


def with_mxnet(
    train: Callable[[], None], vocab_size: int, num_steps: int
) -> dict[str, Any]:
    """Profile MXNet's operators; return seconds a step by kind.

    Wants `MXNET_ENGINE_TYPE=NaiveEngine`, under which no operator computes
    beside another one or beside Python.
    """
    import mxnet as mx

    mx.profiler.set_config(profile_imperative=True, aggregate_stats=True)
    mx.profiler.set_state('run')
    total, python = time_python(train)
    mx.profiler.set_state('stop')
    seconds: Seconds = defaultdict(float)
    for name, count, spent, longest in mxnet_operators(mx.profiler.dumps()):
        kind = kind_of(name, MXNET_NAMES) or ELEMENTWISE
        if kind == PRODUCTS or 'reshape' in name:
            of_logits = spent_on_logits(count, spent, longest, num_steps)
            seconds[VOCABULARY] += of_logits
            spent -= of_logits
        seconds[kind] += spent
    return by_step('MXNet', total, seconds, python, num_steps)


def mxnet_operators(table: str) -> list[tuple[str, int, float, float]]:
    """Read MXNet's table: name, count, seconds in all and of the longest."""
    _, _, rows = table.partition('\noperator\n')
    rows, *_ = rows.partition('\n\n')
    return [
        (name, int(count), float(total) / 1e3, float(longest) / 1e3)
        for name, count, total, _, longest, _ in (
            row.split() for row in rows.splitlines() if len(row.split()) == 6
        )
        if count.isdigit()
    ]


def spent_on_logits(
    count: int, spent: float, longest: float, num_steps: int
) -> float:
    """Return the part of an operator's time that is spent on the logits.

    MXNet's table knows no shapes. The logits are more than twenty times as
    large as the encodings: where there are any, an operator takes much
    longer on them, once a step, than it does on anything else.
    """
    on_logits = min(spent, longest * num_steps)
    others = count - num_steps
    if others > 0 and longest > 8 * (spent - on_logits) / others:
        return on_logits
    return 0.0


def time_python(train: Callable[[], None]) -> tuple[float, dict[str, float]]:
    """Return the time of a call, and that of each Python function in it.

    A function's time includes that of the functions it calls which are
    built in or NumPy's.
    """
    profiler = cProfile.Profile()
    start = time.perf_counter()
    profiler.runcall(train)
    total = time.perf_counter() - start
    functions: defaultdict[str, float] = defaultdict(float)
    stats = vars(pstats.Stats(profiler))['stats']
    for (path, _, name), (_, _, own, _, callers) in stats.items():
        if not is_helper(path):
            functions[f'{path}:{name}'] += own
            continue
        for (caller, _, name), (*_, with_callees) in callers.items():
            if not is_helper(caller):
                functions[f'{caller}:{name}'] += with_callees
    return total, dict(functions)


def is_helper(path: str) -> bool:
    """Say whether the functions of a file are built in or NumPy's."""
    # NumPy before 1.25 makes some functions of no file
    return path in ('~', '<__array_function__ internals>') or (
        '/numpy/' in path and '/mxnet/numpy/' not in path
    )


def by_step(
    framework: str,
    total: float,
    seconds: Seconds,
    python: Mapping[str, float],
    num_steps: int,
) -> dict[str, Any]:
    """Add what NumPy computes, and give all in seconds a step.

    `seconds`: those of operators by kind; `python`: those of functions.
    """
    for function, spent in python.items():
        kind = kind_of(function, NUMPY_FUNCTIONS[framework])
        if kind:
            seconds[kind] += spent
    seconds[PYTHON] = max(0.0, total - sum(seconds.values()))
    return {'seconds': {kind: seconds[kind] / num_steps for kind in KINDS}}


PROFILERS = {'Torch': with_torch, 'MXNet': with_mxnet}
