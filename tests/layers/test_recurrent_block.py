import numpy as np
import pytest

from keras_griffin.layers import RecurrentBlock
from support import numpy_layers
from support.checks import to_numpy
from support.layers import NUM_REAL
from support.layers import WIDTH
from support.layers import assert_equals_reference
from support.layers import make_probe
from support.layers import normal
from support.layers import probe_of


def test_equals_numpy():
    assert_equals_reference(
        make_probe("recurrent_block"),
        numpy_layers.recurrent_block,
        normal((3, NUM_REAL, WIDTH)),
    )


def test_complex_equals_numpy():
    probe = probe_of(
        RecurrentBlock(12, num_gate_blocks=2, recurrence="complex")
    )
    assert_equals_reference(
        probe, numpy_layers.recurrent_block, normal((3, NUM_REAL, WIDTH))
    )


def test_state_is_that_of_its_parts():
    layer = make_probe("recurrent_block").layer
    state = layer.init_state(2)
    assert sorted(state) == [
        "inputs",
        "length",
        "position",
        "recurrent",
        "segment_id",
    ]
    assert to_numpy(state["inputs"]).shape == (2, 2, 12)
    assert to_numpy(state["recurrent"]).shape == (2, 12)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_gate_blocks": 5}, "`num_blocks` must divide"),
        ({"conv_kernel_size": 0}, "`kernel_size` must be at least 1"),
        ({"recurrence": "none"}, "`recurrence` must be one of"),
        ({"decay_initializer": "none"}, "`convention` must be one of"),
    ],
)
def test_errors_of_its_parts(arguments, message):
    arguments = {"num_gate_blocks": 2, **arguments}
    with pytest.raises(ValueError, match=message):
        RecurrentBlock(12, **arguments)


def test_unknown_implementation():
    layer = RecurrentBlock(12, num_gate_blocks=2, implementation="fastest")
    with pytest.raises(ValueError, match="`implementation` must be one of"):
        layer(np.zeros((1, 2, 8), "float32"))
