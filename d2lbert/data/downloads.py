"""Files that are fetched once and kept, checked against their SHA-1.

SHA-1 is the only checksum that the book gives of its files. It shows damage;
somebody with much effort could make another file with the same one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from d2lbert.data.corpus import get
from d2lbert.data.files import output_errors, write_file
from d2lbert.errors import CorpusError

#: The largest file that is fetched. SNLI has 9.5e7, BERT-Base 4e8.
MAX_BYTES = 1 << 30


def fetch_file(url: str, sha1_hash: str | None, folder: str | Path) -> Path:
    """Fetch a file, unless it is there with this SHA-1; return its path.

    `sha1_hash`: `None` for whatever the address gives; `folder`: where the
    file is kept, under the last part of the address. Raises `CorpusError`
    for a file that cannot be fetched or has another SHA-1.
    """
    path = Path(folder) / url.rpartition('/')[2]
    if sha1_hash and path.is_file() and sha1(path.read_bytes()) == sha1_hash:
        return path
    data = get(url, MAX_BYTES)
    if sha1_hash not in (None, sha1(data)):
        raise CorpusError(
            f'{url}: the SHA-1 of its {len(data):,} bytes is {sha1(data)}, '
            f'expected was {sha1_hash}: correct the SHA-1, as in DATA_HUB, '
            f'or fetch the file elsewhere and put it at {path}'
        )
    with output_errors(path, 'folder'):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, data)
    return path


def sha1(data: bytes) -> str:
    """Return the SHA-1 of some bytes, in hexadecimal."""
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
