"""What is wrong with a batch is said before a framework sees it."""

import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2lbert.book.chapter import as_batch
from d2lbert.data.checks import check_batch, check_range, to_int32
from d2lbert.data.examples import Batch, load_examples
from d2lbert.data.sample import lines
from d2lbert.errors import InputError
from helpers import SIZES as NET_SIZES
from helpers import make_batch, new_trainer

SIZES = NET_SIZES['vocab_size'], NET_SIZES['max_len']
VOCAB_SIZE, MAX_LEN = SIZES
GOOD = make_batch(6, num_tokens=MAX_LEN)
LENGTH = int(GOOD.valid_lens[4])

# What is put where in row 4, and what the error must say
WRONG = {
    'token below': ('tokens', 3, -1, 'whole number from 0 to'),
    'token beyond': ('tokens', 3, VOCAB_SIZE, '50 tokens'),
    'token of padding': ('tokens', -1, 10**9, '50 tokens'),
    'segment below': ('segments', 3, -1, 'from 0 to 1'),
    'segment beyond': ('segments', 3, 2, 'from 0 to 1'),
    'length of nothing': ('valid_lens', None, 0, 'from 1 to 16'),
    'length below': ('valid_lens', None, -3, 'from 1 to 16'),
    'length beyond': ('valid_lens', None, 17, 'rows have 16 tokens'),
    'length broken': ('valid_lens', None, 7.5, 'whole number'),
    'length nan': ('valid_lens', None, np.nan, 'whole number'),
    'length inf': ('valid_lens', None, np.inf, 'whole number'),
    'position below': ('pred_positions', 0, -1, 'from 0 to 15'),
    'position beyond': ('pred_positions', 0, 16, 'from 0 to 15'),
    'position in padding': ('pred_positions', 0, LENGTH, 'valid length'),
    'weight nan': ('mlm_weights', 0, np.nan, 'finite number from 0'),
    'weight inf': ('mlm_weights', 0, np.inf, 'finite number from 0'),
    'weight below': ('mlm_weights', 0, -1, 'finite number from 0'),
    'label below': ('mlm_labels', 0, -1, 'whole number from 0 to'),
    'label beyond': ('mlm_labels', 0, VOCAB_SIZE, '50 tokens'),
    'label of padding': ('mlm_labels', -1, 10**9, '50 tokens'),
    'is next below': ('nsp_labels', None, -1, 'from 0 to 1'),
    'is next beyond': ('nsp_labels', None, 2, 'from 0 to 1'),
}


def spoiled(name, column, value):
    """The good batch with one value of row 4 replaced."""
    assert LENGTH < MAX_LEN
    batch = Batch(*(array.copy() for array in GOOD))
    array = getattr(batch, name)
    array[(4,) if column is None else (4, column)] = value
    return batch


def test_good_batches_pass():
    check_batch(GOOD, *SIZES)
    examples, vocab = load_examples(lines(), 24, random.Random(0))
    check_batch(examples, len(vocab), 24)


@pytest.mark.parametrize('case', WRONG)
def test_the_error_names_array_row_value_and_what_was_expected(case):
    name, column, value, expected = WRONG[case]
    with pytest.raises(InputError) as caught:
        check_batch(spoiled(name, column, value), *SIZES)
    message = str(caught.value)
    where = (
        [4] if column is None else [4, column % getattr(GOOD, name).shape[1]]
    )
    assert message.startswith(f'{name}{where} = ')
    assert f'{value:g}' in message or str(value) in message
    assert expected in message and 'row 4' in message
    assert '\n' not in message


def test_both_frameworks_refuse_alike_and_keep_their_weights(tab):
    trainer = new_trainer(tab)
    before = trainer.net.backend.get_parameters(trainer.net)
    for name, column, value, _ in WRONG.values():
        batch = spoiled(name, column, value)
        with pytest.raises(InputError) as caught:
            trainer.step(batch)
        with pytest.raises(InputError) as expected:
            check_batch(batch, *SIZES)
        assert str(caught.value) == str(expected.value)
    after = trainer.net.backend.get_parameters(trainer.net)
    assert trainer.num_steps == 0
    assert all(np.array_equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize('name', Batch._fields)
@pytest.mark.parametrize('change', ['fewer rows', 'no rows', 'flat', 'deep'])
def test_arrays_that_do_not_go_together(name, change):
    array = getattr(GOOD, name)
    array = {
        'fewer rows': array[:-1],
        'no rows': array[:0],
        'flat': array.reshape(-1)[0],
        'deep': array[..., None],
    }[change]
    with pytest.raises(InputError, match=r'has shape .*expected \('):
        check_batch(GOOD._replace(**{name: array}), *SIZES)


@pytest.mark.parametrize(
    'name', [name for name in Batch._fields if getattr(GOOD, name).ndim == 2]
)
def test_rows_of_another_length(name):
    array = getattr(GOOD, name)[:, :-1]
    with pytest.raises(InputError, match=r'has shape .*expected \(6, '):
        check_batch(GOOD._replace(**{name: array}), *SIZES)


def test_no_examples():
    with pytest.raises(InputError, match='one or more'):
        check_batch(GOOD.rows(slice(0)), *SIZES)


def test_more_tokens_than_the_network_has_positions():
    with pytest.raises(InputError, match='at most 15, the positions'):
        check_batch(GOOD, VOCAB_SIZE, 15)


@pytest.mark.parametrize('value', [0.5, np.nan, np.inf, 2.0**31, 2**40])
def test_what_is_no_index_is_not_made_one(value):
    array = np.array([[0, 1], [2, value]])
    with pytest.raises(InputError, match=r'tokens\[1, 1\] = '):
        to_int32('tokens', array)


@pytest.mark.parametrize('dtype', ['int32', 'int64', 'float32', 'uint8', '?'])
def test_indices_of_any_type(dtype):
    result = to_int32('tokens', np.array([[0, 1]], dtype))
    assert result.dtype == np.int32 and result.tolist() == [[0, 1]]


def test_a_readers_own_arrays_are_checked(backend):
    arrays = [backend.tensor(array) for array in GOOD]
    batch = as_batch(backend, arrays)
    for array, expected in zip(batch, GOOD, strict=True):
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)
    tokens = GOOD.tokens.astype(np.float32)
    tokens[2, 1] = np.nan
    arrays[0] = backend.tensor(tokens)
    with pytest.raises(InputError, match=r'tokens\[2, 1\] = nan'):
        as_batch(backend, arrays)


@settings(max_examples=100, derandomize=True)
@given(
    field=st.sampled_from(Batch._fields),
    place=st.floats(0, 1, exclude_max=True),
    value=st.one_of(st.integers(-(2**31), 2**31 - 1), st.integers(-3, 60)),
)
def test_what_passes_can_be_looked_up(field, place, value):
    """Any number anywhere: refused, or all that NumPy indexes is there."""
    batch = Batch(*(array.copy() for array in GOOD))
    array = getattr(batch, field)
    array.reshape(-1)[int(place * array.size)] = value
    try:
        check_batch(batch, *SIZES)
    except InputError as error:
        assert str(error).startswith(f'{field}[') or field == 'valid_lens'
        return
    rows = np.arange(len(GOOD.tokens))[:, None]
    table = np.ones(VOCAB_SIZE)
    assert (batch.tokens >= 0).all() and table[batch.tokens].all()
    assert (batch.mlm_labels >= 0).all() and table[batch.mlm_labels].all()
    longest = int(batch.valid_lens.max())
    assert (batch.pred_positions >= 0).all()
    batch.tokens[:, :longest][rows, batch.pred_positions]
    assert 1 <= batch.valid_lens.min() <= longest <= MAX_LEN


def test_it_costs_next_to_nothing():
    examples, vocab = load_examples(lines(), 64, random.Random(0))
    batch = examples.rows(np.arange(512) % len(examples.tokens))
    seconds = []
    for _ in range(20):
        start = time.process_time()
        check_batch(batch, len(vocab), 1000)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.001


def test_nothing_is_wrong_with_the_ends_of_a_range():
    check_range('x', np.array([0, 7]), 0, 7)
    with pytest.raises(InputError, match=r'x\[1\] = 8.* 1 values'):
        check_range('x', np.array([0, 8]), 0, 7)
