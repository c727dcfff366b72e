"""A run's folder: its lock, and the manifest of its files.

A manifest is sealed JSON with the sizes and the checksums of other files of
its folder. It is written after them: a folder without one holds no run.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from d2lbert.data.files import (
    FORMAT,
    NO_CHECKSUM,
    check_regular,
    check_seal,
    describe_error,
    output_errors,
    parse_manifest,
    remove_unfinished,
    seal,
    sha256,
    sync_folder,
    write_file,
)
from d2lbert.errors import FolderTaken, RunError

LOCK = '.lock'
#: The largest manifest, in bytes: a run of a million steps has 50 MB.
MAX_MANIFEST = 1 << 28


def make_folder(folder: str | Path) -> Path:
    """Make a folder unless it exists, and check that it can be written.

    Raises `InputError` where it cannot, `RunError` where the disk is full.
    """
    folder = Path(folder)
    with output_errors(f'the folder {folder}', '--out'):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            sync_folder(folder)
    return folder


def check_free(folder: str | Path, names: Iterable[str]) -> None:
    """Raise `FolderTaken` where one of these files would be replaced."""
    paths = {name: os.path.join(folder, name) for name in names}
    found = [name for name, path in paths.items() if os.path.lexists(path)]
    if found:
        raise FolderTaken(
            f'{folder} holds {", ".join(found)} already, which d2lbert would '
            'replace: give another --out, or move that away'
        )


@contextmanager
def locked(folder: str | Path) -> Iterator[Callable[[], None]]:
    """Lock a folder for this process, until it leaves the block or ends.

    A new folder is made, and removed again where an error leaves it empty.
    Gives a function to call before each write: it raises `RunError` where
    the folder is no longer the one that was locked. Raises the errors of
    `make_folder`, and `FolderTaken` where another process holds the lock.
    """
    from filelock import FileLock, Timeout

    is_new = not os.path.exists(folder)
    path = make_folder(folder) / LOCK
    check_lock(path)
    lock = FileLock(path)
    with output_errors(f'the folder {folder}', '--out'):
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise FolderTaken(
                f'another process is using {folder}: wait for it, stop it, '
                'or give another --out'
            ) from error
        # No other file gets its number, because the lock holds it open
        held = os.stat(path)

    def check_held() -> None:
        try:
            if os.path.samestat(held, os.stat(path)):
                return
        except OSError:
            pass
        raise RunError(
            f'{folder} was removed or replaced while it was in use. What was '
            'computed for it cannot be kept, and what is there now is left '
            'as it is: start again with another --out'
        )

    try:
        yield check_held
    except BaseException:
        with suppress(OSError, RunError):  # the folder may be gone
            check_held()
            if is_new and os.listdir(folder) == [LOCK]:
                path.unlink()
                path.parent.rmdir()
        raise
    finally:
        lock.release()


def check_lock(path: Path) -> None:
    """Raise `FolderTaken` where a lock would replace a file of the user."""
    with suppress(FileNotFoundError):
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size:
            raise FolderTaken(
                f'{path} is not an empty file, as the lock of d2lbert is: '
                'give another --out, or move that away'
            )


def write_together(
    folder: Path,
    files: Mapping[str, bytes],
    check_held: Callable[[], None],
    remedy: str,
    outdated: Iterable[str] = (),
) -> None:
    """Write the files of a run into a folder that is locked.

    `check_held`: see `locked`; `outdated`: files that are removed first.
    Where one file cannot be written all are removed, so that the next run
    may be written there: raises `RunError`, which ends with `remedy`.
    """
    check_held()
    try:
        for name in outdated:
            (folder / name).unlink(missing_ok=True)
        for name, data in files.items():
            check_held()
            write_file(folder / name, data)
        remove_unfinished(folder, 0)
    except OSError as error:
        check_held()
        for name in files:
            with suppress(OSError):
                (folder / name).unlink()
        raise RunError(
            f'the run could not be written to {folder}: '
            f'{describe_error(error)}{remedy}'
        ) from error


def to_manifest(
    content: Mapping[str, Any], files: Mapping[str, bytes]
) -> bytes:
    """Return a manifest of some content and of files by their names."""
    manifest = {
        'format': FORMAT,
        'sha256': NO_CHECKSUM,  # first, because `seal` takes the first one
        **content,
        'files': {name: describe_file(data) for name, data in files.items()},
    }
    return b''.join(seal(f'{json.dumps(manifest, indent=2)}\n'.encode()))


def read_manifest(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the content and the files that `to_manifest` was given.

    Raises `RunError` for another format, and one of `DAMAGE` where the
    manifest or a file is not, byte for byte, as it was written. A larger
    file is not read.
    """
    check_regular(path, MAX_MANIFEST)
    data = path.read_bytes()
    content = parse_manifest(path, data)
    check_seal(data, content.pop('sha256'))
    files = {}
    for name, description in content.pop('files').items():
        check_regular(path.with_name(name), most=description['bytes'])
        files[name] = path.with_name(name).read_bytes()
        if describe_file(files[name]) != description:
            raise ValueError(f'{name} is not as it was written')
    return content, files


def describe_file(data: bytes) -> dict[str, Any]:
    """Return what a manifest says about a file."""
    return {'bytes': len(data), 'sha256': sha256(data)}
