"""Make the README's table of results and its picture.

    python docs/results.py [--corpus wikitext-2] [--runs runs/results]

Trains both recipes of the book in all frameworks with three seeds, skipping
the runs that are there already, prints the table in Markdown and draws seed
0 as docs/images/wikitext-2.png. Takes about half an hour on two cores.
"""

import argparse
from pathlib import Path

import d2lbert
from d2lbert.frameworks import FRAMEWORKS
from d2lbert.runs import display

PRINTED = {
    'pytorch': '5.232 / 0.764 and 5.679 / 0.773',
    'mxnet': '7.303 / 0.820',
}
SEEDS = (0, 1, 2)
PICTURE = Path(__file__).parent / 'images' / 'wikitext-2.png'


def get_run(folder: Path, **options: object) -> d2lbert.Run:
    """Read a run, or train it."""
    if (folder / 'run.json').exists():
        return d2lbert.load_run(folder)
    return d2lbert.pretrain(out=folder, **options)


def main() -> None:
    """Train, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--corpus', default='wikitext-2')
    parser.add_argument('--runs', type=Path, default=Path('runs/results'))
    options = parser.parse_args()
    runs = {
        (recipe, backend, seed): get_run(
            options.runs / f'{backend}-{recipe}-{seed}',
            backend=backend,
            recipe=recipe,
            seed=seed,
            corpus=options.corpus,
        )
        for recipe in PRINTED
        for backend in FRAMEWORKS
        for seed in SEEDS
    }
    seeds = ' | '.join(f'seed {seed}' for seed in SEEDS)
    print(f'| recipe | framework | {seeds} | the book prints |')
    print('| --- ' * (3 + len(SEEDS)) + '|')
    for recipe, printed in PRINTED.items():
        for backend in FRAMEWORKS:
            cells = ' | '.join(
                f'{run.mlm_loss:.3f} / {run.nsp_loss:.3f}'
                for run in (runs[recipe, backend, seed] for seed in SEEDS)
            )
            label = FRAMEWORKS[backend].label
            print(f'| `{recipe}` | {label} | {cells} | {printed} |')
    _, vector = display.draw_losses(
        [
            runs[recipe, backend, 0]
            for recipe in PRINTED
            for backend in FRAMEWORKS
        ],
        PICTURE.with_suffix(''),
        f'{options.corpus} · batches of 512 · lr 0.01 · seed 0',
    )
    vector.unlink()  # the README shows the PNG
    print(f'Picture: {PICTURE}')


if __name__ == '__main__':
    main()
