"""What KerasHub's users call on a Gemma does the same on ours."""

import keras
import keras_hub
import numpy as np
import pytest

from support.checks import assert_close
from support.checks import to_numpy
from support.models import VOCABULARY
from support.models import randomize
from support.models import tiny_model
from support.models import tokens
from support.once import once

PROMPT, TIME = 3, 8
EVERY_ID = tuple(range(VOCABULARY))
LAYERS = 3


def gemma():
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=LAYERS,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=16,
        intermediate_dim=24,
        head_dim=8,
    )
    randomize(backbone)
    model = keras_hub.models.GemmaCausalLM(backbone, preprocessor=None)
    model.compile("sgd", sampler="greedy")
    return model


each_model = pytest.mark.parametrize("make", [*once(gemma), tiny_model])


@each_model
@pytest.mark.parametrize("stops", [None, EVERY_ID], ids=["all", "one"])
def test_generate_function(make, stops):
    model = make()
    assert model.generate_function is None
    function = model.make_generate_function()
    assert model.make_generate_function() is function
    assert model.generate_function is function
    inputs = {
        "token_ids": tokens(2, TIME),
        "padding_mask": np.tile(np.arange(TIME) < PROMPT, (2, 1)),
    }
    outputs = function(inputs, stop_token_ids=stops)
    assert sorted(outputs) == ["padding_mask", "token_ids"]
    assert all(map(keras.ops.is_tensor, outputs.values()))
    token_ids, mask = (
        to_numpy(outputs[name]) for name in ("token_ids", "padding_mask")
    )
    assert token_ids.dtype == "int32" and mask.dtype == bool
    prompts = inputs["token_ids"][:, :PROMPT]
    np.testing.assert_array_equal(token_ids[:, :PROMPT], prompts)
    length = PROMPT + 1 if stops else TIME
    np.testing.assert_array_equal(mask, [np.arange(TIME) < length] * 2)
    model.compile(sampler="greedy")
    assert model.generate_function is None


@pytest.mark.backend_independent
@each_model
def test_get_quantization_layer_structure(make):
    model = make()
    assert model.get_quantization_layer_structure("int8") is None
    for mode in ("gptq", "awq"):
        structure = model.get_quantization_layer_structure(mode)
        assert sorted(structure) == ["pre_block_layers", "sequential_blocks"]
        assert len(structure["sequential_blocks"]) == LAYERS
        x = tokens(2, TIME)
        for layer in [
            *structure["pre_block_layers"],
            *structure["sequential_blocks"],
        ]:
            x = layer(x)
        normalization = (
            model.backbone.get_layer("final_normalization")
            if make is gemma
            else model.backbone.final_norm
        )
        expected = model.backbone.predict_on_batch(
            {"token_ids": tokens(2, TIME), "padding_mask": np.ones((2, TIME))}
        )
        assert_close(to_numpy(normalization(x)), to_numpy(expected))


@pytest.mark.backend_independent
@each_model
def test_perplexity(make):
    model = make()
    x = {"token_ids": tokens(2, TIME), "padding_mask": np.ones((2, TIME))}
    y, weights = (
        tokens(2, TIME, seed=1),
        (tokens(2, TIME) > 9).astype("float32"),
    )
    perplexity = keras_hub.metrics.Perplexity(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), weighted_metrics=[perplexity])
    logits = to_numpy(model.predict_on_batch(x)).astype("float64")
    logs = model.fit(
        x, y, sample_weight=weights, shuffle=False, verbose=0
    ).history
    shifted = logits - logits.max(-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    losses = -np.take_along_axis(log_probs, y[..., None], -1)[..., 0]
    expected = np.exp((losses * weights).sum() / weights.sum())
    assert_close(np.array(logs["perplexity"]), np.array([expected]))
    assert set(logs) == {"loss", "perplexity"}
