"""What can be measured, each in a process of its own:

    python -m benchmarks.measure SIDE FRAMEWORK NAME OPTIONS

SIDE is `ours` or `textbook`, OPTIONS are the arguments of the function
`NAME` below, as JSON. The last line on stdout is the result, as JSON too.
What both sides can do is written once: `d2l` is either's module.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import random
import re
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from itertools import islice, repeat
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np

from benchmarks import frameworks, products, profiling, textbook, workload
from benchmarks.frameworks import LEARNING_RATE, Framework

Result = dict[str, Any]
SEED = 0
#: The arrays of a dataset by their names in it, and what to compare them as:
#: the frameworks differ in the width of integers.
DATASET = {
    'all_token_ids': np.int32,
    'all_segments': np.int32,
    'valid_lens': np.float32,
    'all_pred_positions': np.int32,
    'all_mlm_weights': np.float32,
    'all_mlm_labels': np.int32,
    'nsp_labels': np.int32,
}


def load_ours(framework: str) -> Any:
    """Import our tab of a framework."""
    textbook.stand_in_for_what_is_missing(['matplotlib'])
    return importlib.import_module(f'd2lbert.{framework}')


SIDES = {'ours': load_ours, 'textbook': textbook.load}


def peak_bytes() -> int:
    """Return the most memory that this process has had so far.

    Linux counts in `ru_maxrss` what the process had that started this one.
    """
    status = Path('/proc/self/status')
    if status.exists():
        found = re.findall(r'VmHWM:\s*(\d+) kB', status.read_text())
        return int(found[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024


# ---- with either package ---------------------------------------------


class Training:
    """The chapter's network, ready to train.

    `examples`: a file of them, from which both sides get the same
    minibatches, or `corpus`: what each side loads and feeds by itself;
    `devices`: ours by their names, by default the chapter's first.
    """

    def __init__(
        self,
        d2l: Any,
        framework: Framework,
        batch_size: int,
        examples: str = '',
        corpus: str = '',
        devices: str = '',
        **options: Any,
    ) -> None:
        self.batches: Iterator[Any] = iter(())
        if examples:
            read = workload.read_examples(examples)
            self.vocab_size = read.vocab_size
            batches = read.batches(batch_size)
            self.batches = iter([framework.native(X) for X in batches])
        else:
            self.train_iter, vocab = d2l.load_data_wiki(
                batch_size, workload.MAX_LEN, corpus
            )
            self.vocab_size = len(vocab)
        chosen = [d2l.try_gpu()]
        if devices:
            chosen = d2l.BACKEND.devices(devices)
        net = framework.new_net(d2l, self.vocab_size, chosen[0])
        self.arguments = net, framework.loss(), self.vocab_size, chosen
        self.train_bert = partial(d2l.train_bert, **options)

    def train(self, num_steps: int) -> None:
        """Call the chapter's `train_bert` on the next minibatches."""
        batches = list(islice(self.batches, num_steps))
        given = batches or self.train_iter
        self.train_bert(given, *self.arguments, num_steps)


def training(
    d2l: Any,
    framework: Framework,
    num_warmup: int,
    num_steps: int,
    batch_size: int,
    **given: Any,
) -> Result:
    """Time `train_bert`, after a call that warms up.

    Nothing waits between the calls: what the first leaves to be computed,
    the second finishes, and leaves as much.
    """
    after_import = peak_bytes()
    chapter = Training(d2l, framework, batch_size, **given)
    chapter.train(num_warmup)
    start = time.perf_counter()
    with redirect_stdout(StringIO()) as printed:
        chapter.train(num_steps)
    seconds = time.perf_counter() - start
    return {
        'pairs_per_sec': pairs_per_sec(printed.getvalue()),
        'pairs_per_sec_of_call': num_steps * batch_size / seconds,
        'peak_bytes': peak_bytes(),
        'peak_bytes_after_import': after_import,
        'peak_bytes_on_card': framework.peak_bytes_on_card(),
    }


def pairs_per_sec(printed: str) -> float:
    """Return the speed from what `train_bert` prints."""
    found = re.search(r'([\d.]+) sentence pairs/sec', printed)
    if found is None:
        raise ValueError(f'train_bert printed no speed: {printed!r}')
    return float(found[1])


def profile(
    d2l: Any,
    framework: Framework,
    num_warmup: int,
    num_steps: int,
    **given: Any,
) -> Result:
    """Say where the time of some steps goes: seconds a step by kind."""
    # A picture of two steps would take its share of the time of two
    for module in ('d2lbert.book.chapter', 'd2l.torch', 'd2l.mxnet'):
        if module in sys.modules:
            sys.modules[module].Animator = MagicMock()  # type: ignore
    chapter = Training(d2l, framework, **given)
    chapter.train(num_warmup)
    profiler = profiling.PROFILERS[type(framework).__name__]
    return profiler(
        lambda: chapter.train(num_steps), chapter.vocab_size, num_steps
    )


def loading(
    d2l: Any,
    framework: Framework,
    corpus: str,
    fingerprints: bool = True,
    save: str = '',
    num_saved: int = 0,
) -> Result:
    """Time `load_data_wiki`; optionally save the first examples."""
    after_import = peak_bytes()
    random.seed(SEED)
    start = time.perf_counter()
    train_iter, vocab = d2l.load_data_wiki(
        workload.BATCH_SIZE, workload.MAX_LEN, corpus
    )
    result: Result = {
        'seconds': time.perf_counter() - start,
        'peak_bytes': peak_bytes(),
        'peak_bytes_after_import': after_import,
    }
    dataset = getattr(train_iter, 'dataset', None) or train_iter._dataset
    result |= {'examples': len(dataset), 'vocabulary': len(vocab)}
    if not fingerprints:
        return result
    arrays = [
        stacked(framework, getattr(dataset, name)).astype(kind)
        for name, kind in DATASET.items()
    ]
    if save:
        first = [array[:num_saved] for array in arrays]
        workload.save_examples(save, first, len(vocab))
    return result | {
        'sha256': dict(zip(DATASET, map(sha256, arrays), strict=True))
    }


def sha256(array: np.ndarray) -> str:
    """Return the fingerprint of an array."""
    return hashlib.sha256(array.tobytes()).hexdigest()


def stacked(framework: Framework, arrays: Any) -> np.ndarray:
    """Return native arrays, or a list of them, as one NumPy array."""
    if isinstance(arrays, list):
        return np.stack([framework.to_numpy(array) for array in arrays])
    return framework.to_numpy(arrays)


def encoding(
    d2l: Any, framework: Framework, texts: str, number: int
) -> Result:
    """Time `get_bert_encoding` of some sentences, one at a time."""
    lines, vocab, net = ready_to_represent(d2l, framework, texts)
    framework.evaluation(net)
    chosen = lines[:: len(lines) // number][:number]
    start = time.perf_counter()
    for line in chosen:
        X = d2l.get_bert_encoding(net, line.split(), vocab=vocab)
        framework.to_numpy(X)
    return {'sentences_per_sec': number / (time.perf_counter() - start)}


def ready_to_represent(
    d2l: Any, framework: Framework, texts: str
) -> tuple[list[str], Any, Any]:
    """Return sentences, their vocabulary, and a network that is warm."""
    lines = Path(texts).read_text('utf-8').splitlines()
    words = [line.split() for line in lines]
    vocab = d2l.Vocab(words, 2, ['<pad>', '<mask>', '<cls>', '<sep>'])
    net = framework.new_net(d2l, len(vocab), d2l.try_gpu())
    for sentence in words[:3]:
        d2l.get_bert_encoding(net, sentence, vocab=vocab)
    return lines, vocab, net


# ---- with ours -------------------------------------------------------


def representing(d2l: Any, framework: Framework, texts: str) -> Result:
    """Time `d2lbert.represent` of all sentences."""
    import d2lbert

    lines, vocab, net = ready_to_represent(d2l, framework, texts)
    start = time.perf_counter()
    d2lbert.represent(net, vocab, lines)
    return {'sentences_per_sec': len(lines) / (time.perf_counter() - start)}


def reloading(d2l: Any, framework: Framework, corpus: str) -> Result:
    """Time how `d2lbert pretrain` gets its examples, and how many."""
    from d2lbert.data.cache import load_cached_examples
    from d2lbert.data.corpus import open_corpus

    start = time.perf_counter()
    examples, vocab = load_cached_examples(
        open_corpus(corpus), workload.MAX_LEN, SEED
    )
    seconds = time.perf_counter() - start
    return {
        'seconds': seconds,
        'examples': examples.num_examples,
        'vocabulary': len(vocab),
        'sha256': [sha256(array) for array in examples.rows(slice(None))],
    }


def growth(
    d2l: Any,
    framework: Framework,
    base: Mapping[str, int],
    curves: Mapping[str, Sequence[int]],
    num_steps: int,
) -> Result:
    """Time a step at each point of some curves.

    `base`: batch size, length, vocabulary and hidden size; `curves`: the
    values that one of them takes while the others stay.
    """
    return {
        name: [
            growth_point(d2l, framework, num_steps, **{**base, name: value})
            for value in values
        ]
        for name, values in curves.items()
    }


def growth_point(
    d2l: Any,
    framework: Framework,
    num_steps: int,
    batch_size: int,
    length: int,
    vocabulary: int,
    hidden: int,
) -> Result:
    """Return the time of the fastest step but the first, and its work."""
    from d2lbert.data.examples import Batch
    from d2lbert.frameworks import FRAMEWORKS
    from d2lbert.recipes import RECIPES
    from d2lbert.trainer import Trainer

    sizes = workload.Sizes(num_hiddens=hidden, ffn_num_hiddens=2 * hidden)
    arrays = workload.full_batch(batch_size, length, vocabulary)
    device = d2l.try_gpu()
    net = framework.new_net(d2l, vocabulary, device, sizes)
    recipe = RECIPES[FRAMEWORKS[d2l.BACKEND.name].recipe]
    trainer = Trainer(net, recipe, lr=LEARNING_RATE, devices=[device])
    _, *steps = trainer.train(repeat(Batch(*arrays)), num_steps + 1)
    return {
        'seconds': min(step.seconds for step in steps),
        'flops': workload.useful_flops(arrays, vocabulary, sizes),
    }


def display(
    d2l: Any, framework: Framework, num_shows: int, pause: float
) -> Result:
    """Time what shows a step: `pretrain`'s line, and the tabs' animator.

    The pause between two steps lets each of them be shown.
    """
    from d2lbert.runs.display import Progress

    xlim, legend = [1, num_shows + 1], ['mlm', 'nsp']
    animator = d2l.Animator('step', 'loss', legend, xlim)
    seconds: Result = {'progress': [], 'animator': []}
    with Progress(type(framework).__name__, num_shows) as bar:
        for i in range(num_shows):
            time.sleep(pause)
            start = time.perf_counter()
            bar.show(mlm=7.3, nsp=0.8)
            middle = time.perf_counter()
            animator.add(i + 1, (7.3, 0.8))
            seconds['progress'].append(middle - start)
            seconds['animator'].append(time.perf_counter() - middle)
    return seconds


def matrix_rate(
    d2l: Any, framework: Framework, size: int, repeats: int
) -> Result:
    """Time the product of two float32 matrices in PyTorch: the best rate."""
    import torch

    A, B = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        A @ B
        seconds.append(time.perf_counter() - start)
    return {'flops_per_sec': 2 * size**3 / min(seconds)}


def training_products(
    d2l: Any,
    framework: Framework,
    examples: str,
    batch_size: int,
    num_warmup: int,
    num_steps: int,
) -> Result:
    """Time the products of training steps, and nothing else.

    Our MXNet backend makes those of the vocabulary in NumPy. The PyTorch
    tab's recipe counts padding.
    """
    from backends.threads import CPU_TOKENS

    read = workload.read_examples(examples)
    batches = read.batches(batch_size)[num_warmup : num_warmup + num_steps]
    num_rows = CPU_TOKENS // workload.MAX_LEN
    counts_padding = d2l.BACKEND.name == 'torch'
    steps = [
        products.training_products(
            batch, read.vocab_size, num_rows, counts_padding
        )
        for batch in batches
    ]

    def in_numpy(product: products.Product) -> bool:
        return d2l.BACKEND.name == 'mxnet' and read.vocab_size in product

    micro_batches = [part for step in steps for part in step]
    return products.time_products(micro_batches, in_numpy=in_numpy)


def encoding_products(d2l: Any, framework: Framework, texts: str) -> Result:
    """Time the products of encoding all sentences, and nothing else."""
    from d2lbert.representation import TOKENS_AT_A_TIME, batches_of

    lines = Path(texts).read_text('utf-8').splitlines()
    # With <cls> and <sep>
    lens = [len(line.split()) + 2 for line in lines]
    batches = batches_of(lens, TOKENS_AT_A_TIME, None)
    return products.time_products(
        [
            products.encoder_products([lens[i] for i in batch])
            for batch in batches
        ]
    )


def main(side: str, framework: str, name: str, options: str) -> None:
    """Measure and print the result."""
    # What is measured prints lines of its own
    with redirect_stdout(StringIO()):
        d2l = SIDES[side](framework)
        measure = globals()[name]
        result = measure(
            d2l, frameworks.load(framework), **json.loads(options)
        )
    print(json.dumps(result))


if __name__ == '__main__':
    main(*sys.argv[1:])
