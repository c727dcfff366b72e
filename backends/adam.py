"""What the Adam updates of all frameworks have in common.

Kingma and Ba, "Adam: a method for stochastic optimization" (2015);
Loshchilov and Hutter, "Decoupled weight decay regularization" (2019).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

BETAS = (0.9, 0.999)
EPSILON = 1e-8
#: Gluon computes 1 − β₂ in float32, which is off by 1e-5. Its √v differs
#: from the formula by this factor.
GLUON_ROUNDING = math.sqrt(float(1 - np.float32(BETAS[1])) / (1 - BETAS[1]))


def decays(shape: Sequence[int]) -> bool:
    """Return whether weight decay is for a parameter of this shape.

    Biases and the parameters of layer normalisation have one axis.
    """
    return len(shape) > 1
