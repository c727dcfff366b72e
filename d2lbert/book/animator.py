"""The book's `Timer`, `Accumulator` and `Animator`."""

from __future__ import annotations

import atexit
import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: Twice that of the screen, for sharp pictures.
DPI = 144


class Timer:
    """A stopwatch that keeps all its times, in seconds. It starts at once."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.start()

    def start(self) -> None:
        """Start the watch."""
        self.tik = time.time()

    def stop(self) -> float:
        """Stop the watch, keep the time and return it."""
        self.times.append(time.time() - self.tik)
        return self.times[-1]

    def avg(self) -> float:
        """Return the mean time."""
        return self.sum() / len(self.times)

    def sum(self) -> float:
        """Return the sum of the times."""
        return sum(self.times)

    def cumsum(self) -> list[float]:
        """Return the time that had passed after each stop."""
        return [sum(self.times[: i + 1]) for i in range(len(self.times))]


class Accumulator:
    """`n` running sums."""

    def __init__(self, n: int) -> None:
        self.data = [0.0] * n

    def add(self, *args: float) -> None:
        """Add a number to each sum."""
        # Of an array with a gradient, item() asks without a warning
        self.data = [
            a + float(b.item() if hasattr(b, 'item') else b)
            for a, b in zip(self.data, args, strict=True)
        ]

    def reset(self) -> None:
        """Set all sums to zero."""
        self.data = [0.0] * len(self.data)

    def __getitem__(self, index: int) -> float:
        return self.data[index]


class Animator:
    """Draws lines while their points come in.

    In a notebook the picture grows in place. In a terminal or a script a
    line on stderr shows the newest values, and the picture is written to
    `loss.png` (the `ylabel`, with a number for a second one) when `x`
    reaches the end of `xlim`, or else when Python exits.

    `fmts`: Matplotlib's formats, one for each line; `nrows`, `ncols`: only
    1 is drawn; `figsize`: in inches; `legend`: the names of the lines.
    """

    _names_taken: set[Path] = set()  # noqa: RUF012

    def __init__(
        self,
        xlabel: str | None = None,
        ylabel: str | None = None,
        legend: Sequence[str] | None = None,
        xlim: Sequence[float] | None = None,
        ylim: Sequence[float] | None = None,
        xscale: str = 'linear',
        yscale: str = 'linear',
        fmts: Sequence[str] = ('-', 'm--', 'g-.', 'r:'),
        nrows: int = 1,
        ncols: int = 1,
        figsize: tuple[float, float] = (3.5, 2.5),
    ) -> None:
        from matplotlib.figure import Figure

        self.legend = list(legend or [])
        self.xlabel, self.xlim = xlabel or 'x', xlim
        self.fmts = fmts
        self.X: list[list[float]] = []
        self.Y: list[list[float]] = []
        self.fig = Figure(
            (figsize[0] * ncols, figsize[1] * nrows), layout='constrained'
        )
        self.axes = self.fig.subplots()
        self.options: dict[str, Any] = {
            'xlabel': xlabel,
            'ylabel': ylabel,
            # Before the limits, which depend on them where they are `None`
            'xscale': xscale,
            'yscale': yscale,
            # Matplotlib warns of an axis without any width
            'xlim': xlim if xlim and xlim[0] != xlim[-1] else None,
            'ylim': ylim,
        }
        self.handle: Any = None
        self.message = ''
        self.in_notebook = _in_notebook()
        if not self.in_notebook:
            self.path = self._free_path(ylabel or 'animator')
            atexit.register(self.finish)

    def add(self, x: Any, y: Any) -> None:
        """Add a point to each line.

        `y`: a number, or one for each line (`None`: no point); `x`: the
        same, or one number for all lines.
        """
        y = list(y) if hasattr(y, '__len__') else [y]
        x = list(x) if hasattr(x, '__len__') else [x] * len(y)
        if not self.Y:
            self.X, self.Y = [[] for _ in y], [[] for _ in y]
        for line, (a, b) in enumerate(zip(x, y, strict=True)):
            if a is not None and b is not None:
                self.X[line].append(float(a))
                self.Y[line].append(float(b))
        if self.in_notebook:
            self._show()
        else:
            self._print_line(x[0], y)

    def draw(self) -> None:
        """Draw all points so far into `fig`."""
        self.axes.cla()
        for line, (X, Y) in enumerate(zip(self.X, self.Y, strict=True)):
            self.axes.plot(X, Y, self.fmts[line % len(self.fmts)])
        self.axes.set(**self.options)
        if self.legend:
            self.axes.legend(self.legend)
        self.axes.grid()

    def finish(self) -> None:
        """Write the picture of a terminal session; say once where it is.

        A folder that cannot be written to costs the picture, no more.
        """
        atexit.unregister(self.finish)
        if self.in_notebook or not any(self.X):
            return
        self.draw()
        try:
            self.fig.savefig(self.path, dpi=DPI)
        except OSError as error:
            message = f'There is no picture: {error}'
        else:
            message = f'The picture is in {self.path}'
        if message != self.message:
            print(f'\n{message}', file=sys.stderr)
        self.message = message

    def _show(self) -> None:
        """Show the picture in a notebook, in the place of the last one."""
        from IPython.display import Image, display

        self.draw()
        png = io.BytesIO()
        self.fig.savefig(png, format='png', dpi=DPI)
        image = Image(png.getvalue(), retina=True)
        if self.handle is None:
            self.handle = display(image, display_id=True)
        else:
            self.handle.update(image)

    def _print_line(self, x: Any, y: list[Any]) -> None:
        names = self.legend or [f'y{i}' for i in range(len(y))]
        values = ', '.join(
            f'{name} {float(value):.3f}'
            for name, value in zip(names, y, strict=False)
            if value is not None
        )
        line = f'\r{self.xlabel} {float(x):g}: {values}   '
        print(line, end='', file=sys.stderr, flush=True)
        if self.xlim and float(x) >= self.xlim[1]:
            self.finish()

    @classmethod
    def _free_path(cls, stem: str) -> Path:
        """Return a name that no animator of this session has had."""
        path, number = Path(f'{stem}.png').absolute(), 1
        while path in cls._names_taken:
            number += 1
            path = path.with_name(f'{stem}-{number}.png')
        cls._names_taken.add(path)
        return path


def _in_notebook() -> bool:
    """Return whether this session can show pictures."""
    ipython: Any = sys.modules.get('IPython')
    return ipython is not None and hasattr(ipython.get_ipython(), 'kernel')
