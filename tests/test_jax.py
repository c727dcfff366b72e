"""The JAX tab in the idiom of Flax and optax."""

import pickle
import random
import re
import sys

import numpy as np
import pytest

import d2lbert
from backends.cores import num_cores
from d2lbert.pytest_plugin import require
from helpers import (
    POSITIONS,
    SEGMENTS,
    SIZES,
    TOKENS,
    VALID_LENS,
    finish,
    make_batch,
    new_net,
    new_trainer,
    python,
)

pytestmark = pytest.mark.jax


@pytest.fixture(autouse=True)
def _jax(monkeypatch, tmp_path):
    require('jax')
    # A training leaves its picture in the current folder
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def d2l():
    from d2lbert import jax

    return jax


def inputs(d2l):
    tensor = d2l.BACKEND.tensor
    return [tensor(X) for X in (TOKENS, SEGMENTS, VALID_LENS, POSITIONS)]


def test_parameters_come_from_rngs(d2l):
    from flax import nnx

    def weight(**options):
        net = d2l.BERTModel(**SIZES, **options)
        return np.asarray(net.hidden[0].kernel[...])

    assert (weight() == weight(rngs=nnx.Rngs(0))).all()
    assert (weight(rngs=nnx.Rngs(1)) != weight()).any()
    block = d2l.TransformerEncoderBlock(12, 20, 3, 0.1, rngs=nnx.Rngs(2))
    other = d2l.TransformerEncoderBlock(12, 20, 3, 0.1, rngs=nnx.Rngs(3))
    kernels = block.ffn.dense1.kernel[...], other.ffn.dense1.kernel[...]
    assert (kernels[0] != kernels[1]).any()


def test_first_parameters_are_distributed_as_flaxs_own(d2l):
    """Also in a program, where JAX draws them."""
    import jax
    from flax import nnx

    def drawn():
        linear = d2l.BACKEND.Linear(300, 400)
        embedding = d2l.BACKEND.Embedding(300, 400)
        return linear.kernel[...], embedding.embedding[...]

    theirs = np.asarray(nnx.Linear(400, 300, rngs=nnx.Rngs(0)).kernel)
    for kernel, table in (drawn(), jax.jit(drawn)()):
        assert kernel.shape == theirs.shape
        assert kernel.dtype == table.dtype == theirs.dtype
        assert float(kernel.std()) == pytest.approx(theirs.std(), rel=0.01)
        assert float(kernel.max()) == pytest.approx(theirs.max(), rel=0.01)
        assert float(table.std()) == pytest.approx(1, rel=0.01)


def test_state_split_merge_and_jit(d2l):
    import jax
    from flax import nnx

    net = new_net(d2l)
    net.eval()
    graph, state = nnx.split(net)
    twin = nnx.merge(graph, state)
    expected = net(*inputs(d2l))
    jitted = nnx.jit(lambda net, *inputs: net(*inputs))
    for outputs in (twin(*inputs(d2l)), jitted(net, *inputs(d2l))):
        for ours, theirs in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    parameters = nnx.state(net, nnx.Param)
    shapes = jax.tree.map(lambda X: X.shape, nnx.to_pure_dict(parameters))
    assert shapes['hidden']['layers'][0]['kernel'] == (12, 12)
    assert 'MaskLM(' in repr(net) and 'kernel=Param(' in repr(net)


@pytest.mark.slow
def test_pickle(d2l):
    net = new_net(d2l)
    net.eval()
    copy = pickle.loads(pickle.dumps(net))
    for ours, theirs in zip(
        net(*inputs(d2l)), copy(*inputs(d2l)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_orbax(d2l, tmp_path):
    checkpoint = pytest.importorskip('orbax.checkpoint')
    from flax import nnx

    source, target = new_net(d2l, 1), new_net(d2l, 2)
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / 'state', nnx.state(source, nnx.Param))
        checkpointer.wait_until_finished()
        kept = checkpointer.restore(
            tmp_path / 'state', nnx.state(target, nnx.Param)
        )
    nnx.update(target, kept)
    for name, W in d2l.BACKEND.get_parameters(source).items():
        np.testing.assert_array_equal(
            d2l.BACKEND.get_parameters(target)[name], W
        )


def test_a_readers_own_call(d2l):
    """A subclass may replace `__call__`, as Flax's users do."""

    class Own(d2l.MaskLM):
        def __call__(self, X, pred_positions):
            return 2 * super().__call__(X, pred_positions)

    class OwnModel(d2l.BERTModel):
        MaskLM = Own

    own, net = OwnModel(**SIZES), d2l.BERTModel(**SIZES)
    own.eval()
    net.eval()
    np.testing.assert_allclose(
        own(*inputs(d2l))[1], 2 * net(*inputs(d2l))[1], rtol=1e-5
    )
    assert net.is_plain and not own.is_plain


@pytest.fixture
def loaded(d2l, text_file):
    random.seed(0)
    return d2l.load_data_wiki(8, 32, text_file)


@pytest.mark.slow
def test_the_chapters_program(d2l, loaded, capsys):
    """All cells of both sections, as a JAX reader writes them."""
    import optax
    from flax import nnx

    train_iter, vocab = loaded
    net = d2l.BERTModel(
        len(vocab), num_hiddens=16, ffn_num_hiddens=32, num_heads=2,
        num_blks=2, dropout=0.2, rngs=nnx.Rngs(0),
    )  # fmt: skip
    devices = d2l.try_all_gpus()
    loss = optax.softmax_cross_entropy_with_integer_labels
    d2l.train_bert(train_iter, net, loss, len(vocab), devices, 3)
    printed = capsys.readouterr().out
    assert re.search(r'MLM loss [\d.]+, NSP loss [\d.]+\n', printed)
    encoded = d2l.get_bert_encoding(net, ['a', 'crane', 'is', 'flying'])
    assert encoded.shape == (1, 6, 16)
    pair = d2l.get_bert_encoding(net, ['a', 'crane'], ['he', 'left'])
    assert pair.shape == (1, 7, 16)
    # One text among many, and by itself
    assert abs(encoded[:, 0] - pair[:, 0]).max() > 0


def test_another_loss_is_refused(d2l, loaded):
    import optax

    train_iter, vocab = loaded
    net = d2l.BERTModel(len(vocab), 16, 32, 2, 1)
    with pytest.raises(ValueError, match='softmax_cross_entropy_with_int'):
        d2l.train_bert(
            train_iter, net, optax.l2_loss, len(vocab), [d2l.cpu()], 1
        )


@pytest.mark.slow
def test_a_readers_own_loop(d2l, loaded):
    import optax
    from flax import nnx

    train_iter, vocab = loaded
    net = d2l.BERTModel(len(vocab), 16, 32, 2, 1, 0.1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(net, optax.adam(0.01), wrt=nnx.Param)
    loss = optax.softmax_cross_entropy_with_integer_labels

    @nnx.jit
    def step(net, optimizer, batch):
        def total(net):
            return d2l._get_batch_loss_bert(net, loss, len(vocab), *batch)[2]

        value, gradients = nnx.value_and_grad(total)(net)
        optimizer.update(net, gradients)
        return value

    batch = next(iter(train_iter))
    losses = [float(step(net, optimizer, batch)) for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
def test_programs_are_few(d2l, loaded, monkeypatch):
    """Each shape is compiled; one training has four of them at most."""
    import optax

    from backends import jax_training

    train_iter, vocab = loaded
    net = d2l.BERTModel(len(vocab), 16, 32, 2, 1)
    jax_training.add_gradients.clear_cache()
    d2l.train_bert(
        train_iter, net, optax.softmax_cross_entropy_with_integer_labels,
        len(vocab), [d2l.cpu()], 12,
    )  # fmt: skip
    assert jax_training.add_gradients._cache_size() <= 4


def test_a_shape_stays_on_one_device(d2l):
    """A device compiles programs of its own: a shape that moves has two."""
    from backends import jax_training

    trainer = new_trainer(d2l, num_blks=1, micro_batch=3)
    parallel = trainer.parallel
    assert len(parallel.workers) == min(2, num_cores())
    jax_training.add_gradients.clear_cache()
    for lens in ([16] * 6 + [4] * 3, [16] * 3 + [4] * 6, [4] * 3 + [16] * 6):
        batch = make_batch(9)
        batch.valid_lens[:] = lens
        batch.pred_positions[:] = np.minimum(batch.pred_positions, 3)
        trainer.step(batch)
    assert jax_training.add_gradients._cache_size() == len(parallel.asked)


@pytest.mark.slow
def test_texts_of_all_lengths_share_programs(d2l):
    from backends.jax import evaluated
    from d2lbert.data.vocab import RESERVED_TOKENS, UNKNOWN, Vocab

    vocab = Vocab.from_tokens([*RESERVED_TOKENS, UNKNOWN, 'a', 'b'])
    net = d2l.BERTModel(len(vocab), 8, 8, 2, 1, max_len=60)
    texts = [' '.join(['a', 'b'] * n) for n in range(1, 30)]
    evaluated.clear_cache()
    for many in (texts, texts[:3], texts[-1:]):
        d2lbert.represent(net, vocab, many)
    for text in texts:
        X = d2l.get_bert_encoding(net, text.split(), vocab=vocab)
        assert X.shape == (1, len(text.split()) + 2, 8)
    # Of 4 to 60 tokens, in 1, 4 or 32 rows
    assert evaluated._cache_size() <= 7


@pytest.mark.slow
def test_programs_of_a_folder_for_many_users_are_read(tmp_path):
    """Who may not write there gets no warning, and does not compile."""
    code = """if True:
        import os, sys
        os.environ.pop('JAX_COMPILATION_CACHE_DIR')
        who, size = sys.argv[1], int(sys.argv[2])
        if who == 'reader':
            os.access = lambda *_: False
        import jax
        from d2lbert import jax as d2l
        hits = []
        jax.monitoring.register_event_listener(
            lambda event, **_: event.endswith('cache_hits') and hits.append(1)
        )
        jax.jit(lambda x: x + size)(1)
        print(len(hits))
    """

    def hits(who, size):
        done = finish(python(code, who, size, D2LBERT_CACHE=str(tmp_path)))
        assert (done.status, done.err) == (0, '')
        return int(done.out)

    assert hits('writer', 1) == 0
    kept = sorted(tmp_path.rglob('*'))
    assert hits('reader', 1) > 0
    assert hits('reader', 2) == 0
    assert sorted(tmp_path.rglob('*')) == kept


@pytest.mark.slow
def test_programs_are_forgotten_in_time(d2l, monkeypatch, tmp_path):
    """XLA ends a process that has all mappings that Linux allows."""
    from backends import jax_programs
    from backends.jax import BACKEND, evaluated

    few = tmp_path / 'few'
    few.write_text('10')
    net = d2l.BERTModel(**SIZES)
    batches = [inputs(d2l)]
    expected = BACKEND.evaluate(net, batches)
    assert evaluated._cache_size() > 0
    monkeypatch.setattr(jax_programs, 'MOST_MAPPINGS', few)
    again = BACKEND.evaluate(net, batches)
    assert evaluated._cache_size() == 1
    np.testing.assert_equal(again, expected)


def test_a_long_compilation_is_told(d2l, monkeypatch, caplog):
    from backends import jax_programs

    monkeypatch.setattr(jax_programs, 'PATIENCE', 0)
    with jax_programs.told((64, 32), 45):
        while not caplog.records:
            pass
    assert 'for 64 rows of 32 tokens: about 4 seconds' in caplog.text


def test_shards_are_host_devices(d2l):
    first, second = d2l.BACKEND.devices('cpu:2')
    assert first != second and first.platform == 'cpu'


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux has /proc')
@pytest.mark.parametrize('own', [None, 'glibc.malloc.arena_max=2'])
def test_the_command_begins_with_large_pages(text_file, own, tmp_path):
    """The C library reads the variable when the process begins."""
    name, ours = 'GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1'
    code = (
        'import atexit; from d2lbert.cli import main; atexit.register(lambda:'
        ' print(open("/proc/self/environ").read().split("\\0"))); main()'
    )
    done = finish(
        python(
            code, 'pretrain', '--backend', 'jax', '--corpus', text_file,
            '--steps', '1', '--batch-size', '4', '--out', tmp_path / 'run',
            **{} if own is None else {name: own},
        )
    )  # fmt: skip
    assert done.status == 0, done.err
    assert f"'{name}={own or ours}'" in done.out.splitlines()[-1]


@pytest.mark.slow
def test_blocks_that_are_computed_again_take_less_memory(d2l):
    """XLA may take a second computation for the first one, and keep that."""
    from backends.jax_arrays import parameters_of
    from backends.jax_training import add_again, add_gradients, masks_asked

    trainer = new_trainer(d2l, num_blks=6, checkpoint_blocks=True)
    parallel, batch = trainer.parallel, make_batch(64)
    weights = trainer.recipe.loss_weights(batch, [slice(0, 64)])
    (part,) = trainer.parts(batch, weights, slice(0, 64))
    parameters = parameters_of(trainer.net)
    inputs = [d2l.BACKEND.tensor(X) for X in part.inputs]
    arguments = parameters, parallel.others, inputs
    masks = [
        part.masks(*each)
        for each in masks_asked(*parallel.program, *arguments)
    ]

    def temporary_bytes(add, recompute):
        graph, losses, precision, _ = parallel.program
        program = add.lower(
            graph, losses, precision, recompute, parameters, *arguments, masks
        )
        return program.compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(add_again, True) < 0.6 * temporary_bytes(
        add_gradients, False
    )


@pytest.mark.long
def test_more_shards_than_host_devices(d2l):
    batch = make_batch(10)
    expected = new_trainer(d2l).step(batch)
    found = new_trainer(d2l, devices='cpu:10').step(batch)
    np.testing.assert_allclose(found[:2], expected[:2], rtol=1e-4)


def test_the_tab_needs_no_cache():
    code = 'from d2lbert import jax as d2l; print(d2l.BACKEND.name)'
    done = finish(python(code, D2LBERT_CACHE='~nosuchuser/x'))
    assert done == (0, 'jax\n', '')


def test_programs_are_kept_after_a_process_was_killed(tmp_path):
    """JAX writes a program, and then when it was used."""
    code = (
        "import os; os.environ.pop('JAX_COMPILATION_CACHE_DIR')\n"
        'from d2lbert import jax as d2l\n'
        'import jax; jax.jit(lambda x: x + 1)(1)'
    )
    folder = tmp_path / 'jax'
    folder.mkdir()
    (folder / 'killed-cache').write_bytes(b'half')
    done = finish(python(code, D2LBERT_CACHE=str(tmp_path)))
    assert done == (0, '', '')
    names = {path.name for path in folder.glob('jit_*')}
    assert {name.rpartition('-')[2] for name in names} == {'cache', 'atime'}
