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
KINDS = (
    VOCABULARY,
    PRODUCTS,
    SOFTMAX,
    DROPOUT,
    NORM,
    EMBEDDING,
    ADAM,
    ELEMENTWISE,
    PYTHON,
)
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

#: What cProfile gives as the file of functions in C, and of those that
#: NumPy before 1.25 made to dispatch its own.
BUILT_IN = ('~', '<__array_function__ internals>')
#: How many operators the raw results name.
NUM_LARGEST = 40
#: How many functions of NumPy may call each other, one inside another: many,
#: because some call themselves and each time keep a part.
MAX_HELPERS = 100

Seconds = defaultdict[str, float]


def kind_of(name: str, patterns: Mapping[str, str], default: str) -> str:
    """Return the kind of work whose pattern is found in a name."""
    for kind, pattern in patterns.items():
        if re.search(pattern, name):
            return kind
    return default


def with_torch(
    train: Callable[[], None], vocab_size: int, num_steps: int
) -> dict[str, Any]:
    """Profile PyTorch's operators; return seconds a step by kind."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profile_operators

    with profile_operators(
        activities=[ProfilerActivity.CPU], record_shapes=True
    ) as operators:
        total, python = time_python(train)
    events = [
        (event.key, event.input_shapes, event.self_cpu_time_total / 1e6)
        for event in operators.key_averages(group_by_input_shape=True)
    ]
    seconds: Seconds = defaultdict(float)
    names: Seconds = defaultdict(float)
    for name, shapes, spent in events:
        kind = torch_kind(name, shapes, vocab_size)
        seconds[kind] += spent
        names[f'{kind}: {name}'] += spent
    return by_step('Torch', total, seconds, names, python, num_steps)


def torch_kind(
    name: str, shapes: Sequence[Sequence[int]], vocab_size: int
) -> str:
    """Return the kind of work of an operator on arrays of these shapes.

    Logits end in the vocabulary's size, and a product with it in a shape is
    what makes them or takes their gradient back.
    """
    kind = kind_of(name, TORCH_NAMES, ELEMENTWISE)
    is_of_logits = any(shape and shape[-1] == vocab_size for shape in shapes)
    has_vocabulary = any(vocab_size in shape for shape in shapes)
    if kind in (SOFTMAX, ELEMENTWISE) and is_of_logits:
        return VOCABULARY
    if kind == PRODUCTS and has_vocabulary:
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
    names: Seconds = defaultdict(float)
    for name, count, spent, longest in mxnet_operators(mx.profiler.dumps()):
        kind = kind_of(name, MXNET_NAMES, ELEMENTWISE)
        if kind == PRODUCTS or 'reshape' in name:
            of_logits = spent_on_logits(count, spent, longest, num_steps)
            seconds[VOCABULARY] += of_logits
            names[f'{VOCABULARY}: {name}'] += of_logits
            spent -= of_logits
        seconds[kind] += spent
        names[f'{kind}: {name}'] += spent
    return by_step('MXNet', total, seconds, names, python, num_steps)


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


def time_python(
    train: Callable[[], None],
) -> tuple[float, dict[tuple[str, str], float]]:
    """Return the time of a call, and that of each Python function in it.

    The time of a function that is built in or NumPy's counts for those that
    call it, in parts by how long each has waited for it.
    """
    profiler = cProfile.Profile()
    start = time.perf_counter()
    profiler.runcall(train)
    total = time.perf_counter() - start
    functions: defaultdict[tuple[str, str], float] = defaultdict(float)
    stats = vars(pstats.Stats(profiler))['stats']

    waiting = {function: own for function, (_, _, own, _, _) in stats.items()}
    for _ in range(MAX_HELPERS):
        passed_on: defaultdict[Any, float] = defaultdict(float)
        for function, spent in waiting.items():
            path, _, name = function
            *_, callers = stats[function]
            waited = sum(seconds for *_, seconds in callers.values())
            is_helper = path in BUILT_IN or '/numpy/' in path.replace(
                'mxnet/numpy', ''
            )
            if is_helper and waited:
                for caller, (*_, seconds) in callers.items():
                    passed_on[caller] += spent * seconds / waited
            else:
                functions[path, name] += spent
        waiting = passed_on
    for (path, _, name), spent in waiting.items():
        functions[path, name] += spent
    return total, dict(functions)


def by_step(
    framework: str,
    total: float,
    seconds: Seconds,
    names: Seconds,
    python: Mapping[tuple[str, str], float],
    num_steps: int,
) -> dict[str, Any]:
    """Add what NumPy computes, and give all in seconds a step.

    `names` goes along, to see what a kind is made of.
    """
    for (path, name), spent in python.items():
        function = f'{path}:{name}'
        kind = kind_of(function, NUMPY_FUNCTIONS[framework], '')
        if kind:
            seconds[kind] += spent
            names[f'{kind}: {name}'] += spent
    seconds[PYTHON] = max(0.0, total - sum(seconds.values()))
    return {
        'seconds': {kind: seconds[kind] / num_steps for kind in KINDS},
        'largest': {
            name: spent / num_steps
            for name, spent in sorted(
                names.items(), key=lambda item: -item[1]
            )[:NUM_LARGEST]
        },
    }


PROFILERS = {'Torch': with_torch, 'MXNet': with_mxnet}
