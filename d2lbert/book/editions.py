"""Arguments that the editions of the chapter spell differently."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from d2lbert.errors import InputError

#: Sizes that PyTorch editions before 1.0 pass last and the model implies.
LAST_SIZES = (
    'key_size',
    'query_size',
    'value_size',
    'hid_in_features',
    'mlm_in_features',
    'nsp_in_features',
)
#: All sizes that these editions pass and the model implies.
IMPLIED_SIZES = ('norm_shape', 'ffn_num_input', *LAST_SIZES)
#: The order of a network's arguments in these editions.
OLDER_ORDER = (
    'vocab_size',
    'num_hiddens',
    'norm_shape',
    'ffn_num_input',
    'ffn_num_hiddens',
    'num_heads',
    'num_layers',
    'dropout',
    'max_len',
    *LAST_SIZES,
)


def one_of(**spellings: Any) -> Any:
    """Return the value of an argument that has several names.

    Raises `InputError` where none is given, or where they disagree.
    """
    given = {
        name: value for name, value in spellings.items() if value is not None
    }
    if not given:
        raise InputError('give ' + ' or '.join(spellings))
    value, *others = given.values()
    if any(other != value for other in others):
        raise InputError(
            'expected one value, got '
            + ' and '.join(f'{name} = {v!r}' for name, v in given.items())
            + ': give one of them'
        )
    return value


def check_implied_sizes(num_hiddens: int, **sizes: Any) -> None:
    """Raise `InputError` for a size that is not `num_hiddens`."""
    for name, size in sizes.items():
        if size not in (num_hiddens, [num_hiddens], (num_hiddens,)):
            raise InputError(
                f'{name} = {size!r}: this model implies {num_hiddens}, the '
                'number of hidden units; leave it out or give that'
            )


def takes_older_order(init: Callable[..., None]) -> Callable[..., None]:
    """Let `__init__` take its positional arguments in the older order too.

    The list in third place, `norm_shape`, tells the orders apart.
    """

    @wraps(init)
    def either_order(self: Any, *arguments: Any, **others: Any) -> None:
        if len(arguments) < 3 or not isinstance(arguments[2], (list, tuple)):
            return init(self, *arguments, **others)
        if len(arguments) > len(OLDER_ORDER):
            raise TypeError(
                f'expected at most {len(OLDER_ORDER)} arguments, '
                f'got {len(arguments)}'
            )
        named = dict(zip(OLDER_ORDER, arguments, strict=False))
        return init(self, **named, **others)

    return either_order


class Spellings:
    """Takes the arguments of a network as any edition spells them.

    `num_layers` is `num_blks` under its older name. The sizes that older
    PyTorch editions pass too (`norm_shape`, `key_size`, …) are accepted
    where they equal what `num_hiddens` implies; any other is an
    `InputError`. With `norm_shape` in third place the positional arguments
    have the order of those editions, `OLDER_ORDER`.
    """

    @takes_older_order
    def __init__(
        self,
        vocab_size: int,
        num_hiddens: int,
        ffn_num_hiddens: int,
        num_heads: int,
        num_blks: int | None = None,
        dropout: float = 0.0,
        max_len: int = 1000,
        *,
        num_layers: int | None = None,
        **others: Any,
    ) -> None:
        sizes = {
            name: others.pop(name) for name in IMPLIED_SIZES if name in others
        }
        check_implied_sizes(num_hiddens, **sizes)
        super().__init__(  # type: ignore[call-arg]
            vocab_size,
            num_hiddens,
            ffn_num_hiddens,
            num_heads,
            one_of(num_blks=num_blks, num_layers=num_layers),
            dropout,
            max_len,
            **others,
        )
