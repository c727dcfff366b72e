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


def one_of(default: Any = None, **spellings: Any) -> Any:
    """Return the value of an argument that has several names.

    Raises `InputError` where they disagree, or where none is given and
    there is no `default`.
    """
    given = {
        name: value for name, value in spellings.items() if value is not None
    }
    values = list(given.values())
    if any(value != values[0] for value in values):
        raise InputError(
            'expected one value, got '
            + ' and '.join(f'{name} = {v!r}' for name, v in given.items())
            + ': give one of them'
        )
    if values:
        return values[0]
    if default is None:
        raise InputError('give ' + ' or '.join(spellings))
    return default


def without_implied_sizes(
    num_hiddens: int, arguments: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments that are not sizes the model has anyway.

    Raises `InputError` for such a size that is not `num_hiddens`.
    """
    others = dict(arguments)
    for name in IMPLIED_SIZES:
        size = others.pop(name, num_hiddens)
        expected = [num_hiddens] if name == 'norm_shape' else num_hiddens
        got = list(size) if isinstance(size, tuple) else size
        if got not in (expected, num_hiddens):
            raise InputError(
                f'{name} = {size!r}: this model implies {expected!r}, the '
                'number of hidden units; leave it out or give that'
            )
    return others
