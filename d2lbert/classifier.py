"""BERT with a classifier of sentence pairs, defined once for all frameworks.

A tab joins the class with its framework's, as it does with those of
`d2lbert.bert`.
"""

from __future__ import annotations

from typing import Any

from backends.types import Array
from d2lbert.bert import BERTModel, HasEncoder, has_own_forward

#: Entailment, contradiction and neutral.
NUM_CLASSES = 3


class BERTClassifier(HasEncoder):
    """A pretrained encoder and what it says of a pair of sentences.

    `bert`: a `BERTModel`, whose `encoder` and `hidden` layer become those of
    the classifier: they are shared and not copied. Its other heads are not
    part of it. `others`: for the framework's base class.
    """

    def __init__(self, bert: BERTModel, **others: Any) -> None:
        super().__init__(**others)
        self.encoder = bert.encoder
        self.hidden = bert.hidden
        self.output = self.backend.Linear(
            NUM_CLASSES, bert.encoder.num_hiddens
        )

    def forward(self, *inputs: Any) -> Array:
        """Return the logits `(B, 3)` of pairs of sentences.

        `inputs`: tokens `(B, T)`, segments `(B, T)` and valid lengths
        `(B,)`, as three arguments or, as in the book, in one list; and
        the `queries` of `BERTEncoder.forward` whose first is `<cls>`.
        """
        arrays = inputs if len(inputs) > 1 else inputs[0]
        encoded_X = self.encoder(*arrays)
        return self.output(self.hidden(encoded_X[:, 0, :]))

    @property
    def is_replicable(self) -> bool:
        """Whether copies of the network may run at the same time."""
        return getattr(
            self.encoder, 'is_replicable', False
        ) and not has_own_forward(self)

    def losses(
        self,
        tokens: Array,
        segments: Array,
        valid_lens: Array,
        queries: Array,
        labels: Array,
        weights: Array,
    ) -> tuple[Array, Array]:
        """Return the weighted sums of cross-entropies and of right answers.

        `queries`: position 0 of each row, `(B, 1)`; `labels`, `weights`:
        `(B,)`. The gradient of the second is zero.
        """
        logits = self(tokens, segments, valid_lens, queries)
        loss: Any = self.backend.cross_entropy(logits, labels, weights)
        # MXNet compares no integers of different width, but real numbers
        counts: Any = weights
        right = counts * logits.argmax(axis=1) == counts * labels
        # A framework may ask every loss for a gradient: this one's is zero
        return loss, (right * counts).sum() + 0 * loss
