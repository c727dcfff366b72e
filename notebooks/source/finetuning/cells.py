"""The code of the notebook, and where prose goes between it.

The format is that of `bert/cells.py`.
"""

# ruff: noqa: E402

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

backend = 'BACKEND'
inspection.check_environment(backend)

# %% inference [markdown]

# %% imports
import tempfile

import numpy as np

import d2lbert
from d2lbert import BACKEND as d2l
from d2lbert.classroom import charts, exercises, figures
from d2lbert.data.snli import LABELS

# %% pairs
train_set = d2l.read_snli('sample', is_train=True)
test_set = d2l.read_snli('sample', is_train=False)
print(len(train_set[2]), 'training pairs,', len(test_set[2]), 'test pairs')
for premise, hypothesis, label in list(zip(*train_set, strict=True))[:6]:
    print(f'\n{premise}\n    {hypothesis}\n    {label} = {LABELS[label]}')

# %% classes [markdown]

# %% classes-turn
chosen = [20, 9, 4, 17]
for number, i in enumerate(chosen):
    print(f'pair {number}: {test_set[0][i]} → {test_set[1][i]}')
your_classes = [None, None, None, None]  # your turn: 0, 1 or 2

exercises.check_classes(your_classes, [test_set[2][i] for i in chosen])

# %% hypotheses [markdown]

# %% hypotheses-table
print('entailment, contradiction, neutral')
labels = np.array(train_set[2])
for hypothesis in sorted(set(train_set[1])):
    counts = np.bincount(labels[np.array(train_set[1]) == hypothesis])
    print(f'{counts} {hypothesis}')

# %% pretraining [markdown]

# %% pretraining-figure
figures.draw_pretraining()

# %% pretraining-run [markdown]

# %% pretrain
base = d2lbert.pretrain(
    backend=backend,
    recipe='corrected',
    lr=0.001,
    batch_size=128,
    num_blks=1,
    dropout=0.1,
    steps=640,
)
folder = tempfile.mkdtemp()
base.save(folder)
bert, vocab = base.net, base.vocab
(filling,) = d2lbert.fill(bert, vocab, ['the crane folded its <mask>'])
print(*filling.candidates[0])

# %% examples [markdown]

# %% dataset
dataset = d2l.SNLIBERTDataset(train_set, max_len=24, vocab=vocab)
(tokens, segments, valid_len), label = dataset[3]
tokens = [vocab.idx_to_token[int(i)] for i in tokens]
segments = [int(i) for i in segments]
figures.draw_pair(tokens, segments, int(valid_len))

# %% truncation [markdown]


# %% truncation-turn
def truncate(p_tokens, h_tokens, most):
    """Return the tokens of both sentences that remain, two lists."""
    return None  # your turn


exercises.check_truncation(truncate)

# %% truncation-solution [markdown]

# %% classifier tags=["jax"]
from flax import nnx

net = d2l.BERTClassifier(bert, rngs=nnx.Rngs(0))
figures.draw_transfer(bert)

# %% classifier tags=["mxnet"]
net = d2l.BERTClassifier(bert)
net.output.initialize(ctx=d2l.try_all_gpus())
figures.draw_transfer(bert)

# %% classifier tags=["torch"]
net = d2l.BERTClassifier(bert)
figures.draw_transfer(bert)

# %% classifier-reading [markdown]

# %% parameters-turn
num_new = None  # your turn

exercises.check_new_parameters(num_new, net.encoder.num_hiddens)

# %% parameters-solution [markdown]

# %% untrained
pairs = list(zip(*test_set[:2], strict=True))
p = d2lbert.infer(net, vocab, pairs)
right = p.argmax(axis=1) == np.array(test_set[2])
print('p of the first pairs:', *p[:3].round(2), sep='\n')
print(f'test accuracy without fine-tuning: {right.mean():.3f}')

# %% finetuning [markdown]


# %% loss-turn
def cross_entropy(logits, labels):
    """Return the mean loss of some pairs: logits (n, 3), labels (n,)."""
    return None  # your turn


exercises.check_cross_entropy(cross_entropy)

# %% loss-solution [markdown]

# %% finetune
options = {
    'backend': backend,
    'batch_size': 32,
    'lr': 0.001,
    'epochs': 3,
    'progress': False,
}
seeds = range(2)
runs = {
    f'scratch={scratch}': [
        d2lbert.finetune(
            folder, recipe='mxnet', scratch=scratch, seed=seed, **options
        )
        for seed in seeds
    ]
    for scratch in (False, True)
}
for name, group in runs.items():
    accuracies = [f'{run.test_accuracy:.3f}' for run in group]
    print(f'{name:14} test accuracy', *accuracies)
charts.draw_finetunings(runs)

# %% finetuning-reading [markdown]

# %% recipes [markdown]

# %% suspect-turn
suspect = None  # your turn: the name of an argument

exercises.check_suspect(suspect)

# %% suspect-solution [markdown]

# %% recipes-figure
recipes = {
    'mxnet, dropout=0.1': runs['scratch=False'],
    'pytorch, dropout=0.2': [
        d2lbert.finetune(folder, recipe='pytorch', seed=seed, **options)
        for seed in seeds
    ],
    'pytorch, dropout=0.1': [
        d2lbert.finetune(
            folder, recipe='pytorch', dropout=0.1, seed=seed, **options
        )
        for seed in seeds
    ],
}
for name, group in recipes.items():
    print(f'{name:20} loss {np.mean([run.loss for run in group]):.3f}')
charts.draw_finetunings(recipes)

# %% recipes-reading [markdown]

# %% own-pairs
net = runs['scratch=False'][0].net
your_pairs = [
    ('the crane has a strong engine .', 'this is a machine .'),
    ('the crane drank from the lake .', 'this is a machine .'),
    ('the crane was old .', 'this is a machine .'),
]
for pair, p in zip(
    your_pairs, d2lbert.infer(net, vocab, your_pairs), strict=True
):
    print(*pair)
    for name, value in zip(LABELS, p, strict=True):
        print(f'    {value:6.1%} {name}')

# %% mistakes [markdown]

# %% confusion
p = d2lbert.infer(net, vocab, pairs)
labels = np.array(test_set[2])
confusion = np.zeros((3, 3), int)
np.add.at(confusion, (labels, p.argmax(axis=1)), 1)
charts.draw_confusion(confusion)

# %% recalls [markdown]

# %% recalls-turn
recalls = None  # your turn: three numbers, from confusion

exercises.check_recalls(recalls, confusion)

# %% recalls-solution [markdown]

# %% surest-mistakes
(wrong,) = np.nonzero(p.argmax(axis=1) != labels)
for i in sorted(wrong, key=lambda i: -p[i].max())[:8]:
    print(
        f'{pairs[i][0]} → {pairs[i][1]}\n'
        f'    {LABELS[p[i].argmax()]} ({p[i].max():.1%}), '
        f'right: {LABELS[labels[i]]}'
    )

# %% hypothesis-only [markdown]

# %% alone
alone = [('the crane .', hypothesis) for _, hypothesis in pairs]
right = d2lbert.infer(net, vocab, alone).argmax(axis=1) == labels
print(f'test accuracy, hypothesis alone: {right.mean():.3f}')

# %% hypothesis-only-reading [markdown]

# %% exercises [markdown]

# %% summary [markdown]
