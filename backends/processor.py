"""What Linux says of the processor."""

from __future__ import annotations

from functools import cache
from itertools import takewhile
from pathlib import Path

CPUINFO = Path('/proc/cpuinfo')
#: Instructions that multiply bfloat16 and sum in float32, the fastest first.
BF16 = ('amx_bf16', 'avx512_bf16')


def bf16_instructions(cpuinfo: Path = CPUINFO) -> str | None:
    """Return which of `BF16` this processor has, if it has any."""
    flags = described(cpuinfo).get('flags', '').split()
    return next((name for name in BF16 if name in flags), None)


def check_bf16() -> None:
    """Raise `ValueError` where this processor has no products of bfloat16.

    They would be slower than those of float32, and less exact.
    """
    if not bf16_instructions():
        raise ValueError(
            "precision = 'bf16': this processor does not multiply bfloat16 "
            f'(/proc/cpuinfo lists none of {", ".join(BF16)}): use '
            "'float32', or another machine"
        )


@cache
def described(cpuinfo: Path) -> dict[str, str]:
    """Return what Linux says of the first processor, nothing elsewhere."""
    try:
        with open(cpuinfo) as lines:
            first = takewhile(str.strip, lines)
            pairs = [line.partition(':')[::2] for line in first]
    except OSError:  # not on Linux
        return {}
    return {name.strip(): value.strip() for name, value in pairs}
