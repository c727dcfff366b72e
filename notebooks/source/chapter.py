"""The notebooks' code, and where prose goes between it.

Jupytext's percent format: a cell's title is its id. A Markdown cell is empty
here, its text stands under the same id in `en.md`, `fr.md`, …; a code cell
tagged with a framework is in that framework's notebooks only. BACKEND and
OTHER become the notebook's framework and the other one.
"""

# ruff: noqa: E402, F811, I001

# %% title [markdown]

# %% check
try:
    from d2lbert.classroom import inspection
except ModuleNotFoundError as error:
    raise SystemExit(
        f'{error}: in a clone of the project, run\n'
        "    pip install '.[BACKEND,notebooks]'\n"
        'in the environment of this notebook, then restart the kernel'
    ) from None

backend, other = 'BACKEND', 'OTHER'
inspection.check_environment(backend)

# %% pretraining [markdown]

# %% imports
import math
import random

import numpy as np

import backends
import d2lbert
from d2lbert.classroom import figures

# %% framework tags=["jax"]
import optax
from flax import nnx

from d2lbert import jax as d2l

# %% framework tags=["mxnet"]
from mxnet import gluon, init, npx

from d2lbert import mxnet as d2l

npx.set_np()

# %% framework tags=["torch"]
import torch
from torch import nn

from d2lbert import torch as d2l

# %% data [markdown]

# %% load
corpus = 'sample'
batch_size, max_len = 512, 64
random.seed(0)
train_iter, vocab = d2l.load_data_wiki(batch_size, max_len, corpus)
examples = train_iter.dataset.examples
print(f'{len(examples.tokens):,} examples, {len(vocab):,} tokens')

# %% arrays [markdown]

# %% batch
batch = next(iter(train_iter))
for name, X in zip(examples._fields, batch, strict=True):
    print(f'{name:15} {tuple(X.shape)}')

# %% example [markdown]

# %% example-figure
figures.draw_example(inspection.telling_example(examples, vocab))

# %% example-reading [markdown]

# %% model [markdown]

# %% network tags=["jax"]
devices = d2l.try_all_gpus()


def new_net():
    """Return the chapter's network with its initial weights."""
    return d2l.BERTModel(
        len(vocab),
        num_hiddens=128,
        ffn_num_hiddens=256,
        num_heads=2,
        num_blks=2,
        dropout=0.2,
        rngs=nnx.Rngs(0),
    )


net = new_net()
loss = optax.softmax_cross_entropy_with_integer_labels

# %% network tags=["mxnet"]
devices = d2l.try_all_gpus()


def new_net():
    """Return the chapter's network with its initial weights."""
    npx.random.seed(0)
    net = d2l.BERTModel(
        len(vocab),
        num_hiddens=128,
        ffn_num_hiddens=256,
        num_heads=2,
        num_blks=2,
        dropout=0.2,
    )
    net.initialize(init.Xavier(), ctx=devices)
    return net


net = new_net()
loss = gluon.loss.SoftmaxCELoss()

# %% network tags=["torch"]
devices = d2l.try_all_gpus()


def new_net():
    """Return the chapter's network with its initial weights."""
    torch.manual_seed(0)
    return d2l.BERTModel(
        len(vocab),
        num_hiddens=128,
        ffn_num_hiddens=256,
        num_heads=2,
        num_blks=2,
        dropout=0.2,
    )


net = new_net()
loss = nn.CrossEntropyLoss()

# %% model-figure
figures.draw_model(net, batch)

# %% model-reading [markdown]

# %% losses [markdown]

# %% first-losses tags=["mxnet"]
shards = [
    gluon.utils.split_and_load(X, devices, even_split=False) for X in batch
]
(mlm_l, *_), (nsp_l, *_), _ = d2l._get_batch_loss_bert(
    net, loss, len(vocab), *shards
)
print(f'MLM loss {mlm_l.item():.3f}, chance {math.log(len(vocab)):.3f}')
print(f'NSP loss {nsp_l.item():.3f}, chance {math.log(2):.3f}')

# %% first-losses tags=["jax", "torch"]
mlm_l, nsp_l, _ = d2l._get_batch_loss_bert(net, loss, len(vocab), *batch)
print(f'MLM loss {mlm_l.item():.3f}, chance {math.log(len(vocab)):.3f}')
print(f'NSP loss {nsp_l.item():.3f}, chance {math.log(2):.3f}')

# %% frequencies [markdown]

# %% entropy
labels = examples.mlm_labels[examples.mlm_weights > 0]
p = np.bincount(labels) / len(labels)
p = p[p > 0]
entropy = -(p * np.log(p)).sum()
print(f'MLM loss of guessing by frequency: {entropy:.3f}')

# %% training [markdown]

# %% train
d2l.train_bert(train_iter, net, loss, len(vocab), devices, 50)

# %% two-lines [markdown]

# %% represent [markdown]

# %% encode
text = d2l.get_bert_encoding(net, ['a', 'crane', 'is', 'flying'])
pair = d2l.get_bert_encoding(
    net, ['a', 'crane', 'driver', 'came'], ['he', 'just', 'left']
)
print('shapes:', tuple(text.shape), tuple(pair.shape))
print('crane in the sentence:', text[0, 2, :3])
print('crane in the pair:    ', pair[0, 2, :3])

# %% senses [markdown]

# %% sentences
birds = [
    'a crane is flying over the quiet marsh',
    'the crane folded its wings and slept',
    'the crane danced beside its mate',
    'the crane found a fish beside the lake',
    'the crane called and the flock followed',
]
machines = [
    'a crane is lifting a heavy beam',
    'the crane lowered its hook to the deck',
    'the crane moved a heavy crate with its hook',
    'the crane stopped above the truck',
    'the crane driver checked the engine',
]
sentences = birds + machines

# %% longer-training
longer = d2lbert.pretrain(
    backend=backend,
    corpus='sample',
    recipe='corrected',
    lr=0.001,
    steps=640,
    batch_size=64,
    num_blks=1,
    dropout=0.0,
)
print(longer.summary())

# %% senses-figure
figures.draw_cosines(
    {
        f'steps = {steps}': inspection.word_vectors(
            its_net, its_vocab, sentences, 'crane'
        )
        for steps, its_net, its_vocab in (
            (0, new_net(), vocab),
            (50, net, vocab),
            (640, longer.net, longer.vocab),
        )
    },
    sentences,
    'crane',
)

# %% senses-reading [markdown]

# %% attention [markdown]

# %% attention-figure
figures.draw_attention(
    longer.net, longer.vocab, 'the crane lowered its hook to the deck'
)

# %% attention-reading [markdown]

# %% recipes [markdown]

# %% both-recipes
options = {'corpus': corpus, 'batch_size': 128, 'devices': 'cpu'}
runs = [
    d2lbert.pretrain(backend=backend, recipe=recipe, **options)
    for recipe in ('mxnet', 'pytorch')
]
for run in runs:
    print(f'{run.label()}: {run.mlm_loss:.3f}, {run.nsp_loss:.3f}')
figures.draw_curves(runs)

# %% recipes-reading [markdown]

# %% padding
q = 1 - examples.mlm_weights.mean()
print(f'{q:.1%} of all slots are padding')
alike = q * -math.log(q) + (1 - q) * (entropy - math.log(1 - q))
print(f'all slots answered alike: {alike:.3f}')
print(f'padding for nothing: {(1 - q) * entropy:.3f}')

# %% other-framework [markdown]

# %% other-curves
if other in backends.installed():
    runs += [
        d2lbert.pretrain(backend=other, recipe=run.config.recipe, **options)
        for run in runs
    ]
else:
    print(f"No curves of {other}: pip install '.[{other}]' adds them")
figures.draw_curves(runs)

# %% other-reading [markdown]

# %% exercises [markdown]

# %% exercise-losses [markdown]

# %% exercise-large [markdown]

# %% memory
bert_large = {
    'num_hiddens': 1024,
    'ffn_num_hiddens': 4096,
    'num_heads': 16,
    'num_blks': 24,
    'max_len': 512,
}
for micro_batch in (512, 16, 1):
    memory = inspection.estimate_memory(
        len(vocab), micro_batch=micro_batch, **bert_large
    )
    print(f'micro_batch = {micro_batch:3}: {memory.total / 1e9:7.1f} GB')

# %% exercise-large-run [markdown]

# %% large-run
run_bert_large = False
if run_bert_large:
    large = d2lbert.pretrain(
        backend=backend,
        corpus=corpus,
        batch_size=8,
        micro_batch=1,
        steps=1,
        **bert_large,
    )
    print(large.summary())

# %% more-exercises [markdown]
