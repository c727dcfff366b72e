"""Pairs in SNLI's format: the embedded ones, archives, folders, examples."""

import zipfile
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nli
import server
from d2lbert.data import downloads, nli_sample, sample, snli
from d2lbert.data.nli import cut_pair, make_nli_examples
from d2lbert.data.snli import FILES, read_pairs, snli_folder, words_of
from d2lbert.data.vocab import Vocab
from d2lbert.errors import CorpusError, InputError

TREE = '( ( A  man ) ( ( is -LRB-here-RRB- ) . ) )'


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv('D2LBERT_CACHE', str(tmp_path / 'cache'))
    monkeypatch.delenv('D2LBERT_SNLI', raising=False)


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / 'snli_1.0.zip'
    path.write_bytes(nli.snli_zip())
    return path


def write(folder, text, part='train'):
    folder.mkdir(exist_ok=True)
    (folder / FILES[part]).write_bytes(text.encode())
    return folder


# ---- reading ---------------------------------------------------------


def test_the_words_of_a_tree():
    assert words_of(TREE) == 'A man is -LRB-here-RRB- .'
    assert words_of('( a\tb )') == 'a\tb'


def test_pairs_without_a_label_are_left_out(tmp_path):
    rows = ['h', f'-\t{TREE}\t{TREE}', f'neutral\t{TREE}\t( b )\tmore']
    folder = write(tmp_path / 'x', '\n'.join(rows))
    assert read_pairs(folder) == (['A man is -LRB-here-RRB- .'], ['b'], [2])


def test_archive_and_folders_are_alike(archive, tmp_path, monkeypatch):
    expected = [read_pairs(archive, part) for part in FILES]
    with zipfile.ZipFile(archive) as zipped:
        for name in FILES.values():
            zipped.extract(f'{snli.FOLDER}/{name}', tmp_path / 'folder')
    for folder in ('folder', f'folder/{snli.FOLDER}'):
        for part, pairs in zip(FILES, expected, strict=True):
            assert read_pairs(tmp_path / folder, part) == pairs
            monkeypatch.setenv('D2LBERT_SNLI', str(tmp_path / folder))
            assert read_pairs('snli', part) == pairs
        assert snli_folder() == str(tmp_path / 'folder' / snli.FOLDER)
    monkeypatch.setenv('D2LBERT_SNLI', str(archive))
    written = snli_folder()
    assert written == str(tmp_path / 'cache' / snli.FOLDER)
    assert read_pairs(written) == expected[0]


def test_from_the_address_once(archive, monkeypatch):
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    data = archive.read_bytes()
    with server.serving() as site:
        monkeypatch.setattr(snli, 'ADDRESS', f'{site.url}/snli_1.0.zip')
        site.answers = [server.send(data)]
        with pytest.raises(CorpusError, match=r'SHA-1 .* D2LBERT_SNLI'):
            read_pairs('snli')
        monkeypatch.setattr(snli, 'SHA1', downloads.sha1(data))
        site.answers = [server.send(data)]
        assert read_pairs('snli') == read_pairs('snli') == read_pairs(archive)
        assert len(site.requests) == 2


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('h\nneutral\t( a )', 'line 2 of .* has 2 fields'),
        ('h\n', 'has no pair'),
        ('', 'has no pair'),
        ('h\n-\ta\tb', 'has no pair'),
    ],
)
def test_what_is_no_pair(tmp_path, text, words):
    with pytest.raises(CorpusError, match=words):
        read_pairs(write(tmp_path / 'x', text))


def test_what_is_no_text(tmp_path):
    folder = write(tmp_path / 'x', '')
    (folder / FILES['train']).write_bytes(b'h\nneutral\t\xff\t\xff')
    with pytest.raises(CorpusError, match='is not UTF-8'):
        read_pairs(folder)


def test_what_is_no_archive(tmp_path):
    (tmp_path / 'x.zip').write_bytes(b'text')
    with pytest.raises(CorpusError, match='cannot be read'):
        read_pairs(tmp_path / 'x.zip')
    with zipfile.ZipFile(tmp_path / 'y.zip', 'w') as archive:
        archive.writestr('a.txt', '')
    with pytest.raises(CorpusError, match='no files named snli_1'):
        read_pairs(tmp_path / 'y.zip')


def test_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match="expected was 'sample', 'snli'"):
        read_pairs(tmp_path / 'none')
    with pytest.raises(CorpusError, match='no files named snli_1'):
        read_pairs(write(tmp_path / 'x', 'h'), 'test')
    with pytest.raises(InputError, match="unknown part 'dev'"):
        read_pairs('snli', 'dev')


# ---- examples --------------------------------------------------------


@given(
    st.lists(st.text('ab', min_size=1)),
    st.lists(st.text('ab', min_size=1)),
    st.integers(2, 9),
)
def test_a_cut_pair_fits(premise, hypothesis, most):
    a, b = cut_pair(premise, hypothesis, most)
    assert a == premise[: len(a)] and b == hypothesis[: len(b)]
    assert len(a) + len(b) == min(most, len(premise) + len(hypothesis))


def test_a_tie_costs_the_hypothesis():
    assert cut_pair('abc', 'def', 5) == (['a', 'b', 'c'], ['d', 'e'])
    assert cut_pair('abcd', 'def', 5) == (['a', 'b', 'c'], ['d', 'e'])


def test_examples():
    vocab = Vocab.from_tokens(nli.TOKENS)
    pairs = [['a', 'man'], ['x']], [['is'], ['in', 'the', 'park']]
    examples = make_nli_examples(*pairs, [2, 0], vocab, 7)
    assert vocab.to_tokens(examples.tokens[0]) == (
        ['<cls>', 'a', 'man', '<sep>', 'is', '<sep>', '<pad>']
    )
    assert examples.segments[0].tolist() == [0, 0, 0, 0, 1, 1, 0]
    assert examples.valid_lens.tolist() == [6, 7]
    assert examples.labels.tolist() == [2, 0]
    assert vocab.to_tokens(examples.tokens[1])[1] == '<unk>'


@pytest.mark.parametrize(
    ('tokens', 'max_len', 'words'),
    [(nli.TOKENS, 4, 'no room for two words'), (['<unk>'], 9, 'no <pad>')],
)
def test_examples_that_cannot_be(tokens, max_len, words):
    vocab = Vocab.from_tokens(tokens)
    with pytest.raises(InputError, match=words):
        make_nli_examples([['a']], [['a']], [0], vocab, max_len)


# ---- the embedded pairs ----------------------------------------------


@pytest.mark.parametrize('part', FILES)
def test_the_embedded_pairs(part):
    lines = nli_sample.lines(part)
    assert {line.count('\t') for line in lines} == {13}
    pairs = read_pairs('sample', part)
    assert len(pairs.labels) == nli_sample.SIZES[part]
    assert np.bincount(pairs.labels).tolist() == [len(pairs.labels) // 3] * 3
    assert nli_sample.lines(part) == lines


def test_their_words_are_those_of_the_embedded_corpus():
    counts = Counter(' '.join(sample.lines()).lower().split())
    known = {word for word, count in counts.items() if count >= 5}
    for part in FILES:
        premises, hypotheses, _ = read_pairs('sample', part)
        words = ' '.join([*premises, *hypotheses]).lower().split()
        # The corpus no longer says what a crane is
        assert set(words) - known <= {'bird'}


def test_what_is_tested_was_not_trained_on():
    """No predicate and no hypothesis is in both parts."""
    train, test = (read_pairs('sample', part) for part in ('train', 'test'))
    assert not set(train.hypotheses) & set(test.hypotheses)
    for kind, predicates in nli_sample.HELD_OUT.items():
        assert not set(predicates) & set(nli_sample.PREDICATES[kind])
        for predicate in predicates:
            assert not any(f' {predicate} .' in p for p in train.premises)


def test_no_part_of_a_pair_tells_the_class():
    """A hypothesis has all classes, and so has each of its kinds."""
    for part in FILES:
        pairs = read_pairs('sample', part)
        for hypothesis in set(pairs.hypotheses):
            labels = [
                label
                for said, label in zip(pairs[1], pairs[2], strict=True)
                if said == hypothesis
            ]
            shares = np.bincount(labels, minlength=3) / len(labels)
            assert abs(shares - 1 / 3).max() < 0.12
