"""Training and representing with products of bfloat16, on a processor."""

import numpy as np
import pytest

import d2lbert
from backends import processor
from backends.types import Part
from d2lbert.errors import InputError
from d2lbert.frameworks import load_tab
from d2lbert.pytest_plugin import require
from helpers import (
    assert_same_runs,
    losses_and_gradients,
    make_batch,
    new_trainer,
)

FRAMEWORKS = pytest.mark.parametrize('framework', ['torch', 'jax'])
BF16 = 2**-8  # the distance of neighbours of 1


@pytest.fixture
def on(monkeypatch):
    """Lets this processor say which products of bfloat16 it has."""

    def on(instructions):
        monkeypatch.setattr(
            processor, 'bf16_instructions', lambda: instructions
        )

    return on


@pytest.fixture
def tab(framework, on):
    """The tab of a framework; without the instructions it is only slower."""
    require(framework)
    on('avx512_bf16')
    return load_tab(framework)


@pytest.mark.parametrize(
    ('flags', 'expected'),
    [
        ('fpu avx512_bf16 amx_bf16', 'amx_bf16'),
        ('fpu avx512_bf16', 'avx512_bf16'),
        ('fpu avx512f amx_tile', None),
    ],
)
def test_instructions_of_a_processor(tmp_path, flags, expected):
    path = tmp_path / 'cpuinfo'
    path.write_text(f'vendor_id\t: A\nflags\t\t: {flags}\n')
    assert processor.bf16_instructions(path) == expected
    assert processor.bf16_instructions(tmp_path / 'none') is None


def test_a_processor_without_them_is_refused(train, backend_name, on):
    on(None)
    with pytest.raises(InputError, match=r'amx_bf16, avx512_bf16|MXNet comp'):
        train(backend_name, precision='bf16')


def test_mxnet_refuses_it_everywhere(train, on):
    on('amx_bf16')
    with pytest.raises(InputError, match='MXNet computes in float32, not in'):
        train('mxnet', precision='bf16')


@FRAMEWORKS
def test_products_are_rounded_and_all_else_is_float32(tab):
    # More rows than a chunk of logits has in JAX
    batch = make_batch(150)
    exact, inexact = (
        losses_and_gradients(
            new_trainer(tab, dropout=0, precision=precision), batch
        )
        for precision in ('float32', 'bf16')
    )
    losses, others = exact[0], inexact[0]
    np.testing.assert_allclose(others, losses, rtol=BF16)
    assert (others != losses).all()
    norm = np.sqrt(sum((G**2).sum() for G in exact[1].values()))
    for name, gradient in exact[1].items():
        other = inexact[1][name]
        assert other.dtype == np.float32
        assert 0 < np.linalg.norm(other - gradient) < 5 * BF16 * norm, name


@FRAMEWORKS
def test_the_vocabulary_loss_has_narrow_products(tab):
    """Bits that bfloat16 has not make no difference to it."""
    backend, rng = tab.BACKEND, np.random.default_rng(0)
    layer, device = backend.Linear(20, 8), backend.devices('cpu')
    # A power of two has neighbours that bfloat16 rounds to it
    X, W = (2.0 ** rng.integers(-3, 2, (n, 8)) for n in (150, 20))
    labels, weights = rng.integers(0, 20, 150), np.ones(150)

    def losses(layer, *inputs):
        return [backend.linear_cross_entropy(layer, *inputs)]

    def loss(X, W, precision):
        arrays = {'weight': W, 'bias': np.zeros(20)}
        backend.set_parameters(
            layer, {name: A.astype(np.float32) for name, A in arrays.items()}
        )
        inputs = [X.astype('f'), labels, weights.astype('f')]
        parallel = backend.data_parallel(
            layer, losses, device, precision=precision
        )
        return parallel.value_and_grad([[Part(inputs)]]).losses()

    near = 1 + 2**-12
    for precision in ('float32', 'bf16'):
        changed = loss(X * near, W * near, precision) != loss(X, W, precision)
        assert changed == (precision == 'float32')


@FRAMEWORKS
def test_a_run_in_pieces(tab, train, tmp_path):
    backend = tab.BACKEND.name
    options = {'precision': 'bf16', 'num_blks': 1, 'save_every': 1}
    whole = train(backend, out=tmp_path / 'whole', steps=3, **options)
    assert whole.history != train(backend, steps=3, num_blks=1).history
    train(backend, out=tmp_path / 'cut', steps=1, **options)
    d2lbert.pretrain(
        out=tmp_path / 'cut', resume=True, steps=3, progress=False
    )
    assert_same_runs(tmp_path / 'cut', tmp_path / 'whole')
    with pytest.raises(InputError, match='precision'):
        d2lbert.pretrain(
            out=tmp_path / 'cut', resume=True, steps=4, precision='float32'
        )


def test_it_is_named_inexact(train, on, capsys):
    on('avx512_bf16')
    run = train('torch', precision='bf16')
    assert run.summary().endswith(', bf16 (inexact)')
    assert run.label() == 'torch, recipe pytorch, bf16 (inexact)'
    assert run.framework() == 'PyTorch, bf16 (inexact)'
    assert run.results()['precision'] == 'bf16'
    assert 'inexact' not in train('torch').summary()


@FRAMEWORKS
def test_representing(tab, train):
    run = train(tab.BACKEND.name, num_hiddens=16)
    texts = [' '.join(run.vocab.idx_to_token[10:n]) for n in (12, 15, 20)]
    exact, inexact = (
        d2lbert.represent(run.net, run.vocab, texts, precision=precision)
        for precision in ('float32', 'bf16')
    )
    for X, Y in zip(exact, inexact, strict=True):
        assert X.dtype == Y.dtype == np.float32
        assert 0 < abs(X - Y).max() < 10 * BF16


def test_representing_is_refused(train, backend_name, on):
    on(None)
    run = train(backend_name)
    text = run.vocab.idx_to_token[10]
    with pytest.raises(InputError, match=r'amx_bf16, avx512_bf16|MXNet comp'):
        d2lbert.represent(run.net, run.vocab, [text], precision='bf16')
    with pytest.raises(InputError, match="unknown precision 'half'"):
        d2lbert.represent(run.net, run.vocab, [text], precision='half')


@pytest.mark.long
@FRAMEWORKS
def test_the_curve_of_wikitext2(tab, wikitext2):
    """After 50 steps both losses are within 2 % of those of float32."""
    curves = [
        d2lbert.pretrain(
            backend=tab.BACKEND.name,
            corpus=wikitext2,
            recipe='corrected',
            precision=precision,
            progress=False,
        ).history
        for precision in ('float32', 'bf16')
    ]
    exact, inexact = (np.mean(curve[-10:], axis=0) for curve in curves)
    np.testing.assert_allclose(inexact, exact, rtol=0.02)
