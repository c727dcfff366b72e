"""The options of a training run, checked before anything starts."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from d2lbert.errors import InputError, check_choice, input_errors
from d2lbert.frameworks import FRAMEWORKS, check_backend

if TYPE_CHECKING:
    from d2lbert.recipes import Recipe, Schedule

#: The longest sequence that the network has positions for.
MAX_POSITIONS = 1000
#: With one checkpoint alone, a damaged file would lose the whole run.
MIN_KEEP = 2
#: The reserved tokens, and one that has a meaning.
MIN_VOCAB_SIZE = 6
#: The largest whole number but for the seed: larger ones fit no array.
MOST = 2**31 - 1
SIZES = ('num_hiddens', 'ffn_num_hiddens', 'num_heads', 'num_blks')
#: The sizes of networks by name: the chapter's, and the two of Devlin et al.,
#: "BERT: pre-training of deep bidirectional transformers" (2019).
PRESETS = {
    name: dict(zip(('max_len', *SIZES), sizes, strict=True))
    for name, sizes in {
        'chapter': (64, 128, 256, 2, 2),
        'bert-base': (512, 768, 3072, 12, 12),
        'bert-large': (512, 1024, 4096, 16, 24),
    }.items()
}
#: Those of `backends.base`, which imports NumPy: `--help` would wait.
PRECISIONS = 'float32|tf32|bf16'
ABOUT_PRECISION = (
    'The factors of matrix products. bf16 is faster and inexact, on CUDA '
    'cards and, with PyTorch and JAX, on processors with amx_bf16 or '
    'avx512_bf16. tf32, inexact too, is for CUDA cards.'
)
#: What a recipe decides unless it is given.
RECIPE_FIELDS = ('initialization', 'schedule', 'weight_decay', 'clip_norm')
#: The least value of each whole number.
LEAST = (
    dict.fromkeys(('steps', 'batch_size', 'max_len', *SIZES), 1)
    | dict.fromkeys(('micro_batch', 'save_every', 'evaluate_every'), 1)
    | {'schedule_steps': 1, 'seed': 0, 'warmup': 0}
    | {'keep': MIN_KEEP, 'vocab_size': MIN_VOCAB_SIZE}
)


def option(default: Any, help: str, **about: Any) -> Any:
    """Return a field of `Config`, which is also an option of the command.

    `help`: its help text; `about` may have a `metavar`, the values it takes,
    a `show_default`, the default in words, and `several`, where the option
    may be given more than once.
    """
    return field(default=default, metadata={'help': help, **about})


def size(name: str, help: str) -> Any:
    """Return a field of `Config` with the preset's value by default."""
    values = ', '.join(str(sizes[name]) for sizes in PRESETS.values())
    return option(None, help, show_default=f"the preset's: {values}")


def backend_option() -> Any:
    """Return the field of the framework."""
    return option(
        'torch',
        'The framework that computes.',
        metavar='|'.join(FRAMEWORKS),
    )


def devices_option() -> Any:
    """Return the field of the devices."""
    return option(
        'all',
        'Where to compute: all GPUs or else the processor; the processor; '
        'N shards on the processor; or the GPUs with these numbers. Each '
        'device takes a shard of the batch.',
        metavar='all|cpu|cpu:N|gpu:I,J',
    )


def save_every_option() -> Any:
    """Return the field of the distance of checkpoints."""
    return option(None, 'Steps from one checkpoint to the next.', metavar='N')


def keep_option() -> Any:
    """Return the field of the number of checkpoints."""
    return option(MIN_KEEP, 'How many checkpoints to keep, 2 or more.')


class Options:
    """The base of a frozen dataclass whose fields are options.

    `MAY_CHANGE`: what a resumed run may have other values of; `OWN`: what
    each of several processes may have its own value of. Of a path in them
    the contents are compared.
    """

    MAY_CHANGE: ClassVar[Sequence[str]]
    OWN: ClassVar[Sequence[str]]

    def _set(self, name: str, value: object) -> None:
        """Set a field although the class is frozen."""
        object.__setattr__(self, name, value)

    def as_dict(self) -> dict[str, Any]:
        """Return the options by name, ready for JSON."""
        return asdict(self)  # type: ignore[call-overload]

    def differences(self, other: Options) -> list[str]:
        """Return why `other` cannot continue this run, a text for each."""
        may_change = {name: getattr(self, name) for name in self.MAY_CHANGE}
        return different(self.as_dict(), other.as_dict() | may_change)


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """The options of a run, by the names of the command line.

    `d2lbert pretrain --help` explains each one. `recipe` may be given as
    `None`, for the recipe of the backend's own tab, `lr`, `warmup` and each
    of `RECIPE_FIELDS`, for the recipe's, and each size of `PRESETS`, for the
    preset's. Raises `InputError` for a value that cannot be used.
    """

    MAY_CHANGE: ClassVar[Sequence[str]] = (
        *('backend', 'corpus', 'steps', 'devices', 'micro_batch'),
        *('checkpoint_blocks', 'save_every', 'keep'),
        *('evaluate_every', 'split'),
    )
    OWN: ClassVar[Sequence[str]] = ('corpus', 'split', 'devices')

    backend: str = backend_option()
    recipe: str = option(
        None,
        'How to draw the initial weights, to average the loss and to step.',
        metavar='mxnet|pytorch|corrected|bert',
        show_default="that of the backend's own tab",
    )
    corpus: str | tuple[str, ...] = option(
        'sample',
        'The embedded text, WikiText-2, or an archive, folder or UTF-8 text '
        'file with one paragraph per line; also a pattern such as '
        "'texts/*.txt'. It may be given more than once.",
        metavar='sample|wikitext-2|PATH',
        several=True,
    )
    tokenizer: str = option(
        'words',
        'What the tokens are: the words of the chapter; pieces of words, '
        'found in the corpus; or those of a tokenizer.json or of a '
        'vocabulary of WordPiece.',
        metavar='words|wordpiece|PATH',
    )
    vocab_size: int | None = option(
        None,
        'Tokens of the vocabulary at most, the commonest, with the five '
        'reserved ones.',
        metavar='N',
        show_default='all that occur 5 times, or 30,000 pieces',
    )
    steps: int = option(50, 'Training steps.')
    batch_size: int = option(512, 'Sentence pairs per step.')
    preset: str = option(
        'chapter',
        'Where the next five options are not given, whose values they have.',
        metavar='|'.join(PRESETS),
    )
    max_len: int = size(
        'max_len', 'Tokens per example; longer pairs are left out.'
    )
    num_hiddens: int = size('num_hiddens', 'Hidden units.')
    ffn_num_hiddens: int = size(
        'ffn_num_hiddens', 'Hidden units of the feed-forward networks.'
    )
    num_heads: int = size('num_heads', 'Attention heads.')
    num_blks: int = size('num_blks', 'Encoder blocks.')
    dropout: float = option(0.2, 'Dropout probability, from 0 to below 1.')
    lr: float = option(
        None,
        "Adam's learning rate.",
        show_default='0.01, 0.001 for bert',
    )
    schedule: str = option(
        None,
        'How the learning rate goes on after the warm-up: linear falls to '
        'zero.',
        metavar='constant|linear',
        show_default='constant, linear for bert',
    )
    schedule_steps: int | None = option(
        None,
        'Steps until a linear schedule is at zero. A resumed run keeps it.',
        metavar='N',
        show_default='--steps',
    )
    warmup: int | None = option(
        None,
        'Steps in which the learning rate grows from zero.',
        metavar='N',
        show_default='0, a tenth of the steps for bert',
    )
    weight_decay: float = option(
        None,
        'Decoupled weight decay, not of biases and layer norms.',
        show_default='0, 0.01 for bert',
    )
    clip_norm: float = option(
        None,
        'The largest norm of the gradient, 0 for any.',
        show_default='0, 1 for bert',
    )
    initialization: str = option(
        None,
        'How to draw the initial weights.',
        metavar='xavier|torch|truncated_normal',
        show_default="the recipe's",
    )
    devices: str = devices_option()
    micro_batch: int | None = option(
        None,
        'Rows that go through the network at a time.',
        show_default='4,096 tokens, 32,768 on a GPU',
    )
    checkpoint_blocks: bool = option(
        False,
        'Compute the encoder blocks once more in the backward pass: less '
        'memory, up to a third more time, the same numbers.',
    )
    seed: int = option(
        0, 'The seed of the weights, the examples, their order and dropout.'
    )
    precision: str = option(
        'float32',
        ABOUT_PRECISION,
        metavar=PRECISIONS,
    )
    save_every: int | None = save_every_option()
    keep: int = keep_option()
    evaluate_every: int | None = option(
        None,
        'Steps from one evaluation to the next; the best weights are kept.',
        metavar='N',
        show_default='none',
    )
    split: str = option(
        'valid',
        'What to evaluate on: a part of the corpus, or another text.',
        metavar='valid|test|PATH',
    )

    def __post_init__(self) -> None:
        # Imported here, because they import NumPy: `--help` would wait
        from backends import base
        from backends.devices import parse_devices
        from d2lbert.bert import check_heads
        from d2lbert.data.examples import check_max_len
        from d2lbert.recipes import check_lr, get_recipe

        check_backend(self.backend)
        if self.recipe is None:
            self._set('recipe', FRAMEWORKS[self.backend].recipe)
        recipe = get_recipe(self.recipe)
        for name in ('lr', *RECIPE_FIELDS):
            if getattr(self, name) is None:
                self._set(name, getattr(recipe, name))
        self._set('corpus', one_or_more(self.corpus))
        if not isinstance(self.tokenizer, (str, os.PathLike)):
            raise InputError(
                f'tokenizer = {self.tokenizer!r}: expected words, wordpiece '
                'or a path'
            )
        self._set('tokenizer', os.fspath(self.tokenizer))
        if not self.split or not isinstance(self.split, (str, os.PathLike)):
            raise InputError(
                f'split = {self.split!r}: expected valid, test or a path'
            )
        self._set('split', os.fspath(self.split))
        check_choice('preset', self.preset, PRESETS)
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                self._set(name, value)
        self._set('devices', str(self.devices))
        check_choice('precision', self.precision, base.PRECISIONS)
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not getattr(Config, name):  # it may be `None`
                most = math.inf if name == 'seed' else MOST
                check_count(name, value, least, most)
        if not isinstance(self.checkpoint_blocks, bool):
            raise InputError(
                f'checkpoint_blocks = {self.checkpoint_blocks!r}: expected '
                'True or False'
            )
        for name in ('dropout', 'lr', 'weight_decay', 'clip_norm'):
            check_number(name, getattr(self, name))
        with input_errors():
            parse_devices(self.devices)
            check_heads(self.num_hiddens, self.num_heads)
        check_max_len(self.max_len)
        if self.max_len > MAX_POSITIONS:
            raise InputError(
                f'max_len = {self.max_len}: expected at most '
                f'{MAX_POSITIONS}, the positions of the network'
            )
        check_dropout(self.dropout)
        check_lr(self.lr)
        self.own_recipe()  # raises for what it cannot have
        self._set_schedule(recipe.warmup)

    def _set_schedule(self, warmup: float) -> None:
        """Set the numbers of steps of the schedule that are not given.

        `warmup`: the share that the recipe has.
        """
        if self.schedule == 'linear' and self.schedule_steps is None:
            self._set('schedule_steps', self.steps)
        num_steps = self.schedule_steps or self.steps
        if self.schedule == 'constant' and self.schedule_steps:
            raise InputError(
                f'schedule_steps = {num_steps}: a constant schedule has no '
                "end; leave it out, or give schedule = 'linear'"
            )
        if self.steps > num_steps:
            raise InputError(
                f'steps = {self.steps}: the learning rate is zero after the '
                f'{num_steps} steps of the schedule; give at most so many, '
                'or a new run with more schedule_steps'
            )
        if self.warmup is None:
            self._set('warmup', round(warmup * num_steps))
        self.own_schedule()  # raises for a warm-up that is too long

    def own_recipe(self) -> Recipe:
        """Return the recipe with the options of this run."""
        from d2lbert.recipes import get_recipe

        own = {name: getattr(self, name) for name in RECIPE_FIELDS}
        return replace(get_recipe(self.recipe), **own)

    def own_schedule(self) -> Schedule:
        """Return which share of the learning rate each step has."""
        from d2lbert.recipes import Schedule

        return Schedule(self.warmup or 0, self.schedule_steps)

    def net_arguments(self, vocab_size: int) -> dict[str, Any]:
        """Return the arguments of `BERTModel` for a vocabulary."""
        return {
            'vocab_size': vocab_size,
            **{name: getattr(self, name) for name in (*SIZES, 'dropout')},
            'max_len': MAX_POSITIONS,
        }

    def title(self) -> str:
        """Return one line about the run, for pictures."""
        first, *others = (
            [self.corpus] if isinstance(self.corpus, str) else self.corpus
        )
        # Matplotlib takes no bytes of a name that are not UTF-8
        name = os.fsencode(Path(first).name)
        corpus = name.decode(errors='backslashreplace')
        if others:
            corpus += f' and {len(others)} more'
        return (
            f'BERT with {self.num_blks} blocks of {self.num_hiddens} hidden '
            f'units · {corpus} · batches of '
            f'{self.batch_size} · lr {self.lr:g} · '
            f'seed {self.seed}'
        )


def one_or_more(corpus: Any) -> str | tuple[str, ...]:
    """Return a path, or several paths.

    Raises `InputError` for anything else.
    """
    paths = corpus if isinstance(corpus, (list, tuple)) else [corpus]
    if not paths or not all(
        isinstance(one, (str, os.PathLike)) for one in paths
    ):
        raise InputError(f'corpus = {corpus!r}: expected a path, or several')
    names = tuple(map(os.fspath, paths))
    return names if len(names) > 1 else names[0]


def inexact(precision: str) -> str:
    """Return what to add to words about numbers of this precision."""
    return '' if precision == 'float32' else f', {precision} (inexact)'


def is_number(value: object, types: Any) -> bool:
    """Return whether a value has one of some types; True is no number."""
    return isinstance(value, types) and not isinstance(value, bool)


def check_number(name: str, value: object) -> None:
    """Raise `InputError` unless an option is a number of Python's.

    JSON does not know other types, such as NumPy's float32.
    """
    if not is_number(value, (int, float)):
        raise InputError(f'{name} = {value!r}: expected a number')


def check_count(
    name: str, value: Any, least: int, most: float = MOST
) -> None:
    """Raise `InputError` unless an option is a whole number in bounds."""
    if not is_number(value, int) or not least <= value <= most:
        bound = f'to {most}' if most < math.inf else 'up'
        raise InputError(
            f'{name} = {value!r}: expected a whole number from {least} '
            f'{bound}'
        )


def check_dropout(dropout: float) -> None:
    """Raise `InputError` unless it is from 0 to below 1."""
    if not 0 <= dropout < 1:
        raise InputError(f'dropout = {dropout!r}: expected from 0 to below 1')


def different(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences between two mappings, in words."""
    return [
        f'{name} is {now.get(name)!r}, was {before.get(name)!r}'
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
