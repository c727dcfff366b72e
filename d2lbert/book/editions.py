"""Arguments that the editions of the chapter spell differently."""

from __future__ import annotations

from typing import Any

from d2lbert.errors import InputError

#: Sizes that older PyTorch editions pass and the model implies.
IMPLIED_SIZES = (
    'norm_shape',
    'ffn_num_input',
    'key_size',
    'query_size',
    'value_size',
    'hid_in_features',
    'mlm_in_features',
    'nsp_in_features',
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


def without_implied_sizes(
    num_hiddens: int, arguments: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments that are not sizes the model has anyway.

    Raises `InputError` for such a size that is not `num_hiddens`.
    """
    others = dict(arguments)
    for name in IMPLIED_SIZES:
        size = others.pop(name, num_hiddens)
        if size not in (num_hiddens, [num_hiddens], (num_hiddens,)):
            raise InputError(
                f'{name} = {size!r}: this model implies {num_hiddens}, the '
                'number of hidden units; leave it out or give that'
            )
    return others


class Spellings:
    """Takes the arguments of a network as any edition spells them.

    `num_layers` is `num_blks` under its older name. The sizes that older
    PyTorch editions pass too (`norm_shape`, `key_size`, …) are accepted
    where they equal what `num_hiddens` implies; any other is an
    `InputError`.
    """

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
        super().__init__(  # type: ignore[call-arg]
            vocab_size,
            num_hiddens,
            ffn_num_hiddens,
            num_heads,
            one_of(num_blks=num_blks, num_layers=num_layers),
            dropout,
            max_len,
            **without_implied_sizes(num_hiddens, others),
        )
