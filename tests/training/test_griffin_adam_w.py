"""The recipe: which weights decay, when the learning rate falls, and resume."""

import keras
import numpy as np
import pytest

from keras_griffin import GriffinAdamW
from keras_griffin import layers
from support.checks import to_numpy
from support.models import PATTERNS
from support.models import tiny_model

DECAYED = {
    "token_embedding/embeddings",
    "attention/query/kernel",
    "attention/key/kernel",
    "attention/value/kernel",
    "attention/output_dense/kernel",
    "recurrent_block/linear_x/kernel",
    "recurrent_block/linear_y/kernel",
    "recurrent_block/linear_out/kernel",
    "mlp/gate/kernel",
    "mlp/up/kernel",
    "mlp/down/kernel",
}
NOT_DECAYED = {
    "recurrent_block/conv/kernel",
    "recurrent_block/conv/bias",
    "recurrent_block/linear_x/bias",
    "recurrent_block/linear_y/bias",
    "recurrent_block/linear_out/bias",
    "rglru/recurrence_gate/kernel",
    "rglru/recurrence_gate/bias",
    "rglru/input_gate/kernel",
    "rglru/input_gate/bias",
    "rglru/recurrence_param",
    "rglru/phase_param",
    "attention/output_dense/bias",
    "mlp/gate/bias",
    "mlp/up/bias",
    "mlp/down/bias",
    "temporal_norm/scale",
    "mlp_norm/scale",
    "final_norm/scale",
}


def model_with(optimizer, **changes):
    model = tiny_model(**changes)
    model.compile(optimizer=optimizer)
    return model


def apply(model, gradients):
    model.optimizer.apply(
        [keras.ops.convert_to_tensor(g) for g in gradients],
        model.trainable_variables,
    )


def shrunk(model):
    """Applies gradients of 0, and returns the paths of weights that changed."""
    before = [to_numpy(v.value).copy() for v in model.trainable_variables]
    apply(model, [np.zeros_like(value) for value in before])
    changed = set()
    for variable, old in zip(model.trainable_variables, before, strict=True):
        new = to_numpy(variable.value)
        if np.any(new != old):
            rate, decay = model.optimizer.learning_rate, 0.5
            factor = 1.0 - decay * float(to_numpy(rate))
            np.testing.assert_allclose(new, factor * old, rtol=1e-5)
            changed.add(variable.path)
    return changed


def is_one_of(path, names):
    return any(path.endswith(name) for name in names)


@pytest.mark.parametrize("recurrence", ["real", "complex"])
def test_matrices_decay_and_the_recurrence_does_not(recurrence):
    model = model_with(
        GriffinAdamW(0.1, weight_decay=0.5),
        block_types=PATTERNS["mixed"],
        recurrence=recurrence,
    )
    changed = shrunk(model)
    found = set()
    for variable in model.trainable_variables:
        decays = is_one_of(variable.path, DECAYED)
        assert decays != is_one_of(variable.path, NOT_DECAYED), variable.path
        assert (variable.path in changed) == decays, variable.path
        found |= {n for n in DECAYED | NOT_DECAYED if variable.path.endswith(n)}
    missing = (DECAYED | NOT_DECAYED) - found
    assert missing == ({"rglru/phase_param"} if recurrence == "real" else set())


@pytest.mark.backend_independent
def test_layers_alone_and_lora():
    optimizer = GriffinAdamW(0.1, weight_decay=0.5)
    inputs = keras.Input((None, 8))
    x = layers.CausalConv1D()(inputs)
    x = layers.RGLRU(units=8, num_gate_blocks=2)(x)
    dense = keras.layers.Dense(8)
    model = keras.Model(inputs, dense(x))
    dense.enable_lora(2)
    for weight in model.weights:
        weight.assign(weight.value + 0.1)
    model.compile(optimizer=optimizer)
    names = {path.rsplit("/", 1)[1] for path in shrunk(model)}
    # The frozen kernel itself is not trained.
    assert names == {"lora_kernel_a", "lora_kernel_b"}


@pytest.mark.backend_independent
def test_a_loaded_model_goes_on_in_the_same_way(tmp_path):
    rng = np.random.default_rng(0)
    model = model_with(GriffinAdamW(0.1, num_steps=6, weight_decay=0.5))

    def gradients():
        return [
            rng.normal(size=v.shape).astype("float32")
            for v in model.trainable_variables
        ]

    for _ in range(3):
        apply(model, gradients())
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(again.optimizer, GriffinAdamW)
    assert again.optimizer.get_config() == model.optimizer.get_config()
    for _ in range(2):
        gradient = gradients()
        for either in (model, again):
            apply(either, gradient)
    assert int(to_numpy(again.optimizer.iterations)) == 5
    for a, b in zip(again.weights, model.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(a.value), to_numpy(b.value))


def test_gradient_accumulation_and_clipping():
    """Two gradients of half the weight are one, and are clipped as one."""
    results = []
    for steps in (None, 2):
        optimizer = GriffinAdamW(
            0.01,
            weight_decay=0.0,
            global_clipnorm=1e-3,
            epsilon=1e-3,
            gradient_accumulation_steps=steps,
        )
        kernel = keras.Variable(np.ones((2, 2), "float32"))
        optimizer.build([kernel])
        for sign in (1.0, -1.0) if steps else (0.0,):
            gradient = np.array([[3.0, 4.0], [0.0, 0.0]], "float32")
            gradient[1] += 7.0 * sign
            optimizer.apply([keras.ops.convert_to_tensor(gradient)], [kernel])
        assert int(to_numpy(optimizer.iterations)) == 1
        results.append(1.0 - to_numpy(kernel.value))
    # Adam's first step is lr * g / (|g| + epsilon / sqrt(1 - beta_2)), where
    # clipping has made (3, 4) to (0.6e-3, 0.8e-3).
    expected = [[0.01 * 0.6 / 10.6, 0.01 * 0.8 / 10.8], [0.0, 0.0]]
    for result in results:
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.skipif(keras.config.backend() != "torch", reason="about PyTorch")
@pytest.mark.parametrize("largest", [1e-3, 5.0, np.inf, np.nan])
def test_pytorch_clips_as_keras_in_few_operations(largest):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            self.operations += 1
            return operation(*args, **(kwargs or {}))

    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=(3, 4)).astype("float32") for _ in range(30)]
    gradients[0][0, 0] = largest
    results, counts = [], []
    for cls in (GriffinAdamW, keras.optimizers.AdamW):
        variables = [
            keras.Variable(np.ones((3, 4), "float32")) for _ in gradients
        ]
        # Large, so that the update depends on the gradient's length.
        optimizer = cls(
            0.01,
            weight_decay=0.1,
            beta_2=0.99,
            global_clipnorm=1.0,
            epsilon=1.0,
        )
        optimizer.build([*variables, keras.Variable(np.ones(2, "float32"))])
        tensors = [*map(keras.ops.convert_to_tensor, gradients), None]
        before = [np.array(g) for g in gradients]
        with Count() as count, pytest.warns(UserWarning, match="Gradients do"):
            optimizer.apply(tensors)
        assert optimizer.global_clipnorm == 1.0
        np.testing.assert_array_equal(gradients, before)
        results.append([to_numpy(v.value) for v in variables])
        counts.append(count.operations)
    np.testing.assert_allclose(*results, rtol=1e-6)
    assert counts[0] <= counts[1] - 3 * len(gradients)


@pytest.mark.backend_independent
def test_accumulated_updates_follow_the_schedule_of_the_large_batch():
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(12, 2, 2)).astype("float32")
    found = []
    for batches, parts in (
        (None, gradients.reshape(6, 2, 2, 2).mean(1)),
        (2, gradients),
    ):
        optimizer = GriffinAdamW(
            0.1,
            num_steps=6,
            warmup_fraction=0.4,
            gradient_accumulation_steps=batches,
        )
        optimizer = GriffinAdamW.from_config(optimizer.get_config())
        kernel = keras.Variable(np.ones((2, 2), "float32"))
        optimizer.build([kernel])
        values = []
        for gradient in parts:
            optimizer.apply([keras.ops.convert_to_tensor(gradient)], [kernel])
            values.append(to_numpy(kernel.value).copy())
        found.append(values[:: -(batches or 1)])
    for large, accumulated in zip(*found, strict=True):
        np.testing.assert_allclose(accumulated, large, rtol=1e-5)


@pytest.mark.backend_independent
def test_schedule():
    optimizer = GriffinAdamW(
        2.0, num_steps=100, warmup_fraction=0.1, final_fraction=0.05
    )

    def rate(step):
        return float(to_numpy(optimizer._learning_rate(step)))

    np.testing.assert_allclose(rate(0), 0.0)
    np.testing.assert_allclose(rate(5), 1.0)
    np.testing.assert_allclose(rate(10), 2.0)
    np.testing.assert_allclose(rate(55), 2.0 * (0.5 * 0.95 + 0.05), rtol=1e-5)
    for step in (100, 1000):
        np.testing.assert_allclose(rate(step), 0.1, rtol=1e-5)
    constant = GriffinAdamW(0.5)
    np.testing.assert_allclose(to_numpy(constant.learning_rate), 0.5)


@pytest.mark.backend_independent
def test_defaults():
    config = GriffinAdamW(num_steps=200).get_config()
    assert config["weight_decay"] == 0.1
    assert (config["beta_1"], config["beta_2"]) == (0.9, 0.99)
    assert config["global_clipnorm"] == 1.0
    schedule = config["learning_rate"]["config"]
    assert schedule["warmup_target"] == 1e-3
    assert (schedule["warmup_steps"], schedule["decay_steps"]) == (6, 194)
    assert schedule["alpha"] == 0.02


@pytest.mark.backend_independent
def test_bad_arguments_are_refused():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    GriffinAdamW(schedule)
    with pytest.raises(ValueError, match="makes a schedule of a number"):
        GriffinAdamW(schedule, num_steps=10)
    with pytest.raises(ValueError, match="`num_steps` must be at least 1"):
        GriffinAdamW(num_steps=0)
    for bad in (
        {"warmup_fraction": 1.0},
        {"warmup_fraction": -0.1},
        {"final_fraction": 1.1},
    ):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
            GriffinAdamW(num_steps=10, **bad)
