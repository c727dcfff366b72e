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
LANGUAGES = ('en', 'fr', 'ko', 'vi', 'zh')
FRAMEWORKS = ('jax', 'mxnet', 'torch')
FIRST = ['index', *(f'{it}/index' for it in LANGUAGES[1:])]
SEARCHES = ['search', *(f'{it}/search' for it in LANGUAGES[1:])]
#: Pages that are in English only.
ENGLISH = [
    *('README', 'SECURITY', 'CONTRIBUTING', 'CHANGELOG', 'notebooks/README'),
    *('docs/teaching', 'docs/answers'),
    *('docs/learning', 'docs/editions', 'docs/parity', 'docs/oracle'),
    *('docs/scaling', 'docs/reliability', 'docs/design'),
    *('docs/adding-a-backend', 'benchmarks/results'),
    *('benchmarks/results-gpu', 'api/index', 'api/d2lbert'),
    *('api/d2lbert.torch', 'api/backends.base'),
]
NOTEBOOKS = [
    str(path.relative_to(SITE).with_suffix(''))
    for path in sorted(SITE.glob('notebooks/*/*-*.html'))
]
NOTEBOOK = 'notebooks/en/bert-torch'
#: One of each kind, in each language, and in English of each framework.
PAGES = [
    *(*FIRST, *SEARCHES, *ENGLISH),
    *(
        f'{kind}/{language}/{name}-{framework}'
        for kind in ('notebooks', 'slides')
        for name in ('bert', 'finetuning')
        for language in LANGUAGES
        for framework in FRAMEWORKS
        if language == 'en' or framework == 'torch'
    ),
]
PHONE = {'width': 360, 'height': 740}
DESK = {'width': 1280, 'height': 900}


@pytest.fixture
def load(monkeypatch):
    """Imports a file of docs/site, which is no package."""
    pytest.importorskip('nbformat')
    monkeypatch.syspath_prepend(ROOT / 'docs' / 'site')
    return importlib.import_module


# ---- without a browser -----------------------------------------------


def test_every_version_has_the_same_places_and_described_pictures(load):
    nbformat = pytest.importorskip('nbformat')
    source = load('source')
    paths = sorted(ROOT.glob(source.NOTEBOOKS))
    assert paths, 'no notebooks: run make notebooks'
    places = {}
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        found = source.with_anchors(notebook)
        texts = [cell.source for cell in found.cells]
        marks = re.findall('id="(.+?)"', '\n'.join(texts))
        assert marks == [f'at-{cell.id}' for cell in notebook.cells[1:]]
        assert len(set(marks)) == len(marks)
        assert texts[0] == notebook.cells[0].source
        name = path.stem.rsplit('-', 1)[0]
        places.setdefault(name, set()).add(tuple(marks))
        for cell in found.cells:
            drawn = any(
                'image/png' in output.get('data', {})
                for output in cell.get('outputs', ())
            )
            assert ('mystnb' in cell.metadata) == drawn
    assert {len(marks) for marks in places.values()} == {1}


def test_switches_lead_to_the_versions_that_there_are(load):
    switches = load('switches').switches
    pages = {
        *('index', 'ko/index', 'docs/design'),
        *('notebooks/en/bert-torch', 'notebooks/en/bert-mxnet'),
        *('notebooks/en/bert-jax', 'notebooks/ko/bert-torch'),
    }

    def links(page):
        return re.findall('href="(.+?)"', switches(page, pages))

    assert links('notebooks/en/bert-torch') == [
        '../../notebooks/en/bert-jax.html',
        '../../notebooks/en/bert-mxnet.html',
        '../../notebooks/en/bert-torch.html',
        'bert-torch.ipynb',
        '../../notebooks/en/bert-torch.html',
        '../../notebooks/ko/bert-torch.html',
    ]
    assert switches('notebooks/en/bert-torch', pages).count('current') == 2
    # What is in English only leads to the first pages of other languages
    assert links('docs/design') == ['../docs/design.html', '../ko/index.html']
    assert switches('docs/design', pages).count('aria-current') == 1
    assert links('ko/index') == ['../index.html', '../ko/index.html']
    assert '../ko/search.html' in links('ko/search')


@pytest.mark.parametrize(
    ('repository', 'framework', 'is_there'),
    [
        ('https://github.com/me/d2lbert', 'torch', True),
        ('https://github.com/me/d2lbert.git', 'jax', True),
        ('https://github.com/me/d2lbert', 'mxnet', False),
        ('', 'torch', False),
    ],
)
def test_colab_opens_what_it_can_run(load, repository, framework, is_there):
    switches = load('switches').switches
    page = f'notebooks/fr/bert-{framework}'
    button = (
        '<a class="colab" href="https://colab.research.google.com/github/'
        f'me/d2lbert/blob/main/{page}.ipynb" aria-label="Ouvrir dans Colab">'
    )
    html = switches(page, {page}, repository)
    assert (button in html) == ('colab' in html.lower()) == is_there
    assert 'colab' not in switches('docs/design', {page}, repository)


def test_a_notebook_leads_to_its_slides(load):
    switches = load('switches').switches
    page = 'notebooks/ko/bert-torch'
    slides = '<a class="slides" href="../../slides/ko/bert-torch.html">'
    assert slides in switches(page, {page, 'slides/ko/bert-torch'})
    assert 'slides' not in switches(page, {page})


def test_slides_show_tasks_and_no_solutions(load):
    nbformat = pytest.importorskip('nbformat')
    source, slides = load('source'), load('slides')
    for path in sorted(ROOT.glob(source.NOTEBOOKS)):
        notebook = nbformat.read(path, as_version=4)
        found = slides.with_slides(source.described(notebook)).cells
        texts = [it.source for it in found if it.cell_type == 'markdown']
        notes = [it for it in texts if it.startswith('<aside')]
        assert len(notes) == sum(
            cell.cell_type == 'markdown' for cell in notebook.cells
        )
        shown = [text for text in texts if text not in notes]
        assert shown[0].startswith('# ')
        assert not [it for it in shown[1:] if it.startswith(('# ', '###'))]
        assert not [it for it in shown if '<details' in it]
        pictures = [it for it in found if 'mystnb' in it.metadata]
        assert len(pictures) == sum(
            source.alternative(cell) is not None
            for cell in notebook.cells
            if cell.cell_type == 'code'
        )
        tasks = [
            cell.id
            for cell in notebook.cells
            if cell.cell_type == 'code' and '# your turn' in cell.source
        ]
        assert set(tasks) <= {it.id for it in found}


@pytest.mark.parametrize(
    ('sentence', 'rest'),
    [
        ('One word has been picked.', ' Then another.'),
        ('Now. A sentence that is long.', ' And a third.'),
        ('It costs 0.01 and, so to say, nothing', ''),
        ('**A bold one, as in a list.**', ' The rest.'),
        ('隐藏一个词，让网络来猜，然后再隐藏另一个词。', '后面。'),
    ],
)
def test_a_slide_has_the_first_sentence(load, sentence, rest):
    assert load('slides').SENTENCE.match(sentence + rest)[0] == sentence


def test_notebooks_follow_one_another_in_their_language_and_framework(load):
    pages = load('pages')
    there = {
        *('index', 'fr/index', 'notebooks/README', 'README'),
        *(
            f'notebooks/{language}/{name}-{framework}'
            for language in ('en', 'fr')
            for name in ('bert', 'finetuning')
            for framework in ('jax', 'torch')
        ),
    }

    def around(page):
        return [it and it.page for it in pages.neighbours(page, there)]

    assert around('notebooks/fr/bert-jax') == [
        'fr/index',
        'notebooks/fr/finetuning-jax',
    ]
    assert around('notebooks/fr/finetuning-jax') == [
        'notebooks/fr/bert-jax',
        'notebooks/README',
    ]
    assert around('README') == ['notebooks/README', None]
    assert around('search') == [None, None]


def test_the_sidebar_names_every_page_that_was_written(load):
    source, pages = load('source'), load('pages')
    files = {
        str(path.relative_to(ROOT).with_suffix(''))
        for pattern in source.FILES
        for path in ROOT.glob(pattern)
        if path.suffix == '.md'
    }
    named = {name for names in pages.SECTIONS.values() for name in names}
    assert files == named - {pages.REFERENCE}
    titles = [name for it in pages.SECTIONS.values() for name in it.values()]
    assert len(set(titles)) == len(titles)


def test_every_language_has_the_same_words(load):
    words, pages = load('words'), load('pages')
    assert {'en', *words.WORDS} == set(pages.LANGUAGES)
    known = {frozenset(of_one) for of_one in words.WORDS.values()}
    assert len(known) == 1
    sidebar = {
        word for names in pages.SECTIONS.values() for word in names.values()
    }
    assert {*sidebar, *pages.SECTIONS, *pages.NOTEBOOKS.values()} <= set(
        *known
    )
    assert set(words.OF_THE_SCRIPT) <= set(*known)


def test_the_reference_has_public_names_and_no_private_ones(load):
    reference = load('reference')
    pages = dict(reference.pages())
    assert set(pages) == {'index', *reference.MODULES}
    names = reference.handed_on('d2lbert')
    assert {'pretrain', 'Run'} < set(names)
    assert names.index('represent') < names.index('FinetunedRun')
    tab = reference.defined('d2lbert.torch')
    assert {'load_data_wiki', 'BERTModel', 'train_bert'} < set(tab)
    assert not [name for name in tab if name.startswith('_')]
    assert 'tokenize' in reference.handed_on('d2lbert.torch')
    assert 'd2lbert.torch.tokenize' in pages['d2lbert.torch']


def test_links_of_the_page_lead_to_the_same_files(load):
    moved_up = load('source').moved_up
    assert moved_up('[a](../../README.md#b) ![c](../../../docs/d.png)') == (
        '[a](README.md#b) ![c](../docs/d.png)'
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
def test_the_built_site_has_the_pages_that_it_should(load):
    if not SITE.exists():
        pytest.skip('no page: run make site')
    built = {
        str(path.relative_to(SITE).with_suffix(''))
        for path in SITE.rglob('*.html')
        if '_modules' not in path.parts
    }
    modules = {f'api/{it}' for it in load('reference').MODULES}
    notebooks = {
        str(path.relative_to(ROOT).with_suffix(''))
        for path in ROOT.glob(load('source').NOTEBOOKS)
    }
    slides = {it.replace('notebooks/', 'slides/') for it in notebooks}
    assert built == {*PAGES, *modules, *notebooks, *slides}
    assert set(NOTEBOOKS) == notebooks


@pytest.mark.slow
def test_no_search_leads_a_student_to_the_answers():
    if not SITE.exists():
        pytest.skip('no page: run make site')
    for name, is_found in (('teaching', True), ('answers', False)):
        html = (SITE / 'docs' / f'{name}.html').read_text('utf-8')
        assert ('data-pagefind-body' in html) == is_found


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
    context.set_default_timeout(10_000)
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


@pytest.fixture(scope='module')
def server():
    """Where the page is on a server of this machine."""
    handler = functools.partial(Quiet, directory=SITE)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


@pytest.fixture(params=['files', 'server'])
def home(request, server):
    """Where the page is: on the disk, or on a server."""
    return HOME if request.param == 'files' else server


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


def sideways(page):
    """How far a page can be scrolled to the right, and how wide it is."""
    return page.evaluate(
        """() => {
            scrollTo(1000, 0);
            const page = document.documentElement;
            return [scrollX, page.scrollWidth - page.clientWidth];
        }"""
    )


@pytest.mark.slow
@pytest.mark.parametrize('size', [DESK, PHONE], ids=['desk', 'phone'])
def test_switches_keep_the_place(opened, size):
    opened.set_viewport_size(size)
    go(opened, NOTEBOOK)
    opened.evaluate(
        "document.getElementById('at-attention-figure').scrollIntoView()"
    )
    for name in ('한국어', 'MXNet', '中文', 'JAX', 'English'):
        opened.locator('.switches').get_by_label(name, exact=True).click()
        opened.wait_for_load_state('load')
        opened.wait_for_function('scrollY > 500', timeout=5000)
        assert top_place(opened) == 'at-attention-figure'
    assert '/notebooks/en/bert-jax.html' in opened.url


@pytest.mark.slow
def test_no_page_claims_or_leads_to_what_was_read_before(opened, home):
    go(opened, 'notebooks/ko/bert-mxnet', home)
    for name in ENGLISH:
        go(opened, name, home)
        chosen = opened.locator('.switches [aria-current]')
        assert chosen.all_inner_texts() == ['English']
        around = opened.locator('.related-pages a, .sidebar-tree a')
        for link in around.all():
            target = link.evaluate('link => link.href')
            assert '/ko/' not in target
    opened.locator('.switches').get_by_label('Français').click()
    opened.wait_for_url('**/fr/index.html')


@pytest.mark.slow
@pytest.mark.parametrize('language', LANGUAGES)
def test_switches_are_one_line_on_a_desk(opened, language):
    go(opened, f'notebooks/{language}/bert-torch')
    assert opened.locator('.switches').bounding_box()['height'] < 50


@pytest.mark.slow
@pytest.mark.parametrize('size', [DESK, PHONE], ids=['desk', 'phone'])
def test_back_to_top_is_not_on_the_switches(opened, size):
    opened.set_viewport_size(size)
    go(opened, NOTEBOOK)
    opened.evaluate('scrollTo(0, 3000)')
    opened.mouse.wheel(0, -400)
    button = opened.locator('.back-to-top')
    button.wait_for()
    switches = opened.locator('.switches').bounding_box()
    assert button.bounding_box()['y'] > switches['y'] + switches['height']


@pytest.mark.slow
def test_a_printed_page_has_the_text_and_no_buttons(opened):
    opened.emulate_media(media='print')
    go(opened, NOTEBOOK)
    for part in ('.skip-to-content', '.switches', '.copybtn', '.toc-drawer'):
        found = opened.locator(part)
        assert found.count()
        assert not any(it.is_visible() for it in found.all())
    assert opened.locator('article h1').is_visible()


@pytest.mark.slow
@pytest.mark.parametrize('name', PAGES)
def test_a_page_on_a_desk(opened, name):
    go(opened, name)
    assert sideways(opened) == [0, 0]
    # Long names in tables are broken, and contents stand beside the text
    wide = 'all => all.filter((it) => it.scrollWidth > it.clientWidth)'
    tables = opened.locator('.table-wrapper')
    assert tables.evaluate_all(f'{wide}.length') == 0
    contents = opened.locator('.toc-drawer:not(.no-toc) .toc-tree')
    if contents.count():
        box = contents.bounding_box()
        assert 0 < box['x'] < box['x'] + box['width'] <= DESK['width']


@pytest.mark.slow
@pytest.mark.parametrize('name', PAGES)
def test_a_page_on_a_phone(opened, name):
    opened.set_viewport_size(PHONE)
    go(opened, name)
    assert sideways(opened) == [0, 0]
    # 1e-14 and WikiText-2 are not broken at their hyphens
    broken = 'all => all.filter((it) => it.getClientRects().length > 1)'
    whole = opened.locator('.whole')
    assert whole.evaluate_all(f'{broken}.length') == 0
    assert whole.count() or name != 'docs/parity'


@pytest.mark.slow
@pytest.mark.parametrize('theme', ['light', 'dark'])
@pytest.mark.parametrize('name', PAGES)
def test_axe_finds_nothing(opened, name, theme):
    axe = pytest.importorskip('axe_playwright_python.sync_playwright')
    opened.emulate_media(color_scheme=theme)
    for size in (DESK, PHONE):
        opened.set_viewport_size(size)
        go(opened, name)
        # Preloading would read style sheets again, which files may not
        found = axe.Axe().run(opened, options={'preload': False})
        assert [
            (rule['id'], node['html'][:200], node['failureSummary'])
            for rule in found.response['violations']
            for node in rule['nodes'][:3]
        ] == [], size


def results(page, home, name, query):
    """Search with the box of a page, and return where results lead."""
    go(page, name, home)
    box = page.locator('[name=q]').first
    box.fill(query)
    box.press('Enter')
    page.locator('#results article').first.wait_for()
    page.wait_for_load_state('networkidle')
    links = page.locator('#results > article a')
    return links.evaluate_all('all => all.map((link) => link.href)')


@pytest.mark.slow
def test_search_finds_headings_with_excerpts(opened, home):
    found = results(opened, home, 'index', 'Why 7.3')
    assert f'{home}/docs/parity.html#why-7-3-and-5-2' in found
    assert f'{home}/README.html#why-the-book-prints-7-3-and-5-2' in found
    # The best page comes first, not the first one of the alphabet
    assert found[0].startswith((f'{home}/README', f'{home}/docs/parity'))
    assert opened.locator('#results mark').first.inner_text() == 'Why'
    opened.locator('a[href$="#why-7-3-and-5-2"]').click()
    opened.wait_for_url('**/docs/parity.html#why-7-3-and-5-2')
    assert opened.locator('#why-7-3-and-5-2').is_visible()


@pytest.mark.slow
@pytest.mark.parametrize(
    ('language', 'query'),
    [('fr', 'perte'), ('ko', '손실'), ('vi', 'mất mát'), ('zh', '损失')],
)
def test_search_knows_the_language(opened, home, language, query):
    found = results(opened, home, f'notebooks/{language}/bert-jax', query)
    assert found
    assert all(f'/{language}/' in link for link in found)
    results(opened, home, f'{language}/index', 'PyTorch')
    english = opened.locator('#results section[lang=en] article a')
    english.first.wait_for()
    links = english.evaluate_all('all => all.map((link) => link.href)')
    assert not [link for link in links if f'/{language}/' in link]


@pytest.mark.slow
def test_search_says_that_there_is_nothing(opened):
    opened.goto(f'{HOME}/fr/search.html?q=∀∀∀')
    opened.get_by_text('Aucun résultat').wait_for()


@pytest.mark.slow
@pytest.mark.parametrize(
    'name', [it.replace('notebooks/', 'slides/') for it in NOTEBOOKS]
)
def test_slides_fit_and_lead_back(opened, name):
    go(opened, name)
    opened.wait_for_function('Reveal.isReady()')
    total = opened.evaluate('Reveal.getTotalSlides()')
    assert total > 20
    assert opened.locator('.reveal').bounding_box()['height'] > 800
    for number in range(total):
        opened.evaluate(f'Reveal.slide({number})')
        size = opened.evaluate(
            """() => {
                const it = Reveal.getCurrentSlide();
                return [it.scrollWidth, it.scrollHeight];
            }"""
        )
        assert size[0] <= 1280 and size[1] <= 720, number
        heading = opened.locator('section.present :is(h1, h2)')
        assert heading.count() == 1 and heading.is_visible()
        assert not opened.locator('.notes:visible').count()
    opened.locator('nav a').click()
    assert (
        opened.url == f'{HOME}/{name.replace("slides/", "notebooks/")}.html'
    )
    opened.locator('.switches .slides').wait_for()


@pytest.mark.slow
@pytest.mark.parametrize('theme', ['light', 'dark'])
def test_the_arrows_of_slides_have_the_colour_of_links(opened, theme):
    opened.emulate_media(color_scheme=theme)
    go(opened, 'slides/en/bert-torch')
    opened.wait_for_function('Reveal.isReady()')
    opened.keyboard.press('ArrowRight')
    style = 'getComputedStyle(document.querySelector'
    opened.wait_for_function(f"{style}('.navigate-left')).opacity > 0.8")
    link, *arrows = [
        opened.evaluate(f"{style}('{it}')).color")
        for it in ('nav a', '.navigate-left', '.navigate-right')
    ]
    assert arrows == [link] * 2


@pytest.mark.slow
def test_slides_on_a_phone_lead_on_and_back(opened):
    opened.set_viewport_size(PHONE)
    go(opened, 'slides/en/bert-torch')
    opened.wait_for_function('Reveal.isReady()')
    opened.locator('.navigate-right').click()
    number = opened.locator('.slide-number')
    assert number.inner_text().startswith('2')
    back = opened.locator('nav').bounding_box()
    assert back['x'] + back['width'] < number.bounding_box()['x']
    opened.locator('nav a').click()
    opened.wait_for_url('**/notebooks/en/bert-torch.html')


@pytest.mark.slow
def test_the_speaker_has_notes(opened, server):
    go(opened, 'slides/en/bert-torch', server)
    opened.wait_for_function('Reveal.isReady()')
    opened.keyboard.press('ArrowRight')
    with opened.expect_popup() as started:
        opened.keyboard.press('s')
    notes = started.value.locator('.speaker-controls-notes')
    notes.get_by_text('Afterwards you can').wait_for()


@pytest.mark.slow
@pytest.mark.parametrize(
    ('size', 'least'), [(DESK, 11), (PHONE, 9)], ids=['desk', 'phone']
)
@pytest.mark.parametrize('name', [*FIRST, *ENGLISH, *NOTEBOOKS])
def test_text_in_pictures_can_be_read(opened, name, size, least):
    """In pixels of the page; a picture on a phone may scroll."""
    image = pytest.importorskip('PIL.Image')
    opened.set_viewport_size(size)
    go(opened, name)
    found = opened.locator('article img').evaluate_all(
        'all => all.map((it) => [it.src, it.getBoundingClientRect().width])'
    )
    points = 11 if name.startswith('notebooks/') else 10
    for url, width in found:
        with image.open(unquote(urlsplit(url).path)) as picture:
            inches = picture.width / picture.info.get('dpi', (144, 0))[0]
        assert points * width / (72 * inches) > least - 0.05, url
    texts = opened.locator('.guesses :is(span, b, small)').evaluate_all(
        'all => all.map((it) => parseFloat(getComputedStyle(it).fontSize))'
    )
    assert min(texts, default=least) >= least


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
def test_pictures_are_dark_in_the_dark(opened):
    go(opened, NOTEBOOK)
    for theme in ('light', 'dark'):
        opened.emulate_media(color_scheme=theme)
        style = 'it => getComputedStyle(it).filter'
        shown = opened.locator('article img').first.evaluate(style)
        assert ('invert' in shown) == (theme == 'dark')


@pytest.mark.slow
def test_an_import_does_not_look_like_a_link(opened):
    opened.emulate_media(color_scheme='dark')
    go(opened, NOTEBOOK)
    assert opened.locator('.highlight .nn').first.evaluate(
        """it => {
            const [own, around] = [it, it.parentElement].map(
                (it) => getComputedStyle(it));
            return [own.textDecorationLine, own.color === around.color];
        }"""
    ) == ['none', True]


@pytest.mark.slow
@pytest.mark.parametrize('name', NOTEBOOKS)
def test_a_notebook_is_found_from_all_sides(opened, name):
    go(opened, name)
    language = name.split('/')[1]
    current = opened.locator('.sidebar-tree [aria-current=page]')
    assert current.count() == 1
    assert opened.url == current.evaluate('link => link.href')
    before = opened.locator('.prev-page').evaluate('link => link.href')
    first = '/index' if language == 'en' else f'/{language}/index'
    if 'finetuning' in name:
        first = f'/{name.replace("finetuning", "bert")}'
    assert before == f'{HOME}{first}.html'
    assert opened.locator('.next-page').count() == 1
    file = SITE / f'{name}.ipynb'
    link = opened.locator('.download').evaluate('link => link.href')
    assert link == file.as_uri()
    assert file.read_bytes() == (ROOT / f'{name}.ipynb').read_bytes()


@pytest.mark.slow
def test_a_notebook_is_downloaded(opened, server):
    go(opened, NOTEBOOK, server)
    with opened.expect_download() as started:
        opened.locator('.download').click()
    assert started.value.suggested_filename == 'bert-torch.ipynb'


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    [
        f'{language}/{name}'
        for language in LANGUAGES[1:]
        for name in ('index', 'search', 'bert-torch')
    ],
)
def test_all_around_a_page_is_in_its_language(opened, load, name):
    language = name.split('/')[0]
    go(opened, f'notebooks/{name}' if 'bert' in name else name)
    assert opened.locator('html').get_attribute('lang') == language
    words = load('words').WORDS[language]
    english = {key for key, word in words.items() if key != word}
    said = opened.evaluate(
        """() => [
            ...document.querySelectorAll('body *'),
        ].filter(
            (it) => !it.closest('[data-pagefind-body]')
        ).flatMap((it) => [
            ...['aria-label', 'placeholder', 'title', 'data-tooltip'].map(
                (name) => it.getAttribute(name)),
            ...[...it.childNodes].filter((it) => it.nodeType === 3).map(
                (it) => it.data.trim()),
        ])"""
    )
    assert english & set(said) == set()
    assert words['Search'] in said
    if language == 'ko':
        paragraph = opened.locator('article p, article h1').first
        style = paragraph.evaluate('it => getComputedStyle(it).wordBreak')
        assert style == 'keep-all'
    assert opened.locator('img[src]:not([alt])').count() == 0


@pytest.mark.slow
def test_code_is_copied_and_outputs_are_not(opened):
    go(opened, 'notebooks/fr/bert-torch')
    cell = opened.locator('.cell_input').first
    button = cell.locator('.copybtn')
    assert button.get_attribute('data-tooltip') == 'Copier'
    button.click()
    opened.locator('[data-tooltip="Copié"]').wait_for()
    box = opened.locator('[name=q]').first
    box.focus()
    opened.keyboard.press('Control+V')
    pasted = re.sub(r'\s', '', box.input_value())
    assert pasted == re.sub(r'\s', '', cell.locator('pre').inner_text())
    assert opened.locator('.cell_output .copybtn').count() == 0


@pytest.mark.slow
@pytest.mark.parametrize('name', FIRST)
def test_a_first_page_has_a_picture_and_leads_on(opened, name):
    go(opened, name)
    widths = opened.locator('.guesses .bar i').evaluate_all(
        'all => all.map((it) => it.getBoundingClientRect().width)'
    )
    assert len(widths) == 12
    tracks = opened.locator('.guesses .bar').evaluate_all(
        'all => all.map((it) => it.getBoundingClientRect().width)'
    )
    # One scale for all bars
    assert max(tracks) - min(tracks) < 1
    # The first bars are of the network after a few steps
    assert max(widths[:3]) < max(widths[3:6])
    language = name.split('/')[0] if '/' in name else 'en'
    cards = opened.locator('.cards a').evaluate_all(
        'all => all.map((link) => link.href)'
    )
    for framework in FRAMEWORKS:
        notebook = f'notebooks/{language}/bert-{framework}.html'
        assert f'{HOME}/{notebook}' in cards


@pytest.mark.slow
def test_the_reference_has_short_pages(opened):
    go(opened, 'api/d2lbert')
    assert opened.locator('[id="d2lbert.pretrain"]').is_visible()
    go(opened, 'api/d2lbert.torch')
    assert opened.locator('[id="d2lbert.torch.train_bert"]').is_visible()
    for path in SITE.glob('api/*.html'):
        go(opened, f'api/{path.stem}')
        height = opened.evaluate('document.documentElement.scrollHeight')
        assert height < 20_000
