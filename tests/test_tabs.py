"""What `from d2lbert import mxnet as d2l` and `torch as d2l` offer."""

import copy
import inspect
import io
import pickle
import pydoc
import random
import re
import warnings

import numpy as np
import pytest

from d2lbert.book import editions
from d2lbert.book.animator import Accumulator, Animator, Timer
from d2lbert.data import sample
from d2lbert.data.examples import Batch
from d2lbert.errors import InputError, RunError
from d2lbert.representation import represent
from d2lbert.weights import get_weights, set_weights
from helpers import (
    POSITIONS,
    SEGMENTS,
    SIZES,
    TOKENS,
    VALID_LENS,
    forward,
    make_batch,
    new_net,
    set_num_cores,
    skip_beyond_the_book,
)

ENCODER_SIZES = (
    'vocab_size num_hiddens ffn_num_hiddens num_heads num_blks dropout '
    'max_len'
)
BATCH = (
    'tokens_X segments_X valid_lens_x pred_positions_X mlm_weights_X mlm_Y '
    'nsp_y'
)
#: The chapter's names and the order of their arguments.
SIGNATURES = {
    'load_data_wiki': 'batch_size max_len',
    'try_all_gpus': '',
    'try_gpu': 'i',
    'num_gpus': '',
    'Timer': '',
    'Accumulator': 'n',
    'Animator': 'xlabel ylabel legend xlim ylim xscale yscale fmts nrows '
    'ncols figsize',
    'Vocab': 'tokens min_freq reserved_tokens',
    'tokenize': 'lines token',
    'get_tokens_and_segments': 'tokens_a tokens_b',
    '_read_wiki': 'data_dir',
    '_get_next_sentence': 'sentence next_sentence paragraphs',
    '_get_nsp_data_from_paragraph': 'paragraph paragraphs vocab max_len',
    '_replace_mlm_tokens': 'tokens candidate_pred_positions num_mlm_preds '
    'vocab',
    '_get_mlm_data_from_tokens': 'tokens vocab',
    '_pad_bert_inputs': 'examples max_len vocab',
    '_WikiTextDataset': 'paragraphs max_len',
    'BERTModel': ENCODER_SIZES,
    'BERTEncoder': ENCODER_SIZES,
    'MaskLM': 'vocab_size num_hiddens',
    'NextSentencePred': '',
    'TransformerEncoderBlock': 'num_hiddens ffn_num_hiddens num_heads '
    'dropout use_bias',
    'DotProductAttention': 'dropout',
    'PositionWiseFFN': 'ffn_num_hiddens ffn_num_outputs',
    'train_bert': 'train_iter net loss vocab_size devices num_steps',
    'TransformerEncoder': 'vocab_size num_hiddens ffn_num_hiddens num_heads '
    'num_blks dropout use_bias',
    'PositionalEncoding': 'num_hiddens dropout max_len',
    'masked_softmax': 'X valid_lens',
    'cpu': '',
    'gpu': 'i',
    'download': 'url folder sha1_hash',
    'extract': 'filename folder',
    'download_extract': 'name folder',
    'get_dataloader_workers': '',
    'get_bert_encoding': 'net tokens_a tokens_b',
}
TAB_SIGNATURES = {
    'mxnet': {
        'MultiHeadAttention': 'num_hiddens num_heads dropout use_bias',
        'AddNorm': 'dropout',
        'EncoderBlock': 'num_hiddens ffn_num_hiddens num_heads dropout '
        'use_bias',
        '_get_batch_loss_bert': 'net loss vocab_size '
        + ' '.join(f'{name}_shards' for name in BATCH.split()),
    },
    'jax': {
        'MultiHeadAttention': 'num_hiddens num_heads dropout bias',
        'AddNorm': 'norm_shape dropout',
        '_get_batch_loss_bert': f'net loss vocab_size {BATCH}',
    },
    'torch': {
        'MultiHeadAttention': 'num_hiddens num_heads dropout bias',
        'AddNorm': 'norm_shape dropout',
        'EncoderBlock': 'key_size query_size value_size num_hiddens '
        'norm_shape ffn_num_input ffn_num_hiddens num_heads dropout use_bias',
        '_get_batch_loss_bert': f'net loss vocab_size {BATCH}',
    },
}
OLDER_SIZES = {
    'norm_shape': [12],
    'ffn_num_input': 12,
    'key_size': 12,
    'query_size': 12,
    'value_size': 12,
    'hid_in_features': 12,
    'mlm_in_features': 12,
    'nsp_in_features': 12,
}


@pytest.fixture
def loaded(tab, tmp_path, monkeypatch):
    """What `load_data_wiki` returns for a small text."""
    path = tmp_path / 'wiki.train.tokens'
    path.write_text('\n'.join(sample.lines()[:60]), 'utf-8')
    monkeypatch.setenv('D2LBERT_WIKITEXT2', str(path))
    monkeypatch.chdir(tmp_path)
    random.seed(0)
    return tab.load_data_wiki(8, 32)


def numpy_of(tab, arrays):
    return [tab.BACKEND.to_numpy(X) for X in arrays]


def published_loss(tab):
    if tab.BACKEND.name == 'mxnet':
        from mxnet import gluon

        return gluon.loss.SoftmaxCELoss()
    if tab.BACKEND.name == 'jax':
        import optax

        return optax.softmax_cross_entropy_with_integer_labels
    from torch import nn

    return nn.CrossEntropyLoss()


def masked_loss(tab):
    """The loss of a tab that leaves padding out, and warns of nothing."""
    if tab.BACKEND.name != 'torch':
        return published_loss(tab)
    from torch import nn

    return nn.CrossEntropyLoss(reduction='none')


def net_for(tab, vocab):
    return new_net(tab, vocab_size=len(vocab), max_len=40, dropout=0.3)


def batches_for(tab, sizes=(9, 7)):
    return [
        [tab.BACKEND.tensor(X) for X in make_batch(size, seed)]
        for seed, size in enumerate(sizes)
    ]


# ---- names and signatures --------------------------------------------


def test_signatures(tab, backend_name):
    expected = SIGNATURES | TAB_SIGNATURES[backend_name]
    for name, arguments in expected.items():
        parameters = inspect.signature(getattr(tab, name)).parameters
        by_position = [
            parameter.name
            for parameter in parameters.values()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        names = arguments.split()
        assert by_position[: len(names)] == names, name
        required = [
            parameter.name
            for parameter in parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        assert set(required) <= set(names), name


def test_every_name_is_explained(tab, backend_name):
    for name in SIGNATURES | TAB_SIGNATURES[backend_name]:
        assert inspect.getdoc(getattr(tab, name)), name


def test_help(tab):
    text = pydoc.render_doc(tab.BERTModel, renderer=pydoc.plaintext)
    head, _, _ = text.partition('Method resolution order')
    for argument in ENCODER_SIZES.split():
        assert f'`{argument}`' in head
    assert '(B, P, vocab_size)' in text


def test_printed_network(tab):
    skip_beyond_the_book(tab)
    text = repr(tab.BERTModel(**SIZES))
    for part in (
        'BERTModel(',
        '(encoder): BERTEncoder(',
        '(1): TransformerEncoderBlock(',
        '(attention): MultiHeadAttention(',
        '(mlm): MaskLM(',
        '(nsp): NextSentencePred(',
    ):
        assert part in text


def test_devices_without_a_gpu(tab):
    skip_beyond_the_book(tab)
    if tab.num_gpus():
        pytest.skip('this machine has a GPU')
    assert [str(device)[:3] for device in tab.try_all_gpus()] == ['cpu']
    assert tab.try_gpu() == tab.try_gpu(3) == tab.try_all_gpus()[0]


# ---- the editions' arguments -----------------------------------------


@pytest.mark.parametrize('name', ['BERTModel', 'BERTEncoder'])
def test_two_spellings(tab, name):
    sizes = {k: v for k, v in SIZES.items() if k != 'num_blks'}
    make = getattr(tab, name)

    def encoder(**spellings):
        net = make(**sizes, **spellings)
        return getattr(net, 'encoder', net)

    assert len(encoder(num_blks=2).blks) == 2
    assert len(encoder(num_layers=3).blks) == 3
    assert len(encoder(num_layers=1, num_blks=1).blks) == 1
    with pytest.raises(InputError, match='num_blks = 2 and num_layers = 3'):
        encoder(num_blks=2, num_layers=3)
    with pytest.raises(InputError, match='num_blks or num_layers'):
        encoder()


@pytest.mark.parametrize('name', ['BERTModel', 'BERTEncoder'])
def test_older_sizes(tab, name):
    make = getattr(tab, name)
    assert set(OLDER_SIZES) == set(editions.IMPLIED_SIZES)
    make(**SIZES, **OLDER_SIZES)
    make(**SIZES, norm_shape=(12,))
    for size in OLDER_SIZES:
        wrong = [768] if size == 'norm_shape' else 768
        with pytest.raises(ValueError, match=f'{size} = .*768.* implies'):
            make(**SIZES, **{size: wrong})


@pytest.mark.parametrize('name', ['BERTModel', 'BERTEncoder'])
def test_older_order(tab, name):
    make = getattr(tab, name)
    net = make(50, 12, [12], 12, 20, 3, 2, 0.1, 16, 12, query_size=12)
    shapes = tab.BACKEND.parameter_shapes(net)
    assert shapes == tab.BACKEND.parameter_shapes(make(**SIZES))
    with pytest.raises(ValueError, match=r'norm_shape = \[13\].* implies 12'):
        make(50, 12, [13], 12, 20, 3, 2, 0.1)
    with pytest.raises(ValueError, match=r'key_size = 768.* implies 12'):
        make(50, 12, [12], 12, 20, 3, 2, 0.1, 16, 768)
    with pytest.raises(TypeError, match=r'multiple values .*num_layers'):
        make(50, 12, [12], 12, 20, 3, 2, num_layers=2)
    with pytest.raises(TypeError, match='at most 15 arguments'):
        make(50, 12, [12], 12, 20, 3, 2, 0.1, 16, *[12] * 7)


@pytest.mark.torch
def test_older_torch_block(both_tabs):
    d2l = both_tabs[1]
    block = d2l.EncoderBlock(24, 24, 24, 24, [24], 24, 48, 8, 0.5, True)
    newer = d2l.TransformerEncoderBlock(24, 48, 8, 0.5, True)
    shapes = d2l.BACKEND.parameter_shapes
    assert shapes(block) == shapes(newer)
    with pytest.raises(ValueError, match=r'query_size = 25.* implies 24'):
        d2l.EncoderBlock(24, 25, 24, 24, [24], 24, 48, 8, 0.5)


def test_sinusoids(tab):
    encoding = tab.PositionalEncoding(4, 0, max_len=9)
    X = encoding(tab.BACKEND.tensor(np.zeros((2, 7, 4), np.float32)))
    i = np.arange(7)
    columns = [np.sin(i), np.cos(i), np.sin(i / 100), np.cos(i / 100)]
    expected = np.broadcast_to(np.stack(columns, -1), (2, 7, 4))
    np.testing.assert_allclose(tab.BACKEND.to_numpy(X), expected, atol=1e-6)


@pytest.mark.mxnet
def test_mxnet_next_sentence_takes_all_numbers_of_an_example(both_tabs):
    d2l = both_tabs[0]
    nsp = d2l.NextSentencePred()
    nsp.initialize()
    X = np.ones((2, 8, 12), np.float32)
    assert nsp(d2l.BACKEND.tensor(X)).shape == (2, 2)
    assert nsp.output.weight.shape == (2, 96)


def test_unknown_arguments(tab):
    with pytest.raises(TypeError, match='num_hidden'):
        tab.BERTModel(**SIZES, num_hidden=12)
    # Of the older editions, with the size of the input in the first place
    with pytest.raises(TypeError):
        tab.PositionWiseFFN(4, 4, 8)


@pytest.mark.mxnet
def test_mxnet_prefix(both_tabs):
    import mxnet

    if not hasattr(mxnet.gluon, 'ParameterDict'):
        pytest.skip('MXNet 2 has no prefixes')
    d2l = both_tabs[0]
    assert d2l.BERTModel(**SIZES, prefix='mine_').prefix == 'mine_'
    assert d2l.MaskLM(9, 4, prefix='mine_').prefix == 'mine_'


# ---- native networks -------------------------------------------------


def outputs(net):
    return forward(net, TOKENS, SEGMENTS, VALID_LENS, POSITIONS)


def assert_same_outputs(net, other):
    for ours, theirs in zip(outputs(net), outputs(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    'clone',
    [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))],
    ids=['deepcopy', 'pickle'],
)
def test_copies(tab, clone):
    net = new_net(tab)
    if hasattr(net, 'reset_device'):
        pytest.skip('MXNet 2 pickles no block, and its copies share values')
    other = clone(net)
    assert type(other) is tab.BERTModel
    assert_same_outputs(net, other)
    tab.BACKEND.set_parameters(
        other,
        {k: 0 * v for k, v in tab.BACKEND.get_parameters(other).items()},
    )
    assert outputs(net)[2].any()


@pytest.mark.torch
def test_torch_own_means(both_tabs, tmp_path):
    import torch
    from torch import nn

    d2l = both_tabs[1]
    net, other = new_net(d2l), new_net(d2l, seed=1)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_same_outputs(net, other)
    torch.save(net, tmp_path / 'net.pt')
    other = torch.load(tmp_path / 'net.pt', weights_only=False)
    assert_same_outputs(net, other)

    names = [name for name, _ in net.named_parameters()]
    assert names == list(net.state_dict())
    assert 'encoder.pos_embedding' in names
    assert 'mlm.mlp.3.weight' in names
    assert net.to(torch.float64).hidden[0].weight.dtype == torch.float64
    net.to(torch.device('cpu'), torch.float32)
    assert_same_outputs(net, nn.DataParallel(net).module)
    calls = []
    net.encoder.blks[0].attention.register_forward_hook(
        lambda *arguments: calls.append(len(arguments))
    )
    outputs(net)
    assert calls == [3]


@pytest.mark.mxnet
def test_mxnet_own_means(both_tabs, tmp_path):
    from mxnet import gluon, init, npx

    d2l = both_tabs[0]
    net, other = new_net(d2l), new_net(d2l, seed=1)
    net.save_parameters(str(tmp_path / 'net.params'))
    other.load_parameters(str(tmp_path / 'net.params'))
    assert_same_outputs(net, other)

    fresh = d2l.BERTModel(**SIZES)
    two = [npx.cpu(0), npx.cpu(1)]
    fresh.initialize(init.Xavier(), ctx=two)
    parameters = fresh.collect_params()
    assert len(list(parameters)) == len(d2l.BACKEND.get_parameters(fresh))
    for parameter in parameters.values():
        assert isinstance(parameter, gluon.Parameter)
        assert parameter.list_ctx() == two
    # A matrix to Xavier, whose bound this is
    positions = fresh.encoder.pos_embedding.data(two[1]).asnumpy()
    assert 0 < abs(positions).max() <= (6 / (16 * 12 + 12)) ** 0.5


@pytest.mark.mxnet
@pytest.mark.filterwarnings('ignore:All children of this Sequential')
def test_hybridize_is_harmless(both_tabs):
    d2l = both_tabs[0]
    net, other = new_net(d2l, dropout=0), new_net(d2l, dropout=0)
    plain = outputs(net)
    net.hybridize()
    for ours, theirs in zip(outputs(net), plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for network in (net, other):
        d2l.train_bert(
            batches_for(d2l), network, published_loss(d2l), 50,
            d2l.BACKEND.devices('cpu:2'), 2,
        )  # fmt: skip
    for ours, theirs in zip(outputs(net), outputs(other), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_attributes_of_the_parts(tab):
    skip_beyond_the_book(tab)
    net = new_net(tab)
    assert net.encoder.blks[0].attention.num_heads == 3
    assert tuple(net.mlm.mlp[-1].weight.shape) == (50, 12)
    assert tuple(net.nsp.output.weight.shape) == (2, 12)
    assert tuple(net.encoder.pos_embedding.shape) == (1, 16, 12)
    assert [type(blk) for blk in net.encoder.blks] == [
        tab.TransformerEncoderBlock
    ] * 2


# ---- the pieces alone ------------------------------------------------


def real(tab, *shape):
    """Real numbers, as MXNet's `np.array` makes them of any list."""
    rng = np.random.default_rng(0)
    return tab.BACKEND.tensor(rng.random(shape).astype(np.float32))


def ready(net):
    if net.backend.name == 'mxnet':
        net.initialize()
    return net


def indices(tab, array):
    """Indices as the cells make them, in MXNet of real numbers."""
    dtype = np.float32 if tab.BACKEND.name == 'mxnet' else np.int64
    return tab.BACKEND.tensor(np.asarray(array, dtype))


def test_encoder_and_heads_alone(tab):
    """The cells of the model section."""
    skip_beyond_the_book(tab)
    encoder = ready(tab.BERTEncoder(100, 12, 20, 4, 2, 0.2))
    tokens = indices(tab, np.random.default_rng(0).integers(0, 100, (2, 8)))
    segments = indices(tab, [[0, 0, 0, 0, 1, 1, 1, 1]] * 2)
    encoded_X = encoder(tokens, segments, None)
    assert tuple(encoded_X.shape) == (2, 8, 12)

    mlm = ready(tab.MaskLM(100, 12))
    mlm_Y_hat = mlm(encoded_X, indices(tab, [[1, 5, 2], [6, 1, 5]]))
    assert tuple(mlm_Y_hat.shape) == (2, 3, 100)
    by_hand = encoded_X[1, 6]
    for layer in mlm.mlp:
        by_hand = layer(by_hand.reshape((1, -1)))
    np.testing.assert_allclose(
        *numpy_of(tab, (mlm_Y_hat[1, 0], by_hand[0])), rtol=1e-4, atol=1e-5
    )

    nsp = ready(tab.NextSentencePred())
    assert tuple(nsp(encoded_X[:, 0, :]).shape) == (2, 2)
    # As the older editions have it, of all tokens
    nsp = ready(tab.NextSentencePred(8 * 12))
    assert tuple(nsp(encoded_X.reshape((2, -1))).shape) == (2, 2)


def test_attention_alone(tab):
    X = real(tab, 2, 4, 100)
    attention = ready(tab.MultiHeadAttention(100, 5, 0.5))
    Y = attention(X, X, X, indices(tab, [3, 2]))
    assert tuple(Y.shape) == (2, 4, 100)
    assert not hasattr(attention.W_q, 'bias') or attention.W_q.bias is None
    # Keys beyond the valid ones do not count
    keys = real(tab, 2, 10, 4)
    queries, values = keys[:, :1], keys
    weigh = tab.DotProductAttention(0)
    whole = weigh(queries, keys, values, indices(tab, [2, 2]))
    short = weigh(queries, keys[:, :2], values[:, :2])
    np.testing.assert_allclose(*numpy_of(tab, (whole, short)), atol=1e-6)


def test_feed_forward_alone(tab):
    skip_beyond_the_book(tab)
    ffn = ready(tab.PositionWiseFFN(4, 8))
    assert tuple(ffn(real(tab, 2, 3, 4)).shape) == (2, 3, 8)


def test_block_alone(tab):
    block = ready(tab.TransformerEncoderBlock(24, 48, 8, 0.5))
    X = real(tab, 2, 10, 24)
    assert tuple(block(X, indices(tab, [3, 2])).shape) == (2, 10, 24)


def normalised(X, axes):
    mean, variance = X.mean(axes, keepdims=True), X.var(axes, keepdims=True)
    return (X - mean) / np.sqrt(variance + 1e-5)


@pytest.mark.mxnet
def test_mxnet_add_norm_alone(both_tabs):
    d2l = both_tabs[0]
    add_norm = ready(d2l.AddNorm(0.5))
    X, Y = real(d2l, 2, 3, 4), real(d2l, 2, 3, 4) * 2
    ours, X, Y = numpy_of(d2l, (add_norm(X, Y), X, Y))
    np.testing.assert_allclose(ours, normalised(X + Y, -1), atol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize(
    ('norm_shape', 'axes'), [(4, -1), ([4], -1), ([3, 4], (1, 2))]
)
def test_torch_add_norm_alone(both_tabs, norm_shape, axes):
    d2l = both_tabs[1]
    add_norm = d2l.AddNorm(norm_shape, 0.5).eval()
    X, Y = real(d2l, 2, 3, 4), real(d2l, 2, 3, 4) * 2
    ours, X, Y = numpy_of(d2l, (add_norm(X, Y), X, Y))
    np.testing.assert_allclose(ours, normalised(X + Y, axes), atol=1e-4)


# ---- the helper functions of the dataset section ----------------------

SENTENCES = [['the', 'crane', 'lifts'], ['it', 'turns'], ['they', 'wait']]


@pytest.fixture
def vocab(tab):
    return tab.Vocab(SENTENCES * 5, 5, ['<pad>', '<mask>', '<cls>', '<sep>'])


def test_vocab(vocab):
    assert len(vocab) == 12
    assert vocab.token_freqs[0][1] == 5
    assert vocab.to_tokens(vocab[['it', 'turns']]) == ['it', 'turns']
    assert vocab['nowhere'] == vocab.unk == vocab['<unk>']


def test_tokenize(tab):
    assert tab.tokenize(['a b', 'c']) == [['a', 'b'], ['c']]
    assert tab.tokenize(['a b'], 'char') == [['a', ' ', 'b']]
    with pytest.raises(InputError, match="token = 'byte'"):
        tab.tokenize(['a'], 'byte')


def test_tokens_and_segments(tab):
    assert tab.get_tokens_and_segments(['a', 'b']) == (
        ['<cls>', 'a', 'b', '<sep>'],
        [0, 0, 0, 0],
    )
    assert tab.get_tokens_and_segments(['a'], ['b', 'c']) == (
        ['<cls>', 'a', '<sep>', 'b', 'c', '<sep>'],
        [0, 0, 0, 1, 1, 1],
    )


@pytest.mark.parametrize('tokens', [('a crane',), (['a'], 'he left')])
def test_a_string_is_no_list_of_tokens(tab, tokens):
    with pytest.raises(InputError, match=r"string '.*split\(\)"):
        tab.get_tokens_and_segments(*tokens)


def test_read_wiki(tab, tmp_path):
    (tmp_path / 'wiki.train.tokens').write_text(
        ' = A heading = \n \n One two . Three . \n Four . Five . Six . \n',
        'utf-8',
    )
    paragraphs = tab._read_wiki(tmp_path)
    assert sorted(paragraphs) == [
        ['four', 'five', 'six .'],
        ['one two', 'three .'],
    ]


def test_next_sentences(tab, vocab):
    random.seed(0)
    pairs = [
        tab._get_next_sentence(*SENTENCES[:2], [SENTENCES]) for _ in range(99)
    ]
    assert 30 < sum(is_next for _, _, is_next in pairs) < 70
    for tokens_a, tokens_b, is_next in pairs:
        assert tokens_a == SENTENCES[0]
        assert tokens_b == SENTENCES[1] if is_next else tokens_b in SENTENCES
    data = tab._get_nsp_data_from_paragraph(SENTENCES, [SENTENCES], vocab, 9)
    assert len(data) == 2
    for tokens, segments, is_next in data:
        assert tokens[0] == '<cls>'
        assert tokens.count('<sep>') == 2
        assert len(segments) == len(tokens) <= 9
        assert is_next in (True, False)
    assert not tab._get_nsp_data_from_paragraph(
        SENTENCES, [SENTENCES], vocab, 5
    )


def test_masks(tab, vocab):
    random.seed(0)
    tokens = ['<cls>', *SENTENCES[0] * 10, '<sep>']
    candidates = list(range(1, 31))
    masked, predictions = tab._replace_mlm_tokens(
        tokens, candidates, 20, vocab
    )
    assert candidates != sorted(candidates)
    assert [i for i, _ in predictions] == candidates[:20]
    assert all(tokens[i] == token for i, token in predictions)
    changed = {i for i in range(32) if masked[i] != tokens[i]}
    assert changed <= {i for i, _ in predictions}
    assert 10 <= masked.count('<mask>') < 20

    ids, positions, labels = tab._get_mlm_data_from_tokens(tokens, vocab)
    assert len(positions) == len(labels) == round(32 * 0.15)
    assert positions == sorted(positions)
    assert labels == vocab[[tokens[i] for i in positions]]
    assert len(ids) == 32


def test_padding(tab, vocab):
    examples = [
        ([5, 6, 7], [1], [9], [0, 0, 1], True),
        ([5, 6, 7, 8], [2], [3], [0, 0, 1, 1], False),
    ]
    arrays = tab._pad_bert_inputs(examples, 10, vocab)
    pad = vocab['<pad>']
    expected = (
        [[5, 6, 7] + [pad] * 7, [5, 6, 7, 8] + [pad] * 6],
        [[0, 0, 1] + [0] * 7, [0, 0, 1, 1] + [0] * 6],
        [3, 4],
        [[1, 0], [2, 0]],
        [[1, 0], [1, 0]],
        [[9, 0], [3, 0]],
        [1, 0],
    )
    for X, values in zip(arrays, expected, strict=True):
        assert type(X) is type(tab.BACKEND.tensor([1]))
        assert tab.BACKEND.to_numpy(X).tolist() == values


# ---- train_iter ------------------------------------------------------


def test_train_iter(tab, loaded):
    train_iter, vocab = loaded
    num_examples = len(train_iter.dataset)
    assert len(train_iter) == -(-num_examples // 8)
    batches = list(train_iter)
    assert len(batches) == len(train_iter)
    assert sum(batch[0].shape[0] for batch in batches) == num_examples
    native = type(tab.BACKEND.tensor([1]))
    for X, shape in zip(
        batches[0],
        [(8, 32), (8, 32), (8,), (8, 5), (8, 5), (8, 5), (8,)],
        strict=True,
    ):
        assert type(X) is native
        assert tuple(X.shape) == shape
    assert train_iter.dataset.vocab is vocab


def test_epochs_are_shuffled(tab, loaded):
    train_iter, _ = loaded
    epochs = [
        np.concatenate([tab.BACKEND.to_numpy(X) for X, *_ in train_iter])
        for _ in range(2)
    ]
    assert (epochs[0] != epochs[1]).any()
    assert sorted(map(tuple, epochs[0])) == sorted(map(tuple, epochs[1]))


def test_dataset(tab, loaded):
    dataset = loaded[0].dataset
    example = dataset[3]
    assert [tuple(X.shape) for X in example] == [
        (32,), (32,), (), (5,), (5,), (5,), (),
    ]  # fmt: skip
    columns = (
        dataset.all_token_ids,
        dataset.all_segments,
        dataset.valid_lens,
        dataset.all_pred_positions,
        dataset.all_mlm_weights,
        dataset.all_mlm_labels,
        dataset.nsp_labels,
    )
    for X, column in zip(example, columns, strict=True):
        assert len(column) == len(dataset)
        np.testing.assert_array_equal(*numpy_of(tab, (X, column[3])))
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_the_frameworks_own_loader(tab, loaded):
    skip_beyond_the_book(tab)
    dataset = loaded[0].dataset
    if tab.BACKEND.name == 'mxnet':
        from mxnet.gluon.data import DataLoader, Dataset
    else:
        from torch.utils.data import DataLoader, Dataset
    assert isinstance(dataset, Dataset)
    loader = DataLoader(dataset, 4, shuffle=False)
    batch = next(iter(loader))
    expected = dataset.examples.rows(slice(4))
    for X, array in zip(batch, expected, strict=True):
        np.testing.assert_array_equal(tab.BACKEND.to_numpy(X), array)
    # … which the trainer takes too
    net = net_for(tab, dataset.vocab)
    tab.train_bert(
        loader, net, masked_loss(tab), len(dataset.vocab),
        tab.try_all_gpus(), 1,
    )  # fmt: skip


# ---- train_bert ------------------------------------------------------


def train(tab, net=None, num_steps=2, loss=None, **options):
    net = net or new_net(tab, dropout=0)
    tab.train_bert(
        batches_for(tab), net, loss or masked_loss(tab), 50,
        options.pop('devices', tab.try_all_gpus()), num_steps, **options,
    )  # fmt: skip
    return tab.BACKEND.get_parameters(net)


@pytest.fixture(autouse=True)
def in_a_readers_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_ctx_and_log_interval(tab, capsys):
    devices = tab.try_all_gpus()
    nets = [new_net(tab, dropout=0) for _ in range(3)]
    arguments = [
        ((devices, 2, 3), {}),
        ((), {'ctx': devices, 'log_interval': 2, 'num_steps': 3}),
    ]
    for net, (args, kwargs) in zip(nets, arguments, strict=False):
        tab.train_bert(
            batches_for(tab), net, masked_loss(tab), 50, *args, **kwargs
        )
        output = capsys.readouterr()
        # Every second step is drawn, and the last one
        assert re.findall(r'step (\d)', output.err) == ['2', '3']
        assert 'learning rate 0.001\n' in output.out
    train(tab, nets[2], 3)
    assert 'learning rate 0.01\n' in capsys.readouterr().out
    old, again, new = map(tab.BACKEND.get_parameters, nets)
    start = tab.BACKEND.get_parameters(new_net(tab, dropout=0))
    for name in ('hidden.bias', 'hidden.0.bias'):
        if name in old:
            np.testing.assert_array_equal(old[name], again[name])
            moved = abs(old[name] - start[name]).mean()
            assert moved < 0.5 * abs(new[name] - start[name]).mean()


def test_learning_rate(tab, capsys):
    """Adam's first step has the size of the rate."""
    start = train(tab, lr=1e-9)
    assert 'learning rate 1e-09\n' in capsys.readouterr().out
    after = train(tab, num_steps=1, lr=1e-4)
    moved = max(abs(after[name] - start[name]).max() for name in start)
    assert 0.9e-4 < moved < 1.1e-4
    with pytest.raises(InputError, match='lr = -1'):
        train(tab, lr=-1)


@pytest.mark.mxnet
def test_mxnet_training_leaves_the_network_where_it_was(
    both_tabs, monkeypatch
):
    tab, _ = both_tabs
    set_num_cores(monkeypatch, tab, 2)
    net = new_net(tab, dropout=0)
    train(tab, net)
    for parameter in net.collect_params().values():
        assert parameter.list_ctx() == tab.try_all_gpus()


def test_devices_or_ctx(tab):
    two = tab.BACKEND.devices('cpu:2')
    with pytest.raises(InputError, match=r'devices = .* and ctx = '):
        train(tab, devices=two, ctx=two[:1])
    with pytest.raises(InputError, match='give devices or ctx'):
        train(tab, devices=None)
    with pytest.raises(InputError, match='give num_steps'):
        train(tab, num_steps=None)


@pytest.mark.parametrize('num_steps', [0, -1])
def test_no_steps(tab, num_steps):
    with pytest.raises(InputError, match=f'num_steps = {num_steps}'):
        train(tab, num_steps=num_steps)


def test_too_many_arguments(tab):
    with pytest.raises(TypeError, match='7 arguments'):
        tab.train_bert([], None, masked_loss(tab), 50, [], 1, 2, 3)


def test_another_vocabulary(tab, loaded):
    _, vocab = loaded
    net = new_net(tab)
    with pytest.raises(InputError, match=r'vocab_size = 51: .* 50 tokens'):
        tab.train_bert([], net, masked_loss(tab), 51, tab.try_all_gpus(), 1)
    with pytest.raises(InputError, match='50 tokens'):
        tab.get_bert_encoding(net, ['a', 'crane'])
    with pytest.raises(InputError, match=r"string 'a crane'"):
        tab.get_bert_encoding(net_for(tab, vocab), 'a crane')


def test_a_network_that_has_diverged(tab, loaded):
    _, vocab = loaded
    net = net_for(tab, vocab)
    weights = get_weights(net)
    weights['encoder.pos_embedding'][:] = np.nan
    set_weights(net, weights)
    with pytest.raises(RunError, match='representations are not finite'):
        tab.get_bert_encoding(net, ['a', 'crane'])
    with pytest.raises(RunError, match='representations are not finite'):
        represent(net, vocab, ['a crane'])


def test_a_network_of_another_kind(tab):
    class BERTModel(tab.BACKEND.Module):
        """A reader's own."""

    name = re.escape(BERTModel.__qualname__)
    expected = f'net is a {__name__}.{name}: expected d2l.BERTModel'
    with pytest.raises(InputError, match=expected):
        train(tab, BERTModel())


def test_batches_of_another_kind(tab):
    with pytest.raises(InputError, match='no batch'):
        tab.train_bert(
            [], new_net(tab), masked_loss(tab), 50, tab.try_all_gpus(), 1
        )
    with pytest.raises(InputError, match='2 arrays: expected 7, tokens'):
        tab.train_bert(
            [batches_for(tab)[0][:2]], new_net(tab), masked_loss(tab), 50,
            tab.try_all_gpus(), 1,
        )  # fmt: skip


@pytest.mark.torch
def test_the_published_torch_loss_warns_in_one_line(both_tabs):
    d2l = both_tabs[1]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        train(d2l, loss=published_loss(d2l))
    (warning,) = caught
    message = str(warning.message)
    assert '\n' not in message
    assert 'over padding' in message
    assert 'README' in message
    assert warning.filename == __file__


def test_other_losses_are_silent(tab):
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        train(tab)


@pytest.mark.torch
def test_the_recipe_is_that_of_the_torch_loss(both_tabs):
    from torch import nn

    d2l = both_tabs[1]

    def recipe(**options):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return d2l._recipe_of(nn.CrossEntropyLoss(**options)).name

    assert recipe() == 'pytorch'
    assert recipe(reduction='none') == 'corrected'
    for options in (
        {'reduction': 'sum'},
        {'label_smoothing': 0.1},
        {'ignore_index': 0},
        {'weight': d2l.torch.ones(50)},
    ):
        (name,) = options
        with pytest.raises(
            InputError, match=rf'loss = nn.CrossEntropyLoss\({name}=.+\): '
        ):
            recipe(**options)

    class Own(nn.CrossEntropyLoss):
        """Nobody knows what a reader's own loss computes."""

    for loss in (nn.NLLLoss(), Own()):
        with pytest.raises(InputError, match=r'nn\.CrossEntropyLoss\(\)'):
            d2l._recipe_of(loss)


@pytest.mark.mxnet
def test_the_recipe_is_that_of_the_mxnet_loss(both_tabs):
    from mxnet import gluon

    d2l = both_tabs[0]

    class Own(gluon.loss.SoftmaxCELoss):
        """Nobody knows what a reader's own loss computes."""

    assert d2l._recipe_of(gluon.loss.SoftmaxCELoss()).name == 'mxnet'
    for loss in (
        Own(),
        gluon.loss.SoftmaxCELoss(sparse_label=False),
        gluon.loss.SoftmaxCELoss(weight=2),
        gluon.loss.L2Loss(),
    ):
        with pytest.raises(InputError, match=r'gluon\.loss\.SoftmaxCELoss'):
            d2l._recipe_of(loss)


@pytest.mark.torch
def test_data_parallel(both_tabs, loaded):
    from torch import nn

    d2l = both_tabs[1]
    net, other = (new_net(d2l, dropout=0) for _ in range(2))
    ours = train(d2l, net)
    theirs = train(d2l, nn.DataParallel(other))
    theirs = {name.removeprefix('module.'): X for name, X in theirs.items()}
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])


def test_encoding_is_evaluated(tab, loaded):
    _, vocab = loaded
    net = net_for(tab, vocab)
    first, second = (
        tab.BACKEND.to_numpy(
            tab.get_bert_encoding(net, ['a', 'crane'], ['it', 'flies'])
        )
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
    assert first.shape == (1, 7, 12)
    assert getattr(net, 'training', True)


# ---- a reader's own networks -----------------------------------------


def test_subclasses_train_through_their_forward(tab):
    """… and a forward that changes nothing trains as the fast path does."""
    skip_beyond_the_book(tab)
    calls = []

    class Mine(tab.BERTModel):
        def forward(self, *args):
            calls.append(len(args))
            return super().forward(*args)

    results = []
    for cls in (tab.BERTModel, Mine):
        net = cls(**SIZES | {'dropout': 0.3})
        start = tab.BACKEND.get_parameters(new_net(tab))
        tab.BACKEND.set_parameters(net, start)
        random.seed(0)
        results.append(train(tab, net))
    assert calls == [4, 4]
    fast, plain = results
    for name, array in fast.items():
        if not name.endswith('W_k.bias'):
            assert abs(array - plain[name]).mean() < 1e-4, name
            assert abs(array - start[name]).max() > 1e-3, name


def test_a_readers_changes_are_trained(tab):
    class Mine(tab.BERTModel):
        def __init__(self, **sizes):
            super().__init__(**sizes)
            self.extra = self.backend.Linear(12, 12)

        def forward(self, *args):
            encoded_X, mlm_Y_hat, nsp_Y_hat = super().forward(*args)
            nsp_Y_hat = nsp_Y_hat + self.extra(encoded_X[:, 1])[:, :2]
            return encoded_X, mlm_Y_hat, nsp_Y_hat

    net = ready(Mine(**SIZES))
    before = tab.BACKEND.get_parameters(net)['extra.weight']
    after = train(tab, net)['extra.weight']
    assert abs(after - before)[:2].max() > 1e-3


def test_a_readers_own_network_takes_the_batches(tab, loaded):
    """A network and a loop that know nothing of this package."""
    skip_beyond_the_book(tab)
    train_iter, vocab = loaded
    if tab.BACKEND.name == 'mxnet':
        losses = own_mxnet_training(train_iter, len(vocab))
    else:
        losses = own_torch_training(train_iter, len(vocab))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def own_mxnet_training(train_iter, vocab_size):
    from mxnet import autograd, gluon, np, npx
    from mxnet.gluon import nn

    class Bag(nn.Block):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(vocab_size, 8)
            self.output = nn.Dense(2)

        def forward(self, tokens, valid_lens):
            X = self.embedding(tokens)
            mask = np.arange(X.shape[1]) < valid_lens.reshape(-1, 1)
            return self.output((X * np.expand_dims(mask, 2)).sum(axis=1))

    net, losses = Bag(), []
    net.initialize()
    trainer = gluon.Trainer(net.collect_params(), 'adam')
    loss = gluon.loss.SoftmaxCELoss()
    for _ in range(6):
        total = 0
        for tokens, _, lens, *_, nsp_y in train_iter:
            with autograd.record():
                l = loss(net(tokens, lens), nsp_y).mean()  # noqa: E741
            l.backward()
            trainer.step(1)
            total += float(l)
        npx.waitall()
        losses.append(total)
    return losses


def own_torch_training(train_iter, vocab_size):
    import torch
    from torch import nn

    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(vocab_size, 8)
            self.output = nn.LazyLinear(2)

        def forward(self, tokens, valid_lens):
            X = self.embedding(tokens)
            mask = torch.arange(X.shape[1]) < valid_lens.reshape(-1, 1)
            return self.output((X * mask.unsqueeze(2)).sum(dim=1))

    net, losses = Bag(), []
    tokens, _, lens, *_ = next(iter(train_iter))
    net(tokens, lens)
    optimizer = torch.optim.Adam(net.parameters())
    loss = nn.CrossEntropyLoss()
    for _ in range(6):
        total = 0
        for tokens, _, lens, *_, nsp_y in train_iter:
            optimizer.zero_grad()
            l = loss(net(tokens, lens), nsp_y)  # noqa: E741
            l.backward()
            optimizer.step()
            total += l.item()
        losses.append(total)
    return losses


# ---- Timer, Accumulator, Animator ------------------------------------


def test_the_tabs_have_the_books_tools(tab):
    assert tab.Timer is Timer
    assert tab.Accumulator is Accumulator
    assert tab.Animator is Animator


def test_timer():
    timer = Timer()
    assert timer.stop() >= 0
    timer.start()
    assert timer.stop() == timer.times[1]
    timer.times = [1.0, 2.0, 6.0]
    assert (timer.sum(), timer.avg()) == (9, 3)
    assert timer.cumsum() == [1, 3, 9]


def test_accumulator(tab):
    metric = tab.Accumulator(2)
    metric.add(1, tab.BACKEND.tensor(np.float32(2.5)))
    metric.add(np.float32(1), 2)
    assert [metric[0], metric[1]] == [2.0, 4.5]
    metric.reset()
    assert metric.data == [0.0, 0.0]
    with pytest.raises(ValueError, match='zip'):
        metric.add(1)


@pytest.mark.torch
def test_accumulator_takes_losses_in_silence(both_tabs):
    import torch

    metric = both_tabs[1].Accumulator(1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        metric.add(torch.ones((), requires_grad=True) * 3)
    assert metric[0] == 3


def test_animator_in_a_terminal(tmp_path, capsys):
    # A second one does not draw over the first one's picture
    for stem in ('height', 'height-2'):
        animator = Animator(
            'step', 'height', legend=['mlm', 'nsp'], xlim=[1, 2]
        )
        animator.add(1, (3, None))
        assert not (tmp_path / f'{stem}.png').exists()
        animator.add(2, (2, 1.5))
        progress = capsys.readouterr().err
        assert '\rstep 1: mlm 3.000 ' in progress
        assert '\rstep 2: mlm 2.000, nsp 1.500 ' in progress
        path = tmp_path / f'{stem}.png'
        assert path.read_bytes().startswith(b'\x89PNG')
        assert str(path) in progress
    assert (animator.X, animator.Y) == ([[1, 2], [2]], [[3, 2], [1.5]])


def test_a_folder_without_room_for_the_picture(tmp_path, capsys):
    animator = Animator('step', 'loss', xlim=[1, 1])
    animator.path = tmp_path / 'nowhere' / 'loss.png'
    animator.add(1, 2)
    assert 'There is no picture: ' in capsys.readouterr().err


def test_batches_are_those_of_the_chapter(tab, loaded):
    assert Batch._fields == (
        'tokens', 'segments', 'valid_lens', 'pred_positions', 'mlm_weights',
        'mlm_labels', 'nsp_labels',
    )  # fmt: skip
    batch = next(iter(loaded[0]))
    weights = tab.BACKEND.to_numpy(batch[4])
    labels = tab.BACKEND.to_numpy(batch[5])
    assert set(weights.ravel()) <= {0, 1}
    assert not labels[weights == 0].any()
