"""Pairs of sentences for natural language inference, in SNLI's format.

Bowman, Angeli, Potts and Manning, "A large annotated corpus for learning
natural language inference" (2015). A part of the corpus is a UTF-8 text with
a header and then a pair a line, in fields that tabs separate. Three of them
are used: the label, and the parse trees of premise and hypothesis, whose
words stand between parentheses.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from d2lbert.data.archives import (
    archive_errors,
    join_chunks,
    only_one,
    open_member,
)
from d2lbert.data.corpus import cache_folder
from d2lbert.data.downloads import fetch_file
from d2lbert.data.files import (
    check_regular,
    chunks,
    describe_error,
    output_errors,
    write_file,
)
from d2lbert.errors import (
    CorpusError,
    InputError,
    check_choice,
    expand_home,
)

FOLDER = 'snli_1.0'
ADDRESS = f'https://nlp.stanford.edu/projects/snli/{FOLDER}.zip'
SHA1 = '9fcde07509c7e87ec61c640c1b2753d9041758e4'
#: The files of the corpus, of which the book reads the first and the last.
FILES = {
    'train': f'{FOLDER}_train.txt',
    'valid': f'{FOLDER}_dev.txt',
    'test': f'{FOLDER}_test.txt',
}
#: The classes, in the order of their numbers.
LABELS = ('entailment', 'contradiction', 'neutral')
#: The largest part that is read: that of training has 4.7e8 bytes.
MAX_TEXT_BYTES = 1 << 30


class Pairs(NamedTuple):
    """Premises, hypotheses and the numbers of their classes, in order."""

    premises: list[str]
    hypotheses: list[str]
    labels: list[int]


def read_pairs(data: str | os.PathLike, part: str = 'train') -> Pairs:
    """Return the pairs of a part of a corpus that have a label.

    `data`: `'sample'`, the embedded pairs; `'snli'`, which is read from the
    path in `D2LBERT_SNLI` if that is set, else from the cache, else from its
    address; or the path of a zip or a folder with SNLI's files. `part`: one
    of `FILES`. A sentence is its words and signs with single spaces between.

    Raises `InputError` for a path that cannot be read, and `CorpusError` for
    a corpus that cannot be fetched, is damaged or has no pair.
    """
    check_choice('part', part, FILES)
    if os.fspath(data) == 'sample':
        from d2lbert.data import nli_sample

        return parse(nli_sample.lines(part), f'the sample, {part}')
    with open_part(data, part) as (stream, name):
        text = io.TextIOWrapper(stream, encoding='utf-8')
        try:
            return parse(text, name)
        except UnicodeDecodeError as error:
            raise CorpusError(
                f'{name} is not UTF-8 ({error}): give another copy of it'
            ) from error


def parse(lines: Iterator[str] | IO[str] | list[str], name: str) -> Pairs:
    """Return the pairs that have a label, of a file's lines.

    `name`: of the file, for errors.
    """
    pairs = Pairs([], [], [])
    number_of = {label: number for number, label in enumerate(LABELS)}
    rows = iter(lines)
    next(rows, None)
    for number, row in enumerate(rows, 2):
        label, *trees = row.split('\t', 3)
        if label not in number_of:  # a dash where the annotators disagree
            continue
        if len(trees) < 2:
            raise CorpusError(
                f'line {number} of {name} has {len(trees) + 1} fields: '
                'expected a label and two parse trees, separated by tabs'
            )
        pairs.premises.append(words_of(trees[0]))
        pairs.hypotheses.append(words_of(trees[1]))
        pairs.labels.append(number_of[label])
    if not pairs.labels:
        raise CorpusError(
            f'{name} has no pair: expected a header, then lines that begin '
            f'with {", ".join(LABELS)}'
        )
    return pairs


def words_of(tree: str) -> str:
    """Return the words of a parse tree, without its parentheses."""
    text = tree.replace('(', '').replace(')', '')
    return re.sub(r'\s{2,}', ' ', text).strip()


# ---- files -----------------------------------------------------------


@contextmanager
def open_part(
    data: str | os.PathLike, part: str
) -> Iterator[tuple[IO[bytes], str]]:
    """Give the bytes of a part of a corpus as a stream, and its name."""
    path, option = path_of(data)
    wanted = FILES[part]
    in_folder = os.path.isdir(path)
    try:
        if in_folder:
            path = os.path.join(folder_in(path, option, wanted), wanted)
        check_regular(path)
        file = open(path, 'rb')  # noqa: SIM115, the caller closes it
    except OSError as error:
        raise InputError(
            f'The pairs {option}{os.fspath(data)!r} cannot be read '
            f"({describe_error(error)}); expected was 'sample', 'snli', or "
            f'the path of a zip or a folder with {FILES["train"]} and '
            f'{FILES["test"]}'
        ) from error
    with file, archive_errors(path):
        if in_folder:
            yield file, path
        else:
            yield open_member(file, path, wanted, MAX_TEXT_BYTES), path


def path_of(data: str | os.PathLike) -> tuple[str, str]:
    """Return the path of a corpus, and what names it in errors."""
    if os.fspath(data) != 'snli':
        return expand_home(os.fsdecode(data)), ''
    if given := os.environ.get('D2LBERT_SNLI'):
        return expand_home(given, 'D2LBERT_SNLI='), 'D2LBERT_SNLI='
    try:
        return str(fetch_file(ADDRESS, SHA1, cache_folder())), ''
    except CorpusError as error:
        raise CorpusError(
            f'{error}; or name an archive or a folder of SNLI in the '
            "environment variable D2LBERT_SNLI; or take the pairs 'sample'"
        ) from error


def folder_in(folder: str, option: str, wanted: str) -> str:
    """Return the folder that has a file: this one, or SNLI's in it."""
    folders = (folder, os.path.join(folder, FOLDER))
    found = [one for one in folders if os.path.exists(f'{one}/{wanted}')]
    return only_one(found, f'folder {option}{folder}', wanted)


def snli_folder() -> str:
    """Return a folder that has SNLI's files for training and testing.

    It is the one in `D2LBERT_SNLI`, or one in the cache, where the two files
    of the archive are written.
    """
    path, option = path_of('snli')
    wanted = FILES['train'], FILES['test']
    if os.path.isdir(path):
        return folder_in(path, option, wanted[0])
    folder = cache_folder() / FOLDER
    for part in ('train', 'test'):
        with open_part(path, part) as (stream, name):
            data = join_chunks(chunks(stream), name, MAX_TEXT_BYTES)
        keep(folder / FILES[part], data)
    return str(folder)


def keep(path: Path, data: bytes) -> None:
    """Write a file of the cache, unless it is there with these bytes."""
    with suppress(OSError):
        check_regular(path, len(data))
        if path.read_bytes() == data:
            return
    with output_errors(path, 'D2LBERT_CACHE'):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, data)
