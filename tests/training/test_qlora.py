"""Adapters on quantized weights learn as they do on float ones."""

import keras
import numpy as np
import pytest
from keras.quantizers import AbsMaxQuantizer
from keras.quantizers import Int4QuantizationConfig
from keras.quantizers import Int8QuantizationConfig

import keras_griffin
from keras_griffin.training import chunked_cross_entropy
from support.checks import assert_close
from support.checks import to_numpy
from support.models import VOCABULARY
from support.models import loss_and_gradients
from support.models import round_matrices
from support.models import run
from support.models import tiny_model
from support.models import tokens
from support.once import once

RANK = 2
IDS = tokens(4, 9)
INPUTS = {"token_ids": IDS, "padding_mask": np.ones_like(IDS)}
SIZES = {"num_layers": 1, "block_types": ("local_attention",)}
ROUNDED = AbsMaxQuantizer(axis=-1)
CONFIGS = {
    "int8": Int8QuantizationConfig(activation_quantizer=ROUNDED),
    "int8 weights": Int8QuantizationConfig(activation_quantizer=None),
    "int4": Int4QuantizationConfig(block_size=8),
    "int4 channels": Int4QuantizationConfig(block_size=None),
    "int4 rounded inputs": Int4QuantizationConfig(
        block_size=None, activation_quantizer=ROUNDED
    ),
}
MODES = ["int8", "int4", *once(*list(CONFIGS)[3:], "int8 weights")]
# Cosine between a gradient and that of a float model with the same, rounded
# matrices, where inputs are rounded to 8 bits too.
COSINE = 0.98


def values(model):
    return {v.path: to_numpy(v.value).copy() for v in model.variables}


def copy_of(weights, **changes):
    """A model with the weights of another one."""
    model = tiny_model(**{**SIZES, **changes})
    for variable in model.variables:
        variable.assign(weights[variable.path])
    return model


@pytest.fixture(scope="module")
def base():
    keras.utils.set_random_seed(0)
    return values(tiny_model(**SIZES))


def quantized_model(base, mode):
    model = copy_of(base)
    model.quantize(config=CONFIGS[mode])
    return model


def adapt(model):
    """Gives a model adapters that are not 0."""
    model.backbone.enable_lora(RANK)
    rng = np.random.default_rng(3)
    for variable in model.trainable_variables:
        variable.assign(0.1 * rng.normal(size=variable.shape))


def gradient(model):
    weights = np.random.default_rng(4).normal(size=(*IDS.shape, VOCABULARY))
    _, gradients = loss_and_gradients(model, IDS, weights)
    return np.concatenate([g.ravel() for g in gradients])


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_those_of_a_float_model(base, mode):
    model, rounded = quantized_model(base, mode), copy_of(base)
    round_matrices(rounded, model)
    for each in (model, rounded):
        adapt(each)
    received, expected = gradient(model), gradient(rounded)
    if CONFIGS[mode].activation_quantizer is None:
        assert_close(received, expected, kind="gradients")
    norms = np.linalg.norm(received) * np.linalg.norm(expected)
    assert received @ expected / norms > COSINE


@pytest.mark.parametrize("mode", MODES)
def test_the_loss_falls(base, mode, monkeypatch):
    model = quantized_model(base, mode)
    adapt(model)
    before = values(model)
    losses = fit(model)
    assert losses[-1] < losses[0] - 0.8
    for variable in model.variables:
        is_same = np.array_equal(
            to_numpy(variable.value), before[variable.path]
        )
        assert is_same != variable.trainable, variable.path
    if mode == "int8":  # with the logits in 4 pieces
        for variable in model.trainable_variables:
            variable.assign(before[variable.path])
        pieces = 10 * VOCABULARY
        monkeypatch.setattr(chunked_cross_entropy, "MAX_LOGITS", pieces)
        np.testing.assert_allclose(fit(model), losses, rtol=1e-2)


def fit(model):
    model.compile(optimizer=keras.optimizers.Adam(5e-2))
    return model.fit(
        INPUTS, np.roll(IDS, -1, 1), epochs=8, shuffle=False, verbose=0
    ).history["loss"]


@pytest.mark.parametrize("mode", ["int8", *once("int4")])
def test_adapters_are_saved_by_themselves(base, mode, tmp_path):
    model = quantized_model(base, mode)
    model.save_to_preset(str(tmp_path / "base"))
    adapt(model)
    fit(model)
    expected = run(model, IDS)
    with pytest.raises(ValueError, match="merged into float kernels"):
        model.merge_lora()
    for save in (
        lambda: model.save(tmp_path / "model.keras"),
        lambda: model.save_weights(tmp_path / "model.weights.h5"),
        lambda: model.save_to_preset(str(tmp_path / "preset")),
        lambda: model.backbone.save(tmp_path / "backbone.keras"),
    ):
        with pytest.raises(ValueError, match="saved by themselves"):
            save()
    assert not (tmp_path / "preset").exists()

    # As the message says: the quantized model and its adapters, or the float
    # model, adapters and `quantize` in either order.
    adapters = tmp_path / "a.lora.h5"
    model.save_lora_weights(adapters)
    again = keras_griffin.GriffinCausalLM.from_preset(str(tmp_path / "base"))
    again.load_lora_weights(adapters)
    np.testing.assert_allclose(run(again, IDS), expected, atol=1e-5)
    again = copy_of(base)
    again.load_lora_weights(adapters)
    again.quantize(config=CONFIGS[mode])
    np.testing.assert_allclose(run(again, IDS), expected, atol=1e-4)
