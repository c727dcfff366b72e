"""Programs of the book's two sections on natural language inference.

"Natural Language Inference and the Dataset" reads SNLI, "Natural Language
Inference: Fine-Tuning BERT" trains a classifier on it. The cells are written
here in this project's own words: what they call and how is that of the
editions since 0.16.5, with nothing but the import of `d2l` changed. Archives
are small and made up; sizes and names are the book's.
"""

import random
import re

import numpy as np
import pytest

import nli
from d2lbert.book import hub
from d2lbert.frameworks import load_tab
from d2lbert.pytest_plugin import require
from d2lbert.weights import get_weights
from helpers import BOOK_BACKENDS, run_cells

# ---- the cells -------------------------------------------------------

IMPORTS = {
    'mxnet': """
import json
import os
import re
from mxnet import gluon, np, npx
from mxnet.gluon import nn
from d2lbert import mxnet as d2l

npx.set_np()
""",
    'torch': """
import json
import os
import re
import torch
from torch import nn
from d2lbert import torch as d2l
""",
    'jax': """
import optax
from flax import nnx
from d2lbert import jax as d2l
""",
}
READ = """
d2l.DATA_HUB['SNLI'] = (
    'https://nlp.stanford.edu/projects/snli/snli_1.0.zip',
    '9fcde07509c7e87ec61c640c1b2753d9041758e4')
data_dir = d2l.download_extract('SNLI')
"""
READ_SNLI = """
def read_snli(data_dir, is_train):
    def words(tree):
        for sign in '()':
            tree = re.sub(re.escape(sign), '', tree)
        return re.sub('\\\\s{2,}', ' ', tree).strip()
    numbers = {'entailment': 0, 'contradiction': 1, 'neutral': 2}
    name = 'snli_1.0_train.txt' if is_train else 'snli_1.0_test.txt'
    with open(os.path.join(data_dir, name), 'r') as file:
        rows = [line.split('\\t') for line in file.readlines()[1:]]
    rows = [row for row in rows if row[0] in numbers]
    return ([words(row[1]) for row in rows], [words(row[2]) for row in rows],
            [numbers[row[0]] for row in rows])
"""
SHOW = """
train_data = read_snli(data_dir, is_train=True)
for x0, x1, y in zip(*[column[:3] for column in train_data]):
    print('premise:', x0)
    print('hypothesis:', x1)
    print('label:', y)
test_data = read_snli(data_dir, is_train=False)
for data in [train_data, test_data]:
    print([[row for row in data[2]].count(i) for i in range(3)])
"""
SNLI_DATASET = """
class SNLIDataset({base}):
    def __init__(self, dataset, num_steps, vocab=None):
        self.num_steps = num_steps
        premises, hypotheses = [d2l.tokenize(lines) for lines in dataset[:2]]
        self.vocab = vocab if vocab is not None else d2l.Vocab(
            premises + hypotheses, min_freq=5, reserved_tokens=['<pad>'])
        self.premises, self.hypotheses = [
            {array}([d2l.truncate_pad(
                self.vocab[line], self.num_steps, self.vocab['<pad>'])
                for line in lines]) for lines in (premises, hypotheses)]
        self.labels = {array}(dataset[2])
        print('read ' + str(len(self.premises)) + ' examples')

    def __getitem__(self, idx):
        return (self.premises[idx], self.hypotheses[idx]), self.labels[idx]

    def __len__(self):
        return len(self.premises)
"""
LOAD_SNLI = """
def load_data_snli(batch_size, num_steps=50):
    num_workers = d2l.get_dataloader_workers()
    data_dir = d2l.download_extract('SNLI')
    train_set = SNLIDataset(read_snli(data_dir, True), num_steps)
    test_set = SNLIDataset(read_snli(data_dir, False), num_steps,
                           train_set.vocab)
    train_iter = {loader}(train_set, batch_size, shuffle=True,
                          num_workers=num_workers)
    test_iter = {loader}(test_set, batch_size, shuffle=False,
                         num_workers=num_workers)
    return train_iter, test_iter, train_set.vocab
"""
BATCH = """
train_iter, test_iter, vocab = load_data_snli(32, 50)
print(len(vocab))
for X, Y in train_iter:
    print(X[0].shape)
    print(X[1].shape)
    print(Y.shape)
    break
"""
FROM_PACKAGE = """
read_snli, SNLIDataset = d2l.read_snli, d2l.SNLIDataset
load_data_snli = d2l.load_data_snli
"""
PRETRAINED_HUB = """
d2l.DATA_HUB['bert.small'] = (
    d2l.DATA_URL + 'bert.small{suffix}.zip', '{sha1}')
"""
LOAD_PRETRAINED = """
def load_pretrained_model(pretrained_model, num_hiddens, ffn_num_hiddens,
                          num_heads, num_blks, dropout, max_len, devices):
    data_dir = d2l.download_extract(pretrained_model)
    vocab = d2l.Vocab()
    with open(os.path.join(data_dir, 'vocab.json')) as file:
        vocab.idx_to_token = json.load(file)
    vocab.token_to_idx = {{token: idx for idx, token in enumerate(
        vocab.idx_to_token)}}
    bert = d2l.BERTModel(
        len(vocab), num_hiddens=num_hiddens, ffn_num_hiddens=ffn_num_hiddens,
        num_heads={num_heads}, num_blks={num_blks}, dropout={dropout},
        max_len=max_len)
    {load}(os.path.join(data_dir, 'pretrained.params'){devices}){end}
    return bert, vocab
"""
LOADS = {
    'mxnet': {
        'num_heads': 'num_heads', 'num_blks': 'num_blks',
        'dropout': 'dropout', 'load': 'bert.load_parameters',
        'devices': ', ctx=devices', 'end': '',
    },
    # Whatever its caller says, as in the book
    'torch': {
        'num_heads': '4', 'num_blks': '2', 'dropout': '0.2',
        'load': 'bert.load_state_dict(torch.load', 'devices': '',
        'end': ')',
    },
}  # fmt: skip
LOAD = """
devices = d2l.try_all_gpus()
bert, vocab = load_pretrained_model(
    'bert.small', num_hiddens=256, ffn_num_hiddens=512, num_heads=4,
    num_blks=2, dropout=0.1, max_len=512, devices=devices)
"""
BERT_DATASET = """
class SNLIBERTDataset({base}):
    def __init__(self, dataset, max_len, vocab=None):
        pairs = [[p, h] for p, h in zip(*[
            d2l.tokenize([sentence.lower() for sentence in sentences])
            for sentences in dataset[:2]])]
        self.labels = {array}(dataset[2])
        self.vocab, self.max_len = vocab, max_len
        rows = [self.row(p, h) for p, h in pairs]
        self.all_token_ids = {array}([row[0] for row in rows]{int_type})
        self.all_segments = {array}([row[1] for row in rows]{int_type})
        self.valid_lens = {array}([row[2] for row in rows])
        print('read ' + str(len(self.all_token_ids)) + ' examples')

    def row(self, p, h):
        while len(p) + len(h) > self.max_len - 3:
            if len(p) > len(h):
                p.pop()
            else:
                h.pop()
        tokens, segments = d2l.get_tokens_and_segments(p, h)
        padding = self.max_len - len(tokens)
        return (self.vocab[tokens] + [self.vocab['<pad>']] * padding,
                segments + [0] * padding, len(tokens))

    def __getitem__(self, idx):
        return (self.all_token_ids[idx], self.all_segments[idx],
                self.valid_lens[idx]), self.labels[idx]

    def __len__(self):
        return len(self.all_token_ids)
"""
CLASSIFIER = {
    'mxnet': """
class BERTClassifier(nn.Block):
    def __init__(self, bert):
        super().__init__()
        self.encoder, self.hidden = bert.encoder, bert.hidden
        self.output = nn.Dense(3)

    def forward(self, inputs):
        tokens_X, segments_X, valid_lens_x = inputs
        X = self.encoder(tokens_X, segments_X, valid_lens_x)
        return self.output(self.hidden(X[:, 0, :]))
""",
    'torch': """
class BERTClassifier(nn.Module):
    def __init__(self, bert):
        super().__init__()
        self.encoder, self.hidden = bert.encoder, bert.hidden
        self.output = nn.LazyLinear(3)

    def forward(self, inputs):
        tokens_X, segments_X, valid_lens_x = inputs
        X = self.encoder(tokens_X, segments_X, valid_lens_x)
        return self.output(self.hidden(X[:, 0, :]))
""",
}
BERT_FROM_PACKAGE = """
load_pretrained_model = d2l.load_pretrained_model
SNLIBERTDataset = d2l.SNLIBERTDataset
BERTClassifier = d2l.BERTClassifier
"""
#: Here with fewer and shorter rows than 512 of 128, and two epochs.
LOADERS = """
batch_size, max_len = {batch_size}, 16
data_dir = d2l.download_extract('SNLI')
train_set = SNLIBERTDataset(d2l.read_snli(data_dir, True), max_len, vocab)
test_set = SNLIBERTDataset(d2l.read_snli(data_dir, False), max_len, vocab)
train_iter = {loader}(train_set, batch_size, shuffle=True{workers})
test_iter = {loader}(test_set, batch_size{workers})
"""
TRAIN = {
    'mxnet': """
net = BERTClassifier(bert)
net.output.initialize(ctx=devices)
lr, num_epochs = 1e-4, 2
trainer = gluon.Trainer(net.collect_params(), 'adam', {'learning_rate': lr})
loss = gluon.loss.SoftmaxCrossEntropyLoss()
d2l.train_ch13(net, train_iter, test_iter, loss, trainer, num_epochs, devices,
               d2l.split_batch_multi_inputs)
""",
    'torch': """
net = BERTClassifier(bert)
lr, num_epochs = 1e-4, 2
trainer = torch.optim.Adam(net.parameters(), lr=lr)
loss = nn.CrossEntropyLoss(reduction='none')
net(next(iter(train_iter))[0])
d2l.train_ch13(net, train_iter, test_iter, loss, trainer, num_epochs, devices)
""",
    'jax': """
net = BERTClassifier(bert, rngs=nnx.Rngs(0))
lr, num_epochs = 1e-4, 2
trainer = nnx.Optimizer(net, optax.adam(lr), wrt=nnx.Param)
loss = optax.softmax_cross_entropy_with_integer_labels
d2l.train_ch13(net, train_iter, test_iter, loss, trainer, num_epochs, devices)
""",
}
SPELLINGS = {
    'mxnet': {
        'array': 'np.array', 'int_type': ", dtype='int32'",
        'base': 'gluon.data.Dataset', 'loader': 'gluon.data.DataLoader',
        'workers': ', num_workers=d2l.get_dataloader_workers()',
    },
    'torch': {
        'array': 'torch.tensor', 'int_type': ', dtype=torch.long',
        'base': 'torch.utils.data.Dataset',
        'loader': 'torch.utils.data.DataLoader',
        'workers': ', num_workers=d2l.get_dataloader_workers()',
    },
    'jax': {'loader': 'd2l.DataLoader', 'workers': ''},
}  # fmt: skip


def dataset_cells(tab, own):
    spelled = SPELLINGS[tab]
    definitions = [
        READ_SNLI, SNLI_DATASET.format(**spelled), LOAD_SNLI.format(**spelled)
    ] if own else [FROM_PACKAGE]  # fmt: skip
    read, *others = definitions
    return [IMPORTS[tab], READ, read, SHOW, *others, BATCH]


def bert_cells(tab, own, sha1, batch_size=32):
    spelled = SPELLINGS[tab]
    suffix = '' if tab == 'mxnet' else '.torch'
    definitions = [BERT_FROM_PACKAGE]
    if own:
        definitions = [
            LOAD_PRETRAINED.format(**LOADS[tab]),
            BERT_DATASET.format(**spelled),
            CLASSIFIER[tab],
        ]
    return [
        IMPORTS[tab],
        PRETRAINED_HUB.format(suffix=suffix, sha1=sha1),
        *definitions,
        LOAD,
        LOADERS.format(batch_size=batch_size, **spelled),
        TRAIN[tab],
    ]


# ---- the files -------------------------------------------------------


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """SNLI's archive, a cache, and a table that is restored."""
    path = tmp_path / 'snli_1.0.zip'
    path.write_bytes(nli.snli_zip())
    monkeypatch.setenv('D2LBERT_SNLI', str(path))
    monkeypatch.setenv('D2LBERT_CACHE', str(tmp_path / 'cache'))
    monkeypatch.chdir(tmp_path)
    for name in ('SNLI', 'bert.small'):  # which the cells replace
        monkeypatch.setitem(hub.DATA_HUB, name, hub.DATA_HUB[name])
    random.seed(0)
    return path


def keep_small(tab, folder):
    """Put a `bert.small` of a tab's format into the cache."""
    name = 'bert.small' if tab.BACKEND.name == 'mxnet' else 'bert.small.torch'
    format = 'mxnet' if tab.BACKEND.name == 'mxnet' else 'torch'
    weights = nli.small_weights(tab)
    data = nli.small_zip(name, nli.params(weights, format))
    folder.mkdir(parents=True)
    (folder / f'{name}.zip').write_bytes(data)
    return nli.sha1(data), weights


@pytest.fixture(params=BOOK_BACKENDS)
def backend_name(request):
    """The frameworks in which the book has these sections."""
    require(request.param)
    return request.param


# ---- the tests -------------------------------------------------------


@pytest.mark.parametrize('own', [True, False], ids=['own', 'package'])
@pytest.mark.usefixtures('archive')
def test_dataset(backend_name, own, capsys):
    names = run_cells(dataset_cells(backend_name, own))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('premise: ') and '(' not in lines[0]
    counts = [eval(line) for line in lines if line.startswith('[')]
    expected = [
        load_tab(backend_name).read_snli('snli', is_train)[2]
        for is_train in (True, False)
    ]
    assert counts == [[c.count(i) for i in range(3)] for c in expected]
    assert f'read {len(expected[0])} examples' in lines
    shapes = [tuple(X.shape) for X in (*names['X'], names['Y'])]
    assert shapes == [(32, 50), (32, 50), (32,)]
    assert lines[-4] == str(len(names['vocab']))


def check_output(output):
    loss, speed = output.splitlines()[-2:]
    number = r'\d\.\d{3}'
    pattern = f'loss {number}, train acc {number}, test acc {number}'
    assert re.fullmatch(pattern, loss)
    assert re.fullmatch(r'\d+\.\d examples/sec on \[.*\]', speed)


@pytest.mark.slow
@pytest.mark.parametrize('own', [True, False], ids=['own', 'package'])
@pytest.mark.usefixtures('archive')
def test_fine_tuning(backend_name, own, capsys, tmp_path):
    tab = load_tab(backend_name)
    sha1, _ = keep_small(tab, tmp_path / 'cache')
    names = run_cells(bert_cells(backend_name, own, sha1))
    printed = capsys.readouterr()
    check_output(printed.out)
    # Said once, although the curve ends twice
    assert printed.err.count('The picture is in') == 1
    features, label = names['train_set'][0]
    assert [tuple(X.shape) for X in features] == [(16,), (16,), ()]
    assert tuple(label.shape) == ()


@pytest.mark.jax
@pytest.mark.slow
@pytest.mark.usefixtures('archive')
def test_fine_tuning_in_jax(capsys, tmp_path):
    require('jax')
    require('torch')  # makes the file
    tab = load_tab('jax')
    sha1, _ = keep_small(tab, tmp_path / 'cache')
    cells = bert_cells('jax', False, sha1)
    names = run_cells(cells)
    check_output(capsys.readouterr().out)
    assert names['vocab'].idx_to_token == list(nli.TOKENS)


@pytest.mark.slow
@pytest.mark.usefixtures('archive')
def test_few_batches_divide_by_no_zero(backend_name, capsys, tmp_path):
    tab = load_tab(backend_name)
    sha1, _ = keep_small(tab, tmp_path / 'cache')
    run_cells(bert_cells(backend_name, False, sha1, batch_size=60))
    check_output(capsys.readouterr().out)


@pytest.mark.usefixtures('archive')
def test_definitions_are_equal(backend_name, tmp_path):
    """The reader's and ours: examples to the bit, and logits."""
    tab = load_tab(backend_name)
    sha1, weights = keep_small(tab, tmp_path / 'cache')
    mine, ours = (
        run_cells(bert_cells(backend_name, own, sha1)[:-1])
        for own in (True, False)
    )
    to_numpy = tab.BACKEND.to_numpy
    for name in ('all_token_ids', 'all_segments', 'valid_lens', 'labels'):
        one, other = (
            to_numpy(getattr(names['test_set'], name))
            for names in (mine, ours)
        )
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype, name
    batch, _ = next(iter(ours['test_iter']))
    for names in (mine, ours):
        net = names['bert']
        found = tab.BACKEND.get_parameters(net)
        assert sum(W.size for W in found.values()) == sum(
            W.size for W in weights.values()
        )
    inputs = list(map(to_numpy, batch))
    logits = [
        tab.BACKEND.evaluate(names['bert'].encoder, [inputs])[0]
        for names in (mine, ours)
    ]
    np.testing.assert_array_equal(*logits)


@pytest.mark.slow
def test_either_format_in_any_tab(all_tabs, tmp_path):
    """`load_pretrained_model` takes the archive of the other tab, too."""
    weights = nli.small_weights(all_tabs[0])
    for format in ('mxnet', 'torch'):
        path = tmp_path / f'{format}.zip'
        path.write_bytes(
            nli.small_zip('bert.small', nli.params(weights, format))
        )
        for tab in all_tabs:
            bert, vocab = tab.load_pretrained_model(
                str(path),
                256,
                512,
                4,
                2,
                0.1,
                512,
                tab.BACKEND.devices('cpu'),
            )
            assert vocab.idx_to_token == list(nli.TOKENS)
            found = get_weights(bert)
            for name, W in weights.items():
                np.testing.assert_array_equal(found[name], W, name)


# ---- single functions ------------------------------------------------


def test_truncate_pad(tab):
    assert tab.truncate_pad([1, 2, 3], 2, 0) == [1, 2]
    assert tab.truncate_pad([1, 2, 3], 5, 0) == [1, 2, 3, 0, 0]


def test_accuracy(tab):
    tensor = tab.BACKEND.tensor
    scores = tensor(np.array([[0.1, 0.9], [0.8, 0.2]], np.float32))
    assert tab.accuracy(scores, tensor(np.array([1, 1]))) == 1
    classes = tensor(np.array([1, 0]))
    assert tab.accuracy(classes, tensor(np.array([1, 0]))) == 2


def test_batches_are_split(both_tabs):
    for tab in both_tabs:
        X, y = (tab.BACKEND.tensor(np.arange(5)) for _ in range(2))
        devices = tab.BACKEND.devices('cpu:2')
        shards = tab.split_batch(X, y, devices)
        for parts in shards:
            rows = [tab.BACKEND.to_numpy(part).tolist() for part in parts]
            assert [*rows[0], *rows[1]] == list(range(5))
    mxnet = both_tabs[0]
    X = mxnet.BACKEND.tensor(np.arange(4))
    devices = mxnet.BACKEND.devices('cpu:2')
    parts, labels = mxnet.split_batch_multi_inputs([X, 10 * X], X, devices)
    assert [[x.asnumpy().tolist() for x in part] for part in parts] == [
        [[0, 1], [0, 10]], [[2, 3], [20, 30]]
    ]  # fmt: skip
    assert len(labels) == 2


def test_a_vocabulary_is_needed(tab):
    with pytest.raises(ValueError, match='give the vocab of load_pretrained'):
        tab.SNLIBERTDataset((['a'], ['b'], [0]), 8)
