"""The textbook's side: d2l 1.0.3 and the chapter's cells.

`train_bert` and `get_bert_encoding` are in no version of the package, but
in the chapter: here in our words, call for call.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

from benchmarks import frameworks
from benchmarks.frameworks import Framework

#: What d2l imports and training does not need, by the package it is in.
OPTIONAL = {
    'torchvision': ('torchvision', 'torchvision.transforms'),
    'pandas': ('pandas',),
    'requests': ('requests',),
    'PIL': ('PIL',),
    'IPython': ('IPython', 'IPython.core.pylabtools'),
    'matplotlib': ('matplotlib', 'matplotlib.figure'),
    'matplotlib_inline': ('matplotlib_inline',),
    'scipy': ('scipy', 'scipy.spatial'),
}


def load(name: str) -> SimpleNamespace:
    """Import d2l's module of a framework; return the chapter's names.

    Where the variable `D2L_PATH` is set, d2l is in that folder.
    """
    stand_in_for_what_is_missing()
    # Newer IPythons lack what the matplotlib that d2l pins asks for
    pylabtools: Any = importlib.import_module('IPython.core.pylabtools')
    pylabtools.backend2gui = {}
    if 'D2L_PATH' in os.environ:
        # Last, for it may have other packages too, of another Python
        sys.path.append(os.environ['D2L_PATH'])
    d2l = importlib.import_module(f'd2l.{name}')
    framework = frameworks.load(name)
    return SimpleNamespace(
        BERTModel=d2l.BERTModel,
        Vocab=d2l.Vocab,
        try_gpu=d2l.try_gpu,
        load_data_wiki=partial(load_data_wiki, d2l),
        train_bert=partial(train_bert, d2l, framework),
        get_bert_encoding=partial(get_bert_encoding, d2l, framework),
    )


def stand_in_for_what_is_missing(packages: Iterable[str] = OPTIONAL) -> None:
    """Let what is not installed be imported, and do nothing when used."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            stand_in = MagicMock()
            # PyTorch asks what is installed
            stand_in.__spec__ = ModuleSpec(package, None)
            # Matplotlib asks which IPython there is
            stand_in.version_info = (9, 0)
            stand_in.pyplot.subplots.return_value = MagicMock(), MagicMock()
            sys.modules.update(dict.fromkeys(OPTIONAL[package], stand_in))


def load_data_wiki(
    d2l: Any, batch_size: int, max_len: int, corpus: str
) -> tuple[Any, Any]:
    """Call d2l's `load_data_wiki` on a folder, the download being over."""
    d2l.download_extract = lambda *_: corpus
    return d2l.load_data_wiki(batch_size, max_len)


def train_bert(
    d2l: Any,
    framework: Framework,
    train_iter: Iterable[Any],
    net: Any,
    loss: Any,
    vocab_size: int,
    devices: Sequence[Any],
    num_steps: int,
) -> None:
    """Train as the chapter does, whose timer leaves out data and picture."""

    def losses(net: Any, batch: Sequence[Any]) -> tuple[Any, Any, Any]:
        return d2l._get_batch_loss_bert(net, loss, vocab_size, *batch)

    place, step = framework.new_step(losses, net, devices)
    timer = d2l.Timer()
    animator = d2l.Animator(
        xlabel='step',
        ylabel='loss',
        xlim=[1, num_steps],
        legend=['mlm', 'nsp'],
    )
    metric = d2l.Accumulator(4)
    for i, batch in zip(range(num_steps), endless(train_iter), strict=False):
        placed = place(batch)
        timer.start()
        metric.add(*step(placed), batch[0].shape[0], 1)
        timer.stop()
        animator.add(i + 1, (metric[0] / metric[3], metric[1] / metric[3]))
    print(
        f'MLM loss {metric[0] / metric[3]:.3f}, '
        f'NSP loss {metric[1] / metric[3]:.3f}'
    )
    print(f'{metric[2] / timer.sum():.1f} sentence pairs/sec on {devices}')


def endless(train_iter: Iterable[Any]) -> Iterator[Any]:
    """Yield minibatches, epoch after epoch."""
    while True:
        yield from train_iter


def get_bert_encoding(
    d2l: Any, framework: Framework, net: Any, words: Sequence[str], vocab: Any
) -> Any:
    """Return BERT's encoding of a list of words, `(1, T, H)`."""
    tokens, segments = d2l.get_tokens_and_segments(words)
    encoded_X, _, _ = net(
        *(
            framework.row(data, net)
            for data in (vocab[tokens], segments, len(tokens))
        )
    )
    return encoded_X
