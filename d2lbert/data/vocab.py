"""The vocabulary: tokens to indices and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

UNKNOWN = '<unk>'
PAD, MASK, CLS, SEP = RESERVED_TOKENS = ('<pad>', '<mask>', '<cls>', '<sep>')


class Vocab:
    """A sorted list of tokens, with `<unk>` for all others.

    `tokens`: a list of tokens, a list of lists of them, or how often each
    token occurs, in the order of their first occurrence. A token that occurs
    at least `min_freq` times gets an index of its own. `max_size`: how many
    indices there are at most, `<unk>` and the reserved tokens among them;
    the most frequent tokens get them, and of equally frequent ones those
    that are first in the alphabet.
    """

    def __init__(
        self,
        tokens: Sequence[Any] | Mapping[str, int] = (),
        min_freq: int = 0,
        reserved_tokens: Iterable[str] = (),
        max_size: int | None = None,
    ) -> None:
        if (
            not isinstance(tokens, Mapping)
            and len(tokens)
            and isinstance(tokens[0], (list, tuple))
        ):
            tokens = list(chain.from_iterable(tokens))
        self.token_freqs = Counter(tokens).most_common()
        special = {UNKNOWN, *reserved_tokens}
        frequent = {
            token: freq
            for token, freq in self.token_freqs
            if freq >= min_freq and token not in special
        }
        if max_size is not None and len(special) + len(frequent) > max_size:
            by_freq = sorted(
                frequent, key=lambda token: (-frequent[token], token)
            )
            frequent = dict.fromkeys(by_freq[: max_size - len(special)], 0)
        self._set_tokens(sorted(special | frequent.keys()))

    @classmethod
    def from_tokens(cls, idx_to_token: Iterable[str]) -> Vocab:
        """Return the vocabulary that has these tokens in this order."""
        vocab = cls()
        vocab._set_tokens(list(idx_to_token))
        return vocab

    def _set_tokens(self, idx_to_token: list[str]) -> None:
        self.idx_to_token = idx_to_token
        self.token_to_idx = {
            token: idx for idx, token in enumerate(idx_to_token)
        }

    def __len__(self) -> int:
        return len(self.idx_to_token)

    def __getitem__(self, tokens: Any) -> Any:
        """Return the index of a token, or a list of them for a list."""
        if isinstance(tokens, (list, tuple)):
            get, unk = self.token_to_idx.get, self.unk
            return [
                get(token, unk) if isinstance(token, str) else self[token]
                for token in tokens
            ]
        return self.token_to_idx.get(tokens, self.unk)

    def to_tokens(self, indices: Any) -> Any:
        """Return the token of an index, or a list of them for several."""
        if hasattr(indices, '__len__') and len(indices) > 1:
            return [self.idx_to_token[int(index)] for index in indices]
        return self.idx_to_token[indices]

    def tokenize(self, sentence: str) -> list[str]:
        """Return the tokens of a sentence: its words, in lower case."""
        return sentence.lower().split()

    def split_words(self, words: Sequence[str]) -> list[list[str]] | None:
        """Return the tokens of each word, None where each word is one."""
        return None

    def tokenizer_json(self) -> str:
        """Return what splits words into tokens, nothing for whole words."""
        return ''

    @property
    def unk(self) -> int:
        """The index of `<unk>`."""
        return self.token_to_idx[UNKNOWN]
