"""A trained network: kept in a folder, and read back, whatever its task.

The folder of a pretraining is described in `d2lbert.runs.run`, and that of a
fine-tuning in `d2lbert.finetuning.run`.
"""

from __future__ import annotations

import json
import math
import os
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from d2lbert import __version__
from d2lbert.data.files import (
    DAMAGE,
    load_arrays,
    sha256_of,
    to_safetensors,
    write_file,
)
from d2lbert.data.vocab import Vocab
from d2lbert.data.wordpiece import vocab_of
from d2lbert.errors import FolderTaken, InputError, RunError
from d2lbert.frameworks import label_of
from d2lbert.runs import display
from d2lbert.runs.checkpoint import Checkpoints
from d2lbert.runs.folder import (
    check_free,
    locked,
    read_manifest,
    to_manifest,
    write_together,
)
from d2lbert.trainer import Trainer
from d2lbert.weights import check_finite, get_weights, set_weights

RUN_FILE, FINETUNED_FILE = 'run.json', 'finetuned.json'
METRICS_FILE, VOCAB_FILE = 'metrics.jsonl', 'vocab.txt'
WEIGHTS_FILE, BEST_FILE = 'weights.safetensors', 'best.safetensors'
TOKENIZER_FILE = 'tokenizer.json'
LOSSES, FINETUNING = 'losses', 'finetuning'


@dataclass
class TrainedRun(ABC):
    """A trained network, its vocabulary, and how the training went.

    `net`: the native network; `devices`: where it was trained, by each of so
    many `processes`; `steps`: what each step reported; `record`: the results
    and versions in the manifest, for a run that was read; `evaluations`: what
    was found on held-out text, with the `step` after which it was;
    `best_weights`: the parameters of the best evaluation, by neutral names,
    where they are kept.
    """

    config: Any
    net: Any
    vocab: Vocab
    devices: Sequence[Any]
    processes: int = 1
    steps: list[Any] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    best_weights: dict[str, np.ndarray] = field(default_factory=dict)

    #: The subcommand that trains such runs, and what it calls one.
    COMMAND: ClassVar[str]
    NOUN: ClassVar[str]
    #: The name of the manifest, and that of the pictures without a suffix.
    MANIFEST: ClassVar[str]
    PICTURE: ClassVar[str]
    #: What a step reports, a named tuple.
    STEP: ClassVar[Any]
    #: Other fields that the manifest has.
    ABOUT: ClassVar[Sequence[str]] = ()

    def add_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Keep what was found after the last step."""
        self.evaluations.append({'step': len(self.steps), **evaluation})

    @property
    def speed(self) -> float:
        """The pairs trained on in a second, or NaN without steps."""
        seconds = sum(step.seconds for step in self.steps)
        num_pairs = sum(step.num_pairs for step in self.steps)
        return num_pairs / seconds if seconds else math.nan

    def framework(self) -> str:
        """Return in words what has computed."""
        return label_of(self.config.backend)

    def place(self) -> str:
        """Return in words where it was trained."""
        each = f' in each of {self.processes} processes'
        return f'{list(self.devices)}{each if self.processes > 1 else ""}'

    def results(self) -> dict[str, Any]:
        """Return the results, ready for JSON."""
        return self.record['results'] if self.record else self.new_results()

    def save(self, folder: str | Path) -> None:
        """Write the run into a folder.

        Raises `InputError` for a folder that holds a run already or cannot
        be written, and `RunError` where writing fails half-way.
        """
        with locked(folder) as check_held:
            check_no_run(folder)
            self.write(folder, check_held)
            self.draw(folder, check_held)

    def write(
        self, folder: str | Path, check_held: Callable[[], None]
    ) -> None:
        """Write into a folder that is locked, over any run in it.

        `check_held`: see `locked`. The pictures of that run are removed.
        """
        files = self.files()
        record = self.record or {
            'results': self.results(),
            'versions': versions(self.config.backend),
        }
        own = {name: getattr(self, name) for name in self.ABOUT}
        about = {'config': self.config.as_dict(), **own, **record}
        files = {**files, self.MANIFEST: to_manifest(about, files)}
        remedy = (
            '. What is there is not a whole run: make room and try again, '
            'with --resume where there are checkpoints'
        )
        # Without the manifest the folder holds no run
        outdated = (self.MANIFEST, *pictures(self.PICTURE))
        write_together(Path(folder), files, check_held, remedy, outdated)

    def draw(
        self, folder: str | Path, check_held: Callable[[], None]
    ) -> None:
        """Draw the pictures of a run that was written.

        `check_held`: see `locked`.
        """

        def write(path: Path, data: bytes) -> None:
            check_held()
            write_file(path, data)

        if self.steps:
            with display.drawing():
                self.draw_curves(Path(folder) / self.PICTURE, write)

    def files(self) -> dict[str, bytes]:
        """Return the files that `read_run` needs, by name.

        Raises `RunError` for parameters that are not finite.
        """
        evaluated = {
            found['step']: {'evaluation': found} for found in self.evaluations
        }
        metrics = (
            json.dumps({'step': i, **step._asdict(), **evaluated.get(i, {})})
            for i, step in enumerate(self.steps, 1)
        )
        weights = get_weights(self.net)
        check_finite('the parameters are', weights)
        files = {
            WEIGHTS_FILE: weights_file(weights),
            VOCAB_FILE: text_file(self.vocab.idx_to_token),
            METRICS_FILE: text_file(metrics),
        }
        if tokenizer := self.vocab.tokenizer_json():
            files[TOKENIZER_FILE] = tokenizer.encode()
        if self.best_weights:
            files[BEST_FILE] = weights_file(self.best_weights)
        return files

    # ---- the task ----------------------------------------------------

    @classmethod
    @abstractmethod
    def load(cls, folder: str | Path, backend: str | None = None) -> Any:
        """Read a run, into its own framework or into another one."""

    @abstractmethod
    def new_trainer(self, **options: Any) -> Trainer:
        """Return a trainer that begins with the current parameters.

        `options`: of `Trainer`, those that no configuration has.
        """

    @abstractmethod
    def new_results(self) -> dict[str, Any]:
        """Return the results of a run that was trained here."""

    @abstractmethod
    def draw_curves(
        self, path: Path, write: Callable[[Path, bytes], None]
    ) -> object:
        """Draw the pictures. `path`, `write`: see `draw_losses`."""


class Read(NamedTuple):
    """What the files of a run say: see `TrainedRun`.

    `options`: those of its configuration; `about`: the fields that `ABOUT`
    names; `weights`: the parameters after the last step.
    """

    options: dict[str, Any]
    about: dict[str, Any]
    weights: dict[str, np.ndarray]
    vocab: Vocab
    devices: list[str]
    processes: int
    steps: list[Any]
    record: dict[str, Any]
    evaluations: list[dict[str, Any]]
    best_weights: dict[str, np.ndarray]

    def fields(self) -> dict[str, Any]:
        """Return the fields of `TrainedRun`, but the first two."""
        found = self._asdict()
        del found['options'], found['weights']
        return {**found.pop('about'), **found}


def read_run(folder: str | Path, Kind: type[TrainedRun]) -> Read:
    """Read the files of a run of some kind.

    Raises `InputError` where there is no run, and `RunError` for one that is
    damaged, not finite, or of a newer d2lbert.
    """
    path = Path(folder) / Kind.MANIFEST
    if not os.path.isfile(path):
        raise InputError(
            f'{folder} holds no {Kind.NOUN}: '
            + (
                'its training was stopped, continue it with --resume'
                if Checkpoints(folder).find()
                else f'give a folder that `d2lbert {Kind.COMMAND} --out` '
                'has written'
            )
        )
    try:
        record, files = read_manifest(path)
        metrics = list(map(json.loads, files[METRICS_FILE].splitlines()))
        results = record['results']
        found = Read(
            record.pop('config'),
            {name: record.pop(name) for name in Kind.ABOUT},
            load_arrays(files[WEIGHTS_FILE]),
            vocab_in(files),
            # Weights that were trained elsewhere have none
            results.get('devices', []),
            results.get('processes', 1),
            [
                Kind.STEP(*(line[name] for name in Kind.STEP._fields))
                for line in metrics
            ],
            record,
            [line['evaluation'] for line in metrics if 'evaluation' in line],
            load_arrays(files[BEST_FILE]) if BEST_FILE in files else {},
        )
    except DAMAGE as error:
        raise RunError(
            f'the run in {folder} cannot be read ({error}): copy it again '
            'from where it came, or train it again'
        ) from error
    for weights in (found.weights, found.best_weights):
        check_finite(f'the weights in {folder} are', weights)
    return found


def put_weights(
    net: Any,
    weights: Mapping[str, np.ndarray],
    manifest: Path,
    number: int = 0,
) -> None:
    """Give a network the weights of a run, on a GPU where there is one.

    `number`: of the GPU; where there are fewer, they are counted again.
    Raises `RunError` where they are not those that the manifest describes.
    """
    try:
        gpu = number % max(1, net.backend.num_gpus())
        set_weights(net, weights, [net.backend.try_gpu(gpu)])
    except ValueError as error:
        raise RunError(
            f'the weights in {manifest.parent} are not those of its '
            f'{manifest.name}: {error}'
        ) from error


def vocab_in(files: Mapping[str, bytes]) -> Vocab:
    """Return the vocabulary of a run's files."""
    tokens = files[VOCAB_FILE].decode().split('\n')[:-1]
    if TOKENIZER_FILE in files:
        return vocab_of(tokens, files[TOKENIZER_FILE].decode())
    return Vocab.from_tokens(tokens)


def config_of(Config: Any, options: Mapping[str, Any], path: Path) -> Any:
    """Return the options that a whole file holds.

    `Config`: the class of the options; `path`: of the file. Raises
    `RunError` where another version of d2lbert has written it, whose options
    these are.
    """
    try:
        return Config(**options)
    except (TypeError, InputError) as error:
        raise RunError(
            f'the options in {path} cannot be used ({error}), as where '
            f'another version than {__version__} has written it: use the '
            'd2lbert that wrote it'
        ) from error


def check_no_run(folder: str | Path) -> None:
    """Raise `InputError` unless a run can be written into a folder.

    It may be there, and hold other files than those of a run.
    """
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise FolderTaken(f'{folder} is not a folder: give another --out')
    manifests = RUN_FILE, FINETUNED_FILE
    if any(os.path.exists(Path(folder) / name) for name in manifests):
        raise FolderTaken(
            f'{folder} holds a run already: give another --out, or remove it'
        )
    if Checkpoints(folder).find():
        raise FolderTaken(
            f'{folder} holds checkpoints of a run: continue it with '
            '--resume, or give another --out'
        )
    check_free(
        folder,
        (
            *(*manifests, METRICS_FILE, WEIGHTS_FILE, VOCAB_FILE),
            *(TOKENIZER_FILE, BEST_FILE),
            *(*pictures(LOSSES), *pictures(FINETUNING)),
        ),
    )


def pictures(name: str) -> list[str]:
    """Return the names of the files of a picture."""
    return [name + suffix for suffix in display.SUFFIXES]


def versions(backend: str) -> dict[str, str]:
    """Return the versions of the software that trains a run."""
    modules = map(import_module, ('d2lbert', 'numpy', backend))
    found = {module.__name__: str(module.__version__) for module in modules}
    return {'python': platform.python_version(), **found}


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of the bytes of arrays, in the order of names."""
    return sha256_of(
        np.ascontiguousarray(arrays[name]).data for name in sorted(arrays)
    )


def weights_file(weights: Mapping[str, np.ndarray]) -> bytes:
    """Return the contents of a safetensors file."""
    header, parts = to_safetensors(weights)
    return b''.join([header, *parts])


def text_file(lines: Iterable[str]) -> bytes:
    """Return the contents of a file of these lines."""
    return ''.join(f'{line}\n' for line in lines).encode()
