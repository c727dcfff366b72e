"""The code of the notebook, and where prose goes between it.

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
from d2lbert.classroom import charts, exercises, figures
from d2lbert.data.corpus import read_lines

# %% framework tags=["jax"]
import optax
from flax import nnx

from d2lbert import jax as d2l

# %% framework tags=["mxnet"]
from mxnet import gluon, init, npx

from d2lbert import mxnet as d2l

npx.set_np()

# %% framework tags=["torch"]
import warnings

import torch
from torch import nn

from d2lbert import torch as d2l

# %% pretraining-figure
figures.draw_pretraining()

# %% data [markdown]

# %% raw
corpus = 'sample'
lines = read_lines(corpus)
for line in [line for line in lines if ' crane ' in line][:2]:
    print(line.strip(), end='\n\n')

# %% loading [markdown]

# %% load
batch_size, max_len = 512, 64
random.seed(0)
train_iter, vocab = d2l.load_data_wiki(batch_size, max_len, corpus)
examples = train_iter.dataset.examples
print(f'{len(examples.tokens):,} examples, {len(vocab):,} tokens')
print(' '.join(vocab.idx_to_token[:5]), '…', *vocab.idx_to_token[300:310])
print(vocab[['<unk>', 'a', 'crane', 'is', 'flying', 'dinosaur']])

# %% arrays [markdown]

# %% batch
batch = next(iter(train_iter))
for name, X in zip(examples._fields, batch, strict=True):
    print(f'{name:15} {tuple(X.shape)}')

# %% example [markdown]

# %% example-figure
telling = {'hook', 'cable', 'crate', 'nest', 'wings', 'feathers', 'flock'}
figures.draw_example(inspection.telling_example(examples, vocab, telling))

# %% example-reading [markdown]

# %% masking [markdown]


# %% masking-turn
def replace(word, other_word):
    """Return what the network sees of a word that was picked."""
    return None  # your turn


exercises.check_replacement(replace)

# %% masking-solution [markdown]

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

# %% chance-turn
mlm_chance = None  # your turn
nsp_chance = None

exercises.check_chance(mlm_chance, nsp_chance, len(vocab))

# %% chance-solution [markdown]

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

# %% train tags=["jax", "mxnet"]
d2l.train_bert(train_iter, net, loss, len(vocab), devices, 50)

# %% train tags=["torch"]
with warnings.catch_warnings():
    # It would answer a later question
    warnings.simplefilter('ignore')
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

# %% longer [markdown]

# %% longer-training
settings = {
    'backend': backend,
    'corpus': 'sample',
    'recipe': 'corrected',
    'lr': 0.001,
    'batch_size': 128,
    'num_blks': 1,
    'dropout': 0.1,
}
longer = d2lbert.pretrain(steps=640, evaluate_every=40, **settings)
charts.draw_held_out(longer)

# %% longer-reading [markdown]

# %% evaluate
print(d2lbert.evaluate(longer).table())

# %% fill [markdown]


# %% most-probable-turn
def most_probable(p, tokens, k):
    """Return the k most probable tokens, the most probable one first."""
    return None  # your turn


exercises.check_most_probable(most_probable)

# %% most-probable-solution [markdown]

# %% fill-figure
shorter = d2lbert.pretrain(steps=50, **settings)
nets = {
    'steps = 0': inspection.untrained(longer),
    'steps = 50': shorter.net,
    'steps = 640': longer.net,
}
texts = [
    'the crane folded its <mask> and slept',
    'the crane lowered its <mask> to the deck',
    'the crane built its <mask> in the reeds',
    'the crane lifted the <mask> with its hook',
]
charts.draw_fillings(
    {
        name: d2lbert.fill(its_net, longer.vocab, texts)
        for name, its_net in nets.items()
    }
)

# %% fill-reading [markdown]

# %% fill-turn
your_texts = ['the <mask> found a fish', 'the crane is in the <mask>']
for found in d2lbert.fill(longer.net, longer.vocab, your_texts):
    print(' '.join(found.tokens[1:-1]))
    for word, p in zip(
        found.candidates[0], found.probabilities[0], strict=True
    ):
        print(f'    {p:6.1%} {word}')

# %% senses [markdown]

# %% senses-figure
sentences = inspection.sentences_by_topic('crane')
print(sum(map(len, sentences.values())), 'sentences')
cranes = {
    name: {
        topic: inspection.word_vectors(
            its_net, longer.vocab, sentences[topic], 'crane'
        )
        for topic in sentences
    }
    for name, its_net in nets.items()
}
charts.draw_plane(cranes, inspection.SENSES)

# %% senses-means [markdown]

# %% means
for name, groups in cranes.items():
    birds, machines = (
        np.concatenate([groups[topic] for topic in topics])
        for topics in inspection.SENSES.values()
    )
    (bb, bm), (_, mm) = inspection.mean_cosines([birds, machines])
    print(
        f'{name:12} birds {bb:.3f}, machines {mm:.3f}, '
        f'bird with machine {bm:.3f}'
    )

# %% senses-reading [markdown]

# %% attention [markdown]


# %% attention-turn
def attention(Q, K, V):
    """Return what each query takes from the values."""
    return None  # your turn


exercises.check_attention(attention)

# %% attention-solution [markdown]

# %% attention-figure
charts.draw_attention(
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
charts.draw_curves(runs, entropy)

# %% bug [markdown]


# %% mean-turn
def mean_over_words(losses, weights):
    """Return the mean of the losses that have the weight 1."""
    return None  # your turn


exercises.check_weighted_mean(mean_over_words)

# %% bug-solution [markdown]

# %% split
few = type(examples)(*(array[:512] for array in examples))
losses = inspection.slot_losses(runs[1].net, few)
q = 1 - few.mlm_weights.mean()
words = losses[few.mlm_weights > 0].mean()
padding = losses[few.mlm_weights == 0].mean()
print(f'padding: {q:.1%} of the slots, loss {padding:.3f}')
print(f'words:   {1 - q:.1%} of the slots, loss {words:.3f}')

# %% split-turn
total = None  # your turn, from q, words and padding

exercises.check_total(total, losses)

# %% split-reading [markdown]

# %% other-curves
if other in backends.installed():
    runs += [
        d2lbert.pretrain(backend=other, recipe=run.config.recipe, **options)
        for run in runs
    ]
else:
    print(f"No curves of {other}: pip install '.[{other}]' adds them")
charts.draw_curves(runs, entropy)

# %% other-reading [markdown]

# %% exercises [markdown]

# %% exercise-losses [markdown]

# %% exercise-large [markdown]

# %% memory
your_estimate = None  # GB, for a whole batch at a time
bert_large = {
    'num_hiddens': 1024,
    'ffn_num_hiddens': 4096,
    'num_heads': 16,
    'num_blks': 24,
    'max_len': 512,
}
for micro_batch in (512, 16, 1) if your_estimate else ():
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

# %% summary [markdown]
