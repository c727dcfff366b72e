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
    at least `min_freq` times gets an index of its own.
    """

    def __init__(
        self,
        tokens: Sequence[Any] | Mapping[str, int] = (),
        min_freq: int = 0,
        reserved_tokens: Iterable[str] = (),
    ) -> None:
        if (
            not isinstance(tokens, Mapping)
            and len(tokens)
            and isinstance(tokens[0], (list, tuple))
        ):
            tokens = list(chain.from_iterable(tokens))
        self.token_freqs = Counter(tokens).most_common()
        frequent = {
            token for token, freq in self.token_freqs if freq >= min_freq
        }
        self._set_tokens(sorted({UNKNOWN, *reserved_tokens} | frequent))

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

    @property
    def unk(self) -> int:
        """The index of `<unk>`."""
        return self.token_to_idx[UNKNOWN]
