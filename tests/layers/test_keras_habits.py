"""What a Keras user does with a GRU, done with ours: it is exact, or raises."""

import json

import keras
import numpy as np
import pytest

from keras_griffin import layers
from support.checks import assert_close
from support.checks import to_numpy
from support.checks import value_and_grad
from support.layer_gradients import BACKEND
from support.layers import BATCH
from support.layers import TEMPORAL_LAYERS
from support.layers import WIDTH
from support.layers import assert_same_gradients
from support.layers import assert_same_state
from support.layers import compiled
from support.layers import make_probe
from support.layers import make_rows
from support.layers import normal
from support.layers import probe_of
from support.layers import random_state
from support.layers import randomize

NAMES = pytest.mark.parametrize(
    "name", ["conv", "rglru", "local_mqa", "residual_recurrent"]
)
# As many tokens in each row; 0 is a pad.
IDS = np.array([[3, 1, 4, 0, 0], [0, 2, 7, 0, 5]])
ALONE = np.array([[3, 1, 4], [2, 7, 5]])


def rglru(**kwargs):
    return layers.RGLRU(WIDTH, num_gate_blocks=2, **kwargs)


def embedding():
    return keras.layers.Embedding(10, WIDTH, mask_zero=True)


# === Masks ===


def run_both(*stack):
    """What a model says of the rows with pads, and of those without."""
    model = keras.Sequential([keras.Input((None,)), embedding(), *stack])
    run = compiled(lambda ids: model(ids))
    return to_numpy(run(IDS)), to_numpy(run(ALONE))


@NAMES
def test_the_mask_of_an_embedding(name):
    y, alone = run_both(TEMPORAL_LAYERS[name]())
    assert_close(y[IDS != 0].reshape(alone.shape), alone)
    assert np.abs(alone).max() > 1e-6


def test_the_mask_of_an_embedding_beside_a_state():
    """Keras itself looks for a mask only where `x` is the only tensor."""
    table, layer = embedding(), rglru()
    table.build()
    state = random_state(layer, batch=2, position=3)
    run = compiled(
        lambda ids: layer(table(ids), initial_state=state, return_state=True)
    )
    (y, after), (expected, last) = run(IDS), run(ALONE)
    assert_close(to_numpy(y)[IDS != 0].reshape(expected.shape), expected)
    assert_same_state(after, last)
    assert_close(layer(table(IDS), None, state), y)


def test_a_padding_mask_wins_over_a_mask_that_x_carries():
    x, layer = embedding()(IDS), rglru()
    other = np.array([[1, 1, 2, 2, 2], [1, 1, 1, 1, 0]])
    expected = layer(to_numpy(x), padding_mask=other)
    assert_close(layer(x, other), expected)


@pytest.mark.parametrize("symbolic", [False, True])
def test_two_masks(symbolic):
    x, mask = np.zeros((1, 2, WIDTH), "float32"), np.ones((1, 2), "bool")
    if symbolic:
        x = keras.KerasTensor(x.shape)
    with pytest.raises(ValueError, match="Received: both. Give one of them"):
        rglru()(x, padding_mask=mask, mask=mask)


@pytest.mark.parametrize("mask", [np.ones((1, 2), "bool"), [[True] * 3]])
def test_a_mask_of_another_shape(mask):
    x = np.zeros((1, 3, WIDTH), "float32")
    with pytest.raises(ValueError, match="`mask` must have shape"):
        rglru()(x, mask=mask)


@pytest.mark.parametrize(
    "layer",
    [
        rglru(),
        layers.RMSNormalization(),
        layers.GatedMLP(4),
        layers.BlockDiagonalDense(WIDTH, num_blocks=2),
    ],
)
def test_the_layers_behind_get_the_mask(layer):
    y, alone = run_both(layer, keras.layers.GlobalAveragePooling1D())
    assert_close(y, alone)


@pytest.mark.backend_independent
def test_masks_of_outputs():
    mask = np.array([[True, False, True, True]])
    assert rglru(return_sequences=False).compute_mask(None, mask) is None
    assert rglru().compute_mask(None, None) is None
    np.testing.assert_array_equal(rglru().compute_mask(None, mask), mask)
    # `y` is in the order of reading, and so is its mask.
    backwards = rglru(go_backwards=True).compute_mask(None, mask)
    np.testing.assert_array_equal(to_numpy(backwards), mask[:, ::-1])


# === return_sequences, return_state, go_backwards, stateful ===


@NAMES
def test_backwards_is_forwards_of_flipped_rows(name):
    rows = make_rows("left_interior_right")
    dy = rows.spread(normal(rows.real_x.shape, seed=1))[:, ::-1]
    expected = make_probe(name)(
        rows.x[:, ::-1],
        padding_mask=rows.inputs["padding_mask"][:, ::-1],
        dy=dy,
        return_state=False,
    )
    probe = probe_of(TEMPORAL_LAYERS[name](go_backwards=True))
    actual = probe(rows.x, **rows.inputs, dy=dy, return_state=False)
    mask = rows.mask[:, ::-1]
    assert_close(to_numpy(actual.y)[mask], to_numpy(expected.y)[mask])
    dx = to_numpy(expected.dx)[:, ::-1]
    assert_close(actual.dx, dx, kind="gradients")
    assert_same_gradients(actual.dweights, expected.dweights, probe.names)


@NAMES
def test_the_last_token_alone(name):
    rows = make_rows("left_interior_right")
    dlast = normal((BATCH, WIDTH), seed=1)
    dy = np.zeros_like(rows.real_x)
    dy[:, -1] = dlast
    whole = make_probe(name)(
        rows.x, **rows.inputs, dy=rows.spread(dy), return_state=False
    )
    probe = probe_of(TEMPORAL_LAYERS[name](return_sequences=False))
    last = probe(rows.x, **rows.inputs, dy=dlast, return_state=False)
    assert_close(last.y, rows.take_real(whole.y)[:, -1])
    assert_close(last.dx, whole.dx, kind="gradients")
    assert_same_gradients(last.dweights, whole.dweights, probe.names)


def test_the_last_token_of_no_token():
    mask = np.array([[False, False], [True, True]])
    y = rglru(return_sequences=False)(normal((2, 2, WIDTH)), mask=mask)
    assert np.all(to_numpy(y)[0] == 0) and np.all(to_numpy(y)[1] != 0)


def test_return_state_of_constructor_and_call():
    x = normal((2, 3, WIDTH))
    layer = rglru(return_state=True, return_sequences=False)
    last, state = layer(x)
    assert_close(last, state["recurrent"])
    assert layer(x, return_state=False).shape == (2, WIDTH)
    # One that came in a list, as from a `Bidirectional`.
    assert_close(layer(x, initial_state=[state])[0], layer(x, None, state)[0])


@pytest.mark.backend_independent
def test_arguments_are_in_the_config():
    given = {
        "return_sequences": False,
        "return_state": True,
        "go_backwards": True,
    }
    for layer in (rglru, TEMPORAL_LAYERS["residual_local"]):
        config = json.loads(json.dumps(layer(**given).get_config()))
        restored = type(layer()).from_config(config).get_config()
        assert given.items() <= restored.items()
        assert not given.items() & layer().get_config().items()


def test_stateful():
    assert not rglru(stateful=False).stateful
    with pytest.raises(ValueError, match="no layer keeps one.*initial_state="):
        rglru(stateful=True)


@pytest.mark.parametrize("state", [np.zeros((1, WIDTH)), [1, 2], {"h": 1}])
def test_the_state_of_a_gru(state):
    x = np.zeros((1, 2, WIDTH), "float32")
    with pytest.raises(ValueError, match="must be a dict as `init_state`"):
        rglru()(x, initial_state=state)


def test_positions_of_rows_that_are_read_backwards():
    x = np.zeros((1, 2, WIDTH), "float32")
    with pytest.raises(ValueError, match="rows that are read forwards"):
        rglru(go_backwards=True)(x, positions=np.array([[0, 1]]))


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "name", ["return_sequences", "return_state", "go_backwards"]
)
def test_arguments_of_the_mixer_in_a_block(name):
    given = {name: name != "return_sequences"}
    temporal = layers.RecurrentBlock(8, num_gate_blocks=2, **given)
    with pytest.raises(ValueError, match=f"`{name}` is an argument of the who"):
        layers.ResidualBlock(temporal, layers.GatedMLP(4))


@pytest.mark.backend_independent
def test_the_state_of_a_convolution_without_a_width():
    with pytest.raises(ValueError, match="state of a convolution is as wide"):
        layers.CausalConv1D().init_state(1)


@pytest.mark.backend_independent
def test_an_rglru_knows_its_width():
    layer = rglru()
    weights = [id(w) for w in layer.weights]
    assert len(weights) == 5
    layer.build((None, None, WIDTH))
    assert [id(w) for w in layer.weights] == weights
    with pytest.raises(ValueError, match="must be `units` wide.*width 6"):
        layer(np.zeros((1, 2, 6), "float32"))


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "make, near",
    [
        (lambda: rglru(return_sequence=True), "return_sequences"),
        (lambda: rglru(nam="me"), "name"),
        (lambda: layers.RGLRUCell(8, num_gate_block=2), "num_gate_blocks"),
        (lambda: layers.LocalMQA(1, 4, window=2), "window_size"),
        (lambda: layers.GatedMLP(4, dtyp="float32"), "dtype"),
    ],
)
def test_near_names(make, near):
    with pytest.raises(ValueError, match=f"Did you mean {near}"):
        make()


# === Shapes ===


@pytest.mark.backend_independent
@pytest.mark.parametrize("name", TEMPORAL_LAYERS)
@pytest.mark.parametrize("sequences", [True, False])
def test_shapes_before_a_call(name, sequences):
    layer = TEMPORAL_LAYERS[name](return_sequences=sequences)
    shape = (None, None, WIDTH) if sequences else (None, WIDTH)
    assert layer.compute_output_shape((None, None, WIDTH)) == shape
    x = keras.Input((None, WIDTH))
    assert layer(x).shape == shape
    assert layer(x, mask=keras.Input((None,), dtype="bool")).shape == shape
    assert keras.Sequential([layer]).compute_output_shape(x.shape) == shape


@pytest.mark.backend_independent
def test_shapes_of_states():
    layer = rglru(return_state=True)
    y, state = layer.compute_output_shape((5, None, WIDTH))
    assert y == (5, None, WIDTH)
    assert state["recurrent"] == (5, WIDTH) and state["position"] == (5,)


# === Wrappers ===


@pytest.mark.parametrize("name", ["rglru", "local_mqa"])
def test_bidirectional(name):
    rows = make_rows("left_interior_right")
    wrapper = keras.layers.Bidirectional(TEMPORAL_LAYERS[name]())
    wrapper.build(rows.x.shape)
    randomize(wrapper)
    dy = normal((*rows.real_x.shape[:2], 2 * WIDTH), seed=1)
    (y,), (dx,) = value_and_grad(
        lambda x: wrapper(x, mask=rows.mask),
        rows.x,
        cotangents=[rows.spread(dy)],
        compiled=BACKEND == "jax",
    )

    def both(x):
        forward, backward = wrapper.forward_layer, wrapper.backward_layer
        assert (forward.go_backwards, backward.go_backwards) == (False, True)
        backward = keras.ops.flip(backward(x), axis=1)
        return keras.ops.concatenate([forward(x), backward], axis=-1)

    (alone,), (dalone,) = value_and_grad(
        both, rows.real_x, cotangents=[dy], compiled=BACKEND == "jax"
    )
    assert_close(rows.take_real(y), alone)
    assert_close(rows.take_real(dx), dalone, kind="gradients")
    assert np.all(dx[~rows.mask] == 0)


def test_bidirectional_with_states():
    x = normal((2, 8, WIDTH))
    wrapper = keras.layers.Bidirectional(rglru(return_state=True))

    @compiled
    def run(x, states):
        return wrapper(x, initial_state=states)

    fresh = rglru().init_state(2)
    y, forward, backward = run(x, [fresh, fresh])
    assert_close(forward["recurrent"], to_numpy(y)[:, -1, :WIDTH])
    assert_close(backward["recurrent"], to_numpy(y)[:, 0, WIDTH:])
    _, state, _ = run(x[:, :4], [fresh, fresh])
    end, after, _ = run(x[:, 4:], [state, fresh])
    assert_close(to_numpy(end)[..., :WIDTH], to_numpy(y)[:, 4:, :WIDTH])
    assert_same_state(after, forward)


def test_bidirectional_survives_its_config():
    layer = keras.layers.Bidirectional(rglru(), merge_mode="sum")
    again = keras.layers.Bidirectional.from_config(layer.get_config())
    assert again.backward_layer.go_backwards
    assert again(normal((1, 2, WIDTH))).shape == (1, 2, WIDTH)


def test_time_distributed():
    x, mask = normal((2, 3, 5, WIDTH)), np.ones((2, 3, 5), bool)
    mask[:, 1, 2:4] = False
    layer = rglru()
    wrapper = keras.layers.TimeDistributed(layer)
    assert wrapper.compute_output_shape(x.shape) == x.shape
    y = compiled(lambda x: wrapper(x, mask=mask))(x)
    for i in range(3):
        expected = layer(x[:, i], mask=mask[:, i])
        real = mask[0, i]
        assert_close(to_numpy(y)[:, i][:, real], to_numpy(expected)[:, real])
    assert wrapper(keras.Input((None, None, WIDTH))).shape[-1] == WIDTH


# === The cell ===


@pytest.mark.parametrize(
    "recurrence, go_backwards", [("real", True), ("complex", False)]
)
def test_a_cell_equals_the_layer(recurrence, go_backwards):
    rows = make_rows("scattered")
    layer = rglru(recurrence=recurrence, go_backwards=go_backwards)
    cell = layers.RGLRUCell(WIDTH, num_gate_blocks=2, recurrence=recurrence)
    randomize(layer)
    cell.set_weights([to_numpy(w.value) for w in layer.weights])
    rnn = keras.layers.RNN(
        cell, return_sequences=True, go_backwards=go_backwards
    )
    mask = rows.mask[:, ::-1] if go_backwards else rows.mask
    dy = normal(rows.x.shape, seed=1) * mask[..., None]
    results = [
        value_and_grad(
            lambda x, layer=layer: layer(x, mask=rows.mask),
            rows.x,
            cotangents=[dy],
            compiled=BACKEND == "jax",
        )
        for layer in (rnn, layer)
    ]
    (((y,), (dx,)), ((expected,), (dexpected,))) = results
    assert_close(y[mask], expected[mask])
    assert_close(dx, dexpected, kind="gradients")


def test_a_cell_in_16_bits():
    x = normal((2, 3, WIDTH))
    layer = rglru(dtype="mixed_bfloat16")
    cell = layers.RGLRUCell(WIDTH, num_gate_blocks=2, dtype="mixed_bfloat16")
    cell.set_weights([to_numpy(w.value) for w in layer.weights])
    rnn = keras.layers.RNN(cell, return_sequences=True, dtype="mixed_bfloat16")
    y, expected = compiled(rnn)(x), compiled(layer)(x)
    assert "bfloat16" in str(y.dtype)
    np.testing.assert_array_equal(to_numpy(y), to_numpy(expected))


def test_cells_on_one_another():
    cells = [layers.RGLRUCell(WIDTH, num_gate_blocks=2) for _ in range(2)]
    rnn = keras.layers.RNN(cells)
    assert rnn(normal((2, 3, WIDTH))).shape == (2, WIDTH)
    assert len({w.path for w in rnn.weights}) == len(rnn.weights) == 10
