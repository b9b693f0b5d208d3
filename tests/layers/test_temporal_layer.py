import keras
import numpy as np
import pytest

from keras_griffin.layers.temporal_layer import TemporalLayer
from support.checks import assert_close
from support.checks import to_numpy
from support.layers import BATCH
from support.layers import MAX_LENGTH
from support.layers import NUM_REAL
from support.layers import TEMPORAL_LAYERS
from support.layers import TIME
from support.layers import WIDTH
from support.layers import assert_same_state
from support.layers import fresh_state
from support.layers import make_probe
from support.layers import make_rows
from support.layers import normal
from support.layers import random_state

NAMES = pytest.mark.parametrize("name", ["recurrent_block", "local_mqa"])


@NAMES
def test_no_state_is_a_fresh_one(name):
    probe = make_probe(name)
    x = normal((BATCH, NUM_REAL, WIDTH))
    y, state = probe.values(x, return_state=True)
    expected = probe(x, initial_state=fresh_state(probe.layer), gradients=False)
    assert_close(y, expected.y)
    assert_same_state(state, expected.state)


@NAMES
def test_state_in_and_none_out(name):
    probe = make_probe(name)
    x = normal((BATCH, NUM_REAL, WIDTH))
    state = random_state(probe.layer, position=3)
    expected = probe(x, initial_state=state, gradients=False)
    assert_close(probe.values(x, initial_state=state), expected.y)


@NAMES
def test_positions_in_place_of_documents(name):
    """Whoever has compact rows and their positions gives these alone."""
    probe = make_probe(name)
    rows = make_rows("left_interior_right")
    state = random_state(probe.layer, position=6)
    expected = probe(
        rows.x, **rows.inputs, initial_state=state, gradients=False
    )
    positions = np.zeros((BATCH, TIME), "int32")
    for row, numbers in enumerate(rows.real_documents):
        count = 6
        for column, number in enumerate(numbers):
            before = numbers[column - 1] if column else state["segment_id"][row]
            count = count if number == before else 0
            positions[row, column] = count
            count += 1
    x = np.full((BATCH, TIME, WIDTH), 1000.0, "float32")
    x[:, :NUM_REAL] = rows.real_x
    padding_mask = np.zeros((BATCH, TIME), "int32")
    padding_mask[:, :NUM_REAL] = rows.real_documents
    y, after = probe.values(
        x,
        padding_mask=padding_mask,
        positions=positions,
        initial_state=state,
        return_state=True,
    )
    assert_close(y[:, :NUM_REAL], rows.take_real(expected.y))
    assert_same_state(after, expected.state)


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_mask_of_zeros_and_ones(dtype):
    probe = make_probe("conv")
    rows = make_rows("scattered")
    y = probe.values(rows.x, padding_mask=rows.mask)
    other = probe.values(rows.x, padding_mask=rows.mask.astype(dtype))
    np.testing.assert_array_equal(rows.take_real(y), rows.take_real(other))


@pytest.mark.parametrize("name", TEMPORAL_LAYERS)
def test_symbolic_shapes_and_dtypes(name):
    layer = TEMPORAL_LAYERS[name](dtype="mixed_bfloat16")
    x = keras.KerasTensor((None, None, WIDTH), "float32")
    y = layer(x)
    assert (y.shape, y.dtype) == ((None, None, WIDTH), "bfloat16")
    fresh = layer.init_state(2, max_length=MAX_LENGTH)
    arguments = {}
    if "global" in name:
        # It knows its slots from the state that it is given.
        arguments["initial_state"] = {
            key: keras.KerasTensor(
                (None, *leaf.shape[1:]),
                keras.backend.standardize_dtype(leaf.dtype),
            )
            for key, leaf in fresh.items()
        }
    y, state = layer(x, return_state=True, **arguments)
    assert (y.shape, y.dtype) == ((None, None, WIDTH), "bfloat16")
    assert sorted(state) == sorted(fresh)
    for key, leaf in fresh.items():
        assert state[key].shape == (None, *leaf.shape[1:]), key
        dtype = keras.backend.standardize_dtype(leaf.dtype)
        assert state[key].dtype == dtype, key


@pytest.mark.parametrize("name", TEMPORAL_LAYERS)
def test_state_has_the_batch_first(name):
    state = make_probe(name).layer.init_state(5, max_length=MAX_LENGTH)
    for key, leaf in state.items():
        assert leaf.shape[0] == 5, key
        np.testing.assert_array_equal(to_numpy(leaf), 0, err_msg=key)


def test_x_of_another_rank():
    layer = make_probe("conv").layer
    with pytest.raises(ValueError, match=r"must have shape \(batch, time, wid"):
        layer(np.zeros((2, WIDTH), "float32"))


@pytest.mark.parametrize("name", ["padding_mask", "positions"])
@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 1), (3,), (1, 3)])
def test_one_entry_a_token(name, shape):
    layer = make_probe("conv").layer
    x = np.zeros((2, 3, WIDTH), "float32")
    with pytest.raises(ValueError, match=f"`{name}` must have shape"):
        layer(x, **{name: np.zeros(shape, "int32")})


def test_symbolic_calls_are_checked_too():
    layer = make_probe("conv").layer
    x = keras.KerasTensor((None, 3, WIDTH))
    with pytest.raises(ValueError, match="`padding_mask` must have shape"):
        layer(x, padding_mask=keras.KerasTensor((None, 4), "int32"))
    # What is not known yet cannot be wrong.
    layer(x, padding_mask=keras.KerasTensor((None, None), "int32"))


@pytest.mark.parametrize("name", TEMPORAL_LAYERS)
def test_segment_ids_of_earlier_versions(name):
    layer = make_probe(name).layer
    ids = np.ones((2, 3), "int32")
    for x in (np.zeros((2, 3, WIDTH), "float32"), keras.Input((3, WIDTH))):
        with pytest.raises(ValueError, match="Give `padding_mask = np.where"):
            layer(x, padding_mask=ids, segment_ids=ids)


def test_a_subclass_defines_both():
    class Nothing(TemporalLayer):
        pass

    layer = Nothing()
    with pytest.raises(NotImplementedError, match="define `mix`.*Nothing"):
        layer(np.zeros((1, 2, 3), "float32"))
    with pytest.raises(NotImplementedError, match="`init_mixer_state`"):
        layer.init_state(1)
