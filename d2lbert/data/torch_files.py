"""Read what `torch.save` wrote of a state dict before PyTorch 1.6.

Such a file is five pickles of protocol 2 and then raw numbers: a magic
number, a version, what the machine was like, the names with the tensors, and
the keys of the storages. Each storage follows in the order of these keys, as
the number of its elements (64 bits, little-endian) and the elements.

Nothing is unpickled. `read_symbols` knows the few instructions of these
pickles and looks up no name: a global is a `Symbol`, and calling one is
writing down the call. Only the three calls that a state dict needs are
understood, and every other one is refused.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from d2lbert.errors import InputError

NO_PICKLE = (
    'this is a pickle, which may run any code when it is opened, so it is '
    'never opened here. If you trust it, load it where it was made and write '
    "safetensors.torch.save_file(net.state_dict(), 'net.safetensors')"
)

#: The file's first bytes: protocol 2, and the magic number of 10 bytes.
LEGACY_START = b'\x80\x02\x8a\x0a' + (0x1950A86A20F9469CFC6C).to_bytes(
    10, 'little'
)
VERSION = 1001
#: BERT-Large has 400 tensors of about 30 instructions each.
MAX_INSTRUCTIONS = 1_000_000
MAX_AXES = 32
TYPES = {'FloatStorage': '<f4', 'DoubleStorage': '<f8'}


class Symbol(NamedTuple):
    """A global that a pickle names. It stays a name."""

    name: str


class Storage(NamedTuple):
    """The numbers of a tensor: where they are and what they are."""

    dtype: str
    key: str
    size: int


class Tensor(NamedTuple):
    """A view of a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


MARK = Symbol('mark')
ORDERED_DICT = Symbol('collections OrderedDict')
REBUILD = Symbol('torch._utils _rebuild_tensor_v2')
#: Instructions that put their own argument on the stack, and constants.
ARGUMENTS = {'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINUNICODE'}
CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
COUNTS = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}


def read_legacy(data: bytes) -> dict[str, np.ndarray]:
    """Return the tensors of a state dict by their names.

    `data`: a file that begins with `LEGACY_START`. Raises `InputError` for
    another pickle, and `ValueError` for a damaged file.
    """
    file = io.BytesIO(data)
    _magic, version, machine, tensors, keys = (
        read_symbols(file) for _ in range(5)
    )
    if version != VERSION:
        raise ValueError(f'its version is not {VERSION}')
    if not isinstance(machine, dict) or not machine.get('little_endian'):
        raise ValueError('its numbers are not little-endian')
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor)
        for name, tensor in tensors.items()
    ):
        raise ValueError('it is no state dict, a dict of tensors by name')
    storages = {
        tensor.storage.key: tensor.storage for tensor in tensors.values()
    }
    is_text = isinstance(keys, list) and all(map(is_string, keys))
    if not is_text or sorted(keys) != sorted(storages):
        raise ValueError('its storages are not those of its tensors')
    numbers = {key: read_storage(file, storages[key]) for key in keys}
    if rest := file.read():
        raise ValueError(f'{len(rest)} bytes too many at its end')
    # Tensors that overlap could be far larger than their file
    asked = sum(math.prod(tensor.shape) for tensor in tensors.values())
    if asked > sum(map(len, numbers.values())):
        raise ValueError('its tensors have more numbers than its storages')
    return {
        name: array_of(tensor, numbers[tensor.storage.key])
        for name, tensor in tensors.items()
    }


def read_storage(file: io.BytesIO, storage: Storage) -> np.ndarray:
    """Return the numbers of a storage, which come next in a file."""
    dtype = np.dtype(storage.dtype)
    size = int.from_bytes(file.read(8), 'little')
    if size != storage.size:
        raise ValueError(f'a storage has {size} numbers, not {storage.size}')
    left = len(file.getbuffer()) - file.tell()
    if size * dtype.itemsize > left:
        raise ValueError(f'it ends within storage {storage.key!r}')
    return np.frombuffer(file.read(size * dtype.itemsize), dtype)


def array_of(tensor: Tensor, numbers: np.ndarray) -> np.ndarray:
    """Return a tensor's numbers, copied."""
    if 0 in tensor.shape:
        return np.empty(tensor.shape, numbers.dtype)
    ends = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.offset + sum((size - 1) * step for size, step in ends)
    if last >= len(numbers):
        raise ValueError(f'a tensor ends at {last} of {len(numbers)} numbers')
    width = numbers.dtype.itemsize
    return np.lib.stride_tricks.as_strided(
        numbers[tensor.offset :],
        tensor.shape,
        [step * width for step in tensor.strides],
        writeable=False,
    ).copy()


# ---- pickles, as text ------------------------------------------------


def read_symbols(file: io.BytesIO) -> Any:
    """Return what one pickle says, with symbols for what it would call.

    The file is then at the pickle's end. Raises `InputError` for an
    instruction or a call that no state dict has, and `ValueError` for what
    is not as PyTorch writes it.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for number, (code, argument, _place) in enumerate(
        pickletools.genops(file)
    ):
        if number > MAX_INSTRUCTIONS:
            raise ValueError(f'more than {MAX_INSTRUCTIONS:,} instructions')
        name = code.name
        try:
            if name == 'STOP':
                (result,) = stack
                return result
            if name in ('BINPUT', 'LONG_BINPUT'):
                memo[argument] = stack[-1]
            elif name in ('BINGET', 'LONG_BINGET'):
                stack.append(memo[argument])
            elif name in ARGUMENTS:
                stack.append(argument)
            elif name == 'GLOBAL':
                stack.append(Symbol(str(argument)))
            elif name != 'PROTO':
                step(stack, name)
        except (IndexError, KeyError, TypeError) as error:
            raise ValueError(f'{name} has nothing to work on') from error
    raise ValueError('it ends within a pickle')


def step(stack: list[Any], name: str) -> None:
    """Take one step that changes what is on the stack."""
    if name in CONSTANTS:
        stack.append(CONSTANTS[name])
    elif name in MAKERS:
        stack.append(MAKERS[name]())
    elif name in COUNTS:
        count = COUNTS[name]
        stack[-count:] = [tuple(stack[-count:])]
    elif name == 'TUPLE':
        stack.append(tuple(since_mark(stack)))
    elif name == 'APPEND':
        listed = [stack.pop()]
        list.extend(stack[-1], listed)
    elif name == 'APPENDS':
        listed = since_mark(stack)
        list.extend(stack[-1], listed)
    elif name == 'SETITEM':
        value, key = stack.pop(), stack.pop()
        set_items(stack[-1], [key], [value])
    elif name == 'SETITEMS':
        items = since_mark(stack)
        set_items(stack[-1], items[::2], items[1::2])
    elif name == 'BINPERSID':
        stack.append(storage_of(stack.pop()))
    elif name == 'REDUCE':
        arguments, function = stack.pop(), stack.pop()
        stack.append(called(function, arguments))
    elif name == 'BUILD':
        # The state of a state dict: the versions of its layers
        state = stack.pop()
        if not isinstance(state, dict) or not isinstance(stack[-1], dict):
            raise ValueError('it sets the state of what is no dict')
    else:
        raise InputError(f'{NO_PICKLE} (it has a {name})')


MAKERS: dict[str, Callable[[], Any]] = {
    'MARK': lambda: MARK,
    'EMPTY_DICT': dict,
    'EMPTY_LIST': list,
    'EMPTY_TUPLE': tuple,
}


def set_items(target: Any, keys: list[Any], values: list[Any]) -> None:
    """Set items of a dict whose keys are strings.

    Tuples in tuples can take for ever to be hashed, compared or printed: a
    pickle of a few bytes can name the same one twice, again and again.
    """
    if not isinstance(target, dict) or not all(map(is_string, keys)):
        raise ValueError('it sets items of what is no dict with names')
    target.update(zip(keys, values, strict=True))


def is_string(value: Any) -> bool:
    """Return whether a value is a string."""
    return isinstance(value, str)


def since_mark(stack: list[Any]) -> list[Any]:
    """Remove and return what is above the last mark, and the mark."""
    place = len(stack) - 1
    while stack[place] is not MARK:
        place -= 1
        if place < 0:
            raise IndexError
    items = stack[place + 1 :]
    del stack[place:]
    return items


def called(function: Any, arguments: Any) -> Any:
    """Return what a call of a state dict stands for.

    Raises `InputError` for any other call.
    """
    if function == ORDERED_DICT and arguments == ():
        return {}
    if function == REBUILD:
        storage, offset, shape, strides, *_ = arguments
        counts = [offset, *shape, *strides]
        if (
            isinstance(storage, Storage)
            and len(shape) == len(strides) <= MAX_AXES
            and all(type(count) is int and count >= 0 for count in counts)
        ):
            return Tensor(storage, offset, shape, strides)
    named = function.name if isinstance(function, Symbol) else 'no function'
    raise InputError(f'{NO_PICKLE} (it calls {named[:60]})')


def storage_of(described: Any) -> Storage:
    """Return the storage that a persistent id describes."""
    kind, symbol, key, _device, size, *_ = described
    named = symbol.name if isinstance(symbol, Symbol) else 'no class'
    module, _, name = named.partition(' ')
    if kind != 'storage' or module != 'torch' or name not in TYPES:
        raise ValueError(
            f'it has a storage of {named[:60]}: expected torch.FloatStorage '
            'or torch.DoubleStorage'
        )
    if not is_string(key) or type(size) is not int or size < 0:
        raise ValueError('it describes a storage that cannot be')
    return Storage(TYPES[name], key, size)
