"""Two JAX processes train to the weights of one."""

import numpy as np
import pytest

from support.processes import finish
from support.processes import free_port
from support.processes import start
from support.tolerances import TOLERANCES

pytestmark = [pytest.mark.backend_independent, pytest.mark.slow]

SCRIPT = "distribution/two_processes.py"


def test_two_processes_train_to_the_weights_of_one(tmp_path):
    port = free_port()
    finish(
        start(SCRIPT, tmp_path / "one.npz"),
        *(
            start(SCRIPT, tmp_path / "two.npz", index, port, devices=2)
            for index in range(2)
        ),
    )
    one, two = np.load(tmp_path / "one.npz"), np.load(tmp_path / "two.npz")
    assert list(one) == list(two)
    for name, weight in one.items():
        scale = np.abs(weight).max()
        error = np.abs(two[name] - weight).max() / scale
        assert error < TOLERANCES["float32"].gradients, name
        # Both ways of feeding data are one training.
        same = one[name.replace("interrupted", "tf_data")]
        np.testing.assert_allclose(weight, same, rtol=1e-6, atol=1e-7)
