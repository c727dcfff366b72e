"""Programs of the two sections before the chapter, in both tabs.

"BERT" defines the network, "The dataset for pretraining BERT" the examples.
The cells are written here in this project's own words: what they call and
how is that of the editions since 0.16, with nothing but the import of `d2l`
changed. Every program runs with the reader's own definitions, as the section
has it, and with those of the package in their place.
"""

import random

import numpy as np
import pytest

from d2lbert.data import sample
from d2lbert.frameworks import load_tab
from d2lbert.pytest_plugin import require
from helpers import BOOK_BACKENDS, run_cells

IMPORTS = {
    'mxnet': """
import os
import random
from mxnet import gluon, np, npx
from mxnet.gluon import nn
from d2lbert import mxnet as d2l

npx.set_np()
""",
    'torch': """
import os
import random
import torch
from torch import nn
from d2lbert import torch as d2l
""",
}

# ---- "BERT": the reader's definitions --------------------------------

TOKENS_AND_SEGMENTS = """
def get_tokens_and_segments(tokens_a, tokens_b=None):
    tokens = ['<cls>', *tokens_a, '<sep>']
    segments = [0] * len(tokens)
    if tokens_b is not None:
        tokens += [*tokens_b, '<sep>']
        segments += [1] * (len(tokens_b) + 1)
    return tokens, segments
"""
MXNET_ENCODER = """
class BERTEncoder(nn.Block):
    def __init__(self, vocab_size, num_hiddens, ffn_num_hiddens, num_heads,
                 {depth}, dropout, max_len=1000, **kwargs):
        super().__init__(**kwargs)
        self.token_embedding = nn.Embedding(vocab_size, num_hiddens)
        self.segment_embedding = nn.Embedding(2, num_hiddens)
        self.blks = nn.Sequential()
        for _ in range({depth}):
            self.blks.add(d2l.{block}(
                num_hiddens, ffn_num_hiddens, num_heads, dropout, True))
        self.pos_embedding = self.params.get(
            'pos_embedding', shape=(1, max_len, num_hiddens))

    def forward(self, tokens, segments, valid_lens):
        X = self.token_embedding(tokens) + self.segment_embedding(segments)
        X = X + self.pos_embedding.data(ctx=X.ctx)[:, :X.shape[1], :]
        for blk in self.blks:
            X = blk(X, valid_lens)
        return X
"""
MXNET_MASK_LM = """
class MaskLM(nn.Block):
    def __init__(self, vocab_size, num_hiddens, **kwargs):
        super().__init__(**kwargs)
        self.mlp = nn.Sequential()
        self.mlp.add(
            nn.Dense(num_hiddens, flatten=False, activation='relu'),
            nn.LayerNorm(),
            nn.Dense(vocab_size, flatten=False))

    def forward(self, X, pred_positions):
        rows = np.repeat(np.arange(0, X.shape[0]), pred_positions.shape[1])
        masked_X = X[rows, pred_positions.reshape(-1)]
        return self.mlp(
            masked_X.reshape((X.shape[0], pred_positions.shape[1], -1)))
"""
MXNET_NSP = """
class NextSentencePred(nn.Block):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.output = nn.Dense(2)

    def forward(self, X):
        return self.output(X)
"""
MXNET_MODEL = """
class BERTModel(nn.Block):
    def __init__(self, vocab_size, num_hiddens, ffn_num_hiddens, num_heads,
                 {depth}, dropout, max_len=1000):
        super().__init__()
        self.encoder = BERTEncoder(vocab_size, num_hiddens, ffn_num_hiddens,
                                   num_heads, {depth}, dropout, max_len)
        self.hidden = nn.Dense(num_hiddens, activation='tanh')
        self.mlm = MaskLM(vocab_size, num_hiddens)
        self.nsp = NextSentencePred()
"""
LAZY_TORCH_ENCODER = """
class BERTEncoder(nn.Module):
    def __init__(self, vocab_size, num_hiddens, ffn_num_hiddens, num_heads,
                 num_blks, dropout, max_len=1000, **kwargs):
        super().__init__(**kwargs)
        self.token_embedding = nn.Embedding(vocab_size, num_hiddens)
        self.segment_embedding = nn.Embedding(2, num_hiddens)
        self.blks = nn.Sequential()
        for i in range(num_blks):
            self.blks.add_module(f'{i}', d2l.TransformerEncoderBlock(
                num_hiddens, ffn_num_hiddens, num_heads, dropout, True))
        self.pos_embedding = nn.Parameter(
            torch.randn(1, max_len, num_hiddens))
"""
OLDER_TORCH_ENCODER = """
class BERTEncoder(nn.Module):
    def __init__(self, vocab_size, num_hiddens, norm_shape, ffn_num_input,
                 ffn_num_hiddens, num_heads, num_layers, dropout,
                 max_len=1000, key_size=768, query_size=768, value_size=768,
                 **kwargs):
        super().__init__(**kwargs)
        self.token_embedding = nn.Embedding(vocab_size, num_hiddens)
        self.segment_embedding = nn.Embedding(2, num_hiddens)
        self.blks = nn.Sequential()
        for i in range(num_layers):
            self.blks.add_module(f'{i}', d2l.EncoderBlock(
                key_size, query_size, value_size, num_hiddens, norm_shape,
                ffn_num_input, ffn_num_hiddens, num_heads, dropout, True))
        self.pos_embedding = nn.Parameter(
            torch.randn(1, max_len, num_hiddens))
"""
TORCH_ENCODER_FORWARD = """
    def forward(self, tokens, segments, valid_lens):
        X = self.token_embedding(tokens) + self.segment_embedding(segments)
        X = X + self.pos_embedding[:, :X.shape[1], :]
        for blk in self.blks:
            X = blk(X, valid_lens)
        return X
"""
TORCH_MASK_LM = """
class MaskLM(nn.Module):
    def __init__(self, vocab_size, num_hiddens{num_inputs}, **kwargs):
        super().__init__(**kwargs)
        self.mlp = nn.Sequential({linear}, nn.ReLU(),
                                 nn.LayerNorm(num_hiddens),
                                 {last})

    def forward(self, X, pred_positions):
        rows = torch.arange(X.shape[0]).repeat_interleave(
            pred_positions.shape[1])
        masked_X = X[rows, pred_positions.reshape(-1)]
        return self.mlp(
            masked_X.reshape((X.shape[0], pred_positions.shape[1], -1)))
"""
TORCH_NSP = """
class NextSentencePred(nn.Module):
    def __init__(self, {num_inputs}**kwargs):
        super().__init__(**kwargs)
        self.output = {linear}

    def forward(self, X):
        return self.output(X)
"""
LAZY_TORCH_MODEL = """
class BERTModel(nn.Module):
    def __init__(self, vocab_size, num_hiddens, ffn_num_hiddens, num_heads,
                 num_blks, dropout, max_len=1000):
        super().__init__()
        self.encoder = BERTEncoder(vocab_size, num_hiddens, ffn_num_hiddens,
                                   num_heads, num_blks, dropout,
                                   max_len=max_len)
        self.hidden = nn.Sequential(nn.LazyLinear(num_hiddens), nn.Tanh())
        self.mlm = MaskLM(vocab_size, num_hiddens)
        self.nsp = NextSentencePred()
"""
OLDER_TORCH_MODEL = """
class BERTModel(nn.Module):
    def __init__(self, vocab_size, num_hiddens, norm_shape, ffn_num_input,
                 ffn_num_hiddens, num_heads, num_layers, dropout,
                 max_len=1000, key_size=768, query_size=768, value_size=768,
                 hid_in_features=768, mlm_in_features=768,
                 nsp_in_features=768):
        super().__init__()
        self.encoder = BERTEncoder(
            vocab_size, num_hiddens, norm_shape, ffn_num_input,
            ffn_num_hiddens, num_heads, num_layers, dropout,
            max_len=max_len, key_size=key_size, query_size=query_size,
            value_size=value_size)
        self.hidden = nn.Sequential(nn.Linear(hid_in_features, num_hiddens),
                                    nn.Tanh())
        self.mlm = MaskLM(vocab_size, num_hiddens, mlm_in_features)
        self.nsp = NextSentencePred(nsp_in_features)
"""
MODEL_FORWARD = """
    def forward(self, tokens, segments, valid_lens=None,
                pred_positions=None):
        encoded_X = self.encoder(tokens, segments, valid_lens)
        mlm_Y_hat = None
        if pred_positions is not None:
            mlm_Y_hat = self.mlm(encoded_X, pred_positions)
        nsp_Y_hat = self.nsp(self.hidden(encoded_X[:, 0, :]))
        return encoded_X, mlm_Y_hat, nsp_Y_hat
"""
#: In place of all of them, for a reader who takes the package's own.
IMPORTED_MODEL = """
from d2lbert.{tab} import (
    BERTEncoder, BERTModel, MaskLM, NextSentencePred,
    get_tokens_and_segments)
"""

# ---- "BERT": what the section shows ----------------------------------

#: The sizes and the encoder. Of the sizes only 768 is smaller here.
NEWER_SIZES = """
vocab_size, num_hiddens, ffn_num_hiddens, num_heads = 10000, 768, 1024, 4
{depth}, dropout = 2, 0.2
encoder = BERTEncoder(vocab_size, num_hiddens, ffn_num_hiddens, num_heads,
                      {depth}, dropout)
"""
OLDER_SIZES = """
vocab_size, num_hiddens, ffn_num_hiddens, num_heads = 10000, 768, 1024, 4
norm_shape, ffn_num_input, num_layers, dropout = [768], 768, 2, 0.2
encoder = BERTEncoder(vocab_size, num_hiddens, norm_shape, ffn_num_input,
                      ffn_num_hiddens, num_heads, num_layers, dropout)
"""
NEWER_NET = """
net = BERTModel(vocab_size, num_hiddens, ffn_num_hiddens, num_heads,
                {depth}, dropout)
"""
OLDER_NET = """
net = BERTModel(vocab_size, num_hiddens, norm_shape, ffn_num_input,
                ffn_num_hiddens, num_heads, num_layers, dropout)
"""
MXNET_USE = [
    'encoder.initialize()',
    """
tokens = np.random.randint(0, vocab_size, (2, 8))
segments = np.array([[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1]])
encoded_X = encoder(tokens, segments, None)
""",
    """
mlm = MaskLM(vocab_size, num_hiddens)
mlm.initialize()
mlm_positions = np.array([[1, 5, 2], [6, 1, 5]])
mlm_Y_hat = mlm(encoded_X, mlm_positions)
""",
    """
mlm_Y = np.array([[7, 8, 9], [10, 20, 30]])
loss = gluon.loss.SoftmaxCrossEntropyLoss()
mlm_l = loss(mlm_Y_hat.reshape((-1, vocab_size)), mlm_Y.reshape(-1))
""",
    """
nsp = NextSentencePred()
nsp.initialize()
nsp_Y_hat = nsp(encoded_X)
""",
    """
nsp_y = np.array([0, 1])
nsp_l = loss(nsp_Y_hat, nsp_y)
""",
]
TORCH_USE = [
    """
tokens = torch.randint(0, vocab_size, (2, 8))
segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1]])
encoded_X = encoder(tokens, segments, None)
""",
    """
mlm = MaskLM(vocab_size, num_hiddens)
mlm_positions = torch.tensor([[1, 5, 2], [6, 1, 5]])
mlm_Y_hat = mlm(encoded_X, mlm_positions)
""",
    """
mlm_Y = torch.tensor([[7, 8, 9], [10, 20, 30]])
loss = nn.CrossEntropyLoss(reduction='none')
mlm_l = loss(mlm_Y_hat.reshape((-1, vocab_size)), mlm_Y.reshape(-1))
""",
    """
# nn.Linear does not flatten, as nn.Dense does
flat_X = torch.flatten(encoded_X, start_dim=1)
nsp = NextSentencePred({width})
nsp_Y_hat = nsp(flat_X)
""",
    """
nsp_y = torch.tensor([0, 1])
nsp_l = loss(nsp_Y_hat, nsp_y)
""",
]
#: The network as a whole, which the section defines last.
MXNET_NET_START = 'net.initialize()'
NET_USE = """
outputs = net(tokens, segments, {ones}, mlm_positions)
"""


def mxnet_bert(own_definitions, depth, block):
    return [
        IMPORTS['mxnet'],
        *(
            [
                TOKENS_AND_SEGMENTS,
                MXNET_ENCODER.format(depth=depth, block=block),
                MXNET_MASK_LM,
                MXNET_NSP,
                MXNET_MODEL.format(depth=depth) + MODEL_FORWARD,
            ]
            if own_definitions
            else [IMPORTED_MODEL.format(tab='mxnet')]
        ),
        NEWER_SIZES.format(depth=depth),
        *MXNET_USE,
        NEWER_NET.format(depth=depth),
        MXNET_NET_START,
        NET_USE.format(ones='np.array([8, 7])'),
    ]


def older_torch_bert(own_definitions):
    return [
        IMPORTS['torch'],
        *(
            [
                TOKENS_AND_SEGMENTS,
                OLDER_TORCH_ENCODER + TORCH_ENCODER_FORWARD,
                TORCH_MASK_LM.format(
                    num_inputs=', num_inputs=768',
                    linear='nn.Linear(num_inputs, num_hiddens)',
                    last='nn.Linear(num_hiddens, vocab_size)',
                ),
                TORCH_NSP.format(
                    num_inputs='num_inputs, ',
                    linear='nn.Linear(num_inputs, 2)',
                ),
                OLDER_TORCH_MODEL + MODEL_FORWARD,
            ]
            if own_definitions
            else [IMPORTED_MODEL.format(tab='torch')]
        ),
        OLDER_SIZES,
        *(cell.format(width='flat_X.shape[-1]') for cell in TORCH_USE),
        OLDER_NET,
        NET_USE.format(ones='torch.tensor([8, 7])'),
    ]


def torch_bert(own_definitions):
    return [
        IMPORTS['torch'],
        *(
            [
                TOKENS_AND_SEGMENTS,
                LAZY_TORCH_ENCODER + TORCH_ENCODER_FORWARD,
                TORCH_MASK_LM.format(
                    num_inputs='',
                    linear='nn.LazyLinear(num_hiddens)',
                    last='nn.LazyLinear(vocab_size)',
                ),
                TORCH_NSP.format(num_inputs='', linear='nn.LazyLinear(2)'),
                LAZY_TORCH_MODEL + MODEL_FORWARD,
            ]
            if own_definitions
            else [IMPORTED_MODEL.format(tab='torch')]
        ),
        NEWER_SIZES.format(depth='num_blks'),
        *(cell.format(width='') for cell in TORCH_USE),
        NEWER_NET.format(depth='num_blks'),
        NET_USE.format(ones='torch.tensor([8, 7])'),
    ]


#: Editions: the tab, and the cells of "BERT", given whose definitions.
BERT = {
    '0.16 and 0.17, Korean, Vietnamese, Chinese: MXNet': (
        'mxnet',
        lambda own: mxnet_bert(own, 'num_layers', 'EncoderBlock'),
    ),
    '0.16 and 0.17, Korean, Vietnamese, Chinese: PyTorch': (
        'torch',
        older_torch_bert,
    ),
    '1.0, French: MXNet': (
        'mxnet',
        lambda own: mxnet_bert(own, 'num_blks', 'TransformerEncoderBlock'),
    ),
    '1.0, French: PyTorch': ('torch', torch_bert),
}

# ---- "The dataset for pretraining BERT" ------------------------------

DATA_HUB = """
d2l.DATA_HUB['wikitext-2'] = (
    'https://s3.amazonaws.com/research.metamind.io/wikitext/'
    'wikitext-2-v1.zip', '3c914d17d80b1459be871a5039ac23e752a53cbe')
"""
READ_WIKI = """
def _read_wiki(data_dir):
    with open(os.path.join(data_dir, 'wiki.train.tokens'), 'r') as f:
        lines = f.readlines()
    paragraphs = [line.strip().lower().split(' . ') for line in lines
                  if len(line.split(' . ')) >= 2]
    random.shuffle(paragraphs)
    return paragraphs
"""
NEXT_SENTENCES = """
def _get_next_sentence(sentence, next_sentence, paragraphs):
    is_next = random.random() < 0.5
    if not is_next:
        next_sentence = random.choice(random.choice(paragraphs))
    return sentence, next_sentence, is_next

def _get_nsp_data_from_paragraph(paragraph, paragraphs, vocab, max_len):
    data = []
    for i in range(len(paragraph) - 1):
        tokens_a, tokens_b, is_next = _get_next_sentence(
            paragraph[i], paragraph[i + 1], paragraphs)
        if len(tokens_a) + len(tokens_b) + 3 > max_len:
            continue
        tokens, segments = d2l.get_tokens_and_segments(tokens_a, tokens_b)
        data.append((tokens, segments, is_next))
    return data
"""
MASKED_TOKENS = """
def _replace_mlm_tokens(tokens, candidate_pred_positions, num_mlm_preds,
                        vocab):
    masked, predictions = [token for token in tokens], []
    random.shuffle(candidate_pred_positions)
    for position in candidate_pred_positions:
        if len(predictions) >= num_mlm_preds:
            break
        if random.random() < 0.8:
            masked_token = '<mask>'
        elif random.random() < 0.5:
            masked_token = tokens[position]
        else:
            masked_token = {random_token}
        masked[position] = masked_token
        predictions.append((position, tokens[position]))
    return masked, predictions

def _get_mlm_data_from_tokens(tokens, vocab):
    candidates = [i for i, token in enumerate(tokens)
                  if token not in ['<cls>', '<sep>']]
    masked, predictions = _replace_mlm_tokens(
        tokens, candidates, max(1, round(len(tokens) * 0.15)), vocab)
    predictions = sorted(predictions, key=lambda x: x[0])
    return (vocab[masked], [v[0] for v in predictions],
            vocab[[v[1] for v in predictions]])
"""
PAD_INPUTS = """
def _pad_bert_inputs(examples, max_len, vocab):
    slots = round(max_len * 0.15)
    columns = [[] for _ in range(7)]
    for token_ids, positions, label_ids, segments, is_next in examples:
        row = (
            {int_array}(token_ids + [vocab['<pad>']] * (
                max_len - len(token_ids)){int_type}),
            {int_array}(segments + [0] * (
                max_len - len(segments)){int_type}),
            {array}(len(token_ids){float_type}),
            {int_array}(positions + [0] * (
                slots - len(positions)){int_type}),
            {array}([1.0] * len(label_ids) + [0.0] * (
                slots - len(positions)){float_type}),
            {int_array}(label_ids + [0] * (
                slots - len(label_ids)){int_type}),
            {int_array}(is_next{label_type}))
        for column, value in zip(columns, row):
            column.append(value)
    return columns
"""
DATASET = """
class _WikiTextDataset({base}):
    def __init__(self, paragraphs, max_len):
        paragraphs = [d2l.tokenize(paragraph, token='word')
                      for paragraph in paragraphs]
        sentences = [sentence for paragraph in paragraphs
                     for sentence in paragraph]
        self.vocab = d2l.Vocab(sentences, min_freq=5, reserved_tokens=[
            '<pad>', '<mask>', '<cls>', '<sep>'])
        examples = []
        for paragraph in paragraphs:
            examples.extend(_get_nsp_data_from_paragraph(
                paragraph, paragraphs, self.vocab, max_len))
        examples = [(_get_mlm_data_from_tokens(tokens, self.vocab)
                     + (segments, is_next))
                    for tokens, segments, is_next in examples]
        (self.all_token_ids, self.all_segments, self.valid_lens,
         self.all_pred_positions, self.all_mlm_weights,
         self.all_mlm_labels, self.nsp_labels) = _pad_bert_inputs(
            examples, max_len, self.vocab)

    def __getitem__(self, idx):
        return (self.all_token_ids[idx], self.all_segments[idx],
                self.valid_lens[idx], self.all_pred_positions[idx],
                self.all_mlm_weights[idx], self.all_mlm_labels[idx],
                self.nsp_labels[idx])

    def __len__(self):
        return len(self.all_token_ids)
"""
LOAD_DATA = """
def load_data_wiki(batch_size, max_len):
    num_workers = d2l.get_dataloader_workers()
    data_dir = d2l.download_extract('wikitext-2', 'wikitext-2')
    paragraphs = _read_wiki(data_dir)
    train_set = _WikiTextDataset(paragraphs, max_len)
    train_iter = {loader}(train_set, batch_size, shuffle=True,
                          num_workers=num_workers)
    return train_iter, train_set.vocab
"""
#: In place of what comes before it.
IMPORTED_DATASET = """
from d2lbert.{tab} import _read_wiki, _WikiTextDataset
"""
SHAPES = """
batch_size, max_len = {batch_size}, 64
train_iter, vocab = load_data_wiki(batch_size, max_len)

for (tokens_X, segments_X, valid_lens_x, pred_positions_X, mlm_weights_X,
     mlm_Y, nsp_y) in train_iter:
    print(tokens_X.shape, segments_X.shape, valid_lens_x.shape,
          pred_positions_X.shape, mlm_weights_X.shape, mlm_Y.shape,
          nsp_y.shape)
    break
"""
SPELLINGS = {
    'mxnet': {
        'array': 'np.array',
        'int_array': 'np.array',
        'int_type': ", dtype='int32'",
        'float_type': ", dtype='float32'",
        'label_type': '',
        'base': 'gluon.data.Dataset',
        'loader': 'gluon.data.DataLoader',
    },
    'torch': {
        'array': 'torch.tensor',
        'int_array': 'torch.tensor',
        'int_type': ', dtype=torch.long',
        'float_type': ', dtype=torch.float32',
        'label_type': ', dtype=torch.long',
        'base': 'torch.utils.data.Dataset',
        'loader': 'torch.utils.data.DataLoader',
    },
}
#: Editions, and what stands for a random word. Until 0.17.0 it is an index,
#: which is then looked up as a word.
RANDOM_TOKENS = {
    '0.16 to 0.17.0': 'random.randint(0, len(vocab) - 1)',
    'since 0.17.1, translations': 'random.choice(vocab.idx_to_token)',
}
#: Whose functions a program uses: the reader's, the reader's
#: `load_data_wiki` over the package's, or the package's.
LOADERS = (
    pytest.param('own', marks=pytest.mark.slow),
    'own load_data_wiki',
    'package',
)


def dataset_cells(tab, edition, functions, batch_size):
    own = [
        READ_WIKI,
        NEXT_SENTENCES,
        MASKED_TOKENS.format(random_token=RANDOM_TOKENS[edition]),
        PAD_INPUTS.format(**SPELLINGS[tab]),
        DATASET.format(**SPELLINGS[tab]),
    ]
    load = LOAD_DATA.format(**SPELLINGS[tab])
    definitions = {
        'own': [*own, load],
        'own load_data_wiki': [IMPORTED_DATASET.format(tab=tab), load],
        'package': ['load_data_wiki = d2l.load_data_wiki'],
    }
    return [
        IMPORTS[tab],
        DATA_HUB,
        *definitions[functions],
        SHAPES.format(batch_size=batch_size),
    ]


def tab_of(name):
    require(name)
    return load_tab(name)


@pytest.fixture(params=BOOK_BACKENDS)
def backend_name(request):
    """The frameworks in which the book has these sections."""
    require(request.param)
    return request.param


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """An archive that has a small text, and a folder for the reader."""
    text = ''.join(f' {line} \n' for line in sample.lines())
    path = tmp_path / 'text' / 'wiki.train.tokens'
    path.parent.mkdir()
    path.write_text(text, 'utf-8')
    monkeypatch.setenv('D2LBERT_WIKITEXT2', str(path))
    monkeypatch.setenv('D2LBERT_CACHE', str(tmp_path / 'cache'))
    monkeypatch.chdir(tmp_path)
    random.seed(0)
    return text


# ---- the tests -------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('own', [True, False], ids=['own', 'package'])
@pytest.mark.parametrize('edition', BERT)
def test_bert(edition, own):
    name, cells = BERT[edition]
    tab = tab_of(name)
    if name == 'mxnet' and not hasattr(tab.gluon, 'ParameterDict') and own:
        pytest.skip('MXNet 2 has no Block.params, which these cells use')
    names = run_cells(cells(own))
    shapes = {
        'encoded_X': (2, 8, 768),
        'mlm_Y_hat': (2, 3, 10000),
        'mlm_l': (6,),
        'nsp_Y_hat': (2, 2),
        'nsp_l': (2,),
    }
    for variable, shape in shapes.items():
        assert tuple(names[variable].shape) == shape, variable
        X = tab.BACKEND.to_numpy(names[variable])
        assert np.isfinite(X).all()
    shown = [tuple(X.shape) for X in names['outputs']]
    assert shown == [(2, 8, 768), (2, 3, 10000), (2, 2)]
    assert names['get_tokens_and_segments'](['a'], ['b', 'c']) == (
        ['<cls>', 'a', '<sep>', 'b', 'c', '<sep>'],
        [0, 0, 0, 1, 1, 1],
    )


def check_dataset(names, batch_size, output):
    shapes = [
        (batch_size, 64),
        (batch_size, 64),
        (batch_size,),
        (batch_size, 10),
        (batch_size, 10),
        (batch_size, 10),
        (batch_size,),
    ]
    found = [
        tuple(names[name].shape)
        for name in (
            'tokens_X', 'segments_X', 'valid_lens_x', 'pred_positions_X',
            'mlm_weights_X', 'mlm_Y', 'nsp_y',
        )
    ]  # fmt: skip
    assert found == shapes
    assert f'({batch_size}, 64)' in output or f'[{batch_size}, 64]' in output


@pytest.mark.parametrize('functions', LOADERS)
@pytest.mark.parametrize('edition', RANDOM_TOKENS)
@pytest.mark.usefixtures('corpus')
def test_dataset(edition, functions, backend_name, capsys):
    tab_of(backend_name)
    names = run_cells(dataset_cells(backend_name, edition, functions, 16))
    check_dataset(names, 16, capsys.readouterr().out)
    assert names['vocab']['crane'] != names['vocab'].unk


@pytest.mark.slow
def test_dataset_of_wikitext_2(
    backend_name, wikitext2, monkeypatch, capsys, tmp_path
):
    monkeypatch.setenv('D2LBERT_WIKITEXT2', wikitext2)
    monkeypatch.setenv('D2LBERT_CACHE', str(tmp_path))
    tab_of(backend_name)
    edition = 'since 0.17.1, translations'
    names = run_cells(
        dataset_cells(backend_name, edition, 'own load_data_wiki', 512)
    )
    check_dataset(names, 512, capsys.readouterr().out)
    assert len(names['vocab']) == 20256
