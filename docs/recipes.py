"""Make the table and the picture of docs/learning.md.

    python docs/recipes.py --held-out wikitext-2/wiki.valid.tokens \\
        [--corpus wikitext-2] [--steps 600] [--batch-size 512] \\
        [--runs runs/recipes]

Trains each recipe for the same number of steps, or goes on with the runs
that are there, and measures both losses and accuracies on examples of
another text. (With the text of training these have other pairs and masks.)
Prints the table in Markdown and draws the training losses as
docs/images/recipes.png.
"""

import argparse
import random
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import d2lbert
from backends.types import Arrays
from d2lbert.bert import BERTModel
from d2lbert.data.corpus import open_corpus
from d2lbert.data.examples import Batch, load_text, make_examples
from d2lbert.data.vocab import Vocab
from d2lbert.recipes import RECIPES
from d2lbert.runs import display

PICTURE = Path(__file__).parent / 'images' / 'recipes.png'
ROWS = 64  # at a time
MEAN_OF = 10  # steps, for a curve
HEADS = ('MLM loss', 'MLM accuracy', 'NSP loss', 'NSP accuracy')


def get_run(folder: Path, **options: object) -> d2lbert.Run:
    """Read a run, or train it to its end."""
    if not folder.exists():
        return d2lbert.pretrain(out=folder, save_every=50, **options)
    return d2lbert.pretrain(out=folder, resume=True, **options)


def held_out(corpus: str, vocab: Vocab, max_len: int) -> Batch:
    """Return examples of another text with the vocabulary of a run."""
    lines, rng = open_corpus(corpus).lines(), random.Random(0)
    text, _ = load_text(lines, max_len, rng, lambda counts: vocab)
    return make_examples(text, vocab, max_len, rng)


def losses_and_hits(logits: np.ndarray, labels: np.ndarray) -> Arrays:
    """Return the cross-entropy and whether the best guess is right."""
    hits = logits.argmax(-1) == labels
    logits = logits - logits.max(-1, keepdims=True)
    right = logits[np.arange(len(labels)), labels].astype(np.float64)
    sums = np.exp(logits, out=logits).sum(-1, dtype=np.float64)
    return {'losses': np.log(sums) - right, 'hits': hits}


def evaluate(net: BERTModel, examples: Batch) -> list[float]:
    """Return the means that `HEADS` names."""
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(examples.tokens), ROWS):
        batch = examples.rows(slice(start, start + ROWS))
        ((_, mlm_Y_hat, nsp_Y_hat),) = net.backend.evaluate(net, [batch[:4]])
        real = batch.mlm_weights > 0
        for task, logits, labels in (
            ('mlm', mlm_Y_hat[real], batch.mlm_labels[real]),
            ('nsp', nsp_Y_hat, batch.nsp_labels),
        ):
            for name, values in losses_and_hits(logits, labels).items():
                found.setdefault(f'{task} {name}', []).append(values)
    return [
        float(np.concatenate(found[f'{task} {name}']).mean())
        for task in ('mlm', 'nsp')
        for name in ('losses', 'hits')
    ]


def frequencies(corpus: str, vocab: Vocab, examples: Batch) -> list[float]:
    """Return both means of MLM for who knows only how frequent words are."""
    lines = open_corpus(corpus).lines()
    text, _ = load_text(lines, examples.tokens.shape[1])
    counts = np.bincount(text.tokens, minlength=len(vocab)) + 1.0
    labels = examples.mlm_labels[examples.mlm_weights > 0]
    losses = np.log(counts.sum()) - np.log(counts[labels])
    return [float(losses.mean()), float((labels == counts.argmax()).mean())]


def draw(runs: dict[str, d2lbert.Run]) -> None:
    """Draw the training losses that are means over the same predictions."""
    figure = Figure(figsize=(7, 4.2), layout='constrained')
    axes = figure.subplots()
    for (name, run), dashes in zip(runs.items(), display.DASHES, strict=True):
        if RECIPES[name].mlm_average == 'slots':
            continue
        losses = np.array(run.history)[:, 0]
        means = losses.reshape(-1, MEAN_OF).mean(1)
        steps = MEAN_OF * (np.arange(len(means)) + 0.5)
        axes.plot(steps, means, label=name, linestyle=dashes)
    ylabel = f'MLM loss in training, mean of {MEAN_OF} steps'
    axes.set(xlabel='step', ylabel=ylabel, ylim=(None, 8))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    display.save_figure(figure, PICTURE.with_suffix(''))
    PICTURE.with_suffix('.svg').unlink()  # the page shows the PNG


def main() -> None:
    """Train, measure, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--held-out', required=True)
    parser.add_argument('--corpus', default='wikitext-2')
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
    run = runs['bert']
    examples = held_out(options.held_out, run.vocab, run.config.max_len)
    known = frequencies(options.corpus, run.vocab, examples)
    print(f'{len(examples.tokens)} pairs')
    print(f'| | {" | ".join(HEADS)} |\n| --- | --- | --- | --- | --- |')
    print(f'| word frequencies | {known[0]:.3f} | {known[1]:.3f} | | |')
    for recipe, run in runs.items():
        numbers = (f'{x:.3f}' for x in evaluate(run.net, examples))
        print(f'| `{recipe}`, lr {run.config.lr:g} | {" | ".join(numbers)} |')
    draw(runs)
    print(f'Picture: {PICTURE}')


if __name__ == '__main__':
    main()
