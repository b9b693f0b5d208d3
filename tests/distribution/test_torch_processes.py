"""Two PyTorch processes train to the weights of one."""

import keras
import numpy as np
import pytest

from support.processes import finish
from support.processes import free_port
from support.processes import start
from support.tolerances import TOLERANCES

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="about PyTorch"
)


def test_two_processes_train_to_the_weights_of_one(tmp_path):
    port = free_port()

    def run(name, *arguments):
        script = "distribution/torch_processes.py"
        return start(script, tmp_path / name, *arguments, backend="torch")

    finish(
        run("one.npz", 1),
        run("0.npz", 2, 0, port),
        run("1.npz", 2, 1, port),
    )
    one, *two = [np.load(tmp_path / f"{n}.npz") for n in ("one", 0, 1)]
    # Each process has the loss of its own rows.
    mean = (two[0]["losses"] + two[1]["losses"]) / 2
    np.testing.assert_allclose(mean, one["losses"], rtol=1e-6)
    for name, expected in one.items():
        if name == "losses":
            continue
        np.testing.assert_array_equal(two[0][name], two[1][name])
        error = np.abs(two[0][name] - expected).max() / np.abs(expected).max()
        assert error < TOLERANCES["float32"].gradients, name
