"""The memory that a training will take on a processor, and what there is.

The formula follows the arrays that a step holds at its peak. How many there
are of each size is the framework's `Footprint`, which was fitted to
measurements; `docs/scaling.md` has these.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from backends import cgroups
from backends.base import Backend
from backends.devices import parse_devices, shard_slices
from backends.types import Footprint
from d2lbert.data.batches import Batches
from d2lbert.data.examples import Examples, num_slots
from d2lbert.errors import InputError
from d2lbert.micro_batches import micro_batches, rows_at_a_time
from d2lbert.runs.config import MAX_POSITIONS, Config

FLOAT_BYTES = 4
#: A training that takes more is announced.
LARGE = 2e9
#: In so many steps the largest micro-batch is looked for.
MOST_STEPS = 100
#: Copies of all parameters that a run, or a checkpoint, is written from. One
#: more is of the best weights, where the run has some.
RUN_COPIES, CHECKPOINT_COPIES = 2, 3


@dataclass(frozen=True)
class Memory:
    """What a training takes at its peak, part by part, in bytes.

    `available`: what this process may have in all, or infinity where the
    system does not say. `remedy`: what would make it fit, in words.
    """

    parts: Mapping[str, int]
    available: float
    remedy: str = ''

    @property
    def total(self) -> int:
        """The bytes of all parts."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether there is as much."""
        return self.total <= self.available

    @property
    def peak(self) -> str:
        """The total in words."""
        return in_gigabytes(self.total)

    def line(self) -> str:
        """Return the peak and what there is, in one line."""
        takes = f'the training takes {self.peak} of memory at its peak'
        if math.isinf(self.available):
            return takes
        return f'{takes}, and there are {in_gigabytes(self.available)}'

    def check(self) -> None:
        """Raise `InputError`, with what would help, where it does not fit."""
        if not self.fits:
            raise InputError(f'{self.line()}: {self.remedy}')

    def table(self) -> str:
        """Return a line for each part, the sum and what there is."""
        rows = {**self.parts, 'together': self.total}
        if self.available < math.inf:
            rows['there is'] = int(self.available)
        width = max(map(len, rows))
        return '\n'.join(
            f'{name:{width}}  {in_gigabytes(size):>9}'
            for name, size in rows.items()
        )

    def as_dict(self) -> dict[str, object]:
        """Return all numbers of bytes, ready for JSON."""
        there_is = None if math.isinf(self.available) else self.available
        return {
            'parts': dict(self.parts),
            'total': self.total,
            'available': there_is,
        }


class Prediction:
    """Predicts the memory of a training on a processor.

    `num_cores`: how many may compute; `examples`: those that it trains on.
    What this process has taken already counts, too.
    """

    def __init__(
        self,
        footprint: Footprint,
        num_cores: int,
        examples: Examples,
        vocab_size: int,
    ) -> None:
        self.footprint = footprint
        self.num_cores = num_cores
        self.examples = examples
        self.vocab_size = vocab_size
        self.resident = resident_bytes()
        self.available = self.resident + available_bytes()

    def memory(self, config: Config, num_cores: int | None = None) -> Memory:
        """Return the memory of a training with some options.

        `num_cores`: how many cores compute, by default those that may.
        """
        footprint = self.footprint
        _, shards = parse_devices(config.devices)
        num_shards, num_cores = len(shards) or 1, num_cores or self.num_cores
        parameters = FLOAT_BYTES * count_parameters(config, self.vocab_size)
        num_each = 1
        if parameters < footprint.side_by_side:
            num_each = max(1, num_cores // num_shards)
        num_workers = num_each * num_shards
        num_busy = min(num_workers, 2 * num_cores)
        shapes = self.largest_shapes(config, num_shards, num_each)[:num_busy]
        activations = sum(
            self.activations(config, *shape) for shape in shapes
        )
        vocabulary = sum(
            self.vocabulary_loss(config, *shape) for shape in shapes
        )
        data = self.examples.nbytes
        best = {}
        if config.evaluate_every:
            best = {'the best weights': parameters}
        copies = RUN_COPIES + len(best)
        if config.save_every:
            copies = max(copies, CHECKPOINT_COPIES)
        # What a step has held is not all free when the run is written
        saving = copies * parameters - (1 - footprint.kept) * (
            activations + vocabulary
        )
        parts = {
            'Python, the framework, the text': max(0, self.resident - data)
            + len(shapes) * footprint.workspace,
            'the examples': data,
            'the parameters': parameters
            * (footprint.passing + (num_workers if footprint.copies else 1)),
            f'gradients of {counted(num_workers, "worker")}': parameters
            * num_workers,
            "Adam's moments": 2 * parameters,
            **best,
            'activations of '
            + described([rows for rows, _ in shapes]): activations,
            'the loss over the vocabulary': vocabulary,
            'writing the run': max(0, saving),
        }
        return Memory(
            {name: int(size) for name, size in parts.items()}, self.available
        )

    def largest_shapes(
        self, config: Config, num_shards: int, num_each: int
    ) -> list[tuple[int, int]]:
        """Return rows and tokens of the micro-batches of the largest step.

        They are those with which the workers begin, the longest of all.
        """
        largest: list[tuple[int, int]] = []
        num_steps = min(config.steps, MOST_STEPS)
        batches = Batches(self.examples, config.batch_size, config.seed)
        for batch in islice(batches, num_steps):
            shapes = []
            num_rows, max_len = batch.tokens.shape
            if num_rows < num_shards:
                continue
            for shard in shard_slices(num_rows, num_shards):
                num_each_time = config.micro_batch or rows_at_a_time(
                    shard.stop - shard.start,
                    max_len,
                    num_each,
                    self.footprint.least_tokens,
                    self.footprint.most_tokens,
                )
                parts = micro_batches(batch, shard, num_each_time)
                shapes += [
                    (len(rows), int(batch.valid_lens[rows[0]]))
                    for rows in parts[:num_each]
                ]
            largest = max(
                largest,
                shapes,
                key=lambda shapes: sum(
                    self.activations(config, *shape) for shape in shapes
                ),
            )
        return largest

    def activations(
        self, config: Config, num_rows: int, num_tokens: int
    ) -> float:
        """Return what a micro-batch keeps for its backward pass."""
        kept = self.footprint
        hidden, scores = kept.hidden, kept.scores
        if config.dropout:
            hidden += kept.dropout_hidden
            scores += kept.dropout_scores
        block = (
            hidden * config.num_hiddens
            + kept.ffn * config.ffn_num_hiddens
            + scores * config.num_heads * num_tokens
        )
        # Of the last block only a few positions are computed
        before_last = config.num_blks - 1
        each = (
            kept.inputs * config.num_hiddens
            if config.checkpoint_blocks
            else block
        )
        of_token = before_last * each + kept.working * block
        return FLOAT_BYTES * num_rows * num_tokens * of_token

    def vocabulary_loss(
        self, config: Config, num_rows: int, num_tokens: int
    ) -> float:
        """Return what the output layer and its chunk of logits take."""
        num_queries = num_rows * min(num_tokens, num_slots(config.max_len))
        kept = self.footprint
        width = (
            kept.vocabulary * config.num_hiddens
            + kept.chunks * kept.chunk_rows
            + min(kept.chunk_rows, num_queries)
        )
        return FLOAT_BYTES * width * self.vocab_size


def predict(
    backend: Backend, config: Config, examples: Examples, vocab_size: int
) -> Memory | None:
    """Return the memory of a training, or `None` where it is not known.

    That is on a GPU, or where a framework was not measured.
    """
    kind, _ = parse_devices(config.devices)
    on_gpu = kind == 'gpu' or (kind == 'all' and backend.num_gpus())
    if on_gpu or backend.footprint is None:
        return None
    prediction = Prediction(
        backend.footprint, backend.num_cores(), examples, vocab_size
    )
    memory = prediction.memory(config)
    if not memory.fits:
        memory = replace(memory, remedy=remedy(prediction, config))
    return memory


def remedy(prediction: Prediction, config: Config) -> str:
    """Return in words what would make a training fit."""
    for text, options, num_cores in smaller(
        config, prediction.num_cores, prediction.footprint
    ):
        less = prediction.memory(replace(config, **options), num_cores)
        if less.fits:
            return f'give {text}, with which it takes {less.peak}'
    return (
        'no micro-batch is small enough. Give smaller numbers of hidden '
        'units and blocks, or end other programs'
    )


def smaller(
    config: Config, num_cores: int, footprint: Footprint
) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Yield options that take less memory, those that cost least first.

    Each is in words, as fields of `Config`, and with the number of cores
    that compute. `num_cores`: how many there are; `footprint`: that of the
    framework.
    """
    rows = config.micro_batch or footprint.most_tokens // config.max_len
    rows = max(1, min(rows, config.batch_size))
    halves = [rows >> i for i in range(1, rows.bit_length())]
    cuts: list[tuple[str, dict[str, Any]]] = [
        (f'--micro-batch {half}', {'micro_batch': half}) for half in halves
    ]
    if not config.checkpoint_blocks:
        cuts += [
            (f'--checkpoint-blocks {text}'.rstrip(), again | options)
            for again in [{'checkpoint_blocks': True}]
            for text, options in [('', {}), *cuts]
        ]
    for text, options in cuts:
        yield text, options, num_cores
    text, options = cuts[-1] if cuts else ('', {})
    one = options | {'devices': 'cpu'}
    if config.devices not in ('all', 'cpu', 'cpu:1'):
        yield f'--devices cpu {text}'.rstrip(), one, num_cores
    if num_cores > 1:
        yield f'OMP_NUM_THREADS=1 and --devices cpu {text}'.rstrip(), one, 1


def count_parameters(config: Config, vocab_size: int) -> int:
    """Return how many numbers the network of a run learns."""
    H, F = config.num_hiddens, config.ffn_num_hiddens
    embeddings = (vocab_size + 2 + MAX_POSITIONS) * H
    attention, ffn, norms = 4 * (H + 1) * H, (H + 1) * F + (F + 1) * H, 4 * H
    mlm = (H + 1) * H + 2 * H + (H + 1) * vocab_size
    nsp = (H + 1) * H + (H + 1) * 2
    return (
        embeddings + config.num_blks * (attention + ffn + norms) + mlm + nsp
    )


# ---- words -----------------------------------------------------------


def in_gigabytes(size: float) -> str:
    """Return a number of bytes in GB."""
    return f'{size / 1e9:,.2f} GB'


def counted(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f'{number} {noun}' + ('s' if number != 1 else '')


def described(rows: Sequence[int]) -> str:
    """Return how many micro-batches there are, and of how many rows."""
    return (
        counted(len(rows), 'micro-batch').replace('batchs', 'batches')
        + f' of {counted(max(rows, default=0), "row")}'
    )


# ---- what there is ---------------------------------------------------


def resident_bytes() -> int:
    """Return how much of the memory this process has, 0 if unknown."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path('/proc/self/statm').read_text().split()[1])
        return pages * os.sysconf('SC_PAGE_SIZE')
    with suppress(ImportError):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == 'darwin' else 1024 * most
    return 0


def available_bytes(
    meminfo: Path = Path('/proc/meminfo'),
    root: Path = cgroups.ROOT,
    own: Path = cgroups.OWN,
) -> float:
    """Return how much more memory this process may take.

    That is what the system can give without swapping, or what the control
    groups of the process leave; `root` and `own` are those of
    `cgroups.folders`. Without `/proc` it is the memory of the machine, and
    infinity where the system does not say.
    """
    free = math.inf
    if hasattr(os, 'sysconf'):  # not on Windows
        free = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    with suppress(OSError, ValueError, KeyError):
        free = 1024 * numbers(meminfo)['MemAvailable:']
    return min(
        [
            free,
            *(
                left_in_group(version, folder)
                for version, folder in cgroups.folders('memory', root, own)
            ),
        ]
    )


#: The limit and the use of memory of a control group, by its version, and
#: those counters of its use that are copies of files, which can be dropped.
GROUP_FILES = {
    1: (
        'memory.limit_in_bytes',
        'memory.usage_in_bytes',
        ('total_inactive_file', 'total_active_file'),
    ),
    2: ('memory.max', 'memory.current', ('inactive_file', 'active_file')),
}


def left_in_group(version: int, folder: Path) -> float:
    """Return what a control group leaves, infinity without a limit."""
    limit_file, use_file, caches = GROUP_FILES[version]
    with suppress(OSError, ValueError):  # `max` is no number
        limit = int((folder / limit_file).read_text())
        used = int((folder / use_file).read_text())
        counters = numbers(folder / 'memory.stat')
        used -= sum(counters.get(name, 0) for name in caches)
        return max(0, limit - used)
    return math.inf


def numbers(path: Path) -> dict[str, int]:
    """Return the numbers of a file with a name and a number a line."""
    lines = map(str.split, path.read_text().splitlines())
    return {name: int(number) for name, number, *_ in lines}
