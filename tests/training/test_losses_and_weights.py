"""What `compile` and `fit` can be given, against Keras on all logits.

The plain model is Keras' own functional one of the same layers.
"""

import keras
import numpy as np
import pytest
from keras import ops

import keras_griffin
from keras_griffin import StatefulTrainer
from support.checks import assert_close
from support.checks import to_numpy
from support.models import VOCABULARY
from support.models import tiny_backbone
from support.models import tokens
from support.once import once

BATCH, TIME, RATE = 4, 6, 1.0
IDS = tokens(BATCH, TIME + 1)
X = {"token_ids": IDS[:, :-1], "padding_mask": np.ones((BATCH, TIME), "int32")}
Y = IDS[:, 1:]
RNG = np.random.default_rng(0)
ROWS = RNG.random(BATCH).astype("float32")
TOKENS = RNG.random((BATCH, TIME)).astype("float32")
CrossEntropy = keras.losses.SparseCategoricalCrossentropy


class Custom(keras.losses.Loss):
    """The likelier the right token, the less its weight."""

    def call(self, y_true, y_pred):
        losses = ops.sparse_categorical_crossentropy(
            y_true, y_pred, from_logits=True
        )
        return losses * (1 - ops.exp(-losses))


def custom(y_true, y_pred):
    return Custom().call(y_true, y_pred)


def cross_entropy(**options):
    return CrossEntropy(from_logits=True, **options)


# Loss, sample_weight, and further arguments of `compile`.
CASES = {
    "default": (cross_entropy(), None, {}),
    "token weights": (cross_entropy(), TOKENS, {}),
    "row weights": (cross_entropy(), ROWS, {}),
    "sum": (cross_entropy(reduction="sum"), TOKENS, {}),
    "mean": (cross_entropy(reduction="mean_with_sample_weight"), TOKENS, {}),
    "ignored": (cross_entropy(ignore_class=int(Y[0, 0])), TOKENS, {}),
    "smoothed": (
        keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=0.1
        ),
        TOKENS,
        {},
    ),
    "custom class": (Custom(), ROWS[:, None], {}),
    "custom function": (custom, TOKENS, {}),
    "loss weight": (cross_entropy(), TOKENS, {"loss_weights": 0.3}),
}


def make(optimizer="sgd", loss="auto", **changes):
    keras.utils.set_random_seed(0)
    options = {"num_layers": 1, "block_types": ("recurrent",), **changes}
    model = keras_griffin.GriffinCausalLM(tiny_backbone(**options))
    model.compile(optimizer, loss=loss, weighted_metrics=[])
    return model


def values(model):
    return [to_numpy(v.value).copy() for v in model.trainable_variables]


def one_step(model, y, weights):
    before = values(model)
    logs = model.train_on_batch(X, y, sample_weight=weights, return_dict=True)
    steps = [a - b for a, b in zip(before, values(model), strict=True)]
    return np.array(logs["loss"]), steps


SOME = ("default", "token weights", "sum")


@pytest.mark.parametrize("name", [*SOME, *once(*sorted({*CASES} - {*SOME}))])
def test_a_step_equals_keras_own(name):
    loss, weights, options = CASES[name]
    y = np.eye(VOCABULARY)[Y].astype("float32") if name == "smoothed" else Y
    model = make()
    model.compile(
        keras.optimizers.SGD(RATE), loss, weighted_metrics=[], **options
    )
    plain = keras.Model(model.inputs, model.outputs)
    plain.compile(keras.optimizers.SGD(RATE), loss, **options)
    start = model.get_weights()
    found, found_steps = one_step(model, y, weights)
    evaluated = model.evaluate(X, y, sample_weight=weights, verbose=0)
    evaluated = np.ravel(evaluated)[0]
    model.set_weights(start)
    if weights is ROWS:  # to Keras they would be weights of columns
        weights = ROWS[:, None]
    expected, expected_steps = one_step(plain, y, weights)
    assert_close(found, expected)
    for a, b in zip(found_steps, expected_steps, strict=True):
        assert_close(a, b, kind="gradients")
    assert max(np.abs(step).max() for step in expected_steps) > 1e-3
    # After the step: the plain model's weights are the same ones.
    again = plain.evaluate(X, y, sample_weight=weights, verbose=0)
    assert_close(evaluated, np.array(again))


@pytest.mark.backend_independent
def test_weights_of_classes_are_refused():
    model = make()
    trainer = StatefulTrainer(model, BATCH)
    trainer.compile("sgd")
    weights = {5: 2.0}
    for fit in (model.fit, model.train_on_batch, trainer.fit):
        with pytest.raises(ValueError, match="`class_weight` is for one label"):
            fit(X, Y, class_weight=weights)
    # What the message says to do.
    of_ids = np.ones(VOCABULARY, "float32")
    of_ids[5] = 2.0
    found = model.evaluate(X, Y, sample_weight=of_ids[Y], verbose=0)
    losses = -np.log(to_numpy(ops.softmax(model.predict(X, verbose=0))))
    losses = np.take_along_axis(losses, Y[..., None], axis=-1)[..., 0]
    assert_close(np.ravel(found)[0], np.mean(losses * of_ids[Y]))


def halves(model, weights):
    for part in (slice(0, 2), slice(2, 4)):
        inputs = {name: value[part] for name, value in X.items()}
        model.train_on_batch(inputs, Y[part], sample_weight=weights[part])


def test_accumulated_gradients_are_those_of_the_large_batch():
    """Also where tokens have weights, and the halves different ones."""
    weights = TOKENS.copy()
    weights[:2, 3:] = 0
    large = make(keras.optimizers.SGD(RATE))
    start = values(large)
    large.train_on_batch(X, Y, sample_weight=weights)
    parts = make(keras.optimizers.SGD(RATE, gradient_accumulation_steps=2))
    halves(parts, weights)
    for a, b, c in zip(values(parts), values(large), start, strict=True):
        assert_close(a - c, b - c, kind="gradients")


def test_moving_averages():
    """Kept beside the weights, and in their place when `fit` ends."""
    plain = make(keras.optimizers.SGD(RATE))
    model = make(keras.optimizers.SGD(RATE, use_ema=True, ema_momentum=0.75))
    averages = values(plain)
    for i in range(3):
        plain.train_on_batch(X, Y)
        new = values(plain)
        averages = [
            b if i == 0 else 0.75 * a + 0.25 * b
            for a, b in zip(averages, new, strict=True)
        ]
    model.fit(X, Y, epochs=3, shuffle=False, verbose=0)
    for a, b in zip(values(model), averages, strict=True):
        assert_close(a, b)


def test_a_scaled_loss():
    """The same step in float32; in float16 one that overflows is left out."""
    plain = make(keras.optimizers.SGD(RATE))
    scaled = make(
        keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(RATE), initial_scale=2.0**10
        )
    )
    found, steps = one_step(scaled, Y, TOKENS)
    loss, expected = one_step(plain, Y, TOKENS)
    assert_close(found, loss)
    for a, b in zip(steps, expected, strict=True):
        assert_close(a, b, kind="gradients")
    model = make("sgd", dtype="mixed_float16")
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1), initial_scale=2.0**30
    )
    model.compile(optimizer, loss="auto", weighted_metrics=[])
    loss, steps = one_step(model, Y, None)
    assert np.isfinite(loss)
    assert not any(np.any(step) for step in steps)
    assert to_numpy(optimizer.dynamic_scale) == 2.0**29


def muon_and_adam_w():
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(
            keras.optimizers.AdamW(0.01),
            {
                ".*/(linear_x|linear_y|linear_out|gate|up|down)/kernel": (
                    keras.optimizers.Muon(0.01, muon_a=3.4)
                )
            },
        )
    )


@pytest.mark.backend_independent
def test_muon_with_adam_w_is_saved_and_goes_on(tmp_path):
    model = make(muon_and_adam_w())
    start = values(model)
    model.train_on_batch(X, Y)
    for v, old in zip(model.trainable_variables, start, strict=True):
        assert np.any(to_numpy(v.value) != old), v.path
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, again):
        each.train_on_batch(X, Y)
    adam_w = make(keras.optimizers.AdamW(0.01))
    for _ in range(2):
        adam_w.train_on_batch(X, Y)
    differs = False
    for a, b, c in zip(values(again), values(model), values(adam_w)):
        np.testing.assert_array_equal(a, b)
        differs |= np.abs(b - c).max() > 1e-3
    assert differs  # Muon has done its part
