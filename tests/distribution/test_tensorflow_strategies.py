"""`fit` under tf.distribute has the losses and weights of one device."""

import keras
import numpy as np
import pytest

from support.processes import finish
from support.processes import free_port
from support.processes import start
from support.tolerances import TOLERANCES

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="about TensorFlow"
)

SCRIPT = "distribution/tensorflow_strategies.py"


def run(folder, *arguments):
    return start(
        SCRIPT,
        *arguments,
        folder / f"{arguments[0]}.npz",
        backend="tensorflow",
        TF_CPP_MIN_LOG_LEVEL="2",
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strategies")
    ports = [free_port(), free_port()]
    finish(run(folder, "one"), run(folder, "mirrored"))
    finish(*(run(folder, index, *ports) for index in range(2)))
    return {
        name: np.load(folder / f"{name}.npz")
        for name in ("one", "mirrored", "0", "1")
    }


@pytest.mark.parametrize("strategy", ["mirrored", "0", "1"])
def test_losses_and_weights_are_those_of_one_device(results, strategy):
    one, found = results["one"], results[strategy]
    assert found["traces"] > 0  # XLA compiled it, a replica at a time
    for name, expected in one.items():
        if name == "traces":
            continue
        error = np.abs(found[name] - expected).max() / np.abs(expected).max()
        assert error < TOLERANCES["float32"].gradients, name
