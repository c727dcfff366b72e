"""The options of a fine-tuning, checked before anything starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from d2lbert.errors import InputError, check_choice, input_errors
from d2lbert.frameworks import check_backend
from d2lbert.runs.config import (
    MIN_KEEP,
    Options,
    backend_option,
    check_count,
    check_dropout,
    check_number,
    devices_option,
    keep_option,
    option,
    save_every_option,
)

TASKS = ('nli',)
#: Tokens of a pair at most, as in the book.
MAX_LEN = 128
#: The least value of each whole number.
LEAST = {
    'epochs': 1, 'batch_size': 1, 'max_len': 5, 'num_pairs': 1,
    'micro_batch': 1, 'seed': 0, 'save_every': 1, 'keep': MIN_KEEP,
}  # fmt: skip
#: Those that may be left out.
OPTIONAL = ('max_len', 'num_pairs', 'micro_batch', 'save_every')


@dataclass(frozen=True, kw_only=True)
class FinetuningConfig(Options):
    """The options of a fine-tuning, by the names of the command line.

    `d2lbert finetune --help` explains each one. `pretrained`: the folder of
    a run, a name in `d2lbert.pretrained.ARCHIVES`, or the path of such an
    archive. `recipe` may be given as `None`, for that of the backend's own
    tab, and `lr` and `dropout`, for the recipe's. Raises `InputError` for a
    value that cannot be used.
    """

    MAY_CHANGE: ClassVar[Sequence[str]] = (
        *('backend', 'pretrained', 'data', 'epochs', 'devices'),
        *('micro_batch', 'save_every', 'keep'),
    )
    OWN: ClassVar[Sequence[str]] = ('pretrained', 'data', 'devices')

    pretrained: str = ''
    task: str = option('nli', 'What to learn.', metavar='nli')
    data: str = option(
        'sample',
        'The embedded pairs, SNLI, or a zip or folder with its files.',
        metavar='sample|snli|PATH',
    )
    backend: str = backend_option()
    recipe: str = option(
        None,
        'Dropout, how the output layer starts, and how the loss is summed.',
        metavar='mxnet|pytorch',
        show_default="that of the backend's own tab",
    )
    epochs: int = option(5, 'How many times to train on all pairs.')
    batch_size: int = option(512, 'Pairs per step.')
    num_pairs: int | None = option(
        None,
        'Train on so many pairs, the first ones of the data.',
        metavar='N',
        show_default='all',
    )
    max_len: int | None = option(
        None,
        'Tokens per pair; longer ones are cut.',
        show_default="128, or the run's own where that is less",
    )
    dropout: float = option(
        None,
        'Dropout probability, from 0 to below 1.',
        show_default="the recipe's, 0.1 or 0.2",
    )
    lr: float = option(
        None, "Adam's learning rate.", show_default="the recipe's, 0.0001"
    )
    scratch: bool = option(
        False,
        'Begin with random weights instead of the pretrained ones, to see '
        'what these are worth.',
    )
    devices: str = devices_option()
    micro_batch: int | None = option(
        None,
        'Rows that go through the network at a time.',
        show_default='4,096 tokens, 32,768 on a GPU',
    )
    seed: int = option(
        0, 'The seed of the output layer, the order and dropout.'
    )
    save_every: int | None = save_every_option()
    keep: int = keep_option()

    def __post_init__(self) -> None:
        # Imported here, because they import NumPy: `--help` would wait
        from backends.devices import parse_devices
        from d2lbert.finetuning.recipes import OF_BACKEND, get_recipe
        from d2lbert.pretrained import ARCHIVES
        from d2lbert.recipes import check_lr

        if not self.pretrained:
            raise InputError(
                'there is no network to fine-tune: give the folder of a run, '
                f'or one of {", ".join(ARCHIVES)}'
            )
        check_choice('task', self.task, TASKS)
        check_backend(self.backend)
        for name in ('pretrained', 'data'):
            value = getattr(self, name)
            if not isinstance(value, (str, os.PathLike)):
                raise InputError(f'{name} = {value!r}: expected a path')
            self._set(name, os.fspath(value))
        if self.recipe is None:
            self._set('recipe', OF_BACKEND[self.backend])
        recipe = get_recipe(self.recipe)
        for name in ('dropout', 'lr'):
            if getattr(self, name) is None:
                self._set(name, getattr(recipe, name))
            check_number(name, getattr(self, name))
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None or name not in OPTIONAL:
                check_count(name, value, least)
        if not isinstance(self.scratch, bool):
            raise InputError(
                f'scratch = {self.scratch!r}: expected True or False'
            )
        check_dropout(self.dropout)
        check_lr(self.lr)
        self._set('devices', str(self.devices))
        with input_errors():
            parse_devices(self.devices)
