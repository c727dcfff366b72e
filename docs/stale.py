"""List the pages whose numbers were measured with older code.

    python docs/stale.py

A page says which commit its numbers are from and which code they depend on:
"Measured at commit `1a2b3c4` with the code of `backends/`, `d2lbert/`." For
each such sentence this compares that code with the one that is here. The
exit status is 1 where a page is stale.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ('*.md', 'docs/*.md', 'benchmarks/*.md')
MEASURED = re.compile(
    r'Measured\s+at\s+commit\s+`([^`]+)`\s+with\s+the\s+code\s+of\s+'
    r'((?:`[^`]+`(?:,\s+)?)+)'
)
#: What `git describe --dirty` adds where the code was not committed.
DIRTY = '-dirty'


def measurements(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each commit that a page names, and the paths of the code."""
    for found in MEASURED.finditer(text):
        yield found[1], re.findall('`([^`]+)`', found[2])


def git(root: Path, *arguments: str) -> str:
    """Return what git prints. Raises `CalledProcessError` where it fails."""
    command = ['git', '-C', str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


def changed_since(root: Path, commit: str, paths: list[str]) -> list[str]:
    """Return why numbers of a commit are stale, or nothing."""
    if commit.endswith(DIRTY):
        return ['the code that was measured had not been committed']
    try:
        files = git(root, 'diff', '--name-only', commit, '--', *paths)
    except subprocess.CalledProcessError as error:
        return [error.stderr.strip().splitlines()[0]]
    return files.split('\n')[:-1]


def stale(root: Path) -> Iterator[str]:
    """Yield a line for each measurement whose code has changed since."""
    for page in sorted(
        page for pattern in PAGES for page in root.glob(pattern)
    ):
        for commit, paths in measurements(page.read_text('utf-8')):
            changes = changed_since(root, commit, paths)
            if changes:
                more = f' and {len(changes) - 1} more' * (len(changes) > 1)
                yield (
                    f'{page.relative_to(root)}, measured at {commit}: '
                    f'{changes[0]}{more}'
                )


def main() -> int:
    """Print the stale pages."""
    lines = list(stale(ROOT))
    print('\n'.join(lines) or 'No page is stale.')
    return int(bool(lines))


if __name__ == '__main__':
    sys.exit(main())
