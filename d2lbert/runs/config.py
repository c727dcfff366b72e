"""What a training run is asked to do, checked before anything starts."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import backends
from backends.base import PRECISIONS, parse_devices
from d2lbert.data.examples import check_max_len
from d2lbert.errors import InputError, input_errors
from d2lbert.recipes import TAB_RECIPES, Recipe, check_lr, get_recipe

#: The longest sequence that the network has positions for.
MAX_POSITIONS = 1000
#: With fewer checkpoints a damaged one would be the end.
MIN_KEEP = 2
#: What a run may be resumed with otherwise than it was begun. The corpus may
#: have moved: what it contains is compared by itself.
MAY_CHANGE = (
    'backend',
    'corpus',
    'steps',
    'devices',
    'micro_batch',
    'save_every',
    'keep',
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of a run, by the names of the command line.

    `recipe` and `lr` may be `None`: the recipe of the backend's own tab,
    and the recipe's learning rate. `precision`: `'tf32'` and `'bf16'` are
    inexact, and for CUDA cards. `save_every`: steps between checkpoints,
    `None` for none; `keep`: how many of them stay. Raises `InputError` for
    a value that cannot be used.
    """

    backend: str = 'torch'
    recipe: str | None = None
    corpus: str = 'sample'
    steps: int = 50
    batch_size: int = 512
    max_len: int = 64
    num_hiddens: int = 128
    ffn_num_hiddens: int = 256
    num_heads: int = 2
    num_blks: int = 2
    dropout: float = 0.2
    lr: float | None = None
    devices: str = 'all'
    micro_batch: int | None = None
    seed: int = 0
    precision: str = 'float32'
    save_every: int | None = None
    keep: int = MIN_KEEP

    def __post_init__(self) -> None:
        check_backend(self.backend)
        if self.recipe is None:
            # Frozen for everybody else
            object.__setattr__(self, 'recipe', TAB_RECIPES[self.backend])
        self.get_recipe()
        if not isinstance(self.corpus, (str, os.PathLike)):
            raise InputError(f'corpus = {self.corpus!r}: expected a path')
        object.__setattr__(self, 'corpus', os.fspath(self.corpus))
        object.__setattr__(self, 'devices', str(self.devices))
        with input_errors():
            parse_devices(self.devices)
        if self.precision not in PRECISIONS:
            raise InputError(
                f'unknown precision {self.precision!r}: expected one of '
                + ', '.join(map(repr, PRECISIONS))
            )
        for name in (
            'steps',
            'batch_size',
            'max_len',
            'num_hiddens',
            'ffn_num_hiddens',
            'num_heads',
            'num_blks',
        ):
            self._check_count(name, least=1)
        for name in ('micro_batch', 'save_every'):
            if getattr(self, name) is not None:
                self._check_count(name, least=1)
        self._check_count('seed', least=0)
        self._check_count('keep', least=MIN_KEEP)
        check_max_len(self.max_len)
        if self.max_len > MAX_POSITIONS:
            raise InputError(
                f'max_len = {self.max_len}: expected at most '
                f'{MAX_POSITIONS}, the positions of the network'
            )
        if self.num_hiddens % self.num_heads:
            raise InputError(
                f'num_hiddens = {self.num_hiddens} does not divide into '
                f'num_heads = {self.num_heads}: choose a divisor'
            )
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise InputError(
                f'dropout = {self.dropout!r}: expected a number '
                'from 0 to below 1'
            )
        if not _is_number(self.learning_rate):
            raise InputError(
                f'lr = {self.learning_rate!r}: expected a positive number'
            )
        check_lr(self.learning_rate)

    def _check_count(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or value < least:
            raise InputError(
                f'{name} = {value!r}: expected a whole number from {least} up'
            )

    @property
    def learning_rate(self) -> float:
        """Return the learning rate, the recipe's unless one was given."""
        return self.get_recipe().lr if self.lr is None else self.lr

    def get_recipe(self) -> Recipe:
        """Return the recipe itself."""
        assert self.recipe is not None
        return get_recipe(self.recipe)

    def net_arguments(self, vocab_size: int) -> dict[str, Any]:
        """Return the arguments of `BERTModel` for a vocabulary."""
        return (
            {'vocab_size': vocab_size}
            | {
                name: getattr(self, name)
                for name in (
                    'num_hiddens',
                    'ffn_num_hiddens',
                    'num_heads',
                    'num_blks',
                    'dropout',
                )
            }
            | {'max_len': MAX_POSITIONS}
        )

    def differences(self, other: Config) -> list[str]:
        """Return what keeps one run from being the other one continued."""
        ours, others = (
            config.as_dict() | {'lr': config.learning_rate}
            for config in (self, other)
        )
        return [
            f'{name} is {others[name]!r}, was {ours[name]!r}'
            for name in ours
            if name not in MAY_CHANGE and ours[name] != others[name]
        ]

    def title(self) -> str:
        """Return in one line what the run is."""
        return (
            f'BERT with {self.num_blks} blocks of {self.num_hiddens} hidden '
            f'units · {Path(self.corpus).name} · batches of '
            f'{self.batch_size} · lr {self.learning_rate:g} · '
            f'seed {self.seed}'
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the options by name, ready for JSON."""
        return asdict(self)


def check_backend(name: str) -> None:
    """Raise `InputError` for anything but the name of a backend."""
    if name not in backends.names():
        raise InputError(
            f'unknown backend {name!r}: expected '
            + ' or '.join(map(repr, backends.names()))
        )


def _is_number(value: object) -> bool:
    # Others, such as NumPy's float32, have no JSON
    return isinstance(value, (int, float))
