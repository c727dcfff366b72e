"""Make the picture and the table of docs/learning.md, "Fine-tuning".

    python docs/finetuning_figures.py RUN

`RUN`: the folder of the pretraining that the page shows. It fine-tunes from
it and from random weights, with three seeds each.
"""

from __future__ import annotations

import sys
from pathlib import Path

import d2lbert
from d2lbert.finetuning.figures import draw_finetuning

SEEDS = range(3)
OPTIONS = {'batch_size': 32, 'lr': 3e-4, 'devices': 'cpu'}
PICTURE = Path(__file__).parent / 'images' / 'finetuning'


def main(pretrained: str) -> None:
    """Fine-tune, print a line for each training, and draw the picture."""
    runs = []
    for scratch in (False, True):
        for seed in SEEDS:
            run = d2lbert.finetune(
                pretrained, scratch=scratch, seed=seed, **OPTIONS
            )
            print(run.start(), seed, run.summary(), flush=True)
            runs.append(run)
    title = 'The embedded pairs · three seeds each'
    png, svg = draw_finetuning(runs, PICTURE, title)
    svg.unlink()
    print(png)


if __name__ == '__main__':
    main(sys.argv[1])
