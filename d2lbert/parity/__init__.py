"""The comparison of two networks, in any two frameworks.

    from d2lbert import parity
    parity.copy_weights(source, target, mapping)
    parity.assert_forward(source, target, [X], mapping)
    parity.assert_gradients(source, target, losses, mapping)
    parity.assert_training(source, target, losses, batches, mapping)

`source` and `target` are any networks of PyTorch or MXNet whose parameters
correspond; `mapping` gives the name in `target` for a name in `source`
(parameters and layers alike), and what it leaves out has the same name in
both. For the networks of this package no mapping is needed.

A tensor passes when its largest difference is at most `rtol` times the
largest magnitude in the tensor, plus `atol`. (A ratio for each element would
be noise wherever an element is near zero.)

`d2lbert.parity.report.compare_backends` is what the command
`d2lbert parity` does: the chapter's network, in two frameworks, layer by
layer and step by step.
"""

from d2lbert.parity.networks import (
    TOLERANCES,
    Difference,
    assert_all,
    assert_forward,
    assert_gradients,
    assert_training,
    compare_arrays,
    compare_forward,
    compare_gradients,
    compare_histories,
    compare_named,
    compare_training,
    copy_weights,
)

__all__ = [
    'TOLERANCES',
    'Difference',
    'assert_all',
    'assert_forward',
    'assert_gradients',
    'assert_training',
    'compare_arrays',
    'compare_forward',
    'compare_gradients',
    'compare_histories',
    'compare_named',
    'compare_training',
    'copy_weights',
]
