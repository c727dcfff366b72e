"""The book's table of datasets, over a real server."""

import hashlib
import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

import server
from d2lbert.book import hub
from d2lbert.data import corpus
from d2lbert.errors import CorpusError, InputError
from helpers import finish, python, unix


@pytest.fixture(params=['any Python', 'Python 3.11.3'])
def _filter(request, monkeypatch):
    """Without the filter of `tarfile` that newer Pythons have."""
    if request.param != 'any Python':
        unpack = shutil.unpack_archive
        monkeypatch.delattr(tarfile, 'data_filter', raising=False)
        monkeypatch.setattr(
            shutil,
            'unpack_archive',
            lambda path, folder: unpack(path, folder),
        )


def archive(name):
    """Return the bytes of an archive with one file, `TOYS/a.txt`."""
    file = io.BytesIO()
    if name.endswith('.zip'):
        with zipfile.ZipFile(file, 'w') as zipped:
            zipped.writestr('toys/a.txt', 'one')
    else:
        mode = 'w:gz' if name.endswith('.gz') else 'w'
        with tarfile.open(fileobj=file, mode=mode) as tar:
            member = tarfile.TarInfo('toys/a.txt')
            member.size = 3
            tar.addfile(member, io.BytesIO(b'one'))
    return file.getvalue()


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv('D2LBERT_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    with server.serving() as site:
        yield site


def add(monkeypatch, site, name, data, sha1=None):
    """Add a dataset to the table, served by `site`."""
    sha1 = sha1 or hashlib.sha1(data).hexdigest()
    monkeypatch.setitem(hub.DATA_HUB, 'toys', (f'{site.url}/{name}', sha1))
    site.answers = [server.send(data)]


@pytest.mark.usefixtures('_filter')
@pytest.mark.parametrize('name', ['toys.zip', 'toys.tar', 'toys.tar.gz'])
def test_download_extract(site, monkeypatch, name):
    add(monkeypatch, site, name, archive(name))
    folder = hub.download_extract('toys')
    assert Path(folder, 'a.txt').read_text() == 'one'
    # The archive is there with this hash: no second request
    assert hub.download_extract('toys', 'toys') == folder
    assert len(site.requests) == 1


def test_a_file_that_went_bad_is_fetched_again(site, monkeypatch):
    add(monkeypatch, site, 'toys.csv', b'a,b')
    path = hub.download('toys')
    assert Path(path).read_bytes() == b'a,b'
    Path(path).write_bytes(b'a,c')
    assert hub.download('toys') == path
    assert Path(path).read_bytes() == b'a,b'


def test_download_into_a_folder(site, tmp_path):
    site.answers = [server.send(b'x')]
    path = hub.download(f'{site.url}/x.bin', str(tmp_path / 'data'))
    assert path == str(tmp_path / 'data' / 'x.bin')
    assert Path(path).read_bytes() == b'x'


def test_wrong_sha1(site, monkeypatch, tmp_path):
    add(monkeypatch, site, 'toys.zip', archive('toys.zip'), sha1='0' * 40)
    with pytest.raises(CorpusError, match=r'SHA-1 .* expected was 0000'):
        hub.download('toys')
    assert not list(tmp_path.rglob('toys*'))


def test_unknown_name(site):
    with pytest.raises(
        InputError, match=r"'toy' is no address .*'wikitext-2'"
    ):
        hub.download('toy')


def test_no_archive(site, monkeypatch):
    add(monkeypatch, site, 'toys.zip', b'text')
    with pytest.raises(CorpusError, match=r'toys\.zip cannot be unpacked'):
        hub.download_extract('toys')


@pytest.mark.usefixtures('_filter')
def test_an_archive_writes_nothing_outside_of_its_folder(site, monkeypatch):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as tar:
        tar.addfile(tarfile.TarInfo('../outside.txt'))
    add(monkeypatch, site, 'toys.tar', file.getvalue())
    with pytest.raises(CorpusError, match='outside'):
        hub.download_extract('toys')


def test_wikitext_2_is_the_corpus_of_load_data_wiki(tmp_path, monkeypatch):
    path = tmp_path / 'text.txt'
    monkeypatch.setenv('D2LBERT_WIKITEXT2', str(path))
    monkeypatch.setenv('D2LBERT_CACHE', str(tmp_path / 'cache'))
    for text in (' \n One . two . \n', ' \n Üç . dört . \n'):
        path.write_text(text, 'utf-8')
        folder = hub.download_extract('wikitext-2', 'wikitext-2')
        found = Path(folder, 'wiki.train.tokens').read_bytes()
        assert found.decode() == text
        assert corpus.read_lines(folder) == text.splitlines(True)


@unix
def test_a_pipe_in_the_cache_is_not_waited_for(tmp_path):
    folder = tmp_path / 'wikitext-2'
    folder.mkdir()
    os.mkfifo(folder / 'wiki.train.tokens')
    text = tmp_path / 'text.txt'
    text.write_text(' One . two . \n')
    code = """
from d2lbert.book import hub
print(hub.download_extract('wikitext-2'))"""
    done = finish(
        python(code, D2LBERT_WIKITEXT2=str(text), D2LBERT_CACHE=str(tmp_path))
    )
    assert done.out == f'{folder}\n', done.err
    assert (folder / 'wiki.train.tokens').read_text() == text.read_text()


def test_wikitext_2_without_a_cache(tmp_path, monkeypatch):
    path = tmp_path / 'text.txt'
    path.write_text(' One . two . \n')
    monkeypatch.setenv('D2LBERT_WIKITEXT2', str(path))
    monkeypatch.setenv('D2LBERT_CACHE', str(path))
    with pytest.raises(InputError, match='give another D2LBERT_CACHE'):
        hub.download_extract('wikitext-2', 'wikitext-2')


def test_the_archive_of_wikitext_2_is_the_one_of_the_cache(
    site, monkeypatch, tmp_path
):
    data = archive('toys.zip')
    site.answers = [server.send(data)]
    mirrors = [site.url], corpus.sha256(data)
    monkeypatch.setattr(corpus.fetch, '__defaults__', mirrors)
    path = hub.download('wikitext-2')
    assert path == str(tmp_path / 'cache' / corpus.ARCHIVE)
    assert Path(path).read_bytes() == data
