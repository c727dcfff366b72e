"""BERT, defined once for all frameworks.

Devlin, Chang, Lee and Toutanova, "BERT: pre-training of deep bidirectional
transformers for language understanding" (2019), as *Dive into Deep
Learning* teaches it: post-norm encoder blocks, learned positions, no
normalisation of the embeddings, an output layer that is not tied to them.

The classes here are not networks yet. A tab module (`d2lbert.torch`,
`d2lbert.mxnet`) joins each with its framework's own base class, which
brings the attribute `backend`; names and shapes of the parameters are then
those of that tab of the textbook.

Shapes are written with B examples, T tokens an example, H hidden units,
P predicted positions an example.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from backends.base import Backend
from backends.types import Array

# The gradient of these is zero, because the softmax does not change when
# the same number is added to all scores of a query. What a framework
# computes instead is rounding noise, which Adam would turn into steps of
# full size.
ZERO_GRADIENT = ('W_k.bias',)


class Definition:
    """The base of the definitions, which a tab joins with a native class.

    `backend`: comes with that class.
    """

    backend: ClassVar[Backend]

    if TYPE_CHECKING:

        def __call__(self, *inputs: Any) -> Any:
            """Return `forward(*inputs)`, as the native class calls it."""


class DotProductAttention(Definition):
    """Scaled dot-product attention."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = self.backend.Dropout(dropout)

    def forward(
        self,
        queries: Array,
        keys: Array,
        values: Array,
        valid_lens: Array | None = None,
    ) -> Array:
        """Return a weighted mean of the values for each query.

        `queries`: `(…, num_queries, d)`; `keys`: `(…, num_keys, d)`;
        `values`: `(…, num_keys, dv)`, where … is B or B and the number of
        heads; `valid_lens`: how many keys count, `(B,)` or
        `(B, num_queries)`. Returns `(…, num_queries, dv)`.
        """
        scores = self.backend.matmul(
            queries / math.sqrt(queries.shape[-1]), keys, transpose_B=True
        )
        weights = self.backend.masked_softmax(scores, valid_lens)
        return self.backend.matmul(self.dropout(weights), values)


class MultiHeadAttention(Definition):
    """Attention by several heads side by side, each with its own share.

    `num_hiddens`: units of all heads together, a multiple of `num_heads`;
    `num_inputs`: the size of queries, keys and values, by default left to
    the first of them. `others`, here and below, is for the framework's base
    class: MXNet 1 has `prefix` and `params`.
    """

    Attention: ClassVar[Any]

    def __init__(
        self,
        num_hiddens: int,
        num_heads: int,
        dropout: float,
        bias: bool = False,
        *,
        num_inputs: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        check_heads(num_hiddens, num_heads)
        self.num_heads = num_heads
        self.attention = self.Attention(dropout)
        Linear = self.backend.Linear
        self.W_q = Linear(num_hiddens, num_inputs, bias)
        self.W_k = Linear(num_hiddens, num_inputs, bias)
        self.W_v = Linear(num_hiddens, num_inputs, bias)
        self.W_o = Linear(num_hiddens, num_hiddens, bias)

    def forward(
        self,
        queries: Array,
        keys: Array,
        values: Array,
        valid_lens: Array | None,
    ) -> Array:
        """Attend from `queries` `(B, num_queries, ·)` to `keys` and `values`.

        Returns `(B, num_queries, H)`.
        """
        heads = self.attention(
            self.split_heads(self.W_q(queries)),
            self.split_heads(self.W_k(keys)),
            self.split_heads(self.W_v(values)),
            valid_lens,
        )
        return self.W_o(self.join_heads(heads))

    def split_heads(self, X: Array) -> Array:
        """`(B, T, H)` to `(B, num_heads, T, H / num_heads)`."""
        batch_size, num_steps, num_hiddens = X.shape
        X = X.reshape(
            (
                batch_size,
                num_steps,
                self.num_heads,
                num_hiddens // self.num_heads,
            )
        )
        return self.backend.transpose(X, (0, 2, 1, 3))

    def join_heads(self, X: Array) -> Array:
        """`(B, num_heads, T, H / num_heads)` to `(B, T, H)`."""
        batch_size, num_heads, num_steps, size = X.shape
        return self.backend.transpose(X, (0, 2, 1, 3)).reshape(
            (batch_size, num_steps, num_heads * size)
        )


class PositionWiseFFN(Definition):
    """Two linear layers with a ReLU between, alike for every position.

    `ffn_num_inputs`: by default left to the first input.
    """

    def __init__(
        self,
        ffn_num_hiddens: int,
        ffn_num_outputs: int,
        *,
        ffn_num_inputs: int | None = None,
    ) -> None:
        super().__init__()
        self.dense1 = self.backend.Linear(ffn_num_hiddens, ffn_num_inputs)
        self.dense2 = self.backend.Linear(ffn_num_outputs, ffn_num_hiddens)

    def forward(self, X: Array) -> Array:
        """`(…, ffn_num_inputs)` to `(…, ffn_num_outputs)`."""
        return self.dense2(self.backend.relu(self.dense1(X)))


class AddNorm(Definition):
    """Residual connection, then layer normalisation.

    `norm_shape`: the size of the last axis; in PyTorch also a list of sizes,
    which normalises over so many axes; in MXNet it can be left out.
    """

    def __init__(self, norm_shape: Any, dropout: float) -> None:
        super().__init__()
        self.dropout = self.backend.Dropout(dropout)
        self.ln = self.backend.LayerNorm(norm_shape)

    def forward(self, X: Array, Y: Array) -> Array:
        """Return the normalised X + dropout(Y), of the shape of both."""
        return self.ln(self.dropout(Y) + X)


class TransformerEncoderBlock(Definition):
    """Self-attention and a feed-forward network, each with an `AddNorm`."""

    Attention: ClassVar[Any]
    FFN: ClassVar[Any]
    AddNorm: ClassVar[Any]

    def __init__(
        self,
        num_hiddens: int,
        ffn_num_hiddens: int,
        num_heads: int,
        dropout: float,
        use_bias: bool = False,
    ) -> None:
        super().__init__()
        self.attention = self.Attention(
            num_hiddens,
            num_heads,
            dropout,
            use_bias,
            num_inputs=num_hiddens,
        )
        self.addnorm1 = self.AddNorm(norm_shape=num_hiddens, dropout=dropout)
        self.ffn = self.FFN(
            ffn_num_hiddens, num_hiddens, ffn_num_inputs=num_hiddens
        )
        self.addnorm2 = self.AddNorm(norm_shape=num_hiddens, dropout=dropout)

    def forward(
        self,
        X: Array,
        valid_lens: Array | None,
        queries: Array | None = None,
    ) -> Array:
        """`(B, T, H)` to `(B, T, H)`, or for `queries` `(B, Q, H)` to theirs.

        `queries`: those rows of `X` that are wanted, by default all.
        """
        if queries is None:
            queries = X
        Y = self.addnorm1(queries, self.attention(queries, X, X, valid_lens))
        return self.addnorm2(Y, self.ffn(Y))


class BERTEncoder(Definition):
    """Embeddings and a stack of Transformer encoder blocks.

    The arguments are those of `BERTModel`.
    """

    Block: ClassVar[Any]

    def __init__(
        self,
        vocab_size: int,
        num_hiddens: int,
        ffn_num_hiddens: int,
        num_heads: int,
        num_blks: int,
        dropout: float = 0.0,
        max_len: int = 1000,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.vocab_size = vocab_size
        self.num_hiddens = num_hiddens
        self.max_len = max_len
        self.token_embedding = self.backend.Embedding(vocab_size, num_hiddens)
        self.segment_embedding = self.backend.Embedding(2, num_hiddens)
        self.blks = self.backend.Sequential(
            *(
                self.Block(
                    num_hiddens,
                    ffn_num_hiddens,
                    num_heads,
                    dropout,
                    use_bias=True,
                )
                for _ in range(num_blks)
            )
        )
        self.pos_embedding = self.backend.parameter(
            self, 'pos_embedding', (1, max_len, num_hiddens)
        )

    def forward(
        self,
        tokens: Array,
        segments: Array,
        valid_lens: Array | None = None,
        queries: Array | None = None,
    ) -> Array:
        """Encode token sequences.

        `tokens` and `segments` (0 or 1): indices `(B, T)`; `valid_lens`:
        how many tokens of each row are not padding, `(B,)`. Returns
        `(B, T, H)`; or, for `queries`, the positions of each row that are
        wanted, `(B, Q)`, only these, `(B, Q, H)`: the last block need not
        compute the others.
        """
        X = self.token_embedding(tokens) + self.segment_embedding(segments)
        positions = self.backend.value(self.pos_embedding, X)
        X = X + positions[:, : X.shape[1]]
        *blks, last_blk = self.blks
        for blk in blks:
            X = self.backend.checkpoint(blk, X, valid_lens)
        if queries is None:
            return last_blk(X, valid_lens)
        return last_blk(X, valid_lens, self.backend.gather(X, queries))

    @property
    def is_replicable(self) -> bool:
        """Whether copies of the encoder may run at the same time.

        A reader's own `forward` need not bear that.
        """
        return not any(map(has_own_forward, self.parts()))

    def parts(self) -> Iterator[Any]:
        """Yield the encoder and its parts, each before its own parts."""
        yield self
        for blk in self.blks:
            yield blk
            yield from (blk.addnorm1, blk.addnorm2, blk.ffn, blk.attention)
            yield blk.attention.attention


class MaskLM(Definition):
    """Masked language modelling: guess tokens from their encodings.

    `num_inputs`: the size of an encoding, by default left to the first.
    """

    def __init__(
        self,
        vocab_size: int,
        num_hiddens: int,
        num_inputs: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        Linear = self.backend.Linear
        self.mlp = self.backend.Sequential(
            Linear(num_hiddens, num_inputs, activation='relu'),
            self.backend.LayerNorm(num_hiddens),
            Linear(vocab_size, num_hiddens),
        )

    def forward(self, X: Array, pred_positions: Array) -> Array:
        """Return the logits of the tokens at `pred_positions`.

        `X`: `(B, T, H)`; `pred_positions`: `(B, P)`. Returns
        `(B, P, vocab_size)`.
        """
        return self.mlp(self.backend.gather(X, pred_positions))

    def features(self, masked_X: Array) -> Array:
        """Return what the last layer of `mlp` gets: `(N, H)` to `(N, H)`."""
        *hidden_layers, _ = self.mlp
        for layer in hidden_layers:
            masked_X = layer(masked_X)
        return masked_X


class NextSentencePred(Definition):
    """Next sentence prediction: does the second sentence follow?

    `num_inputs`: the size of an encoding, by default left to the first.
    """

    def __init__(self, num_inputs: int | None = None, **others: Any) -> None:
        super().__init__(**others)
        self.output = self.backend.Linear(2, num_inputs)

    def forward(self, X: Array) -> Array:
        """`(B, H)` to logits `(B, 2)`: class 1 is "it follows"."""
        return self.output(X)


class HasEncoder(Definition):
    """A network with BERT's `encoder`."""

    encoder: Any
    #: Where the names of a tab's parameters differ from the neutral ones:
    #: see `d2lbert.weights.renamed`.
    NEUTRAL_NAMES: ClassVar[Sequence[tuple[str, str]]] = ()
    #: The same for layers.
    NEUTRAL_LAYERS: ClassVar[Sequence[tuple[str, str]]] = ()

    @property
    def vocab_size(self) -> int:
        """The number of tokens that the network knows."""
        return self.encoder.vocab_size

    @property
    def max_len(self) -> int:
        """The number of positions that the network knows."""
        return self.encoder.max_len


class BERTModel(HasEncoder):
    """BERT with the heads of its two pretraining tasks.

    `vocab_size`: the number of tokens; `num_hiddens`: the size H of an
    encoding, a multiple of `num_heads`; `ffn_num_hiddens`: hidden units of
    the feed-forward networks; `num_heads`: attention heads; `num_blks`:
    encoder blocks; `dropout`: the probability of dropping; `max_len`: the
    number of positions. The spellings of older editions are those of
    `d2lbert.book.editions.Spellings`.
    """

    Encoder: ClassVar[Any]
    MaskLM: ClassVar[Any]
    NextSentencePred: ClassVar[Any]

    def __init__(
        self,
        vocab_size: int,
        num_hiddens: int,
        ffn_num_hiddens: int,
        num_heads: int,
        num_blks: int,
        dropout: float = 0.0,
        max_len: int = 1000,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.encoder = self.Encoder(
            vocab_size,
            num_hiddens,
            ffn_num_hiddens,
            num_heads,
            num_blks,
            dropout,
            max_len,
        )
        self.hidden = self.backend.Linear(
            num_hiddens, num_hiddens, activation='tanh'
        )
        self.mlm = self.MaskLM(vocab_size, num_hiddens, num_hiddens)
        self.nsp = self.NextSentencePred(num_hiddens)

    def forward(
        self,
        tokens: Array,
        segments: Array,
        valid_lens: Array | None = None,
        pred_positions: Array | None = None,
    ) -> tuple[Any, Any, Any]:
        """Encode token sequences and predict for both tasks.

        `tokens` and `segments`: indices `(B, T)`; `valid_lens`: `(B,)`;
        `pred_positions`: `(B, P)`. Returns the encodings `(B, T, H)`, the
        logits `(B, P, vocab_size)` or `None` without `pred_positions`, and
        the logits `(B, 2)` of next sentence prediction.
        """
        encoded_X = self.encoder(tokens, segments, valid_lens)
        mlm_Y_hat = (
            None
            if pred_positions is None
            else self.mlm(encoded_X, pred_positions)
        )
        nsp_Y_hat = self.nsp(self.hidden(encoded_X[:, 0, :]))
        return encoded_X, mlm_Y_hat, nsp_Y_hat

    @property
    def is_replicable(self) -> bool:
        """Whether copies of the network may run at the same time."""
        heads = (self, self.mlm, self.nsp)
        return (
            getattr(self.encoder, 'is_replicable', False)
            and not any(map(has_own_forward, heads))
        )  # fmt: skip

    @property
    def is_plain(self) -> bool:
        """Whether `losses` may go around the `forward` of its parts."""
        *_, last_blk = self.encoder.blks
        parts = (self, self.encoder, last_blk, self.mlm, self.nsp)
        return not any(map(has_own_forward, parts))

    def losses(
        self,
        tokens: Array,
        segments: Array,
        valid_lens: Array,
        queries: Array,
        slots: Array,
        mlm_labels: Array,
        mlm_weights: Array,
        nsp_labels: Array,
        nsp_weights: Array,
    ) -> tuple[Array, Array]:
        """Return the weighted sums of the cross-entropies of both tasks.

        The arguments are those of `d2lbert.slots.LossInputs`. The losses are
        those of the outputs of `forward`, without the encodings that no loss
        depends on and without holding the logits. Where a reader has
        replaced a `forward` that this goes around, it is called instead.
        """
        if not self.is_plain:
            _, mlm_Y_hat, nsp_Y_hat = self(
                tokens, segments, valid_lens, queries
            )
            mlm_Y_hat = self.at_slots(mlm_Y_hat, slots)
            cross_entropy = self.backend.cross_entropy
            return (
                cross_entropy(mlm_Y_hat, mlm_labels, mlm_weights),
                cross_entropy(nsp_Y_hat, nsp_labels, nsp_weights),
            )
        encoded_X = self.encoder(tokens, segments, valid_lens, queries)
        mlm_l = self.backend.linear_cross_entropy(
            self.mlm.mlp[-1],
            self.mlm.features(self.at_slots(encoded_X, slots)),
            mlm_labels,
            mlm_weights,
        )
        nsp_l = self.backend.linear_cross_entropy(
            self.nsp.output,
            self.hidden(encoded_X[:, 0, :]),
            nsp_labels,
            nsp_weights,
        )
        return mlm_l, nsp_l

    def at_slots(self, X: Array, slots: Array) -> Array:
        """Return the vectors of a `(B, Q, H)` array at `slots`, `(N, H)`."""
        width = X.shape[-1]
        rows = self.backend.gather(
            X.reshape((1, -1, width)), slots.reshape((1, -1))
        )
        return rows.reshape((-1, width))


def has_own_forward(part: Any) -> bool:
    """Say whether a reader has replaced the `forward` of this module."""
    package, _, _ = type(part).forward.__module__.partition('.')
    return package != 'd2lbert'


def check_heads(num_hiddens: int, num_heads: int) -> None:
    """Raise `ValueError` unless heads divide the hidden units."""
    if num_heads < 1 or num_hiddens % num_heads:
        raise ValueError(
            f'num_hiddens = {num_hiddens} does not divide into '
            f'num_heads = {num_heads}: choose a divisor'
        )
