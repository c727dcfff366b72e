"""The lines of the chapter's cells that depend on the framework.

They run with the textbook's package and with ours, whose import has to come
first: it is what lets MXNet be imported beside today's NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy

from benchmarks.workload import CHAPTER, Sizes


class Torch:
    """The PyTorch tab."""

    def __init__(self) -> None:
        import torch

        self.torch = torch

    def native(self, arrays: Sequence[numpy.ndarray]) -> list[Any]:
        """Return a batch in the chapter's types."""
        return [
            self.torch.from_numpy(
                array if array.dtype.kind == 'f' else array.astype(int)
            )
            for array in arrays
        ]

    def to_numpy(self, X: Any) -> numpy.ndarray:
        """Return an array's value."""
        return X.detach().cpu().numpy()

    def new_net(
        self, d2l: Any, vocab_size: int, device: Any, sizes: Sizes = CHAPTER
    ) -> Any:
        """Return the chapter's network, all of its sizes fixed."""
        net = d2l.BERTModel(vocab_size, **sizes._asdict())
        tokens = self.torch.zeros((1, 2), dtype=int)
        net(tokens, tokens, self.torch.tensor([2]), tokens)
        return net.to(device)

    def loss(self) -> Any:
        """Return the loss that the chapter's cell makes."""
        return self.torch.nn.CrossEntropyLoss()

    def evaluation(self, net: Any) -> None:
        """Turn dropout off."""
        net.eval()

    def peak_bytes_on_card(self) -> int:
        """Return the most memory that arrays have had on the GPU."""
        return self.torch.cuda.max_memory_allocated()


class MXNet:
    """The MXNet tab."""

    def __init__(self) -> None:
        import mxnet

        self.mx = mxnet
        mxnet.npx.set_np()

    def native(self, arrays: Sequence[numpy.ndarray]) -> list[Any]:
        """Return a batch in the chapter's types."""
        return [self.mx.np.array(X, dtype=X.dtype) for X in arrays]

    def to_numpy(self, X: Any) -> numpy.ndarray:
        """Return an array's value."""
        return X.asnumpy()

    def new_net(
        self, d2l: Any, vocab_size: int, device: Any, sizes: Sizes = CHAPTER
    ) -> Any:
        """Return the chapter's network with its initial weights."""
        net = d2l.BERTModel(vocab_size, **sizes._asdict())
        net.initialize(self.mx.init.Xavier(), ctx=device)
        return net

    def loss(self) -> Any:
        """Return the loss that the chapter's cell makes."""
        return self.mx.gluon.loss.SoftmaxCELoss()

    def evaluation(self, net: Any) -> None:
        """Do nothing: outside of `record` there is no dropout."""

    def peak_bytes_on_card(self) -> int:
        """Return 0: MXNet is compared on processors only."""
        return 0


Framework = Torch | MXNet
Package = ModuleType | SimpleNamespace


def load(name: str) -> Framework:
    """Return a framework by its name."""
    return Torch() if name == 'torch' else MXNet()
