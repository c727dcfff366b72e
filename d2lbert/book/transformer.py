"""The encoder of the book's Transformer section, of which BERT's is made.

Vaswani et al., "Attention is all you need" (2017). A tab joins the classes
with its framework's, as it does with those of `d2lbert.bert`.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from backends.types import Array
from d2lbert.bert import Definition


class PositionalEncoding(Definition):
    """Adds sinusoids to embeddings, then dropout.

    Column 2j of row i is sin(i / 10000^(2j / num_hiddens)), and column
    2j + 1 the cosine of the same angle. `num_hiddens`: even; `max_len`: the
    number of rows.
    """

    #: The attribute of an array that has its device.
    DEVICE: ClassVar[str]

    def __init__(
        self, num_hiddens: int, dropout: float, max_len: int = 1000
    ) -> None:
        super().__init__()
        self.dropout = self.backend.Dropout(dropout)
        rates = 10000 ** (np.arange(0, num_hiddens, 2) / num_hiddens)
        angles = np.arange(max_len)[:, None] / rates
        columns = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
        self.table = columns.reshape(1, max_len, -1).astype(np.float32)

    def forward(self, X: Array) -> Array:
        """`(B, T, num_hiddens)` to the same shape."""
        positions = self.table[:, : X.shape[1]]
        P = self.backend.tensor(positions, getattr(X, self.DEVICE))
        return self.dropout(X + P)


class TransformerEncoder(Definition):
    """Embeddings, sinusoids of the positions and encoder blocks.

    The arguments are those of `d2lbert.bert.BERTModel`; `use_bias`: whether
    the linear layers of the attention have biases.
    """

    Block: ClassVar[Any]
    PositionalEncoding: ClassVar[Any]

    def __init__(
        self,
        vocab_size: int,
        num_hiddens: int,
        ffn_num_hiddens: int,
        num_heads: int,
        num_blks: int,
        dropout: float,
        use_bias: bool = False,
    ) -> None:
        super().__init__()
        self.num_hiddens = num_hiddens
        self.embedding = self.backend.Embedding(vocab_size, num_hiddens)
        self.pos_encoding = self.PositionalEncoding(num_hiddens, dropout)
        self.blks = self.backend.Sequential(
            *(
                self.Block(
                    num_hiddens, ffn_num_hiddens, num_heads, dropout, use_bias
                )
                for _ in range(num_blks)
            )
        )

    def forward(self, X: Array, valid_lens: Array | None) -> Array:
        """Encode tokens `(B, T)`, of each row the first `valid_lens` `(B,)`.

        Returns `(B, T, num_hiddens)`.
        """
        X = self.pos_encoding(self.embedding(X) * math.sqrt(self.num_hiddens))
        for blk in self.blks:
            X = blk(X, valid_lens)
        return X
