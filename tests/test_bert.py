"""The one definition, as a native network of each tab."""

from itertools import permutations

import numpy as np
import pytest

import backends
from d2lbert.weights import (
    get_weights,
    initial_weights,
    neutral_shapes,
    set_weights,
)
from helpers import (
    POSITIONS,
    SEGMENTS,
    SIZES,
    TOKENS,
    VALID_LENS,
    forward,
    new_net,
)

rng = np.random.default_rng(0)


def test_shapes(tab):
    encoded_X, mlm_Y_hat, nsp_Y_hat = forward(
        new_net(tab), TOKENS, SEGMENTS, VALID_LENS, POSITIONS
    )
    assert encoded_X.shape == (3, 7, 12)
    assert mlm_Y_hat.shape == (3, 3, 50)
    assert nsp_Y_hat.shape == (3, 2)


def test_without_positions_there_are_no_predictions(tab):
    _, mlm_Y_hat, _ = forward(new_net(tab), TOKENS, SEGMENTS)
    assert mlm_Y_hat is None


def test_networks_are_native(tab, backend_name):
    net = new_net(tab)
    framework = __import__({'jax': 'flax'}.get(backend_name, backend_name))
    native = {
        'jax': 'nnx.Module',
        'mxnet': 'gluon.Block',
        'torch': 'nn.Module',
    }[backend_name]
    for attribute in native.split('.'):
        framework = getattr(framework, attribute)
    assert isinstance(net, framework)
    assert backends.of(net).name == backend_name


def test_all_tabs_compute_the_same(all_tabs):
    first, *others = (
        forward(new_net(tab), TOKENS, SEGMENTS, VALID_LENS, POSITIONS)
        for tab in all_tabs
    )
    for outputs in others:
        for ours, theirs in zip(first, outputs, strict=True):
            np.testing.assert_allclose(ours, theirs, 1e-5, 1e-5)


def test_padding_does_not_matter(tab):
    net = new_net(tab)
    changed = TOKENS.copy()
    changed[1, 2:] = 7
    encoded = forward(net, TOKENS, SEGMENTS, VALID_LENS)[0]
    again = forward(net, changed, SEGMENTS, VALID_LENS)[0]
    np.testing.assert_allclose(encoded[1, :2], again[1, :2], 1e-5, 1e-6)
    short = forward(net, TOKENS[1:2, :2], SEGMENTS[1:2, :2])[0]
    np.testing.assert_allclose(encoded[1, :2], short[0], 1e-5, 1e-6)


def test_every_token_matters_without_valid_lens(tab):
    net = new_net(tab)
    changed = TOKENS.copy()
    changed[1, 6] = 7
    encoded = forward(net, TOKENS, SEGMENTS)[0]
    again = forward(net, changed, SEGMENTS)[0]
    assert not np.allclose(encoded[1, 0], again[1, 0])


def test_segments_and_positions_matter(tab):
    net = new_net(tab)
    encoded = forward(net, TOKENS, SEGMENTS)[0]
    assert not np.allclose(encoded, forward(net, TOKENS, 1 - SEGMENTS)[0])
    swapped = forward(net, TOKENS[:, ::-1].copy(), SEGMENTS)[0]
    assert not np.allclose(encoded[:, ::-1], swapped)


def test_losses_are_those_of_the_outputs(tab):
    """The fast path against cross-entropy over `forward`'s outputs."""
    net = new_net(tab, dropout=0)
    backend = net.backend
    mlm_labels = rng.integers(0, 50, (3, 3))
    mlm_weights = rng.random((3, 3)).astype(np.float32)
    nsp_labels = np.array([0, 1, 1])
    nsp_weights = rng.random(3).astype(np.float32)
    _, mlm_Y_hat, nsp_Y_hat = forward(
        net, TOKENS, SEGMENTS, VALID_LENS, POSITIONS
    )

    def cross_entropy(Y_hat, labels, weights):
        Y_hat = Y_hat.astype(np.float64)
        logsumexp = np.log(np.exp(Y_hat).sum(-1))
        picked = np.take_along_axis(Y_hat, labels[..., None], -1)[..., 0]
        return (weights * (logsumexp - picked)).sum()

    queries = np.insert(POSITIONS, 0, 0, axis=1)
    losses = net.losses(
        *map(
            backend.tensor,
            (
                TOKENS,
                SEGMENTS,
                VALID_LENS,
                queries,
                (np.arange(3)[:, None] * 4 + [1, 2, 3]).ravel(),
                mlm_labels.ravel(),
                mlm_weights.ravel(),
                nsp_labels,
                nsp_weights,
            ),
        )
    )
    np.testing.assert_allclose(
        [backend.to_numpy(loss) for loss in losses],
        [
            cross_entropy(mlm_Y_hat, mlm_labels, mlm_weights),
            cross_entropy(nsp_Y_hat, nsp_labels, nsp_weights),
        ],
        rtol=1e-5,
    )


def test_heads_must_divide(tab):
    with pytest.raises(ValueError, match='num_heads = 5'):
        tab.BERTModel(**SIZES | {'num_heads': 5})


# ---- parameters under neutral names ----------------------------------


def test_neutral_names_are_the_same_in_all_tabs(all_tabs):
    first, *others = (neutral_shapes(new_net(tab)) for tab in all_tabs)
    assert all(shapes == first for shapes in others)


def test_weights_cross_frameworks(all_tabs):
    nets = [new_net(tab, seed) for seed, tab in enumerate(all_tabs)]
    for source, target in permutations(nets, 2):
        set_weights(target, get_weights(source))
        for name, array in get_weights(source).items():
            np.testing.assert_array_equal(get_weights(target)[name], array)


def test_wrong_weights_are_refused_whole(tab):
    net = new_net(tab)
    before = get_weights(net)
    wrong = {name: array + 1 for name, array in before.items()}
    del wrong['nsp.output.bias']
    with pytest.raises(ValueError, match=r'nsp\.output\.bias is missing'):
        set_weights(net, wrong)
    for name, array in get_weights(net).items():
        np.testing.assert_array_equal(array, before[name])


SHAPES = {
    'encoder.token_embedding.weight': (500, 64),
    'encoder.pos_embedding': (1, 100, 64),
    'encoder.blks.0.addnorm1.ln.weight': (64,),
    'encoder.blks.0.addnorm1.ln.bias': (64,),
    'hidden.0.weight': (32, 64),
    'hidden.0.bias': (32,),
    'mlm.mlp.2.weight': (64,),
    'mlm.mlp.2.bias': (64,),
}


@pytest.mark.parametrize('initialization', ['xavier', 'torch'])
def test_norms_start_as_the_identity(initialization):
    weights = initial_weights(SHAPES, initialization, 0)
    for prefix in ('encoder.blks.0.addnorm1.ln', 'mlm.mlp.2'):
        assert (weights[f'{prefix}.weight'] == 1).all()
        assert (weights[f'{prefix}.bias'] == 0).all()


def test_xavier():
    weights = initial_weights(SHAPES, 'xavier', 0)
    for name, bound in (
        ('encoder.token_embedding.weight', np.sqrt(6 / 564)),
        ('encoder.pos_embedding', np.sqrt(6 / (101 * 64))),
        ('hidden.0.weight', np.sqrt(6 / 96)),
    ):
        assert 0.98 * bound < abs(weights[name]).max() <= bound
        assert abs(weights[name].mean()) < 0.05 * bound
    assert not weights['hidden.0.bias'].any()


@pytest.mark.mxnet
def test_xavier_is_gluons(both_tabs):
    """Gluon's own numbers are others, but spread alike."""
    import mxnet

    shape = (1, 100, 64)
    theirs = mxnet.np.zeros(shape)
    mxnet.init.Xavier()(mxnet.init.InitDesc('weight'), theirs)
    ours = initial_weights({'x': shape}, 'xavier', 0)['x']
    assert abs(theirs.asnumpy().std() / ours.std() - 1) < 0.05


@pytest.mark.torch
def test_torch_initialization_is_torchs(both_tabs):
    import torch

    torch.manual_seed(0)
    net = both_tabs[1].BERTModel(**SIZES | {'num_hiddens': 60})
    theirs = net.backend.get_parameters(net)
    ours = initial_weights(neutral_shapes(net), 'torch', 0)
    for name, array in theirs.items():
        if array.size > 1000 or not array.std():
            np.testing.assert_allclose(
                [ours[name].mean(), ours[name].std()],
                [array.mean(), array.std()],
                rtol=0.1,
                atol=0.1 * array.std(),
            )


def test_seed_decides_the_weights():
    a, b, c = (initial_weights(SHAPES, 'torch', seed) for seed in (0, 0, 1))
    name = 'encoder.token_embedding.weight'
    np.testing.assert_array_equal(a[name], b[name])
    assert (a[name] != c[name]).mean() > 0.9
