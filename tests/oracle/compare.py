"""Hold all that the textbook computes against ours: `make oracle`.

    python -m oracle.compare PYTHON

PYTHON is the interpreter of an environment with d2l 1.0.3. Prints a table
in Markdown, progress on stderr, and ends with 1 where a row differs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from d2lbert.data.corpus import read_lines
from oracle import cases, ours, results

TOLERANCE = 1e-5
# At the chapter's size a few steps of Adam at 0.01 make the order of float32
# sums visible: the textbook's own loop differs from itself by 1.3e-5 from run
# to run, with the work of its threads.
CHAPTER_TOLERANCE = 1e-4
NAMES = {'torch': 'PyTorch', 'mxnet': 'MXNet'}


class Row(NamedTuple):
    """A row of the table; `holds` is `None` where nothing was compared."""

    what: str
    framework: str
    compared: str
    difference: str
    holds: bool | None

    def __str__(self) -> str:
        verdict = {True: 'yes', False: '**no**', None: 'skipped'}[self.holds]
        return (
            f'| {self.what} | {NAMES[self.framework]} | {self.compared} '
            f'| {self.difference} | {verdict} |'
        )


HEAD = """\
| what | framework | compared | greatest difference | holds |
| --- | --- | --- | --- | --- |"""


def main(python: str) -> int:
    """Run both sides and print the table; return the exit status."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        has_wikitext = write_wikitext(folder / cases.WIKITEXT)
        for framework in cases.FRAMEWORKS:
            ours.export(framework, folder)
        run_textbook(python, folder)
        rows = [
            row
            for framework in cases.FRAMEWORKS
            for row in compare(framework, folder, has_wikitext)
        ]
    print('\n'.join([HEAD, *map(str, rows)]))
    return int(any(row.holds is False for row in rows))


def write_wikitext(folder: Path) -> bool:
    """Write WikiText-2 where the textbook reads it, if it is here."""
    path = os.environ.get('D2LBERT_WIKITEXT2')
    if path:
        cases.write_corpus(folder, ''.join(read_lines(path)))
    return bool(path)


def run_textbook(python: str, folder: Path) -> None:
    """Let the textbook's side write its results into `folder`."""
    subprocess.run(
        [python, '-W', 'ignore', '-m', 'oracle.textbook', 'full', folder],
        check=True,
        env={
            **os.environ,
            'PYTHONPATH': str(Path(__file__).parent.parent),
            # The textbook opens its corpus without an encoding
            'PYTHONUTF8': '1',
        },
    )


def compare(
    framework: str, folder: Path, has_wikitext: bool
) -> Iterator[Row]:
    """Yield the table's rows of one framework."""
    expected = json.loads((folder / f'{framework}.json').read_text())
    yield from compare_examples(framework, folder, expected, has_wikitext)
    with np.load(folder / f'{framework}.npz') as arrays:
        yield from compare_networks(framework, folder, dict(arrays))


# ---- examples --------------------------------------------------------


def compare_examples(
    framework: str,
    folder: Path,
    expected: Mapping[str, Any],
    has_wikitext: bool,
) -> Iterator[Row]:
    """Yield the rows about examples and vocabularies."""
    side, tab = ours.modules(framework)
    load = ours.loader(tab)
    corpora = folder / 'corpora'
    results.progress(f'ours, {framework}: odd corpora')
    odd = dict(results.odd_corpora(side, load, corpora))
    yield examples_row('examples, odd corpora', framework, odd, expected)
    results.progress(f'ours, {framework}: nonsense')
    number = cases.NUM_NONSENSE[framework]
    nonsense = dict(results.nonsense(side, load, corpora, number))
    yield examples_row(
        'examples, random characters', framework, nonsense, expected
    )
    yield types_row(
        framework, results.types(side, load, corpora), expected['types']
    )
    yield examples_row(
        'pairs of SNLI, made up', framework,
        results.snli(side, tab, folder), expected,
    )  # fmt: skip
    what = 'examples, WikiText-2'
    if has_wikitext:
        found = dict(results.wikitext(side, load, folder, framework))
        yield examples_row(what, framework, found, expected)
    else:
        reason = 'D2LBERT_WIKITEXT2 is not set'
        yield Row(what, framework, reason, '', None)


def types_row(framework: str, found: list[str], expected: list[str]) -> Row:
    """Say where the numbers of an example are of another type."""
    differences = {
        name: f'{name} is {here} here, {there} there'
        for (name, _), here, there in zip(
            cases.ARRAYS, found, expected, strict=True
        )
        if here != there
    }
    known = {cases.FLOAT_THERE.get(framework)}
    return Row(
        'examples, types of the arrays',
        framework,
        ', '.join(dict.fromkeys(found)),
        '; '.join(differences.values()) or 'none',
        differences.keys() <= known,
    )


def examples_row(
    what: str,
    framework: str,
    found: Mapping[str, Any],
    expected: Mapping[str, Any],
) -> Row:
    """Say where fingerprints differ."""
    differences = [
        f'{case}: {fault}'
        for case in found
        for fault in faults(found[case], expected[case])
    ]
    number = sum(print_['examples'] for print_ in found.values() if print_)
    return Row(
        what,
        framework,
        f'{len(found)} corpora, lengths and seeds; {number:,} examples',
        '; '.join(differences) or 'none: equal to the bit',
        not differences,
    )


def faults(found: Any, expected: Any) -> list[str]:
    """Return which parts of two fingerprints differ."""
    if found is None or expected is None:
        return [] if found is expected else ['only one has examples']
    return [name for name in expected if found[name] != expected[name]]


# ---- networks --------------------------------------------------------


def compare_networks(
    framework: str, folder: Path, expected: results.Arrays
) -> Iterator[Row]:
    """Yield the rows about parameters, outputs, gradients and training."""
    side, tab = ours.modules(framework)
    for name, sizes in cases.NETWORKS.items():
        results.progress(f'ours, {framework}: network {name}')
        size = f'network `{name}`: {sizes.num_hiddens} hidden units'
        net = ours.network(framework, name, folder)
        found = results.outputs(side, net, name)
        yield arrays_row(
            "the textbook's file here: outputs", framework, size, found,
            expected,
        )  # fmt: skip
        yield arrays_row(
            'our file in the textbook: outputs', framework, size, found,
            {key: expected[f'ours/{key}'] for key in found},
        )  # fmt: skip
        found = results.gradients(side, tab, net, name)
        yield arrays_row('gradients', framework, size, found, expected)
    for name, sizes in cases.NETWORKS.items():
        net = ours.network(framework, name, folder)
        yield arrays_row(
            'logits of `BERTClassifier`', framework,
            f'network `{name}`: {sizes.num_hiddens} hidden units',
            results.classifier(ours.classify, net, name), expected,
        )  # fmt: skip
    yield arrays_row(
        'encodings of `TransformerEncoder`', framework, '3 blocks',
        results.transformer(side, tab), expected,
    )  # fmt: skip
    for name in cases.NETWORKS:
        for training in cases.TRAININGS[framework]:
            yield from training_rows(
                framework, folder, name, training, expected
            )


def training_rows(
    framework: str,
    folder: Path,
    name: str,
    training: cases.Training,
    expected: results.Arrays,
) -> Iterator[Row]:
    """Yield the rows about the losses of training a network."""
    side, tab = ours.modules(framework)
    size = f'network `{name}`, {training.name}'
    key = f'{name}/steps/{training.name}'
    ours_what = 'losses, step by step: our `train_bert`'
    if key not in expected:
        reason = f'{size}: D2LBERT_WIKITEXT2 is not set'
        yield Row(ours_what, framework, reason, '', None)
        return
    results.progress(f'ours, {framework}: training {name}, {training.name}')
    batches = (
        cases.read_slices(folder / 'wikitext-2.npz')
        if name == 'chapter'
        else cases.batches(name)
    )
    size += f': {len(batches)} steps'
    tolerance = CHAPTER_TOLERANCE if name == 'chapter' else TOLERANCE
    net = ours.network(framework, name, folder)
    found = ours.trainer_losses(side, net, batches, training)
    yield arrays_row(
        ours_what, framework, size, {key: found}, expected,
        tolerance,
    )  # fmt: skip
    net = ours.network(framework, name, folder)
    found = results.chapter_losses(side, tab, net, name, batches, training)
    yield arrays_row(
        "losses, step by step: the chapter's loop, our network", framework,
        size, {key: found}, expected, tolerance,
    )  # fmt: skip


def arrays_row(
    what: str,
    framework: str,
    compared: str,
    found: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    tolerance: float = TOLERANCE,
) -> Row:
    """Say how far arrays are apart."""
    difference = distance(found, expected)
    return Row(
        what,
        framework,
        compared,
        f'{difference:.1e} (allowed {tolerance:.0e})',
        bool(difference <= tolerance),
    )


def distance(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> float:
    """Return the greatest difference; arrays of other shapes raise."""
    return max(
        float(np.abs(array - _same_shape(array, expected[key])).max())
        for key, array in found.items()
    )


def _same_shape(array: np.ndarray, expected: np.ndarray) -> np.ndarray:
    if array.shape != expected.shape:
        raise ValueError(f'{array.shape} against {expected.shape}')
    return expected


if __name__ == '__main__':
    sys.exit(main(sys.argv[1]))
