"""The layers in Keras models, and under each backend's transformations."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_griffin.layers import BlockDiagonalDense
from keras_griffin.layers import GatedMLP
from keras_griffin.layers import RMSNormalization
from support.checks import assert_close
from support.checks import to_numpy
from support.layers import BACKEND
from support.layers import BATCH
from support.layers import NUM_REAL
from support.layers import TEMPORAL_LAYERS
from support.layers import TIME
from support.layers import WIDTH
from support.layers import compiled
from support.layers import fresh_state
from support.layers import make_probe
from support.layers import make_rows
from support.layers import normal
from support.layers import randomize

jax_only = pytest.mark.skipif(BACKEND != "jax", reason="about JAX")
tensorflow_only = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="about TensorFlow"
)
torch_only = pytest.mark.skipif(BACKEND != "torch", reason="about PyTorch")


def make_model(names=tuple(TEMPORAL_LAYERS), time=None):
    """A functional model with every layer of the package, one on another."""
    x = keras.Input((time, WIDTH), name="x")
    mask = keras.Input((time,), dtype="int32", name="padding_mask")
    y = RMSNormalization()(x)
    y = GatedMLP(12)(BlockDiagonalDense(WIDTH, 2)(y))
    for name in names:
        y = y + TEMPORAL_LAYERS[name]()(y, padding_mask=mask)
    model = keras.Model([x, mask], y)
    randomize(model)
    return model


def model_inputs():
    rows = make_rows("scattered")
    rows.x[~rows.mask] = 0.0
    return [rows.x, rows.documents]


def run(model, inputs):
    return to_numpy(compiled(lambda inputs: model(inputs))(inputs))


def test_save_and_load(tmp_path):
    model = make_model()
    assert model.output.shape == (None, None, WIDTH)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    assert [w.path for w in loaded.weights] == [w.path for w in model.weights]
    inputs = model_inputs()
    np.testing.assert_array_equal(run(loaded, inputs), run(model, inputs))


def test_fit_and_predict_with_unknown_batch_and_time():
    model = make_model(["residual_recurrent", "residual_local"])
    model.compile(keras.optimizers.SGD(0.01), "mean_squared_error")
    inputs = model_inputs()
    target = normal(inputs[0].shape, seed=7)
    before = [
        np.array(to_numpy(weight.value)) for weight in model.trainable_weights
    ]
    history = model.fit(inputs, target, epochs=2, batch_size=3, verbose=0)
    losses = history.history["loss"]
    assert np.all(np.isfinite(losses)) and losses[1] < losses[0]
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert np.any(to_numpy(weight.value) != old), weight.path
    predicted = model.predict(inputs, batch_size=3, verbose=0)
    assert_close(predicted, run(model, inputs))


def test_state_as_input_and_output_of_a_functional_model():
    probe = make_probe("residual_local")
    state = fresh_state(probe.layer)
    symbolic = {
        name: keras.Input(
            leaf.shape[1:],
            dtype=keras.backend.standardize_dtype(leaf.dtype),
            name=name,
        )
        for name, leaf in state.items()
    }
    x = keras.Input((None, WIDTH), name="x")
    outputs = probe.layer(x, initial_state=symbolic, return_state=True)
    model = keras.Model({"x": x, **symbolic}, outputs)
    inputs = normal((BATCH, NUM_REAL, WIDTH))
    x = ops.convert_to_tensor(inputs)
    y, after = compiled(lambda inputs: model(inputs))({"x": x, **state})
    expected = probe(inputs, initial_state=state, gradients=False)
    assert_close(y, expected.y)
    for name, leaf in after.items():
        assert_close(leaf, to_numpy(expected.state[name]), name=name)


@pytest.mark.parametrize("name", ["recurrent_block", "residual_local"])
def test_rematerialization_changes_nothing(name):
    expected = make_probe(name)
    with keras.RematScope(mode="full"):
        layer = TEMPORAL_LAYERS[name]()
    layer.build((None, None, WIDTH))
    randomize(layer)
    x = normal((BATCH, NUM_REAL, WIDTH))
    dy = normal(x.shape, seed=1)
    values, gradients = gradients_of_variables(layer, x, dy)
    result = expected(x, return_state=False, dy=dy)
    assert_close(values, result.y)
    for one, other in zip(gradients, result.dweights, strict=True):
        assert_close(one, other, kind="gradients")


def gradients_of_variables(layer, x, dy):
    """As a training step has them: of the variables themselves."""
    if BACKEND == "jax":
        import jax

        def loss(weights):
            y, _ = layer.stateless_call(weights, [], x)
            return ops.sum(y * dy), y

        weights = [weight.value for weight in layer.trainable_weights]
        gradients, y = jax.jit(jax.grad(loss, has_aux=True))(weights)
        return y, gradients
    x, dy = ops.convert_to_tensor(x), ops.convert_to_tensor(dy)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function
        def step():
            with tf.GradientTape() as tape:
                y = layer(x)
                total = ops.sum(y * dy)
            weights = [w.value for w in layer.trainable_weights]
            return y, tape.gradient(total, weights)

        return step()
    y = layer(x)
    ops.sum(y * dy).backward()
    return y, [weight.value.grad for weight in layer.trainable_weights]


@tensorflow_only
@pytest.mark.parametrize("jit_compile", [False, True])
def test_function_of_unknown_batch_and_time(jit_compile):
    import tensorflow as tf

    model = make_model()
    inputs = [tf.convert_to_tensor(z) for z in model_inputs()]
    signature = [
        tf.TensorSpec((None, None, *z.shape[2:]), z.dtype) for z in inputs
    ]

    @tf.function(input_signature=signature, jit_compile=jit_compile)
    def call(*inputs):
        return model(list(inputs))

    expected = model(inputs)
    assert_close(call(*inputs), expected)
    if not jit_compile:
        # Another batch and time, the same graph: one token, and many blocks.
        for time in (1, 5, 5 * TIME):
            other = [tf.repeat(z, 5, axis=1)[:2, :time] for z in inputs]
            assert_close(call(*other), model(other), name=str(time))
        assert call.experimental_get_tracing_count() == 1


@tensorflow_only
@pytest.mark.parametrize("name", ["recurrent_block", "local_mqa"])
def test_states_in_a_function_of_unknown_time(name):
    import tensorflow as tf

    probe = make_probe(name)
    state = probe.layer.init_state(BATCH)

    @tf.function(reduce_retracing=True)
    def call(x, state):
        return probe.layer(x, initial_state=state, return_state=True)

    specs = (
        tf.TensorSpec((None, None, WIDTH)),
        {
            name: tf.TensorSpec((None, *leaf.shape[1:]), leaf.dtype)
            for name, leaf in state.items()
        },
    )
    concrete = call.get_concrete_function(*specs)
    for time in (0, 1, 3, NUM_REAL, 5 * TIME):
        x = tf.convert_to_tensor(normal((BATCH, time, WIDTH)))
        y, after = concrete(x, state)
        expected = probe.layer(x, initial_state=state, return_state=True)
        assert_close(y, expected[0], name=f"time {time}")
        for leaf, value in after.items():
            assert_close(value, to_numpy(expected[1][leaf]), name=leaf)


@tensorflow_only
def test_gradients_in_a_function_of_unknown_time():
    import tensorflow as tf

    local, recurrent = (
        make_probe(name).layer
        for name in ("residual_local", "residual_recurrent")
    )

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = local(x) + recurrent(x)
            total = tf.reduce_sum(y**2)
        return tape.gradient(total, x)

    x = tf.convert_to_tensor(normal((BATCH, 5 * TIME, WIDTH)))
    call = tf.function(
        gradient, input_signature=[tf.TensorSpec((None, None, WIDTH))]
    )
    assert_close(call(x), gradient(x), kind="gradients")


@jax_only
def test_jit_grad_and_vmap():
    import jax

    for name in ("recurrent_block", "local_mqa"):
        layer = make_probe(name).layer
        weights = [weight.value for weight in layer.trainable_weights]

        def loss(x, weights, layer=layer):
            return ops.sum(layer.stateless_call(weights, [], x)[0] ** 2)

        gradient = jax.jit(jax.grad(loss))
        x = normal((2, BATCH, 5, WIDTH))
        expected = np.stack([gradient(part, weights) for part in x])
        many = jax.jit(jax.vmap(jax.grad(loss), in_axes=(0, None)))(x, weights)
        assert_close(many, expected, kind="gradients", name=name)


@torch_only
# Dynamo's own, of how it traces an `autograd.Function`.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
@pytest.mark.parametrize("name", ["recurrent_block", "local_mqa"])
def test_torch_compile(name):
    import torch

    probe = make_probe(name)
    # The graph is what may break; generated C++ would only take longer.
    call = torch.compile(probe.layer, fullgraph=True, backend="aot_eager")
    x = torch.tensor(normal((BATCH, NUM_REAL, WIDTH)), requires_grad=True)
    dy = normal(x.shape, seed=1)
    mask = torch.tensor(np.arange(NUM_REAL) < 9).repeat(BATCH, 1)
    y = call(x, padding_mask=mask)
    (y * torch.tensor(dy)).sum().backward()
    expected = probe(x.detach(), padding_mask=mask, return_state=False, dy=dy)
    assert_close(y, expected.y)
    assert_close(x.grad, expected.dx, kind="gradients")
