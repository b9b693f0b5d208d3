"""`fit` under tf.distribute has the losses and weights of one device."""

import keras
import numpy as np
import pytest

from support.checks import assert_close
from support.processes import finish
from support.processes import free_port
from support.processes import start
from support.tolerances import TOLERANCES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        keras.config.backend() != "tensorflow", reason="about TensorFlow"
    ),
]

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


@pytest.mark.parametrize(
    "strategy, run",
    # As a TPUStrategy's recipe has it: nobody asks for XLA.
    [("mirrored", ""), ("mirrored", "without XLA: "), ("0", ""), ("1", "")],
)
def test_losses_and_weights_are_those_of_one_device(results, strategy, run):
    one, found = results["one"], results[strategy]
    # The model was a function of a replica, and XLA's if it was asked for.
    assert found[f"{run}traces"] > 0
    assert found[f"{run}xla"] == (run == "")
    for name, expected in one.items():
        if name == "traces":
            continue
        error = np.abs(found[run + name] - expected).max()
        error /= np.abs(expected).max()
        assert error < TOLERANCES["float32"].gradients, name


def test_replicas_drop_each_its_own_and_repeatably(results):
    """And in each step something else."""
    outputs = results["mirrored"]["dropout: outputs"]  # calls, replicas, ...
    same = [
        np.abs(a - b).max() < 0.1
        for i, a in enumerate(outputs.reshape(4, *outputs.shape[2:]))
        for b in outputs.reshape(4, *outputs.shape[2:])[:i]
    ]
    assert not any(same)
    losses, again = results["mirrored"]["dropout: losses"]
    assert np.isfinite(losses).all()
    np.testing.assert_array_equal(losses, again)


def test_a_replica_is_compiled_within_a_program_of_xla(results):
    """A TPUStrategy compiles what it runs: nested, XLA is asked twice."""
    found = results["mirrored"]
    assert_close(found["in a program: nested"], found["in a program: plain"])
