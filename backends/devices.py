"""Devices by name, and the rows of a batch that each of them gets."""

from __future__ import annotations

from abc import ABC, abstractmethod

from backends.types import Device

#: More shards on one processor than this are a mistake.
MAX_SHARDS = 1024


def parse_devices(spec: str) -> tuple[str, tuple[int, ...]]:
    """Read a device specification: its kind and the indices meant.

    `'cpu'` is `('cpu', (0,))`, `'cpu:2'` (two shards on the processor) is
    `('cpu', (0, 1))`, `'gpu:0,1'` is `('gpu', (0, 1))` and `'all'`, every
    GPU or else the processor, is `('all', ())`.

    Raises `ValueError` for anything else.
    """
    kind, colon, numbers = spec.partition(':')
    try:
        if kind == 'all' and not colon:
            return 'all', ()
        if kind == 'cpu':
            num_shards = int(numbers) if colon else 1
            if 1 <= num_shards <= MAX_SHARDS:
                return 'cpu', tuple(range(num_shards))
        if kind == 'gpu':
            indices = tuple(int(i) for i in numbers.split(','))
            if min(indices) >= 0 and len(set(indices)) == len(indices):
                return 'gpu', indices
    except ValueError:
        pass
    raise ValueError(
        f"unknown devices {spec!r}: expected 'cpu', 'cpu:N' for N (at most "
        f"{MAX_SHARDS}) shards on the processor, 'gpu:I,J' for those GPUs, "
        "or 'all'"
    )


def shard_slices(num_rows: int, num_shards: int) -> list[slice]:
    """Return the rows of a batch that each shard takes.

    The first `num_rows % num_shards` shards get one row more, as in
    `numpy.array_split`, `torch.tensor_split` and Gluon's `split_data`: 5
    rows over 4 shards are 2, 1, 1, 1.

    Raises `ValueError` where a shard would get no row.
    """
    if num_rows < num_shards:
        raise ValueError(
            f'a batch of {num_rows} rows cannot be split over '
            f'{num_shards} devices: use at most {num_rows}'
        )
    small, extra = divmod(num_rows, num_shards)
    ends = [small * (i + 1) + min(i + 1, extra) for i in range(num_shards)]
    return [
        slice(start, end)
        for start, end in zip([0, *ends], ends, strict=False)
    ]


class Devices(ABC):
    """Devices by name, for a backend that knows them by number."""

    name: str

    @abstractmethod
    def num_gpus(self) -> int:
        """Return how many GPUs the framework can use."""

    @abstractmethod
    def device(self, kind: str, index: int) -> Device:
        """Return a device of kind `'cpu'` or `'gpu'`."""

    def devices(self, spec: str) -> list[Device]:
        """Return the devices of a specification.

        See `parse_devices` for its form. Raises `ValueError` for a
        malformed one and for a GPU that is not there.
        """
        kind, indices = parse_devices(spec)
        num_gpus = 0 if kind == 'cpu' else self.num_gpus()
        if kind == 'all':
            kind = 'gpu' if num_gpus else 'cpu'
            indices = tuple(range(max(1, num_gpus)))
        if kind == 'gpu' and max(indices) >= num_gpus:
            raise ValueError(
                f'there is no GPU {max(indices)}: {self.name} sees '
                f"{num_gpus}; use fewer, 'cpu' or 'all'"
            )
        return [self.device(kind, index) for index in indices]

    def try_gpu(self, i: int = 0) -> Device:
        """Return GPU `i` if there is one, else the processor."""
        there = i < self.num_gpus()
        return self.device('gpu', i) if there else self.device('cpu', 0)

    def try_all_gpus(self) -> list[Device]:
        """Return all GPUs, or `[cpu]` where there is none."""
        return self.devices('all')
