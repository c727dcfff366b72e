"""Make the table and the picture of docs/learning.md.

    python docs/recipes.py [--corpus wikitext-2] [--split valid] \\
        [--steps 600] [--batch-size 512] [--runs runs/recipes]

Trains each recipe for the same number of steps, or goes on with the runs
that are there, and evaluates them on held-out text. Prints the table in
Markdown. Draws the losses in training, and those on held-out text, as
docs/images/recipes.png.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import d2lbert
from d2lbert.evaluation.evaluate import Evaluation
from d2lbert.recipes import RECIPES
from d2lbert.runs import display

PICTURE = Path(__file__).parent / 'images' / 'recipes.png'
MEAN_OF = 10  # steps, for a curve
MEASURES = {
    'mlm_loss': 'MLM loss',
    'mlm_accuracy': 'MLM accuracy',
    'nsp_loss': 'NSP loss',
    'nsp_accuracy': 'NSP accuracy',
}


def get_run(folder: Path, **options: object) -> d2lbert.Run:
    """Read a run, or train it to its end."""
    if not folder.exists():
        return d2lbert.pretrain(out=folder, save_every=50, **options)
    return d2lbert.pretrain(out=folder, resume=True, **options)


def row(title: str, scores: dict[str, float]) -> str:
    """Return a row of the table."""
    return f'| {title} | {" | ".join(f"{scores[x]:.3f}" for x in MEASURES)} |'


def draw(runs: dict[str, d2lbert.Run], found: dict[str, Evaluation]) -> None:
    """Draw the losses in training beside those on held-out text.

    `found`: the evaluation of each run.
    """
    figure = Figure(figsize=(9, 4.6), layout='constrained')
    axes, points = figure.subplots(1, 2, width_ratios=[2, 1])
    draw_training(axes, runs, next(iter(found.values())))
    figure.legend(loc='outside lower center', ncols=3, frameon=False)
    for number, (name, evaluation) in enumerate(found.items()):
        loss = evaluation.network['mlm_loss']
        points.plot(loss, name, 'o', color=f'C{number}')
        points.annotate(
            f'{loss:.3f}', (loss, name), (0, 8), textcoords='offset points',
            ha='center',
        )  # fmt: skip
    level = evaluation.frequencies['mlm_loss']
    points.axvline(level, color='0.35', linewidth=1, linestyle='--')
    points.set(xlabel='MLM loss on held-out text')
    points.margins(x=0.2, y=0.15)
    points.invert_yaxis()
    points.grid(alpha=0.25)
    display.save_figure(figure, PICTURE.with_suffix(''))
    PICTURE.with_suffix('.svg').unlink()  # the page shows the PNG


def draw_training(
    axes: Axes, runs: dict[str, d2lbert.Run], levels: Evaluation
) -> None:
    """Draw the training losses that are means over the same predictions.

    `levels`: an evaluation of any of the runs, for its two levels.
    """
    for number, (name, run) in enumerate(runs.items()):
        if RECIPES[name].mlm_average == 'slots':
            continue
        losses = np.array(run.history)[:, 0]
        means = losses.reshape(-1, MEAN_OF).mean(1)
        steps = MEAN_OF * (np.arange(len(means)) + 0.5)
        label = f'{display.label_of(run.config.backend)}, recipe {name}'
        # From wide to thin, because two of them lie on each other
        axes.plot(
            steps, means, f'C{number}', label=label, linewidth=5 - number,
            linestyle=display.dashed(number),
        )  # fmt: skip
    ylabel = f'MLM loss in training, mean of {MEAN_OF} steps'
    for label, scores, dashes in (
        (f'chance: ln {len(run.vocab):,}', levels.chance, (0, (1, 2))),
        ('word frequencies, held-out text', levels.frequencies, '--'),
    ):
        axes.axhline(
            scores['mlm_loss'],
            label=label,
            color='0.35',
            linewidth=1,
            linestyle=dashes,
        )
    axes.set(xlabel='step', ylabel=ylabel)
    axes.grid(alpha=0.25)


def main() -> None:
    """Train, measure, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--corpus', default='wikitext-2')
    parser.add_argument('--split', default='valid')
    parser.add_argument('--steps', type=int, default=600)
    parser.add_argument('--batch-size', type=int, default=512)
    parser.add_argument('--runs', type=Path, default=Path('runs/recipes'))
    options = parser.parse_args()
    runs = {
        recipe: get_run(
            options.runs / recipe,
            recipe=recipe,
            corpus=options.corpus,
            steps=options.steps,
            batch_size=options.batch_size,
        )
        for recipe in RECIPES
    }
    found = {
        recipe: d2lbert.evaluate(run, options.split)
        for recipe, run in runs.items()
    }
    levels, *_ = found.values()
    print(f'{levels.num_pairs} pairs')
    print(f'| | {" | ".join(MEASURES.values())} |')
    print('| --- ' * (1 + len(MEASURES)) + '|')
    print(row('word frequencies', levels.frequencies))
    for recipe, evaluation in found.items():
        title = f'`{recipe}`, lr {runs[recipe].config.lr:g}'
        print(row(title, evaluation.network))
    draw(runs, found)
    print(f'Picture: {PICTURE}')


if __name__ == '__main__':
    main()
