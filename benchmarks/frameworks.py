"""The lines of the chapter's cells that depend on the framework.

They run with the textbook's package and with ours, whose import has to come
first: it is what lets MXNet be imported beside today's NumPy.
"""

# ruff: noqa: D102 (what `MXNet` does is said in `Torch`)

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy

from benchmarks.workload import CHAPTER, Sizes

LEARNING_RATE = 0.01
Batch = Sequence[Any]
#: Trains on a batch that was placed; returns both losses.
Step = Callable[[Batch], tuple[Any, Any]]


class Torch:
    """The PyTorch tab."""

    def __init__(self) -> None:
        import torch

        self.torch = torch

    def native(self, arrays: Sequence[numpy.ndarray]) -> list[Any]:
        """Return a batch in the chapter's types."""
        return [
            self.torch.from_numpy(X if X.dtype.kind == 'f' else X.astype(int))
            for X in arrays
        ]

    def row(self, data: Any, net: Any) -> Any:
        """Return a batch of one row, on the device of the network."""
        device = next(net.parameters()).device
        return self.torch.tensor(data, device=device).unsqueeze(0)

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

    def new_step(
        self,
        losses: Callable[..., tuple[Any, Any, Any]],
        net: Any,
        devices: Sequence[Any],
    ) -> tuple[Callable[[Batch], Batch], Step]:
        """Return what places a batch, and what trains on it.

        `losses`: d2l's of the network and a batch.
        """
        net = self.torch.nn.DataParallel(net, device_ids=devices)
        net = net.to(devices[0])
        optimizer = self.torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)

        def place(batch: Batch) -> Batch:
            optimizer.zero_grad()
            return [X.to(devices[0]) for X in batch]

        def step(batch: Batch) -> tuple[Any, Any]:
            mlm_l, nsp_l, total = losses(net, batch)
            total.backward()
            optimizer.step()
            return mlm_l, nsp_l

        return place, step

    def evaluation(self, net: Any) -> None:
        """Turn dropout off."""
        net.eval()

    def peak_bytes_on_card(self) -> int:
        """Return the most memory that arrays have had on the GPU."""
        return self.torch.cuda.max_memory_allocated()


class MXNet:
    """The MXNet tab; see `Torch`."""

    def __init__(self) -> None:
        import mxnet

        self.mx = mxnet
        mxnet.npx.set_np()

    def native(self, arrays: Sequence[numpy.ndarray]) -> list[Any]:
        return [self.mx.np.array(X, dtype=X.dtype) for X in arrays]

    def row(self, data: Any, net: Any) -> Any:
        return self.mx.np.expand_dims(self.mx.np.array(data), axis=0)

    def to_numpy(self, X: Any) -> numpy.ndarray:
        return X.asnumpy()

    def new_net(
        self, d2l: Any, vocab_size: int, device: Any, sizes: Sizes = CHAPTER
    ) -> Any:
        net = d2l.BERTModel(vocab_size, **sizes._asdict())
        net.initialize(self.mx.init.Xavier(), ctx=device)
        return net

    def loss(self) -> Any:
        return self.mx.gluon.loss.SoftmaxCELoss()

    def new_step(
        self,
        losses: Callable[..., tuple[Any, Any, Any]],
        net: Any,
        devices: Sequence[Any],
    ) -> tuple[Callable[[Batch], Batch], Step]:
        gluon = self.mx.gluon
        trainer = gluon.Trainer(
            net.collect_params(), 'adam', {'learning_rate': LEARNING_RATE}
        )

        def place(batch: Batch) -> Batch:
            return [
                gluon.utils.split_and_load(X, devices, even_split=False)
                for X in batch
            ]

        def step(shards: Batch) -> tuple[Any, Any]:
            with self.mx.autograd.record():
                mlm_ls, nsp_ls, totals = losses(net, shards)
            for total in totals:
                total.backward()
            trainer.step(1)
            return (
                sum(float(mlm_l) for mlm_l in mlm_ls) / len(mlm_ls),
                sum(float(nsp_l) for nsp_l in nsp_ls) / len(nsp_ls),
            )

        return place, step

    def evaluation(self, net: Any) -> None:
        pass  # outside of `record` there is no dropout

    def peak_bytes_on_card(self) -> int:
        return 0  # it is compared on processors only


Framework = Torch | MXNet


def load(name: str) -> Framework:
    """Return a framework by its name."""
    return Torch() if name == 'torch' else MXNet()
