"""Draw `docs/images/scaling-memory.png`: predicted and measured memory.

    python docs/memory_figure.py

The measured peaks are those of the table in `docs/scaling.md`; the parts are
predicted anew, for as many rows of 512 tokens as two workers need.
"""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
import numpy as np

import backends
from d2lbert.book.animator import DPI
from d2lbert.data.examples import Batch
from d2lbert.frameworks import FRAMEWORKS
from d2lbert.runs.config import Config
from d2lbert.runs.memory import Prediction

mpl.use('Agg')
from matplotlib import pyplot as plt

DOCS = Path(__file__).parent
VOCAB_SIZE = 20005
#: What a process takes that has imported one framework.
RESIDENT = 0.24e9
#: What the parts of a prediction begin with, and how the picture calls them.
PARTS = {
    'Python': 'Python and the framework',
    'the parameters': 'parameters',
    'gradients': 'gradients',
    "Adam's": "Adam's moments",
    'activations': 'activations',
    'the loss': 'loss over the vocabulary',
    'writing': 'writing the run',
}
#: Rows of the table: their label, and options.
RUNS = {
    'BERT-Base': {'preset': 'bert-base', 'micro_batch': 1},
    'BERT-Base, `--checkpoint-blocks`': {
        'preset': 'bert-base',
        'micro_batch': 1,
        'checkpoint_blocks': True,
        'save_every': 1,
    },
    'BERT-Large': {'preset': 'bert-large', 'micro_batch': 1},
    'BERT-Large, `--checkpoint-blocks`': {
        'preset': 'bert-large',
        'micro_batch': 1,
        'checkpoint_blocks': True,
    },
}


def measured(label: str) -> list[float]:
    """Return the peaks in the table, of PyTorch and MXNet, in GB."""
    text = (DOCS / 'scaling.md').read_text('utf-8')
    rows = re.findall(rf'^\| {re.escape(label)}[ ,(].* / .*$', text, re.M)
    return [float(cell.split(' / ')[1]) for cell in rows[0].split('|')[2:4]]


def parts_of(name: str, options: dict[str, object]) -> dict[str, float]:
    """Return what each part takes, in GB."""
    config = Config(backend=name, batch_size=2, steps=1, **options)
    examples = Batch.empty(2, config.max_len)._replace(
        valid_lens=np.full(2, config.max_len, np.float32)
    )
    footprint = backends.load(name).footprint
    prediction = Prediction(footprint, 2, examples, VOCAB_SIZE)
    prediction.resident = RESIDENT
    found = prediction.memory(config).parts
    return {
        label: sum(
            size / 1e9
            for part, size in found.items()
            if part.startswith(start)
        )
        for start, label in PARTS.items()
    }


def main() -> None:
    """Draw the picture."""
    names = ('torch', 'mxnet')
    figure, axes = plt.subplots(figsize=(9, 5.6), layout='constrained')
    colors = plt.get_cmap('tab10').colors
    ticks, place = [], 0.0
    for label, options in RUNS.items():
        peaks = measured(label)
        for name, peak in zip(names, peaks, strict=True):
            left = 0.0
            for color, (part, size) in zip(
                colors, parts_of(name, options).items(), strict=False
            ):
                axes.barh(
                    place, size, 0.7, left, color=color,
                    label=part if place == 0 else None,
                )  # fmt: skip
                left += size
            axes.plot(
                [peak, peak], [place - 0.42, place + 0.42], 'k-', lw=2,
                label='measured' if place == 0 else None,
            )  # fmt: skip
            title, _, option = label.replace('`', '').partition(', ')
            framework = f'{title}, {FRAMEWORKS[name].label}'
            ticks.append((place, f'{framework}\n{option}'.rstrip()))
            place += 1
        place += 0.5
    axes.set_yticks(*zip(*ticks, strict=True))
    axes.invert_yaxis()
    axes.set_xlabel('GB at the peak, micro-batches of one row of 512 tokens')
    axes.legend(loc='upper right')
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
    figure.savefig(DOCS / 'images' / 'scaling-memory.png', dpi=DPI)


if __name__ == '__main__':
    main()
