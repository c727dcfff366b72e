"""The book's table of datasets, and the functions that fetch them.

WikiText-2 comes from `d2lbert.data.corpus`, because its address in the book
is gone, and the files of SNLI from `d2lbert.data.snli`, because its archive
has names that no system can write. Other names of the table are fetched from
the address that it has.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from d2lbert.data import snli
from d2lbert.data.archives import TRAIN_FILE
from d2lbert.data.corpus import ARCHIVE, cache_folder, fetch, read_lines
from d2lbert.data.downloads import fetch_file
from d2lbert.errors import CorpusError, InputError
from d2lbert.pretrained import ARCHIVES
from d2lbert.pretrained import DATA_URL as DATA_URL

WIKITEXT_2, SNLI = 'wikitext-2', 'SNLI'
#: Address and SHA-1 of each dataset, by name. Cells of the book add theirs.
DATA_HUB = {
    WIKITEXT_2: (
        f'https://wikitext.smerity.com/{ARCHIVE}',
        '3c914d17d80b1459be871a5039ac23e752a53cbe',
    ),
    SNLI: (snli.ADDRESS, snli.SHA1),
    **ARCHIVES,
}


def download(
    url: str, folder: str | None = None, sha1_hash: str | None = None
) -> str:
    """Fetch a file, unless it is there with this SHA-1; return its path.

    `url`: an address, or a name in `DATA_HUB`; `folder`: where the file is
    kept, by default the cache. Raises `CorpusError` for a file that cannot
    be fetched or has another SHA-1.
    """
    if url == WIKITEXT_2:
        fetch()
        return str(cache_folder() / ARCHIVE)
    url, sha1_hash = DATA_HUB.get(url, (url, sha1_hash))
    if not url.startswith(('http://', 'https://')):
        raise InputError(
            f'{url!r} is no address and not in DATA_HUB, which has '
            + ', '.join(map(repr, DATA_HUB))
            + ': add its address and SHA-1 to DATA_HUB'
        )
    return str(fetch_file(url, sha1_hash, folder or cache_folder()))


def extract(filename: str, folder: str | None = None) -> None:
    """Unpack an archive (.zip, .tar, .tar.gz), by default where it lies."""
    folder = folder or os.path.dirname(filename)
    # No file outside of the folder; zip files never have one
    options: Any = {} if filename.endswith('.zip') else {'filter': 'data'}
    if options and not hasattr(tarfile, 'data_filter'):
        # Python before 3.10.12 and 3.11.4
        check_members(filename, folder)
        options = {}
    try:
        shutil.unpack_archive(filename, folder, **options)  # noqa: TID251
    except Exception as error:  # the types differ from Python to Python
        raise CorpusError(
            f'{filename} cannot be unpacked ({error}): expected an archive, '
            '.zip, .tar or .tar.gz'
        ) from error


def check_members(filename: str, folder: str) -> None:
    """Raise `CorpusError` for a tar archive with more than files in a folder.

    An archive that cannot be read is left to whoever unpacks it.
    """
    root = Path(folder).resolve()
    with suppress(tarfile.TarError, OSError), tarfile.open(filename) as tar:
        for member in tar:
            is_inside = (root / member.name).resolve().is_relative_to(root)
            if not is_inside or not (member.isfile() or member.isdir()):
                raise CorpusError(
                    f'{filename} is not unpacked: {member.name!r} is outside '
                    'of its folder, or neither a file nor a folder: expected '
                    'an archive of files and folders alone'
                )


def download_extract(name: str, folder: str | None = None) -> str:
    """Fetch and unpack a dataset; return the path of its folder.

    `name`: in `DATA_HUB`; `folder`: the name of the archive's folder, by
    default that of the archive without its ending. For 'wikitext-2' the
    folder holds the `wiki.train.tokens` of the corpus that
    `load_data_wiki` reads: see `d2lbert.data.corpus.read_lines`; for
    'SNLI' it is `d2lbert.data.snli.snli_folder`.
    """
    if name == WIKITEXT_2:
        return wikitext_2_folder()
    if name == SNLI:
        return snli.snli_folder()
    path = download(name)
    extract(path)
    base, _ = os.path.splitext(path.removesuffix('.gz'))
    return os.path.join(os.path.dirname(path), folder) if folder else base


def wikitext_2_folder() -> str:
    """Write `wiki.train.tokens` to the cache; return its folder."""
    text = ''.join(read_lines(WIKITEXT_2)).encode()
    path = cache_folder() / WIKITEXT_2 / TRAIN_FILE
    snli.keep(path, text)
    return str(path.parent)


def get_dataloader_workers() -> int:
    """Return 0: the examples are in memory, no other process need load them.

    The textbook returns 4; such processes are forked, which frameworks that
    have started threads do not bear.
    """
    return 0
