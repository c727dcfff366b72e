"""What becomes a token: the chapter's words, or pieces of words.

The library `tokenizers` trains WordPiece and splits words. Paragraphs and
sentences stay those of the chapter, and each of their words is split by
itself.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

from d2lbert.data.examples import word_vocab
from d2lbert.data.files import check_regular, describe_error, sha256
from d2lbert.data.vocab import RESERVED_TOKENS, UNKNOWN, Vocab
from d2lbert.errors import InputError, expand_home

WORDS, WORDPIECE = 'words', 'wordpiece'
#: Vocabularies of other programs call the reserved tokens so.
THEIR_NAMES = {
    '[UNK]': '<unk>', '[PAD]': '<pad>', '[MASK]': '<mask>',
    '[CLS]': '<cls>', '[SEP]': '<sep>',
}  # fmt: skip
SPECIAL_TOKENS = (UNKNOWN, *RESERVED_TOKENS)
#: The size of a vocabulary of pieces where none is given.
VOCAB_SIZE = 30_000
#: A word with a rarer character becomes `<unk>`.
ALPHABET_SIZE = 1000
#: How many words the training sees; counts of more are scaled down.
TRAINING_WORDS = 1 << 23
#: The library keeps about a kilobyte for each word that it splits.
WORDS_AT_A_TIME = 1 << 14
#: Precedes a piece that is not a word's first.
INNER = '##'
MAX_FILE = 1 << 28
INSTALL = "pip install 'd2lbert[wordpiece]', or pip install tokenizers"


class PieceVocab(Vocab):
    """A vocabulary of pieces of words, and the tokenizer that finds them."""

    def __init__(self, tokens: Sequence[str], tokenizer: Any) -> None:
        super().__init__()
        self._set_tokens(list(tokens))
        self.tokenizer = tokenizer

    def tokenize(self, sentence: str) -> list[str]:
        """Return the pieces of the words of a sentence, in lower case."""
        words = super().tokenize(sentence)
        return list(chain.from_iterable(self.split_words(words)))

    def split_words(self, words: Sequence[str]) -> list[list[str]]:
        """Return the pieces of each word."""
        # By index, because the tokenizer may have other names for them
        return [
            [self.idx_to_token[i] for i in encoding.ids]
            for start in range(0, len(words), WORDS_AT_A_TIME)
            for encoding in self.tokenizer.encode_batch(
                list(words[start : start + WORDS_AT_A_TIME]),
                add_special_tokens=False,
            )
        ]

    def tokenizer_json(self) -> str:
        """Return the tokenizer, as `tokenizers` writes it."""
        return self.tokenizer.to_str()


@dataclass(frozen=True)
class Tokens:
    """How a vocabulary is made of a text.

    `about`: all that decides the vocabulary, beside the text; `make`:
    returns it for how often each word occurs.
    """

    about: tuple[Any, ...]
    make: Callable[[Mapping[str, int]], Vocab]


def tokens_of(
    tokenizer: str | os.PathLike = WORDS, vocab_size: int | None = None
) -> Tokens:
    """Return how to make a vocabulary.

    `tokenizer`: 'words'; 'wordpiece', which is trained on the text; or the
    path of a `tokenizer.json` of the library `tokenizers`, or of a WordPiece
    vocabulary with a token a line. `vocab_size`: how many tokens the
    vocabulary has at most, with the five reserved ones.

    Raises `InputError` for a file that cannot be used, and
    `ModuleNotFoundError` where the library is needed and not installed.
    """
    if tokenizer == WORDS:
        return Tokens(
            (WORDS, vocab_size), partial(word_vocab, size=vocab_size)
        )
    library = load_library()
    if tokenizer == WORDPIECE:
        size = vocab_size or VOCAB_SIZE
        return Tokens(
            (WORDPIECE, size, library.__version__),
            partial(train_pieces, size=size),
        )
    if vocab_size is not None:
        raise InputError(
            f'vocab_size = {vocab_size}: the tokenizer {tokenizer} has a '
            'vocabulary of its own; leave one of the two out'
        )
    vocab, checksum = load_tokenizer(tokenizer)
    return Tokens(
        ('file', checksum, library.__version__), lambda counts: vocab
    )


def same_tokens(vocab: Vocab) -> Tokens:
    """Return how to make this vocabulary again, whatever the text."""
    tokens, tokenizer = vocab.idx_to_token, vocab.tokenizer_json()
    about = sha256(repr((tokens, tokenizer)).encode())
    return Tokens(
        ('same', about),
        lambda counts: (
            vocab_of(tokens, tokenizer)
            if tokenizer
            else Vocab.from_tokens(tokens)
        ),
    )


def load_library() -> Any:
    """Return the library `tokenizers`.

    Raises `ModuleNotFoundError` that says how to install it.
    """
    try:
        return import_module('tokenizers')
    except ModuleNotFoundError as error:
        if error.name != 'tokenizers':
            raise
        raise ModuleNotFoundError(
            'the tokenizer needs the library tokenizers, which is not '
            f'installed: {INSTALL}',
            name='tokenizers',
        ) from error


# ---- training --------------------------------------------------------


def train_pieces(counts: Mapping[str, int], size: int) -> PieceVocab:
    """Return a vocabulary of `size` pieces at most.

    `counts`: how often each word occurs. The order of the words does not
    matter. Raises `InputError` where the characters alone are more.
    """
    library = load_library()
    counts = {
        word: counts[word]
        for word in sorted(counts)
        if word not in SPECIAL_TOKENS
    }
    characters: Counter[str] = Counter()
    for word, number in counts.items():
        for character in word:
            characters[character] += number
    by_freq = sorted(characters, key=lambda one: (-characters[one], one))
    alphabet = set(by_freq[:ALPHABET_SIZE])
    counts = {
        word: number
        for word, number in counts.items()
        if alphabet.issuperset(word)
    }
    # The library numbers characters by chance, which decides between pairs
    # that are equally frequent, unless they have numbers already
    inner = {INNER + character for word in counts for character in word[1:]}
    first = {word[0] for word in counts}
    least = len(SPECIAL_TOKENS) + len(inner) + len(first)
    if size < least:
        raise InputError(
            f'vocab_size = {size}: the text has {len(first)} characters '
            f'that begin a word and {len(inner)} inside of words; give '
            f'{least} or more'
        )
    tokenizer = library.Tokenizer(library.models.WordPiece())
    tokenizer.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    trainer = library.trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*SPECIAL_TOKENS, *sorted(inner)],
        initial_alphabet=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(repeated(counts), trainer)
    return word_pieces(sorted(tokenizer.get_vocab()))


def repeated(counts: Mapping[str, int]) -> Iterator[str]:
    """Yield texts in which each word occurs as often as it should.

    The library counts words itself. Large counts are scaled down.
    """
    scale = max(1, sum(counts.values()) / TRAINING_WORDS)
    for word, number in counts.items():
        left = max(1, round(number / scale))
        while left:
            now = min(left, 1024)
            yield f'{word} ' * now
            left -= now


def word_pieces(tokens: Sequence[str]) -> PieceVocab:
    """Return the vocabulary of WordPiece that has these tokens."""
    library = load_library()
    indices = {token: i for i, token in enumerate(tokens)}
    unknown = next(
        (name for name in ('[UNK]', UNKNOWN) if name in indices), UNKNOWN
    )
    model = library.models.WordPiece(indices, unk_token=unknown)
    tokenizer = library.Tokenizer(model)
    tokenizer.normalizer = library.normalizers.Lowercase()
    tokenizer.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    return PieceVocab(our_names(tokens), tokenizer)


# ---- files -----------------------------------------------------------


def load_tokenizer(path: str | os.PathLike) -> tuple[PieceVocab, str]:
    """Return the vocabulary in a file, and the file's SHA-256."""
    try:
        file = Path(expand_home(os.fspath(path)))
        check_regular(file, MAX_FILE)
        data = file.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(
            f'the tokenizer {str(path)!r} cannot be read '
            f'({describe_error(error)}): expected was words, wordpiece, or '
            'the path of a tokenizer.json or of a vocabulary with a token a '
            'line'
        ) from error
    with tokenizer_errors(path):
        text = data.decode()
        if file.suffix == '.json':
            vocab = vocab_of(None, text)
        else:
            vocab = word_pieces(text.splitlines())
        check_tokens(vocab.idx_to_token)
    return vocab, sha256(data)


def vocab_of(tokens: Sequence[str] | None, text: str) -> PieceVocab:
    """Return a vocabulary, of what `tokenizer_json` has returned.

    `tokens`: those of the vocabulary, where they are known.
    """
    try:
        tokenizer = load_library().Tokenizer.from_str(text)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # the library's have no type of their own
        raise ValueError(f'no tokenizer: {error}') from error
    if tokens is None:
        indices = tokenizer.get_vocab(with_added_tokens=True)
        tokens = our_names(sorted(indices, key=indices.__getitem__))
        if sorted(indices.values()) != list(range(len(tokens))):
            raise ValueError('its indices are not 0, 1, 2 and so on')
    elif len(tokens) < tokenizer.get_vocab_size():
        raise ValueError('its tokenizer has more tokens than its vocabulary')
    return PieceVocab(tokens, tokenizer)


def our_names(tokens: Sequence[str]) -> list[str]:
    """Return tokens with d2lbert's names of the reserved ones."""
    if set(tokens).issuperset(SPECIAL_TOKENS):
        return list(tokens)
    return [THEIR_NAMES.get(token, token) for token in tokens]


def check_tokens(tokens: Sequence[str]) -> None:
    """Raise `ValueError` for tokens that are no vocabulary."""
    missing = [token for token in SPECIAL_TOKENS if token not in tokens]
    if missing:
        raise ValueError(f'it has no {", ".join(missing)}')
    if len(set(tokens)) < len(tokens):
        raise ValueError('it has a token twice')
    if any(token.split() != [token] for token in tokens):
        raise ValueError('it has a token that is empty or has a space in it')


@contextmanager
def tokenizer_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turn any error of a tokenizer's file into an `InputError`."""
    try:
        yield
    except Exception as error:  # the library's have no type of their own
        raise InputError(
            f'the tokenizer {str(path)!r} cannot be used ({error}): expected '
            'was a tokenizer.json that the library tokenizers has written, '
            'or a vocabulary of WordPiece with a token a line; with a token '
            'for unknown words, padding, masks, a start and a separator'
        ) from error
