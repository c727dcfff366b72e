"""Evaluate a run on text that it was not trained on."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from backends.groups import ALONE, Group
from d2lbert.data.archives import SPLIT_FILES
from d2lbert.data.cache import load_cached_examples
from d2lbert.data.corpus import Paths, open_corpus
from d2lbert.data.examples import Examples, column_blocks
from d2lbert.data.files import sha256_of
from d2lbert.data.vocab import Vocab
from d2lbert.data.wordpiece import same_tokens
from d2lbert.errors import InputError
from d2lbert.evaluation.evaluate import Evaluation, Evaluator
from d2lbert.evaluation.levels import count_frequencies
from d2lbert.runs import display
from d2lbert.runs.folder import check_free, locked
from d2lbert.runs.processes import check_alike
from d2lbert.runs.run import Run, load_examples, load_run
from d2lbert.runs.trained import checksum, versions
from d2lbert.weights import get_weights

#: The parts of a corpus to evaluate on, by name.
SPLITS = [split for split in SPLIT_FILES if split != 'train']
#: The seed of the examples, the same whatever that of the training was.
SEED = 1_000_000
PICTURE = 'evaluation'


def evaluate(
    run: Run | str | Path,
    split: str | os.PathLike = 'valid',
    *,
    backend: str | None = None,
    best: bool = False,
    corpus: Paths | None = None,
    batch_size: int | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    group: Group = ALONE,
) -> Evaluation:
    """Evaluate a run beside chance and the frequencies of its training text.

    `run`: a run, or its folder, which is read into `backend`, and for `best`
    with the weights of the best evaluation during the training; `split`:
    `'valid'` or `'test'`, the part of the run's corpus, or the path of a
    text, as `open_corpus` takes it; `corpus`: where the text of the training
    is now, by default where it was; `batch_size`: the most rows that go
    through the network at a time; `out`: a folder for `evaluation.png` and
    `.svg`; `progress`: show on stderr what takes long; `group`: the
    processes that share the examples, from
    `d2lbert.runs.processes.joined`. Each gives the same arguments and gets
    all numbers; rank 0 alone uses `out` and shows progress.

    The examples are made as those of a training are, with the run's own
    vocabulary and length, and are the same for each framework.

    Raises `InputError` for a run, a path or an option that cannot be used,
    `CorpusError` for a text that cannot be read, and `RunError` for a run
    that is damaged or gives numbers that are not finite. `InputError` where
    a process has other weights or another text than rank 0, and `GroupError`
    where one does not answer.
    """
    progress = progress and group.rank == 0
    out = None if group.rank else out
    if not isinstance(run, Run):
        run = load_run(run, backend, best, group.local_rank)
    elif backend is not None or best:
        raise InputError(
            f'backend = {backend!r}, best = {best}: a run in memory has a '
            'framework and weights; give its folder to read it otherwise'
        )
    corpus = run.config.corpus if corpus is None else corpus
    with (
        locked(out)
        if out is not None
        else nullcontext(lambda: None) as check_held
    ):
        if out is not None:
            check_free(out, (PICTURE + end for end in display.SUFFIXES))
        evaluator = new_evaluator(run, split, corpus, progress)
        if group.size > 1:
            check_alike(group, alike(run, evaluator, batch_size))
        evaluation = evaluator.evaluate(
            run.net, batch_size, display.Building(progress), group
        )
        if out is not None:
            check_held()
            title = title_of(run, evaluation)
            with display.drawing():
                display.draw_evaluation(
                    evaluation, Path(out) / PICTURE, title
                )
    return evaluation


def alike(
    run: Run, evaluator: Evaluator, batch_size: int | None
) -> dict[str, Any]:
    """Return what all processes must have alike."""
    return {
        'weights': checksum(get_weights(run.net)),
        'examples': sha256_of(column_blocks(evaluator.examples)),
        'batch_size': batch_size,
        **versions(run.net.backend.name),
    }


def title_of(run: Run, evaluation: Evaluation) -> str:
    """Return the heading of the picture of an evaluation."""
    split = Path(evaluation.split).name
    return f'{run.config.title()} · {len(run.steps)} steps · {split}'


def new_evaluator(
    run: Run,
    split: str | os.PathLike,
    corpus: Paths,
    progress: bool,
) -> Evaluator:
    """Read the examples to evaluate on, and those of the training."""
    examples = load_split(
        split, corpus, run.vocab, run.config.max_len, progress
    )
    training, vocab = load_examples(run.config, progress, corpus)
    if vocab.idx_to_token != run.vocab.idx_to_token:
        raise InputError(
            f'the text {corpus!r} gives another vocabulary than that of the '
            'run: it is not what the run was trained on. Give that text as '
            'the corpus'
        )
    frequencies = count_frequencies(training, vocab)
    return Evaluator(examples, vocab, frequencies, os.fspath(split))


def load_split(
    split: str | os.PathLike,
    corpus: Paths,
    vocab: Vocab,
    max_len: int,
    progress: bool,
) -> Examples:
    """Return the examples of a part of a corpus, or of another text.

    They are in the tokens of a vocabulary, and have `max_len` of them.
    """
    is_part = split in SPLITS
    examples, _ = load_cached_examples(
        open_corpus(corpus, str(split)) if is_part else open_corpus(split),
        max_len,
        SEED,
        same_tokens(vocab),
        display.Building(progress),
    )
    return examples
