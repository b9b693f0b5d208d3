import numpy as np
import pytest

from keras_griffin.layers import RGLRU
from support import numpy_layers
from support.checks import to_numpy
from support.layers import NUM_REAL
from support.layers import WIDTH
from support.layers import assert_equals_reference
from support.layers import make_probe
from support.layers import normal


@pytest.mark.parametrize("name", ["rglru", "rglru_complex"])
def test_equals_numpy(name):
    assert_equals_reference(
        make_probe(name), numpy_layers.rglru, normal((3, NUM_REAL, WIDTH))
    )


@pytest.mark.backend_independent
def test_initial_values():
    layer = RGLRU(512, num_gate_blocks=2, recurrence="complex")
    layer.build((None, None, 512))
    phase = to_numpy(layer.phase_param.value)
    assert 0.0 <= phase.min() < 0.01
    assert 0.1 * np.pi - 0.01 < phase.max() <= 0.1 * np.pi
    for gate in (layer.recurrence_gate, layer.input_gate):
        np.testing.assert_array_equal(to_numpy(gate.bias.value), 0.0)
        np.testing.assert_allclose(
            np.var(to_numpy(gate.kernel.value)), 1 / 256, rtol=0.1
        )


@pytest.mark.parametrize("initializer", [None, "random_normal"])
def test_gates_start_different(initializer):
    layer = RGLRU(8, num_gate_blocks=2, gate_initializer=initializer)
    layer.build((None, None, 8))
    assert np.all(
        to_numpy(layer.recurrence_gate.kernel.value)
        != to_numpy(layer.input_gate.kernel.value)
    )


def test_unknown_recurrence():
    with pytest.raises(ValueError, match="`recurrence` must be one of"):
        RGLRU(8, recurrence="quaternion")


def test_complex_recurrence_of_odd_width():
    with pytest.raises(ValueError, match="needs an even `units`.*Use 8"):
        RGLRU(7, num_gate_blocks=1, recurrence="complex")


def test_width_of_the_input():
    with pytest.raises(ValueError, match="must be `units` wide.*width 6"):
        RGLRU(8, num_gate_blocks=2).build((None, None, 6))


def test_gate_blocks_must_divide():
    with pytest.raises(ValueError, match="`num_blocks` must divide"):
        RGLRU(8, num_gate_blocks=3)


def test_unknown_decay_initializer():
    with pytest.raises(ValueError, match="`convention` must be one of"):
        RGLRU(8, num_gate_blocks=2, decay_initializer="uniform")


def test_unknown_implementation():
    layer = RGLRU(8, num_gate_blocks=2, implementation="fastest")
    with pytest.raises(ValueError, match="`implementation` must be one of"):
        layer(np.zeros((1, 2, 8), "float32"))
