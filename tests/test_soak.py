"""The short form of `make soak`."""

import signal

import pytest

from helpers import unix
from soak import soak

pytestmark = [unix, pytest.mark.slow]


def test_a_run_that_is_stopped_again_and_again(backend_name, tmp_path):
    processes, stops = soak(tmp_path, backend_name, 120, 3, 2, seed=1)
    assert len(processes) == 4
    assert all(0 < step <= 120 for step, _ in stops)
    assert {status for _, status in stops} <= {-signal.SIGKILL, 143, 0}
