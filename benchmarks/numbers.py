"""Medians with their spread, and tables of them in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

#: One measurement, or all of a section, as results.json has them.
Results = Mapping[str, Any]
Runs = Sequence[Results]


class Spread(NamedTuple):
    """The median of some numbers, the least and the greatest."""

    median: float
    least: float
    greatest: float

    def text(self, digits: int | None = None, unit: str = '') -> str:
        """Write the numbers, by default with three digits or so."""
        if digits is None:
            digits = 2 if self.median < 10 else 1
        # A browser breaks a line after a hyphen, but not after a minus sign
        median, least, greatest = (
            f'{x:,.{digits}f}'.replace('-', '−') for x in self
        )
        return f'{median}{unit} ({least} to {greatest})'


def spread(values: Sequence[float]) -> Spread:
    """Return the median of some numbers, the least and the greatest."""
    return Spread(statistics.median(values), min(values), max(values))


def column(runs: Runs, name: str) -> list[float]:
    """Return one number of each round."""
    return [run[name] for run in runs]


def paired(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Divide round by round: neighbours, measured one after the other."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def ratio(above: Runs, below: Runs, name: str) -> Spread:
    """Divide one number of the rounds of two sides."""
    return paired(column(above, name), column(below, name))


def text(runs: Runs, name: str, digits: int = 1) -> str:
    """Write one number of the rounds."""
    return spread(column(runs, name)).text(digits)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return '\n'.join(
        f'| {" | ".join(row)} |' for row in [head, ['---'] * len(head), *rows]
    )
