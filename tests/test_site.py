"""The page in a real browser: `make site`, then
`.site/bin/python -m pytest -m slow tests/test_site.py`.

It is opened from its files, as a reader without network would, and what
browsers treat otherwise there from a server too.
"""

import functools
import importlib
import re
import shutil
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / 'build' / 'site'
HOME = SITE.as_uri()
CHROMIUM = shutil.which('chromium')
#: Every page that was written for this project, whatever the version.
PAGES = [
    *('index', 'search', 'api', 'README', 'SECURITY', 'CONTRIBUTING'),
    *('CHANGELOG', 'docs/design', 'docs/parity', 'docs/oracle'),
    *('docs/editions', 'docs/reliability', 'docs/scaling'),
    *('docs/adding-a-backend', 'benchmarks/results'),
    *('benchmarks/results-gpu', 'notebooks/README'),
]
NOTEBOOKS = [
    str(path.relative_to(SITE).with_suffix(''))
    for path in sorted(SITE.glob('notebooks/*/bert-*.html'))
]
NOTEBOOK = 'notebooks/en/bert-torch'
PHONE = {'width': 360, 'height': 740}
DESK = {'width': 1280, 'height': 900}


@pytest.fixture
def load(monkeypatch):
    """Imports a file of docs/site, which is no package."""
    monkeypatch.syspath_prepend(ROOT / 'docs' / 'site')
    return importlib.import_module


# ---- without a browser -----------------------------------------------


def test_every_version_has_the_same_places_and_described_pictures(load):
    nbformat = pytest.importorskip('nbformat')
    source = load('source')
    paths = sorted(ROOT.glob(source.NOTEBOOKS))
    assert paths, 'no notebooks: run make notebooks'
    places = set()
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        found = source.with_anchors(notebook)
        texts = [cell.source for cell in found.cells]
        marks = re.findall('id="(.+?)"', '\n'.join(texts))
        assert marks == [f'at-{cell.id}' for cell in notebook.cells[1:]]
        assert len(set(marks)) == len(marks)
        assert texts[0] == notebook.cells[0].source
        places.add(tuple(marks))
        for cell in found.cells:
            drawn = any(
                'image/png' in output.get('data', {})
                for output in cell.get('outputs', ())
            )
            assert ('mystnb' in cell.metadata) == drawn
    assert len(places) == 1


def test_switches_lead_to_the_versions_that_there_are(load):
    switches = load('switches').switches
    pages = {
        'notebooks/en/bert-torch',
        'notebooks/en/bert-mxnet',
        'notebooks/en/bert-jax',
        'notebooks/ko/bert-torch',
    }
    found = switches('notebooks/en/bert-torch', pages)
    assert re.findall('href="(.+?)"', found) == [
        '../../notebooks/en/bert-jax.html',
        '../../notebooks/en/bert-mxnet.html',
        '../../notebooks/en/bert-torch.html',
        '../../notebooks/en/bert-torch.html',
        '../../notebooks/ko/bert-torch.html',
    ]
    assert found.count('aria-current') == 2
    found = switches('docs/design', pages)
    assert 'href="../notebooks/ko/bert-torch.html"' in found
    assert 'aria-current' not in found


def test_every_language_has_the_same_words(load):
    words = load('words').WORDS
    assert {'en', *words} == set(load('switches').LANGUAGES)
    assert len({frozenset(of_one) for of_one in words.values()}) == 1


def test_links_of_the_page_lead_to_the_same_files(load):
    moved_up = load('source').moved_up
    assert moved_up('[a](../../README.md#b) ![c](../images/d.png)') == (
        '[a](README.md#b) ![c](docs/images/d.png)'
    )


class Links(HTMLParser):
    """The places of a page, and where its links and pictures lead."""

    def __init__(self, path):
        super().__init__()
        self.places, self.targets = {''}, set()
        self.feed(path.read_text('utf-8'))

    def handle_starttag(self, tag, attrs):
        """Note one element."""
        for key, value in attrs:
            if key == 'id':
                self.places.add(value)
            elif key in ('href', 'src'):
                self.targets.add(value)


@pytest.mark.slow
def test_every_link_of_the_built_site_leads_somewhere():
    if not SITE.exists():
        pytest.skip('no page: run make site')
    pages = {path: Links(path) for path in SITE.rglob('*.html')}
    assert {SITE / f'{name}.html' for name in PAGES} <= set(pages)
    wrong = []

    def places(file):
        return pages[file].places if file in pages else {''}

    for path, page in pages.items():
        for target in page.targets:
            url = urlsplit(target)
            if url.scheme or url.netloc:
                continue
            file = path
            if url.path:
                file = (path.parent / unquote(url.path)).resolve()
            there = file.is_file() and file.is_relative_to(SITE)
            place = unquote(url.fragment)
            if not there or place not in places(file):
                wrong.append((path.name, target))
    assert wrong == []


@pytest.mark.slow
def test_the_built_site_has_the_pages_that_it_should():
    if not SITE.exists():
        pytest.skip('no page: run make site')
    built = {
        str(path.relative_to(SITE).with_suffix(''))
        for path in SITE.rglob('*.html')
        if '_modules' not in path.parts
    }
    assert built == {*PAGES, *NOTEBOOKS}


# ---- in Chromium -----------------------------------------------------


@pytest.fixture(scope='module')
def browser():
    api = pytest.importorskip(
        'playwright.sync_api', reason='no Playwright: use .site/bin/python'
    )
    if not CHROMIUM:
        pytest.skip('no Chromium: apt-get install chromium')
    if not SITE.exists():
        pytest.skip('no page: run make site')
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=['--no-sandbox']
        )
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """A page in which nothing may go wrong and nothing may leave."""
    context = browser.new_context(viewport=DESK)
    page = context.new_page()
    wrong = []

    def note(request):
        local = ('file:', 'data:', 'blob:', 'http://127.0.0.1:')
        if not request.url.startswith(local):
            wrong.append(f'request: {request.url}')

    page.on('request', note)

    def note_failure(request):
        # To leave a page is to abort what it still waits for: its icon
        icon = request.url.endswith('/favicon.svg')
        if not (icon and request.failure == 'net::ERR_ABORTED'):
            wrong.append(f'failed: {request.url}')

    page.on('requestfailed', note_failure)
    page.on('pageerror', lambda error: wrong.append(str(error)))
    page.on(
        'console',
        lambda it: it.type == 'error' and wrong.append(it.text),
    )
    yield page
    context.close()
    assert wrong == []


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture(params=['files', 'server'])
def home(request):
    """Where the page is: on the disk, or on a server of this machine."""
    if request.param == 'files':
        yield HOME
        return
    handler = functools.partial(Quiet, directory=SITE)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def go(page, name, home=HOME):
    page.goto(f'{home}/{name}.html')
    if page.locator('.math').count():
        page.wait_for_function('MathJax.startup.promise.then(() => true)')


def top_place(page):
    """What is read now: the last mark above the upper part of the window."""
    return page.evaluate(
        """() => [...document.querySelectorAll('.place')].filter(
            (mark) => mark.getBoundingClientRect().top < innerHeight / 4
        ).pop()?.id"""
    )


@pytest.mark.slow
@pytest.mark.parametrize('size', [DESK, PHONE], ids=['desk', 'phone'])
def test_switches_keep_choice_and_place(opened, size):
    opened.set_viewport_size(size)
    go(opened, NOTEBOOK)
    opened.evaluate(
        "document.getElementById('at-attention-figure').scrollIntoView()"
    )
    seen = {opened.url}
    links = opened.locator('.switches a')
    # Framework links come first, languages after them
    frameworks = opened.locator('nav[aria-label=Framework] a').count()
    for language in range(frameworks, links.count()):
        for number in (language, *range(frameworks)):
            if links.nth(number).get_attribute('aria-current'):
                continue
            links.nth(number).click()
            opened.wait_for_load_state('load')
            opened.wait_for_function('scrollY > 500', timeout=5000)
            assert top_place(opened) == 'at-attention-figure'
            seen.add(opened.url.partition('#')[0])
    assert len(seen) == len(NOTEBOOKS) > 1
    last = opened.url.partition('#')[0]
    for page in ('docs/design', 'index'):
        go(opened, page)
        links = opened.locator('a[href*="/bert-"]:not(.switches a)')
        assert links.count()
        for link in links.all():
            assert link.evaluate('link => link.href') == last


@pytest.mark.slow
def test_every_page_has_switches_that_know_the_choice(opened, home):
    go(opened, 'notebooks/ko/bert-mxnet', home)
    for name in PAGES:
        go(opened, name, home)
        chosen = opened.locator('.switches [aria-current=true]')
        assert chosen.all_inner_texts() == ['MXNet', '한국어']
    opened.locator('.switches').get_by_label('Français').click()
    opened.wait_for_url('**/notebooks/fr/bert-mxnet.html')
    go(opened, 'index', home)
    opened.locator('.switches').get_by_label('PyTorch').click()
    opened.wait_for_url('**/notebooks/fr/bert-torch.html')


@pytest.mark.slow
@pytest.mark.parametrize('name', [*PAGES, *NOTEBOOKS])
def test_a_page_on_a_phone(opened, name):
    opened.set_viewport_size(PHONE)
    go(opened, name)
    assert opened.evaluate(
        """() => {
            scrollTo(1000, 0);
            const page = document.documentElement;
            return [scrollX, page.scrollWidth - page.clientWidth];
        }"""
    ) == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize('theme', ['light', 'dark'])
@pytest.mark.parametrize('name', [*PAGES, *NOTEBOOKS])
def test_axe_finds_nothing(opened, name, theme):
    axe = pytest.importorskip('axe_playwright_python.sync_playwright')
    opened.emulate_media(color_scheme=theme)
    go(opened, name)
    # Preloading would read style sheets again, which files may not
    found = axe.Axe().run(opened, options={'preload': False})
    assert [
        (rule['id'], node['html'][:200], node['failureSummary'])
        for rule in found.response['violations']
        for node in rule['nodes'][:3]
    ] == []


@pytest.mark.slow
def test_search_finds(opened, home):
    opened.goto(f'{home}/index.html')
    box = opened.locator('input[name=q]').first
    box.fill('reconciliation')
    box.press('Enter')
    result = opened.locator('ul.search li a[href*="docs/parity"]').first
    result.wait_for()
    result.click()
    opened.wait_for_load_state('load')
    assert 'docs/parity' in opened.url


@pytest.mark.slow
def test_mathematics_is_set(opened):
    go(opened, NOTEBOOK)
    sources = opened.locator('.math').count()
    assert opened.locator('.math mjx-container').count() >= sources > 10
    assert opened.locator('mjx-merror').count() == 0
    assert '$' not in opened.locator('article').inner_text()


@pytest.mark.slow
def test_solutions_are_hidden_until_they_are_opened(opened):
    go(opened, NOTEBOOK)
    solution = opened.locator('details').first
    inside = solution.locator('p').first
    assert not inside.is_visible()
    solution.locator('summary').click()
    assert inside.is_visible()


@pytest.mark.slow
def test_the_theme_can_be_changed(opened):
    opened.emulate_media(color_scheme='light')
    go(opened, NOTEBOOK)
    colour = 'getComputedStyle(document.body).backgroundColor'
    seen = set()
    for _ in range(3):
        seen.add(opened.evaluate(colour))
        opened.locator('button.theme-toggle:visible').first.click()
    assert len(seen) == 2


@pytest.mark.slow
@pytest.mark.parametrize('name', NOTEBOOKS)
def test_a_notebook_says_its_language(opened, name):
    go(opened, name)
    language = name.split('/')[1]
    assert opened.locator('html').get_attribute('lang') == language
    shown = opened.locator('.toc-title, .related-pages .context')
    english = {'On this page', 'Next', 'Previous'} & set(
        map(str.strip, shown.all_text_contents())
    )
    assert bool(english) == (language == 'en')
    assert opened.locator('img[src]:not([alt])').count() == 0
