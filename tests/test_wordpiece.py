"""Vocabularies of a given size, and of pieces of words."""

import json
import random
import sys

import numpy as np
import pytest

import d2lbert
from d2lbert.data import examples, sample, wordpiece
from d2lbert.data.cache import load_cached_examples
from d2lbert.data.examples import load_examples
from d2lbert.data.vocab import RESERVED_TOKENS, UNKNOWN, Vocab
from d2lbert.data.wordpiece import SPECIAL_TOKENS, tokens_of
from d2lbert.errors import InputError
from d2lbert.representation import to_tokens
from d2lbert.runs.trained import TOKENIZER_FILE, VOCAB_FILE
from helpers import corpus_of

LINES = sample.lines()[:200]
COUNTS = {'the': 9, 'crane': 7, 'cranes': 5, 'b': 3, 'a': 3, '<pad>': 8}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv('D2LBERT_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def library():
    return pytest.importorskip(
        'tokenizers', reason=f'needs tokenizers: {wordpiece.INSTALL}'
    )


def load(**options):
    corpus = corpus_of(LINES)
    return load_cached_examples(corpus, 64, 0, tokens_of(**options))


# ---- the commonest words ---------------------------------------------


@pytest.mark.parametrize(
    ('size', 'words'),
    [
        (5, []),
        (6, ['the']),
        (9, ['a', 'crane', 'cranes', 'the']),
        (10, ['a', 'b', 'crane', 'cranes', 'the']),
        (99, ['a', 'b', 'crane', 'cranes', 'the']),
        (None, ['a', 'b', 'crane', 'cranes', 'the']),
    ],
)
def test_the_commonest_words(size, words):
    vocab = Vocab(COUNTS, 0, RESERVED_TOKENS, size)
    assert vocab.idx_to_token == sorted([UNKNOWN, *RESERVED_TOKENS, *words])
    assert vocab['nobody'] == vocab.unk


def test_the_size_is_that_of_the_vocabulary(train, one_backend, tmp_path):
    run = train(
        one_backend, corpus='sample', vocab_size=40, out=tmp_path / 'run'
    )
    assert len(run.vocab) == run.net.vocab_size == 40
    read = d2lbert.load_run(tmp_path / 'run')
    assert read.vocab.idx_to_token == run.vocab.idx_to_token
    assert not (tmp_path / 'run' / TOKENIZER_FILE).exists()


def test_examples_of_a_small_vocabulary():
    found, vocab = load(vocab_size=100)
    whole, words = load()
    assert len(vocab) == 100 < len(words)
    assert vocab.token_freqs == words.token_freqs
    assert found.num_examples == whole.num_examples
    assert found.column('tokens', slice(None)).max() < 100
    ours, theirs = (
        one.column('pred_positions', slice(5)) for one in (found, whole)
    )
    np.testing.assert_array_equal(ours[0], theirs[0])  # drawn first


@pytest.mark.parametrize('size', [0, 5, 2**31, 1.5, True])
def test_a_size_that_is_none(size):
    with pytest.raises(InputError, match=r'vocab_size = .*from 6 to'):
        d2lbert.pretrain(vocab_size=size)


# ---- pieces of words -------------------------------------------------


def test_pieces_of_words(library):
    vocab = wordpiece.train_pieces(COUNTS, 40)
    assert len(vocab) <= 40
    assert set(SPECIAL_TOKENS) < set(vocab.idx_to_token)
    assert vocab.idx_to_token == sorted(vocab.idx_to_token)
    pieces = vocab.tokenize('The CRANES  a\tbacat <mask> ?')
    assert ''.join(pieces).replace('##', '').startswith('thecranesa')
    assert pieces[-2:] == ['<mask>', '<unk>']
    assert vocab[pieces].count(vocab.unk) <= 2


def test_the_training_is_the_same_in_any_order(library):
    counts = examples.load_text(LINES, 64)[1].token_freqs
    shuffled = random.Random(0).sample(counts, len(counts))
    for size in (150, 301, 1000):
        one, two = (
            wordpiece.train_pieces(dict(words), size).idx_to_token
            for words in (counts, shuffled)
        )
        assert one == two and len(one) == size


def test_words_are_split_a_few_at_a_time(library, monkeypatch):
    """The library takes a kilobyte for each word that it splits at once."""
    vocab = wordpiece.train_pieces(COUNTS, 40)
    together = vocab.split_words(list(COUNTS))
    monkeypatch.setattr(wordpiece, 'WORDS_AT_A_TIME', 2)
    assert vocab.split_words(list(COUNTS)) == together


def test_large_counts_are_scaled_down(library, monkeypatch):
    monkeypatch.setattr(wordpiece, 'TRAINING_WORDS', 100)
    texts = ''.join(wordpiece.repeated({'a': 10_000, 'b': 1, 'c': 9_999}))
    assert 90 < len(texts.split()) < 110
    assert {'a', 'b', 'c'} == set(texts.split())


def plain(lines, vocab, max_len, seed):
    """Examples of a text whose words are the pieces."""
    pieces = [
        ' . '.join(
            ' '.join(vocab.tokenize(sentence)) for sentence in paragraph
        )
        for paragraph in examples.read_paragraphs(lines)
    ]
    same = Vocab.from_tokens(vocab.idx_to_token)
    rng = random.Random(seed)
    text, _ = examples.load_text(pieces, max_len, rng, lambda counts: same)
    return examples.make_examples(text, same, max_len, rng)


def test_examples_of_pieces(library):
    made, vocab = load(tokenizer='wordpiece', vocab_size=300)
    read, again = load(tokenizer='wordpiece', vocab_size=300)
    expected = plain(LINES, vocab, 64, 0)
    assert len(vocab) == 300
    assert again.idx_to_token == vocab.idx_to_token
    assert again.tokenize('unflyable cranes') == vocab.tokenize(
        'unflyable cranes'
    )
    for name, array in expected._asdict().items():
        for found in (made, read):
            np.testing.assert_array_equal(
                found.column(name, slice(None)), array
            )


def test_too_few_for_the_characters(library):
    with pytest.raises(InputError, match=r'vocab_size = 20: .* or more'):
        load(tokenizer='wordpiece', vocab_size=20)


def test_a_run_keeps_its_tokenizer(
    library, train, one_backend, tmp_path, run
):
    out = tmp_path / 'run'
    made = train(
        one_backend, corpus='sample', max_len=64, out=out, save_every=1,
        tokenizer='wordpiece', vocab_size=120,
    )  # fmt: skip
    read = d2lbert.load_run(out)
    text = 'a crane unloads'
    tokens, _ = to_tokens(text, read.vocab)
    assert len(tokens) > 5  # with <cls> and <sep>
    assert tokens == to_tokens(text, made.vocab)[0]
    (X,) = d2lbert.represent(read.net, read.vocab, [text])
    assert X.shape == (len(tokens), read.config.num_hiddens)
    done = run('encode', out, text, '--json')
    assert json.loads(done.out.splitlines()[-1])['tokens'] == tokens
    # The file is that of the library
    theirs = library.Tokenizer.from_file(str(out / TOKENIZER_FILE))
    assert theirs.encode('A crane unloads').tokens == tokens[1:-1]
    assert (out / VOCAB_FILE).read_text('utf-8').split() == [
        *read.vocab.idx_to_token
    ]
    more = d2lbert.pretrain(out=out, resume=True, steps=3, progress=False)
    assert len(more.steps) == 3


# ---- tokenizers from files -------------------------------------------

THEIRS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a', 'crane', '##s']


def test_a_vocabulary_of_another_program(library, tmp_path):
    path = tmp_path / 'words.txt'
    path.write_text('\n'.join(THEIRS), 'utf-8')
    vocab = tokens_of(path).make({})
    assert vocab.idx_to_token == [
        '<pad>', '<unk>', '<cls>', '<sep>', '<mask>', 'a', 'crane', '##s',
    ]  # fmt: skip
    assert vocab.tokenize('A cranes flies') == ['a', 'crane', '##s', '<unk>']
    assert vocab['<mask>'] == 4 and vocab['flies'] == 1


def test_a_tokenizer_of_the_library(library, train, one_backend, tmp_path):
    tokenizer = library.Tokenizer(library.models.BPE(unk_token='[UNK]'))
    tokenizer.pre_tokenizer = library.pre_tokenizers.Whitespace()
    trainer = library.trainers.BpeTrainer(
        vocab_size=90, special_tokens=THEIRS[:5], show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    path = tmp_path / 'tokenizer.json'
    tokenizer.save(str(path))
    out = tmp_path / 'run'
    made = train(one_backend, tokenizer=str(path), out=out)
    assert made.vocab.idx_to_token[:2] == ['<pad>', '<unk>']
    path.unlink()
    read = d2lbert.load_run(out)
    assert read.vocab.tokenize('cranes') == made.vocab.tokenize('cranes')
    assert len(read.vocab.tokenize('cranes')) > 1


@pytest.mark.parametrize(
    ('name', 'content', 'expected'),
    [
        ('a.txt', 'a\nb\n', 'it has no <unk>, <pad>, <mask>'),
        ('a.txt', '\n'.join([*THEIRS, 'a']), 'a token twice'),
        ('a.txt', '\n'.join([*THEIRS, 'a b']), 'a space in it'),
        ('a.txt', b'\xff', "can't decode"),
        ('a.json', '{"no', 'no tokenizer'),
        ('a.json', '{}', 'no tokenizer'),
        ('a.json', b'\x80\x04cposix\nsystem\n', "can't decode"),
        ('none', None, 'No such file'),
        ('folder', 'folder', 'not a regular file'),
    ],
)
def test_a_file_that_is_no_tokenizer(
    library, tmp_path, name, content, expected
):
    path = tmp_path / name
    if content == 'folder':
        path.mkdir()
    elif content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(data)
    with pytest.raises(InputError, match=expected) as caught:
        tokens_of(path)
    assert name in str(caught.value) and '\n' not in str(caught.value)


def test_a_size_and_a_file(library, tmp_path):
    path = tmp_path / 'words.txt'
    path.write_text('\n'.join(THEIRS), 'utf-8')
    with pytest.raises(InputError, match='leave one of the two out'):
        tokens_of(path, 100)


# ---- without the library ---------------------------------------------


def test_a_missing_library(
    monkeypatch, run, text_file, one_backend, tmp_path
):
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    done = run(
        'pretrain', f'--corpus={text_file}', '--tokenizer=wordpiece',
        f'--backend={one_backend}', f'--out={tmp_path / "run"}',
    )  # fmt: skip
    assert done.status == 2
    (line,) = done.err.splitlines()
    assert "pip install 'd2lbert[wordpiece]'" in line
    assert not (tmp_path / 'run').exists()


def test_words_need_no_library(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    found, vocab = load()
    expected, words = load_examples(LINES, 64, random.Random(0))
    assert vocab.idx_to_token == words.idx_to_token
    assert found.num_examples == expected.num_examples
