"""Programs as the readers of five editions run them, in both tabs.

The cells are written here in this project's own words: what they call and
how is each edition's, with nothing but the import of `d2l` changed. Every
program runs with the reader's own training functions, as the chapter has
it, and with those of the package.
"""

import math
import os
import re
import subprocess
import sys
from unittest.mock import MagicMock

import numpy as np
import pytest

from backends import mxnet_import
from d2lbert.data import sample
from d2lbert.frameworks import load_tab
from d2lbert.pytest_plugin import require
from helpers import run_cells

NUM_STEPS = 3

MXNET_IMPORTS = """
from mxnet import autograd, gluon, init, np, npx
from d2lbert import mxnet as d2l

npx.set_np()
"""
TORCH_IMPORTS = """
import torch
from torch import nn
from d2lbert import torch as d2l
"""
DATA = """
batch_size, max_len = 8, 64
train_iter, vocab = d2l.load_data_wiki(batch_size, max_len)
"""

MODEL = """
net = d2l.BERTModel(len(vocab), num_hiddens=128, {sizes},
                    num_heads=2, {depth}=2, dropout=0.2{more_sizes})
{devices} = d2l.try_all_gpus()
"""
SIZES = {'sizes': 'ffn_num_hiddens=256', 'more_sizes': ''}
OLDER_TORCH_SIZES = {
    'sizes': 'norm_shape=[128], ffn_num_input=128, ffn_num_hiddens=256',
    'more_sizes': ', key_size=128, query_size=128, value_size=128, '
    'hid_in_features=128, mlm_in_features=128, nsp_in_features=128',
}
MXNET_START = """
net.initialize(init.Xavier(), ctx={devices})
loss = gluon.loss.SoftmaxCELoss()
"""
TORCH_START = """
loss = nn.CrossEntropyLoss()
"""

# ---- the reader's own functions --------------------------------------

MXNET_BATCH_LOSS = """
def _get_batch_loss_bert(net, loss, vocab_size, tokens_X_shards,
                         segments_X_shards, valid_lens_x_shards,
                         pred_positions_X_shards, mlm_weights_X_shards,
                         mlm_Y_shards, nsp_y_shards):
    mlm_ls, nsp_ls, ls = [], [], []
    for i in range(len(tokens_X_shards)):
        _, mlm_Y_hat, nsp_Y_hat = net(
            tokens_X_shards[i], segments_X_shards[i],
            valid_lens_x_shards[i].reshape(-1), pred_positions_X_shards[i])
        weights = mlm_weights_X_shards[i]
        mlm_l = loss(mlm_Y_hat.reshape((-1, vocab_size)),
                     mlm_Y_shards[i].reshape(-1), weights.reshape((-1, 1)))
        mlm_l = mlm_l.sum() / (weights.sum() + 1e-8)
        nsp_l = loss(nsp_Y_hat, nsp_y_shards[i]).mean()
        mlm_ls.append(mlm_l)
        nsp_ls.append(nsp_l)
        ls.append(mlm_l + nsp_l)
        npx.waitall()
    return mlm_ls, nsp_ls, ls
"""
MXNET_TRAIN = """
def train_bert(train_iter, net, loss, vocab_size, {arguments}):
    trainer = gluon.Trainer(net.collect_params(), 'adam',
                            {{'learning_rate': {lr}}})
    step, timer = 0, d2l.Timer()
    animator = d2l.Animator(xlabel='step', ylabel='loss',
                            xlim=[1, num_steps], legend=['mlm', 'nsp'])
    metric = d2l.Accumulator(4)
    while step < num_steps:
        for batch in train_iter:
            shards = [gluon.utils.split_and_load(X, {devices},
                                                 even_split=False)
                      for X in batch]
            timer.start()
            with autograd.record():
                mlm_ls, nsp_ls, ls = _get_batch_loss_bert(
                    net, loss, vocab_size, *shards)
            for l in ls:
                l.backward()
            trainer.step(1)
            mlm_l_mean = sum(float(l) for l in mlm_ls) / len(mlm_ls)
            nsp_l_mean = sum(float(l) for l in nsp_ls) / len(nsp_ls)
            metric.add(mlm_l_mean, nsp_l_mean, batch[0].shape[0], 1)
            timer.stop()
            if (step + 1) % {draw_interval} == 0:
                animator.add(step + 1, (metric[0] / metric[3],
                                        metric[1] / metric[3]))
            step += 1
            if step == num_steps:
                break
    print(f'MLM loss {{metric[0] / metric[3]:.3f}}, '
          f'NSP loss {{metric[1] / metric[3]:.3f}}')
    print(f'{{metric[2] / timer.sum():.1f}} sentence pairs/sec on '
          f'{{str({devices})}}')
"""
MXNET_ENCODING = """
def get_bert_encoding(net, tokens_a, tokens_b=None):
    tokens, segments = d2l.get_tokens_and_segments(tokens_a, tokens_b)
    # Of real numbers, which is what MXNet's np.array makes of integers
    X = np.expand_dims(np.array(vocab[tokens], ctx={device}), axis=0)
    segments = np.expand_dims(np.array(segments, ctx={device}), axis=0)
    valid_len = np.expand_dims(np.array(len(tokens), ctx={device}), axis=0)
    encoded_X, _, _ = net(X, segments, valid_len)
    return encoded_X
"""
TORCH_BATCH_LOSS = """
def _get_batch_loss_bert(net, loss, vocab_size, tokens_X, segments_X,
                         valid_lens_x, pred_positions_X, mlm_weights_X,
                         mlm_Y, nsp_y):
    _, mlm_Y_hat, nsp_Y_hat = net(tokens_X, segments_X,
                                  valid_lens_x.reshape(-1),
                                  pred_positions_X)
    mlm_l = loss(mlm_Y_hat.reshape(-1, vocab_size), mlm_Y.reshape(-1)) * (
        mlm_weights_X.reshape(-1, 1))
    mlm_l = mlm_l.sum() / (mlm_weights_X.sum() + 1e-8)
    nsp_l = loss(nsp_Y_hat, nsp_y)
    return mlm_l, nsp_l, mlm_l + nsp_l
"""
TORCH_TRAIN = """
def train_bert(train_iter, net, loss, vocab_size, devices, num_steps):
    {dummy_forward}
    net = nn.DataParallel(net, device_ids=devices).to(devices[0])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    step, timer = 0, d2l.Timer()
    animator = d2l.Animator(xlabel='step', ylabel='loss',
                            xlim=[1, num_steps], legend=['mlm', 'nsp'])
    metric = d2l.Accumulator(4)
    while step < num_steps:
        for (tokens_X, segments_X, valid_lens_x, pred_positions_X,
             mlm_weights_X, mlm_Y, nsp_y) in train_iter:
            tokens_X = tokens_X.to(devices[0])
            segments_X = segments_X.to(devices[0])
            valid_lens_x = valid_lens_x.to(devices[0])
            pred_positions_X = pred_positions_X.to(devices[0])
            mlm_weights_X = mlm_weights_X.to(devices[0])
            mlm_Y, nsp_y = mlm_Y.to(devices[0]), nsp_y.to(devices[0])
            optimizer.zero_grad()
            timer.start()
            mlm_l, nsp_l, l = _get_batch_loss_bert(
                net, loss, vocab_size, tokens_X, segments_X, valid_lens_x,
                pred_positions_X, mlm_weights_X, mlm_Y, nsp_y)
            l.backward()
            optimizer.step()
            metric.add(mlm_l, nsp_l, tokens_X.shape[0], 1)
            timer.stop()
            animator.add(step + 1, (metric[0] / metric[3],
                                    metric[1] / metric[3]))
            step += 1
            if step == num_steps:
                break
    print(f'MLM loss {{metric[0] / metric[3]:.3f}}, '
          f'NSP loss {{metric[1] / metric[3]:.3f}}')
    print(f'{{metric[2] / timer.sum():.1f}} sentence pairs/sec on '
          f'{{str(devices)}}')
"""
TORCH_ENCODING = """
def get_bert_encoding(net, tokens_a, tokens_b=None):
    tokens, segments = d2l.get_tokens_and_segments(tokens_a, tokens_b)
    X = torch.tensor(vocab[tokens], device=devices[0]).unsqueeze(0)
    segments = torch.tensor(segments, device=devices[0]).unsqueeze(0)
    valid_len = torch.tensor(len(tokens), device=devices[0]).unsqueeze(0)
    encoded_X, _, _ = net(X, segments, valid_len)
    return encoded_X
"""
#: In place of all three, for a reader who takes the package's own.
IMPORTED = """
train_bert, get_bert_encoding = d2l.train_bert, d2l.get_bert_encoding
"""

TRAIN = """
train_bert(train_iter, net, loss, len(vocab), {given})
"""
ENCODE = """
tokens_a = ['a', 'crane', 'is', 'flying']
encoded_text = get_bert_encoding(net, tokens_a)
# <cls>, 'a', 'crane', 'is', 'flying', <sep>
encoded_text_cls = encoded_text[:, 0, :]
encoded_text_crane = encoded_text[:, 2, :]
print(encoded_text.shape, encoded_text_cls.shape,
      encoded_text_crane[0][:3])

tokens_a, tokens_b = ['a', 'crane', 'driver', 'came'], ['he', 'just', 'left']
encoded_pair = get_bert_encoding(net, tokens_a, tokens_b)
# <cls>, 'a', 'crane', 'driver', 'came', <sep>, 'he', 'just', 'left', <sep>
encoded_pair_cls = encoded_pair[:, 0, :]
encoded_pair_crane = encoded_pair[:, 2, :]
print(encoded_pair.shape, encoded_pair_cls.shape,
      encoded_pair_crane[0][:3])
"""


def mxnet_cells(
    own_functions,
    depth='num_layers',
    lr=0.01,
    devices='devices',
    arguments='devices, num_steps',
    given=f'devices, {NUM_STEPS}',
    device='devices[0]',
    draw_interval='1',
):
    own = [
        MXNET_BATCH_LOSS,
        MXNET_TRAIN.format(
            arguments=arguments,
            lr=lr,
            devices=devices,
            draw_interval=draw_interval,
        ),
        MXNET_ENCODING.format(device=device),
    ]
    return [
        MXNET_IMPORTS,
        DATA,
        MODEL.format(depth=depth, devices=devices, **SIZES),
        MXNET_START.format(devices=devices),
        *(own if own_functions else [IMPORTED]),
        TRAIN.format(given=given),
        ENCODE,
    ]


def torch_cells(
    own_functions,
    depth='num_layers',
    sizes=OLDER_TORCH_SIZES,
    dummy_forward='pass',
):
    own = [
        TORCH_BATCH_LOSS,
        TORCH_TRAIN.format(dummy_forward=dummy_forward),
        TORCH_ENCODING,
    ]
    return [
        TORCH_IMPORTS,
        DATA,
        MODEL.format(depth=depth, devices='devices', **sizes),
        TORCH_START,
        *(own if own_functions else [IMPORTED]),
        TRAIN.format(given=f'devices, {NUM_STEPS}'),
        ENCODE,
    ]


FRENCH_TORCH = {
    'depth': 'num_blks',
    'sizes': SIZES,
    'dummy_forward': 'net(*next(iter(train_iter))[:4])',
}
ENGLISH_2020 = {
    'lr': 0.001,
    'devices': 'ctx',
    'arguments': 'ctx, log_interval, num_steps',
    'given': f'ctx, 2, {NUM_STEPS}',
    'device': 'd2l.try_gpu()',
    'draw_interval': 'log_interval',
}
#: Edition: the tab, and what its cells say in their own way.
EDITIONS = {
    'French MXNet': ('mxnet', {'depth': 'num_blks'}),
    'French PyTorch': ('torch', FRENCH_TORCH),
    'Korean MXNet': ('mxnet', {}),
    'Korean PyTorch': ('torch', {}),
    'English 2020': ('mxnet', ENGLISH_2020),
    'Chinese PyTorch': ('torch', {}),
    'Vietnamese MXNet': ('mxnet', {}),
    'Vietnamese PyTorch': ('torch', {}),
}
CELLS = {'mxnet': mxnet_cells, 'torch': torch_cells}
LOSS_WARNING = 'ignore:nn.CrossEntropyLoss:UserWarning'


def in_both_ways(*names):
    """Parametrize a test over editions, and over whose functions they use."""
    return pytest.mark.parametrize(
        ('edition', 'own_functions'),
        [
            pytest.param(
                name,
                own,
                id=f'{name}, {"own" if own else "package"} functions',
                marks=getattr(pytest.mark, EDITIONS[name][0]),
            )
            for name in names
            for own in (True, False)
        ],
    )


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    """A folder that has a small text in the layout of WikiText-2."""
    folder = tmp_path_factory.mktemp('wikitext-2')
    lines = [' \n', ' = Cranes = \n', ' \n']
    lines += [f' {line} \n' for line in sample.lines()]
    (folder / 'wiki.train.tokens').write_text(''.join(lines), 'utf-8')
    return folder


@pytest.fixture(autouse=True)
def in_a_readers_folder(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv('D2LBERT_WIKITEXT2', str(corpus))
    monkeypatch.chdir(tmp_path)
    # Nor shall pictures come when pytest exits; MXNet needs its own atexit
    monkeypatch.setattr('d2lbert.book.animator.atexit', MagicMock())


def cells_of(edition, own_functions):
    tab, arguments = EDITIONS[edition]
    require(tab)
    load_tab(tab)
    return CELLS[tab](own_functions, **arguments)


TWO_LINES = re.compile(
    r'MLM loss (\d+\.\d{3}), NSP loss (\d+\.\d{3})\n'
    r'\d+\.\d sentence pairs/sec on (\[.+\])\n'
)


def check(names, output):
    """Check what a program leaves and prints. Return the devices' names."""
    mlm_loss, nsp_loss, devices = TWO_LINES.search(output).groups()
    chance = math.log(len(names['vocab']))
    assert 0.5 * chance < float(mlm_loss) < 1.5 * chance
    assert 0.3 < float(nsp_loss) < 10
    assert names['vocab']['crane'] != names['vocab'].unk
    for name, shape in (
        ('encoded_text', (1, 6, 128)),
        ('encoded_text_cls', (1, 128)),
        ('encoded_pair', (1, 10, 128)),
        ('encoded_pair_cls', (1, 128)),
    ):
        assert tuple(names[name].shape) == shape
    features = [
        names['d2l'].BACKEND.to_numpy(names[name][0][:3])
        for name in ('encoded_text_crane', 'encoded_pair_crane')
    ]
    # The same word, in another context
    assert np.isfinite(features).all()
    assert abs(features[0] - features[1]).max() > 1e-4
    return devices


@in_both_ways(*EDITIONS)
@pytest.mark.filterwarnings(LOSS_WARNING)
def test_edition(edition, own_functions, capsys, tmp_path):
    names = run_cells(cells_of(edition, own_functions))
    output = capsys.readouterr()
    check(names, output.out)
    assert 'step 2: mlm ' in output.err
    # The edition of 2020 draws every second step; who has its own loop
    # has the last step too only where it is one of those
    drawn_last = own_functions and edition == 'English 2020'
    assert (tmp_path / 'loss.png').exists() != drawn_last


@pytest.mark.slow
@in_both_ways('French MXNet', 'English 2020')
def test_several_devices_in_mxnet(
    edition, own_functions, monkeypatch, capsys
):
    cells = cells_of(edition, own_functions)
    tab = load_tab('mxnet')
    two = tab.BACKEND.devices('cpu:2')
    monkeypatch.setattr(tab, 'try_all_gpus', lambda: two)
    names = run_cells(cells)
    assert check(names, capsys.readouterr().out) == '[cpu(0), cpu(1)]'
    for parameter in names['net'].collect_params().values():
        assert parameter.list_ctx() == two


@pytest.mark.slow
@pytest.mark.parametrize(
    ('edition', 'num_devices'),
    [
        pytest.param('French MXNet', 1, marks=pytest.mark.mxnet),
        pytest.param('Korean MXNet', 2, marks=pytest.mark.mxnet),
        pytest.param('French PyTorch', 1, marks=pytest.mark.torch),
    ],
)
@pytest.mark.filterwarnings(LOSS_WARNING)
def test_the_packages_functions_are_the_cells(
    edition, num_devices, monkeypatch, capsys
):
    """Same weights, same batches, no dropout: the same training."""
    cells = cells_of(edition, own_functions=True)
    tab = load_tab(EDITIONS[edition][0])
    devices = tab.BACKEND.devices(f'cpu:{num_devices}')
    monkeypatch.setattr(tab, 'try_all_gpus', lambda: devices)
    cells = [cell.replace('dropout=0.2', 'dropout=0') for cell in cells]
    *before, _training, _encoding = cells
    names = run_cells(before)
    batches = list(names['train_iter'])[:NUM_STEPS]
    net, loss, backend = names['net'], names['loss'], tab.BACKEND
    if EDITIONS[edition][0] == 'mxnet':
        net(*(X.as_in_ctx(devices[0]) for X in batches[0][:4]))
    start = backend.get_parameters(net)
    losses, ends = [], []
    for module in (names, vars(tab)):
        backend.set_parameters(net, start, devices)
        module['train_bert'](
            batches, net, loss, len(names['vocab']), devices, NUM_STEPS
        )
        output = capsys.readouterr().out
        losses.append(TWO_LINES.search(output).groups()[:2])
        ends.append(backend.get_parameters(net))
    np.testing.assert_allclose(*np.array(losses, float), atol=0.0011)
    own, packages = ends
    for name, array in packages.items():
        # Adam makes whole steps of gradients near zero, whose sign may
        # differ; those of the key biases are nothing but rounding noise
        if not name.endswith('W_k.bias'):
            moved = abs(array - start[name])
            assert moved.max() > 1e-4
            assert abs(array - own[name]).mean() < 0.03 * moved.mean()


# ---- in a script and in a notebook -----------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ('edition', 'own_functions'),
    [
        pytest.param('French MXNet', False, marks=pytest.mark.mxnet),
        pytest.param(
            'French PyTorch',
            True,
            marks=[pytest.mark.torch, pytest.mark.slow],
        ),
    ],
)
def test_script(edition, own_functions, tmp_path):
    imports, *cells = cells_of(edition, own_functions)
    if not mxnet_import.hook_path().exists():
        # Without `d2lbert doctor --enable-mxnet`, MXNet comes second
        imports = '\n'.join(sorted(imports.splitlines()))
    script = tmp_path / 'chapter.py'
    script.write_text('\n'.join([imports, *cells]), 'utf-8')
    done = subprocess.run(
        [sys.executable, script.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert TWO_LINES.search(done.stdout)
    assert '1, 10, 128' in done.stdout
    lines = re.split(r'[\r\n]+', done.stderr)
    for step in range(1, NUM_STEPS + 1):
        assert any(
            re.match(rf'step {step}: mlm \d+\.\d{{3}}, nsp \d', line)
            for line in lines
        )
    picture = tmp_path / 'loss.png'
    assert str(picture) in done.stderr
    assert picture.read_bytes().startswith(b'\x89PNG')


@pytest.mark.slow
@in_both_ways('French PyTorch')
def test_notebook(edition, own_functions, tmp_path):
    """The curves grow in place of the first picture."""
    nbclient = pytest.importorskip('nbclient')
    pytest.importorskip('ipykernel')
    from nbformat.v4 import new_code_cell, new_notebook

    pictures = []

    class Client(nbclient.NotebookClient):
        def process_message(self, message, *args):
            if message['msg_type'] in ('display_data', 'update_display_data'):
                content = message['content']
                pictures.append(
                    (
                        content['transient']['display_id'],
                        content['data']['image/png'],
                    )
                )
            return super().process_message(message, *args)

    cells = cells_of(edition, own_functions)
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    Client(
        notebook,
        timeout=300,
        kernel_name='python3',
        resources={'metadata': {'path': str(tmp_path)}},
    ).execute()
    assert len(pictures) == NUM_STEPS
    assert len({place for place, _ in pictures}) == 1
    assert len({png for _, png in pictures}) == NUM_STEPS
    *_, training, _encoding = notebook.cells
    shown = [
        output.data['image/png']
        for output in training.outputs
        if 'image/png' in output.get('data', {})
    ]
    assert [png.strip() for png in shown] == [pictures[-1][1].strip()]
    assert os.listdir(tmp_path) == []
