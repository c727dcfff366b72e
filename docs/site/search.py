"""Pack a search index into one script: `python docs/site/search.py FOLDER`.

The browser fetches parts of Pagefind's index when a reader searches. Pages
that were opened as files may fetch nothing, so for them all parts are in one
script, too.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

#: What a search needs; the rest is Pagefind's own user interface.
NEEDED = ('pagefind.js', '*.json', '*.pf_meta', 'wasm.*', '*/*.pf_*')


def pack(folder: Path) -> None:
    """Write `files.js` beside the files of an index."""
    paths = {path for glob in NEEDED for path in folder.glob(glob)}
    files = {
        path.relative_to(folder).as_posix(): base64.b64encode(
            path.read_bytes()
        ).decode('ascii')
        for path in sorted(paths)
    }
    text = f'const pagefindFiles = {json.dumps(files)};\n'
    (folder / 'files.js').write_text(text, 'utf-8')


if __name__ == '__main__':
    pack(Path(sys.argv[1]))
