"""Gates, decays and states against the float64 loop's own."""

import keras
import numpy as np
import pytest
from keras import ops

from support import numpy_layers
from support.checks import assert_close
from support.checks import to_numpy
from support.layers import BATCH
from support.layers import GARBAGE
from support.layers import NUM_REAL
from support.layers import TEMPORAL_LAYERS
from support.layers import WIDTH
from support.layers import assert_same_intermediates
from support.layers import compiled
from support.layers import make_probe
from support.layers import make_rows
from support.layers import normal
from support.layers import random_state
from support.layers import weights64

KEYS = ["decay", "input_gate", "recurrence_gate", "state"]


def call(layer, x, return_state=False, **inputs):
    def run(x, inputs):
        return layer(
            x, return_state=return_state, return_intermediates=True, **inputs
        )

    tensors = keras.tree.map_structure(ops.convert_to_tensor, (x, inputs))
    return compiled(run)(*tensors)


def starts(rows, position, number):
    """Where a document starts, as the rows stand with their pads."""
    reset, documents = np.zeros(rows.mask.shape, bool), rows.documents
    for row, column in np.argwhere(rows.mask):
        earlier = np.flatnonzero(rows.mask[row, :column])
        if len(earlier):
            before = documents[row, earlier[-1]]
            reset[row, column] = documents[row, column] != before
        else:
            same = documents[row, column] == number[row]
            reset[row, column] = position == 0 or not same
    return reset


@pytest.mark.parametrize("name", ["rglru", "rglru_complex"])
def test_pads_documents_and_state(name):
    probe = make_probe(name)
    rows = make_rows("left_interior_right")
    state = random_state(probe.layer, position=6)
    reset = starts(rows, 6, state["segment_id"])
    assert reset.any() and not reset.all(axis=1).any()
    y, after, found = call(
        probe.layer,
        rows.x,
        **rows.inputs,
        initial_state=state,
        return_state=True,
    )
    x = np.where(rows.mask[..., None], rows.x, GARBAGE)
    expected = numpy_layers.rglru_intermediates(
        weights64(probe), x, reset, rows.mask, state["recurrent"]
    )
    assert_same_intermediates(found, expected)
    assert_close(after["recurrent"], expected["state"][:, -1])
    assert_close(rows.take_real(y), rows.take_real(expected["state"]))


def test_the_equation_holds_at_every_position():
    probe = make_probe("rglru")
    rows = make_rows("scattered")
    x = np.where(rows.mask[..., None], rows.x, 0.0)
    _, found = call(probe.layer, x, **rows.inputs)
    h, a, i = (
        to_numpy(found[key]).astype("float64")
        for key in ("state", "decay", "input_gate")
    )
    before = np.concatenate([np.zeros_like(h[:, :1]), h[:, :-1]], axis=1)
    assert_close(h, a * before + np.sqrt(1.0 - a**2) * i * x)


def test_one_token_and_a_pad():
    """A single column is never moved, padded or not."""
    probe = make_probe("rglru")
    x = normal((BATCH, 1, WIDTH))
    state = random_state(probe.layer, position=6)
    mask = np.array([[True], [False], [True]])
    _, found = call(probe.layer, x, padding_mask=mask, initial_state=state)
    reset = np.zeros((BATCH, 1), bool)
    expected = numpy_layers.rglru_intermediates(
        weights64(probe), x, reset, mask, state["recurrent"]
    )
    assert_same_intermediates(found, expected)


def test_blocks_hand_on_what_their_recurrence_saw():
    x = normal((BATCH, NUM_REAL, WIDTH))
    for name in ("recurrent_block", "residual_recurrent"):
        probe = make_probe(name)
        y, found = call(probe.layer, x)
        assert_close(y, probe.values(x))
        weights, inner = weights64(probe), x
        if name == "residual_recurrent":
            inner = numpy_layers.rms_normalization(
                numpy_layers.inside(weights, "temporal_norm"), x
            )
            weights = numpy_layers.inside(weights, "temporal")
        expected = numpy_layers.recurrent_block_intermediates(weights, inner)
        assert_same_intermediates(found, expected)


@pytest.mark.parametrize(
    "name", ["rglru", "rglru_complex", "residual_recurrent"]
)
def test_symbolic_shapes_and_dtypes(name):
    layer = TEMPORAL_LAYERS[name](dtype="mixed_bfloat16")
    x = normal((BATCH, NUM_REAL, WIDTH))
    outputs = call(layer, x, return_state=True)
    spec = layer(
        keras.KerasTensor((None, None, WIDTH)),
        return_state=True,
        return_intermediates=True,
    )
    assert len(spec) == len(outputs) == 3
    assert sorted(spec[2]) == sorted(outputs[2]) == KEYS
    for key, array in outputs[2].items():
        assert spec[2][key].shape == (None, None, array.shape[-1]), key
        dtype = "bfloat16" if key == "state" else "float32"
        assert spec[2][key].dtype == dtype
        assert keras.backend.standardize_dtype(array.dtype) == dtype


@pytest.mark.parametrize("name", ["conv", "local_mqa", "residual_local"])
def test_layers_without_a_recurrence(name):
    layer = make_probe(name).layer
    for x in (normal((BATCH, NUM_REAL, WIDTH)), keras.Input((2, WIDTH))):
        with pytest.raises(ValueError, match="needs a layer with an RG-LRU"):
            layer(x, return_intermediates=True)
