"""The one training loop, under every recipe and however it is cut."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.devices import shard_slices
from d2lbert.errors import InputError, RunError
from d2lbert.frameworks import FRAMEWORKS
from d2lbert.micro_batches import micro_batches
from d2lbert.randomness import DropoutMasks
from d2lbert.recipes import RECIPES, get_recipe
from d2lbert.slots import LossInputs, loss_inputs
from d2lbert.trainer import Trainer
from d2lbert.weights import get_weights
from helpers import (
    SIZES,
    check_equal,
    forward,
    losses_and_gradients,
    make_batch,
    new_net,
    new_trainer,
    set_num_cores,
    train,
)

#: Of `bert` it is that of `corrected`.
BY_LOSS = [name for name in RECIPES if name != 'bert']

# ---- recipes ---------------------------------------------------------


def cross_entropy(Y_hat, labels):
    logsumexp = np.log(np.exp(Y_hat.astype(np.float64)).sum(-1))
    return (
        logsumexp
        - np.take_along_axis(Y_hat, labels[..., None].astype(int), -1)[..., 0]
    )


def tab_losses(net, batch, recipe, num_shards):
    """Both losses of a batch by the formulas of the chapter's tabs."""
    _, mlm_Y_hat, nsp_Y_hat = forward(net, *batch[:4])
    mlm_l = cross_entropy(mlm_Y_hat, batch.mlm_labels)
    nsp_l = cross_entropy(nsp_Y_hat, batch.nsp_labels)
    weights = batch.mlm_weights
    if recipe == 'pytorch':
        return [mlm_l.mean(), nsp_l.mean()]
    if recipe in ('corrected', 'bert'):
        return [(mlm_l * weights).sum() / weights.sum(), nsp_l.mean()]
    shards = np.array_split(np.arange(len(nsp_l)), num_shards)
    return np.mean(
        [
            [(mlm_l[s] * weights[s]).sum() / weights[s].sum(),
             nsp_l[s].mean()]
            for s in shards
        ],
        axis=0,
    )  # fmt: skip


@pytest.mark.parametrize('recipe', RECIPES)
@pytest.mark.parametrize('num_shards', [1, 2, 3])
def test_losses_are_those_of_the_recipe(tab, recipe, num_shards):
    trainer = new_trainer(tab, recipe, f'cpu:{num_shards}', dropout=0)
    batch = make_batch(7)
    expected = tab_losses(trainer.net, batch, recipe, num_shards)
    step = trainer.step(batch)
    np.testing.assert_allclose(
        [step.mlm_loss, step.nsp_loss], expected, rtol=1e-5
    )


def test_each_backend_has_a_tab(backend_name):
    assert FRAMEWORKS[backend_name].recipe in RECIPES


def test_unknown_recipe():
    with pytest.raises(InputError, match=r"'x'.*'mxnet', 'pytorch'"):
        get_recipe('x')


@pytest.mark.parametrize('name', RECIPES)
def test_loss_weights_sum_to_the_shards(name):
    recipe, batch = RECIPES[name], make_batch(5)
    shards = shard_slices(5, 4)
    num_losses = 4 if recipe.per_shard else 1
    for weights in recipe.loss_weights(batch, shards):
        assert abs(weights.sum() - num_losses) < 1e-5


# ---- shards, micro-batches, backends ---------------------------------


@pytest.mark.parametrize(
    'recipe',
    [
        'mxnet',
        pytest.param('pytorch', marks=pytest.mark.slow),
        pytest.param('corrected', marks=pytest.mark.slow),
        pytest.param('bert', marks=pytest.mark.slow),
    ],
)
def test_all_backends_train_alike(all_tabs, recipe):
    (ours, w), *others = (train(new_trainer(tab, recipe)) for tab in all_tabs)
    for theirs, v in others:
        np.testing.assert_allclose(ours, theirs, rtol=2e-4)
        for name, array in w.items():
            np.testing.assert_allclose(array, v[name], atol=1e-3)


@pytest.mark.parametrize('num_shards', [2, 3, 5])
def test_corrected_does_not_depend_on_the_shards(tab, num_shards):
    whole, w = train(new_trainer(tab))
    cut, v = train(new_trainer(tab, devices=f'cpu:{num_shards}'))
    np.testing.assert_allclose(cut, whole, rtol=1e-4)
    for name, array in w.items():
        np.testing.assert_allclose(array, v[name], atol=1e-3, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize('recipe', BY_LOSS)
@pytest.mark.parametrize('micro_batch', [1, 4])
def test_micro_batches_change_nothing(tab, recipe, micro_batch):
    whole, _ = train(new_trainer(tab, recipe))
    cut, _ = train(new_trainer(tab, recipe, micro_batch=micro_batch))
    np.testing.assert_allclose(cut, whole, rtol=1e-4)


def test_mxnet_recipe_does_depend_on_the_shards(tab):
    whole, _ = train(new_trainer(tab, 'mxnet'))
    cut, _ = train(new_trainer(tab, 'mxnet', 'cpu:3'))
    assert abs(cut - whole).max() > 1e-3


def test_the_same_seed_gives_the_same_bits(tab):
    (ours, w), (theirs, v) = (train(new_trainer(tab)) for _ in range(2))
    np.testing.assert_array_equal(ours, theirs)
    for name, array in w.items():
        np.testing.assert_array_equal(array, v[name])


def test_the_seed_decides_the_dropout(tab):
    a, b = (train(new_trainer(tab, seed=seed))[0] for seed in (0, 1))
    assert abs(a - b).max() > 1e-3


def test_training_learns(tab):
    trainer, batch = new_trainer(tab, dropout=0), make_batch(9)
    first, *_, last = trainer.train([batch] * 20, 20)
    assert last.mlm_loss < 0.5 * first.mlm_loss
    assert last.nsp_loss < 0.5 * first.nsp_loss


def test_key_biases_stay(tab):
    trainer = new_trainer(tab)
    before = get_weights(trainer.net)
    _, after = train(trainer)
    for name, array in after.items():
        changed = (array != before[name]).any()
        assert changed == (not name.endswith('W_k.bias')), name


@pytest.mark.parametrize('num_threads', [1, 2])
def test_what_a_reader_froze_stays(tab, num_threads, monkeypatch):
    set_num_cores(monkeypatch, tab, num_threads)
    net = new_net(tab, dropout=0)
    if tab.BACKEND.name == 'mxnet':
        for parameter in net.encoder.collect_params().values():
            parameter.grad_req = 'null'
    elif tab.BACKEND.name == 'jax':
        pytest.skip('in Flax a gradient says what is frozen, not a network')
    else:
        net.encoder.requires_grad_(False)
    before = get_weights(net)
    trainer = Trainer(
        net, get_recipe('corrected'), lr=0.01,
        devices=tab.BACKEND.devices('cpu'), micro_batch=2,
    )  # fmt: skip
    _, after = train(trainer)
    moved = {
        name.split('.')[0] for name in before
        if not np.array_equal(before[name], after[name])
    }  # fmt: skip
    assert moved == {'hidden', 'mlm', 'nsp'}


def test_a_step_that_failed_was_none(tab):
    trainer = new_trainer(tab)
    weights = tab.BACKEND.get_parameters(trainer.net)
    broken = {name: W * np.nan for name, W in weights.items()}
    tab.BACKEND.set_parameters(trainer.net, broken)
    with pytest.raises(RunError, match='diverged at step 1'):
        trainer.step(make_batch(4))
    tab.BACKEND.set_parameters(trainer.net, weights)
    step, first = (
        each.step(make_batch(4)) for each in (trainer, new_trainer(tab))
    )
    assert step[:2] == first[:2]


def test_training_stops_after_its_steps(tab):
    trainer, batches = new_trainer(tab), iter([make_batch(3)] * 3)
    assert len(list(trainer.train(batches, 2))) == 2
    assert len(list(batches)) == 1


def test_an_asynchronous_device_reports_a_step_late(tab):
    """As a GPU does, whose results come while the next step is launched."""
    batches = [make_batch(9, seed) for seed in range(4)]
    expected = [step[:3] for step in new_trainer(tab).train(batches, 4)]
    trainer, taken = new_trainer(tab), []
    trainer.parallel.asynchronous = True
    for step in trainer.train(batches, 4):
        taken.append(trainer.num_steps)
        assert step[:3] == expected[len(taken) - 1]
    # A step ahead until the last one, and then where it would be anyway
    assert taken == [2, 3, 4, 4]
    weights = tab.BACKEND.get_parameters(trainer.net)
    tab.BACKEND.set_parameters(
        trainer.net, {name: W * np.nan for name, W in weights.items()}
    )
    with pytest.raises(RunError, match='diverged at step 5'):
        list(trainer.train(batches, 4))


@pytest.mark.mxnet
def test_mxnet_gradients_are_left_as_gluon_wants_them(both_tabs):
    trainer = new_trainer(both_tabs[0])
    train(trainer)
    trainer.close()
    for parameter in trainer.net.collect_params().values():
        assert parameter.grad_req == 'write'


@pytest.mark.mxnet
def test_mxnet_parameters_are_left_where_they_were(both_tabs, monkeypatch):
    from mxnet import autograd, gluon

    tab, _ = both_tabs
    set_num_cores(monkeypatch, tab, 3)
    trainer = new_trainer(tab)
    _, weights = train(trainer)
    parameters = trainer.net.collect_params()
    devices = tab.BACKEND.devices('cpu')
    assert all(len(p.list_ctx()) == 3 for p in parameters.values())
    trainer.close()
    assert all(p.list_ctx() == devices for p in parameters.values())
    after = get_weights(trainer.net)
    assert all(np.array_equal(after[name], W) for name, W in weights.items())
    # The loop that a reader writes
    own = gluon.Trainer(parameters, 'adam')
    arrays = map(tab.BACKEND.tensor, make_batch(4)[:4])
    with autograd.record():
        _, mlm_Y_hat, nsp_Y_hat = trainer.net(*arrays)
        loss = mlm_Y_hat.sum() + nsp_Y_hat.sum()
    loss.backward()
    own.step(1)


@pytest.mark.mxnet
def test_mxnet_keeps_parameters_once_a_device(both_tabs):
    tab, _ = both_tabs
    cpu = tab.try_gpu()
    net = new_net(tab)
    with pytest.raises(InputError, match='one is there twice'):
        Trainer(net, get_recipe('mxnet'), lr=0.01, devices=[cpu, cpu])


@pytest.mark.parametrize('recipe', ['mxnet', 'corrected'])
def test_nothing_to_predict(tab, recipe):
    batch = make_batch(3)
    nothing = np.zeros_like(batch.mlm_weights)
    trainer = new_trainer(tab, recipe)
    step = trainer.step(batch._replace(mlm_weights=nothing))
    assert step.mlm_loss == 0 and step.nsp_loss > 0


def test_more_devices_than_rows(tab):
    with pytest.raises(ValueError, match='2 rows cannot be split'):
        new_trainer(tab, devices='cpu:3').step(make_batch(2))


@pytest.mark.parametrize(
    'options',
    [{'lr': 0.0}, {'lr': float('nan')}, {'lr': 1e38}, {'micro_batch': 0}],
)
def test_bad_options(tab, options):
    with pytest.raises(InputError, match=next(iter(options))):
        new_trainer(tab, **options)


# ---- what goes in ----------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 9))
def test_micro_batches_cover_a_shard(num_rows, size, seed):
    batch = make_batch(num_rows, seed)
    parts = micro_batches(batch, slice(0, num_rows), size)
    assert sorted(np.concatenate(parts)) == list(range(num_rows))
    assert max(map(len, parts)) <= size
    lens = batch.valid_lens[np.concatenate(parts)]
    assert (np.diff(lens) <= 0).all()


@given(
    st.integers(1, 9),
    st.integers(0, 99),
    st.sampled_from([*RECIPES]),
    st.sampled_from([0, 2]),
)
def test_slots_are_merged_without_loss(num_rows, seed, name, num_lengths):
    batch = make_batch(num_rows, seed)
    weights, _ = RECIPES[name].loss_weights(batch, [slice(None)])
    inputs = loss_inputs(batch, weights, batch.nsp_labels, num_lengths)
    num_tokens, num_queries = inputs.tokens.shape[1], inputs.queries.shape[1]
    longest = int(batch.valid_lens.max())
    assert num_tokens == (16 if num_lengths and longest > 8 else longest)
    assert (inputs.queries[:, 0] == 0).all()
    every = np.tile(np.arange(num_tokens), (num_rows, 1))
    assert num_queries < num_tokens or (inputs.queries == every).all()
    asked = {}
    for row, slot in np.argwhere(weights > 0):
        key = (
            row,
            batch.pred_positions[row, slot],
            batch.mlm_labels[row, slot],
        )
        asked[key] = asked.get(key, 0) + weights[row, slot]
    found = {}
    for slot, label, weight in zip(*inputs[4:7], strict=True):
        row, query = divmod(int(slot), num_queries)
        if weight:
            found[row, inputs.queries[row, query], label] = weight
    assert found.keys() == asked.keys()
    assert all(abs(found[key] - asked[key]) < 1e-6 for key in asked)
    if num_lengths:
        assert len(inputs.slots) % 256 == 0


@pytest.mark.parametrize('skips_slots', [False, True])
def test_static_shapes_are_few(skips_slots):
    """What is recorded or compiled for each shape must not be many."""
    shapes = set()
    for seed in range(40):
        batch = make_batch(8, seed)
        for rows in micro_batches(batch, slice(0, 8), 4):
            part = batch.rows(rows)
            inputs = loss_inputs(
                part, part.mlm_weights, np.ones(4, np.float32), 2, skips_slots
            )
            shapes.add(tuple(X.shape for X in inputs))
    assert len(shapes) <= 2


def test_inputs_are_the_arguments_of_the_losses(tab):
    import inspect

    _, *names = inspect.signature(tab.BERTModel.losses).parameters
    assert tuple(names) == LossInputs._fields


# ---- each fast path against the plain one -----------------------------


def plain(tab, recipe, batch):
    """One worker, one micro-batch, `forward` for all, and all logits."""

    class Plain(tab.BERTModel):
        is_plain = is_replicable = False

    plain_tab = SimpleNamespace(BACKEND=tab.BACKEND, BERTModel=Plain)
    return losses_and_gradients(new_trainer(plain_tab, recipe), batch)


@pytest.mark.parametrize('recipe', BY_LOSS)
@pytest.mark.parametrize('num_threads', [1, 3])
@pytest.mark.parametrize('micro_batch', [None, 2])
def test_fast_is_plain(tab, recipe, num_threads, micro_batch, monkeypatch):
    """Merged slots, queries only, chunked loss, workers, micro-batches."""
    batch = make_batch(11, seed=5)
    expected = plain(tab, recipe, batch)
    set_num_cores(monkeypatch, tab, num_threads)
    trainer = new_trainer(tab, recipe, micro_batch=micro_batch)
    assert trainer.parallel.num_workers == num_threads
    check_equal(losses_and_gradients(trainer, batch), expected)


@pytest.mark.parametrize('recipe', BY_LOSS)
def test_fast_is_plain_with_one_prediction(tab, recipe):
    """Rows so short that every token is a query."""
    batch = make_batch(5, num_tokens=4, num_slots=4)
    expected = plain(tab, recipe, batch)
    check_equal(
        losses_and_gradients(new_trainer(tab, recipe), batch), expected
    )


@pytest.mark.parametrize('micro_batch', [None, 1])
def test_fast_is_plain_where_a_row_asks_for_all(tab, micro_batch):
    batch = make_batch(6, num_tokens=4, num_slots=3)
    batch.valid_lens[:2] = 4
    batch.pred_positions[:2] = 1, 2, 3
    batch.mlm_weights[:2] = 1
    expected = plain(tab, 'corrected', batch)
    trainer = new_trainer(tab, micro_batch=micro_batch)
    check_equal(losses_and_gradients(trainer, batch), expected)


def test_heads_may_end_in_other_layers(tab):
    trainer = new_trainer(tab)
    net, Linear = trainer.net, tab.BACKEND.Linear
    net.nsp.output = Linear(2, SIZES['num_hiddens'], bias=False)
    if tab.BACKEND.name == 'mxnet':
        net.nsp.output.initialize()
    own = Trainer(
        net,
        get_recipe('corrected'),
        lr=0.01,
        devices=tab.BACKEND.devices('cpu'),
    )
    assert np.isfinite(own.step(make_batch(5)).nsp_loss)


@pytest.mark.parametrize('num_threads', [1, 2, 5])
def test_threads_are_shared_out(tab, num_threads, monkeypatch):
    set_num_cores(monkeypatch, tab, num_threads)
    trainer = new_trainer(tab, devices='cpu:2')
    shards = [worker.shard for worker in trainer.parallel.workers]
    assert len(shards) == max(2, num_threads // 2 * 2)
    assert shards.count(0) == shards.count(1)


@pytest.mark.parametrize('part', ['Encoder', 'Block', 'Attention', 'FFN'])
def test_a_readers_own_forward_is_not_called_side_by_side(
    tab, part, monkeypatch
):
    set_num_cores(monkeypatch, tab, 2)

    def own_forward(cls):
        """Return a subclass whose `forward` is the reader's."""
        return type(
            f'Own{cls.__name__}',
            (cls,),
            {'forward': lambda self, *inputs: cls.forward(self, *inputs)},
        )

    class OwnBlock(tab.TransformerEncoderBlock):
        """Calls the reader's own part."""

    class OwnEncoder(tab.BERTEncoder):
        Block = OwnBlock

    class Net(tab.BERTModel):
        Encoder = OwnEncoder

    owner = {'Encoder': Net, 'Block': OwnEncoder}.get(part, OwnBlock)
    setattr(owner, part, own_forward(getattr(owner, part)))
    net = Net(**SIZES)
    tab.BACKEND.set_parameters(
        net, tab.BACKEND.get_parameters(new_net(tab)),
        tab.BACKEND.devices('cpu'),
    )  # fmt: skip
    trainer = Trainer(
        net, get_recipe('corrected'), lr=0.01,
        devices=tab.BACKEND.devices('cpu'),
    )  # fmt: skip
    assert trainer.parallel.num_workers == 1
    assert np.isfinite(trainer.step(make_batch(5)).mlm_loss)


# ---- dropout masks ---------------------------------------------------


def masks(rows, lens, shapes, step=0, seed=0):
    num_tokens = shapes[0][-2]
    draw = DropoutMasks(
        seed, step, np.array(rows), np.array(lens), num_tokens
    )
    return [draw(shape, 0.2) for shape in shapes]


def test_masks_belong_to_rows():
    lens = [5, 3, 4]
    whole = masks([0, 1, 2], lens, [(3, 2, 6, 6), (3, 6, 7)])
    part = masks([2, 1], [4, 3], [(2, 2, 4, 4), (2, 4, 7)])
    for i, row in enumerate([2, 1]):
        n = lens[row]
        np.testing.assert_array_equal(
            part[0][i][:, :n, :n], whole[0][row][:, :n, :n]
        )
        np.testing.assert_array_equal(part[1][i][:n], whole[1][row][:n])


def test_masks_of_queries_are_those_of_all():
    lens, queries = [5, 3], np.array([[0, 4, 2], [0, 1, 0]])
    rows = np.arange(2)
    shapes = (2, 3, 6, 6), (2, 6, 7), (2, 3, 6, 6), (2, 6, 7)
    every = DropoutMasks(0, 0, rows, np.array(lens), 6)
    some = DropoutMasks(0, 0, rows, np.array(lens), 6, queries)
    whole = [every(shape, 0.2) for shape in shapes]
    parts = [some(shape, 0.2) for shape in shapes[:2]]
    parts += [some(shape, 0.2) for shape in ((2, 3, 3, 6), (2, 3, 7))]
    for i, n in enumerate(lens):
        for full, part in zip(whole[:2], parts[:2], strict=True):
            np.testing.assert_array_equal(part[i], full[i])
        np.testing.assert_array_equal(
            parts[2][i][..., :n], whole[2][i][:, queries[i], :n]
        )
        np.testing.assert_array_equal(parts[3][i], whole[3][i][queries[i]])


def test_masks_keep_the_right_share():
    (keep,) = masks([0], [1000], [(1, 1000, 2000)])
    # Four standard deviations of a share of so many
    assert abs(keep.mean() - 0.8) < 4 * 0.4 / 2_000_000**0.5


def test_masks_differ():
    shapes = [(2, 9, 9), (2, 9, 9)]
    (a, b), (c, _), (d, _) = (
        masks([0, 1], [9, 9], shapes, step, seed)
        for step, seed in ((0, 0), (1, 0), (0, 1))
    )
    for other in (b, c, d):
        assert (a != other).any()
    assert (a[0] != a[1]).any()


@pytest.mark.parametrize(
    'shape', [(2, 4, 7), (2, 3, 6, 5), (2, 3, 4, 6), (1, 6, 7), (2, 3, 3, 3)]
)
def test_masks_of_another_shape_are_refused(shape):
    """Which axis is which is checked, and not guessed."""
    queries = np.array([[0, 1, 2], [0, 1, 2]])
    draw = DropoutMasks(0, 0, np.arange(2), np.array([6, 3]), 6, queries)
    with pytest.raises(ValueError, match='a dropout layer has an input'):
        draw(shape, 0.2)
