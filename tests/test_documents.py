"""What the documents name exists: files, headings, modules, commands."""

import configparser
import importlib.util
import re
import subprocess
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import pytest

from docs import stale

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    str(path.relative_to(ROOT))
    for pattern in (
        *('*.md', 'docs/*.md', 'docs/site/*.md', 'docs/package/*.md'),
        *('notebooks/*.md', 'benchmarks/*.md'),
    )
    for path in sorted(ROOT.glob(pattern))
]
FENCE = re.compile(r'^( *)(```|~~~).*?^\1\2 *$', re.MULTILINE | re.DOTALL)
LINK = re.compile(r'\]\(\s*<?([^)\s>]+)>?[^)]*\)')
HTML_LINK = re.compile(r'<[^>]*?\b(?:href|src)="([^"]+)"')
REFERENCE = re.compile(r'^\[[^\]]+\]:\s*<?([^\s>]+)', re.MULTILINE)
#: A path in backquotes, from the top of the repository.
PATH = re.compile(
    r'`((?:\.ci|backends|benchmarks|d2lbert|docs|notebooks|tests)/[\w./-]*'
    r'|[\w-]+\.(?:cfg|md|toml|txt))`'
)
#: A dotted name of this project's in backquotes.
NAME = re.compile(r'`((?:d2lbert|backends)(?:\.\w+)+)(?:\([^`]*\))?`')
#: Files of a run.
ELSEWHERE = {'vocab.txt'}


def read(document):
    return (ROOT / document).read_text('utf-8')


def prose(text):
    """Return a text without its blocks of code."""
    return FENCE.sub('', text)


def blocks(text):
    """Return what stands in the blocks of code."""
    return '\n'.join(found[0] for found in FENCE.finditer(text))


def links(text):
    """Return the targets of all links and pictures."""
    text = re.sub(r'`[^`]*`', '``', prose(text))
    return [
        target
        for pattern in (LINK, HTML_LINK, REFERENCE)
        for target in pattern.findall(text)
    ]


def anchors(text):
    """Return the anchors that a code host makes of the headings."""
    seen = Counter()
    found = set(re.findall(r'\bid="([^"]+)"', text))
    for heading in re.findall(r'^#+ +(.+?) *#*$', prose(text), re.MULTILINE):
        heading = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading)
        anchor = re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
        found.add(f'{anchor}-{seen[anchor]}' if seen[anchor] else anchor)
        seen[anchor] += 1
    return found


def broken(target, document):
    """Return what is wrong with a link, or None."""
    if re.match(r'[a-z]+:', target):
        return None if target.startswith('https://') else 'is not https'
    path, _, anchor = target.partition('#')
    file = ROOT / document
    if path:
        file = file.parent / unquote(path)
    if not file.resolve().is_relative_to(ROOT):
        return 'leaves the repository'
    if file.resolve().is_relative_to(ROOT / 'api'):
        return None  # docs/site/reference.py makes these pages
    if not file.exists():
        return 'has no file'
    if anchor and anchor not in anchors(file.read_text('utf-8')):
        return 'has no heading'
    return None


@pytest.mark.parametrize('document', DOCUMENTS)
def test_every_link_leads_somewhere(document):
    wrong = {
        target: what
        for target in links(read(document))
        if (what := broken(target, document))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ('link', 'what'),
    [
        ('[a](docs/design.md#the-rooms)', None),
        ('[a](#why-the-book-prints-73-and-52)', None),
        ('[a](https://d2l.ai "title")', None),
        ('[a](http://d2l.ai)', 'is not https'),
        ('![a](docs/images/none.png)', 'has no file'),
        ('<img src="none.png">', 'has no file'),
        ('[a]: none.md', 'has no file'),
        ('[a](docs/design.md#a-room)', 'has no heading'),
        ('[a](../other/README.md)', 'leaves the repository'),
    ],
)
def test_a_broken_link_is_found(link, what):
    (target,) = links(f'Some text\n\n{link}\n')
    assert broken(target, 'README.md') == what


def test_code_has_no_links():
    assert links('`[a](b)`\n\n```\n[c](d)\n```\n') == []


@pytest.mark.parametrize('document', DOCUMENTS)
def test_every_path_in_backquotes_exists(document):
    folder = (ROOT / document).parent
    missing = [
        path
        for path in PATH.findall(prose(read(document)))
        if path not in ELSEWHERE
        and not (ROOT / path).exists()
        and not (folder / path).exists()
    ]
    assert missing == []


@pytest.mark.parametrize('document', DOCUMENTS)
def test_every_name_in_backquotes_exists(document):
    for name in set(NAME.findall(prose(read(document)))):
        package, *parts = name.split('.')
        found = importlib.import_module(package)
        for part in parts:
            package += f'.{part}'
            if not hasattr(found, part):
                # Not imported: it may be a tab without its framework
                assert importlib.util.find_spec(package), name
                break
            found = getattr(found, part)


@pytest.mark.parametrize('document', DOCUMENTS)
def test_every_target_of_make_exists(document):
    targets = re.findall(r'^([\w-]+):', read('Makefile'), re.MULTILINE)
    text = read(document)
    named = re.findall(r'`make ([a-z-]+)', prose(text))
    named += re.findall(r'^ *make ([a-z-]+)', blocks(text), re.MULTILINE)
    assert set(named) <= set(targets)


def test_the_table_of_rooms_is_what_is_on_the_disk():
    """A folder's row names its modules; each other file has a row."""
    rows = {}
    section = read('docs/design.md').split('\n## ')[1]
    for line in section.splitlines():
        if match := re.match(r'\| (`.+?) \| (.+) \|$', line):
            first, *others = re.findall('`(.+?)`', match[1])
            folder = first.rpartition('/')[0]
            for place in (first, *(f'{folder}/{name}' for name in others)):
                rows[place] = match[2]
    for package in ('d2lbert', 'backends'):
        for path in (ROOT / package).iterdir():
            name = f'{package}/{path.name}'
            if path.suffix == '.py' and not path.name.startswith('__'):
                assert name in rows, f'{name} has no row'
            elif (path / '__init__.py').exists():
                text = rows[f'{name}/']
                inside = {file.stem for file in path.glob('[!_]*.py')}
                named = set(re.findall(r'`(\w+)`', text))
                assert inside == named, name
    for place in rows:
        assert (ROOT / place).exists(), place


# ---- on a package index ----------------------------------------------


def test_the_description_of_the_package_needs_no_other_file():
    settings = configparser.ConfigParser()
    settings.read(ROOT / 'setup.cfg', 'utf-8')
    value = settings['metadata']['long_description']
    text = read(value.removeprefix('file: '))
    assert links(text) == []
    # What it says is what the README says
    readme = read('README.md')
    assert text.startswith('*Dive into Deep Learning*')
    assert text.split('\n\n')[0] in readme
    for line in blocks(text).splitlines():
        assert line in readme


# ---- what `make` installs and opens ----------------------------------


def test_every_notebook_that_make_lab_names_exists():
    named = {
        name
        for file in ('Makefile', 'README.md', 'notebooks/README.md')
        for name in re.findall(r'NOTEBOOK(?: \?)?= ?([\w/.-]+)', read(file))
    }
    assert len(named) > 1
    for name in named:
        assert (ROOT / 'notebooks' / name).is_file(), name


def test_every_requirement_is_pinned():
    settings = configparser.ConfigParser()
    settings.read(ROOT / 'setup.cfg', 'utf-8')
    required = [settings['options']['install_requires']]
    required += settings['options.extras_require'].values()
    names = re.findall(r'^([\w-]+)', '\n'.join(required), re.MULTILINE)
    pins = re.findall(r'^([\w.-]+)==', read('constraints.txt'), re.MULTILINE)
    assert {name.lower() for name in names} <= {pin.lower() for pin in pins}
    assert len(pins) == len(set(pins))


# ---- pages with numbers ----------------------------------------------


@pytest.fixture
def repository(tmp_path):
    """A repository with one commit of some code, and git for it."""

    def git(*arguments):
        command = ['git', '-c', 'user.name=a', '-c', 'user.email=a@b.c']
        done = subprocess.run(
            [*command, '-C', str(tmp_path), *arguments],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    git('init', '--quiet')
    (tmp_path / 'fast').mkdir()
    (tmp_path / 'fast' / 'code.py').write_text('x = 1')
    git('add', '.')
    git('commit', '--quiet', '--message', 'Fast code')
    return git


def test_a_page_is_stale_when_its_code_has_changed(repository, tmp_path):
    commit = repository('rev-parse', '--short', 'HEAD')
    page = tmp_path / 'README.md'
    measured = 'Measured at commit\n`{}` with the code of `fast/`, `x.py`.'
    page.write_text(measured.format(commit))
    assert not list(stale.stale(tmp_path))
    (tmp_path / 'slow.py').write_text('')
    assert not list(stale.stale(tmp_path))
    (tmp_path / 'fast' / 'code.py').write_text('x = 2')
    (line,) = stale.stale(tmp_path)
    assert line == f'README.md, measured at {commit}: fast/code.py'


def test_what_a_measurement_writes_is_not_its_code(repository, tmp_path):
    results = tmp_path / 'benchmarks' / 'results.json'
    results.parent.mkdir()
    results.write_text('{}')
    repository('add', '.')
    repository('commit', '--quiet', '--message', 'Results')
    commit = repository('rev-parse', '--short', 'HEAD')
    (tmp_path / 'README.md').write_text(
        f'Measured at commit `{commit}` with the code of `benchmarks/*.py`.'
    )
    results.write_text('[]')
    assert not list(stale.stale(tmp_path))


@pytest.mark.parametrize(
    ('commit', 'why'),
    [
        ('1234567', 'bad revision'),
        ('HEAD-dirty', 'had not been committed'),
    ],
)
def test_a_page_of_a_commit_that_nobody_has(
    repository, tmp_path, commit, why
):
    page = tmp_path / 'README.md'
    page.write_text(
        f'Measured at commit `{commit}` with the code of `fast/`.'
    )
    (line,) = stale.stale(tmp_path)
    assert why in line


def test_every_measurement_names_code_that_exists():
    found = [
        path
        for document in DOCUMENTS
        for _, paths in stale.measurements(read(document))
        for path in paths
    ]
    assert found
    for path in found:
        assert any(ROOT.glob(path.rstrip('/'))), path


@pytest.mark.parametrize('heading', ['The hour', 'The second hour'])
def test_the_plan_of_the_class_is_an_hour(heading):
    section = read('docs/teaching.md').split(f'## {heading}\n')[1]
    plan = re.findall(
        r'^\| (\d+) \| (\d+) \|', section.split('\n## ')[0], re.M
    )
    minute = 0
    for start, length in plan:
        assert int(start) == minute
        minute += int(length)
    assert minute == 60
