"""What a reader sees of a training: progress and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

#: One colour for each framework, wherever its curve is drawn.
COLORS = {'mxnet': '#1f77b4', 'torch': '#d9480f'}
LABELS = {'mxnet': 'MXNet', 'torch': 'PyTorch'}
DASHES = ('-', '--', ':', '-.')


class Progress:
    """A line on stderr with steps, losses, speed and time left."""

    def __init__(
        self, label: str, num_steps: int, visible: bool = True
    ) -> None:
        from tqdm import tqdm

        self.bar = tqdm(
            total=num_steps,
            desc=LABELS.get(label, label),
            unit='step',
            disable=not visible,
            mininterval=0.2,
        )

    def show(self, **values: float) -> None:
        """Count a step and show its values."""
        self.bar.set_postfix(
            {name: f'{value:.3f}' for name, value in values.items()},
            refresh=False,
        )
        self.bar.update()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bar.close()


def draw_losses(
    histories: Mapping[str, Sequence[Sequence[float]]],
    path: str | Path,
    vocab_size: int,
) -> list[Path]:
    """Draw the loss curves of one run or several as PNG and SVG.

    `histories`: `[[mlm, nsp], …]` by label; `path`: where, without suffix;
    `vocab_size`: for the chance level of masked language modelling. Returns
    the paths written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout='constrained')
    tasks = (
        (
            'Masked language modelling',
            math.log(vocab_size),
            f'chance, ln {vocab_size:,}',
        ),
        ('Next sentence prediction', math.log(2), 'chance, ln 2'),
    )
    for task, (axes, (title, chance, label)) in enumerate(
        zip(figure.subplots(1, 2), tasks, strict=True)
    ):
        for i, (name, history) in enumerate(histories.items()):
            steps = range(1, len(history) + 1)
            backend = name.split()[0]
            axes.plot(
                steps,
                [losses[task] for losses in history],
                DASHES[i % len(DASHES)],
                label=name.replace(backend, LABELS.get(backend, backend), 1),
                color=COLORS.get(backend),
            )
        axes.axhline(
            chance,
            color='0.6',
            linewidth=1,
            linestyle=(0, (1, 2)),
            label=label,
        )
        axes.set(title=title, xlabel='step', ylabel='loss')
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    paths = [path.with_suffix(suffix) for suffix in ('.png', '.svg')]
    for target in paths:
        figure.savefig(target, dpi=144)
    return paths
