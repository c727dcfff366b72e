"""What a training takes of memory, and what makes it take less."""

import numpy as np
import pytest

from helpers import (
    losses_and_gradients,
    make_batch,
    new_trainer,
    train,
)

# ---- --checkpoint-blocks ---------------------------------------------


@pytest.mark.parametrize(
    ('devices', 'micro_batch', 'num_blks'),
    [('cpu', None, 4), ('cpu', 2, 3), ('cpu:3', None, 3), ('cpu', None, 1)],
)
def test_checkpointed_blocks_give_the_same_bits(
    tab, devices, micro_batch, num_blks
):
    options = {
        'devices': devices,
        'micro_batch': micro_batch,
        'num_blks': num_blks,
    }
    plain, again = (
        new_trainer(tab, checkpoint_blocks=checkpoint, **options)
        for checkpoint in (False, True)
    )
    batch = make_batch(7)
    losses, gradients = losses_and_gradients(plain, batch)
    losses_again, gradients_again = losses_and_gradients(again, batch)
    np.testing.assert_array_equal(losses_again, losses)
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradients_again[name], gradient, name)
    for ours, theirs in zip(train(again), train(plain), strict=True):
        np.testing.assert_equal(ours, theirs)
