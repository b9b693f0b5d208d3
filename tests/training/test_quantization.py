"""Quantized models compute, generate, train and are loaded as they were."""

import keras
import numpy as np
import pytest
from keras.quantizers import AWQConfig
from keras.quantizers import GPTQConfig
from keras.quantizers import Int4QuantizationConfig
from keras.quantizers import Int8QuantizationConfig

import keras_griffin
from support.checks import to_numpy
from support.models import round_matrices
from support.models import run
from support.models import tiny_model
from support.models import tokens
from support.once import once

IDS = tokens(3, 9)
PROMPTS = {"token_ids": IDS, "padding_mask": np.ones_like(IDS)}
SIZES = {"num_layers": 1, "hidden_dim": 32}
CALIBRATION = {
    "dataset": list(tokens(8, 16, seed=1)),
    "tokenizer": len,  # The texts are ids.
    "num_samples": 8,
    "sequence_length": 16,
    "group_size": 16,
}
CONFIGS = {
    "int8": None,
    "int4": None,
    "float8": None,
    # Damped: of so few tokens the second moments are nearly singular.
    "gptq": lambda: GPTQConfig(**CALIBRATION, hessian_damping=0.1),
    "awq": lambda: AWQConfig(**CALIBRATION, num_grid_points=3),
}
# GPTQ and AWQ stand on one hook and are slow to compile, kernel by kernel.
MODES = ["int8", "int4", "float8", *once("gptq", "awq")]

# Largest change of a logit over the largest logit, where inputs are rounded
# too. Random weights are the worst case; benchmarks/quality/quantization.py
# has what it costs a trained model.
CHANGE = {"int8": 0.15, "float8": 0.6}
# Distance of a rounded matrix over its norm: 15 steps over the range of a
# normal distribution's 32 values are 0.1; GPTQ and AWQ go farther on purpose.
DISTANCE = {"int4": 0.15, "gptq": 0.4, "awq": 0.4}


@pytest.fixture(scope="module")
def base():
    """A float model's weights, outputs, and new tokens."""
    model = tiny_model(**SIZES)
    weights = {v.path: to_numpy(v.value) for v in model.variables}
    return weights, logits(model)


def logits(model):
    """After the prompts, of the compiled function that generation takes."""
    outputs, _ = model.prefill(PROMPTS)
    return to_numpy(outputs)


def float_model(base):
    model = tiny_model(**SIZES)
    for variable in model.variables:
        variable.assign(base[0][variable.path])
    return model


def quantize(model, mode):
    make_config = CONFIGS[mode]
    model.quantize(mode, config=make_config and make_config())


def generate(model):
    outputs = model.generate(
        PROMPTS, stop_token_ids=None, max_new_tokens=4, sampler="greedy"
    )
    return outputs["token_ids"]


def modes_of(model):
    return {
        layer.path: layer.quantization_mode
        for layer in model.backbone._flatten_layers()
        if layer.quantization_mode is not None
    }


@pytest.mark.parametrize("mode", MODES)
def test_a_quantized_model(base, mode, tmp_path):
    weights, outputs = base
    model = float_model(base)
    quantize(model, mode)

    # All matrices, and to int8 and int4 the embedding; nothing else.
    modes = modes_of(model)
    assert set(modes.values()) == {mode}
    dense = [
        layer.path
        for layer in model.backbone._flatten_layers()
        if isinstance(layer, keras.layers.Dense)
    ]
    embedding = ["token_embedding"] if mode in ("int8", "int4") else []
    assert sorted(modes) == sorted(dense + embedding)
    for variable in model.variables:
        if "rglru" in variable.path or "conv" in variable.path:
            assert variable.dtype == "float32"
            np.testing.assert_array_equal(
                to_numpy(variable.value), weights[variable.path]
            )

    quantized = logits(model)
    if mode in CHANGE:
        change = np.abs(quantized - outputs).max() / np.abs(outputs).max()
        assert 0 < change < CHANGE[mode]
    else:
        rounded = float_model(base)
        round_matrices(rounded, model)
        np.testing.assert_allclose(logits(rounded), quantized, atol=2e-3)
        for variable in rounded.variables:
            old, new = weights[variable.path], to_numpy(variable.value)
            distance = np.linalg.norm(new - old) / np.linalg.norm(old)
            assert distance < DISTANCE[mode], variable.path
            layer, _, name = variable.path.rpartition("/")
            assert distance > 0 or layer not in modes or name == "bias"

    model.save_to_preset(str(tmp_path / "preset"))
    again = keras_griffin.GriffinCausalLM.from_preset(str(tmp_path / "preset"))
    assert modes_of(again) == modes
    np.testing.assert_allclose(logits(again), quantized, atol=1e-5)
    again.save_to_preset(str(tmp_path / "again"))
    again = keras_griffin.GriffinCausalLM.from_preset(str(tmp_path / "again"))
    assert modes_of(again) == modes
    np.testing.assert_allclose(logits(again), quantized, atol=1e-5)
    model.save(tmp_path / "model.keras")
    third = keras.saving.load_model(tmp_path / "model.keras")
    assert third.backbone.get_config() == again.backbone.get_config()
    saved = {v.path: to_numpy(v.value) for v in model.variables}
    loaded = {v.path: to_numpy(v.value) for v in third.variables}
    assert saved.keys() == loaded.keys()
    for path, value in saved.items():
        np.testing.assert_array_equal(loaded[path], value)


def test_generation_goes_on_after_quantization(base):
    """Nothing that was compiled in float is left, and whole = step by step."""
    model = float_model(base)
    before = generate(model), run(model, IDS)
    model.backbone.quantize("int8")  # which does not tell the model
    outputs = run(model, IDS)
    assert np.any(outputs != before[1])
    np.testing.assert_allclose(logits(model), outputs[:, -1], atol=1e-3)
    new = generate(model)[:, IDS.shape[1] :]
    state = model.init_state(len(IDS))
    step, state = model.prefill(PROMPTS, state)
    for token in new.T:
        np.testing.assert_array_equal(to_numpy(step).argmax(-1), token)
        step, state = model.decode_step(token, state)


@pytest.mark.parametrize("mode", ["int8", *once("int4")])
def test_the_likeliest_tokens_of_a_quantized_model(mode):
    model = tiny_model()
    prompt = {"token_ids": tokens(1, 9), "padding_mask": np.ones((1, 9), int)}
    options = {"stop_token_ids": None, "max_new_tokens": 40}
    before = model.generate(prompt, **options)
    model.quantize(mode)
    (ids,) = model.generate(prompt, **options)["token_ids"]
    assert (ids.shape,) == (before["token_ids"].shape[1:],)
    wanted = run(model, ids[None])[0].argmax(-1)[8:-1]
    np.testing.assert_array_equal(ids[9:], wanted)


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_the_embedding_in_both_directions(base, mode):
    matrix = base[0]["token_embedding/embeddings"]
    model = float_model(base)
    model.quantize(mode)
    embedding = model.backbone.token_embedding
    step = np.abs(matrix).max() / (127 if mode == "int8" else 7)
    np.testing.assert_allclose(to_numpy(embedding(IDS)), matrix[IDS], atol=step)
    x = np.random.default_rng(0).normal(size=(2, 3, 32)).astype("float32")
    logits = to_numpy(embedding(x, reverse=True))
    # Errors of random signs add up to their root mean square.
    np.testing.assert_allclose(
        logits, x @ matrix.T, atol=4 * step * np.sqrt(32)
    )


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "config",
    [
        Int8QuantizationConfig(activation_quantizer=None),
        Int4QuantizationConfig(block_size=None),
        Int4QuantizationConfig(block_size=8),
    ],
    ids=["int8 weights", "int4 channels", "int4 blocks"],
)
def test_a_configuration_is_loaded_again(base, config, tmp_path):
    model = float_model(base)
    model.backbone.quantize(config=config)
    model.backbone.save_to_preset(str(tmp_path))
    again = keras_griffin.GriffinBackbone.from_preset(str(tmp_path))
    x = np.random.default_rng(0).normal(size=(2, 3, 32)).astype("float32")

    def outputs(backbone):
        embedding, mlp = backbone.token_embedding, backbone.blocks[0].mlp
        return [embedding(IDS), embedding(x, reverse=True), mlp(x)]

    for new, old in zip(outputs(again), outputs(model.backbone)):
        np.testing.assert_allclose(to_numpy(new), to_numpy(old), atol=1e-5)


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "filters, expected",
    [
        ("down", {"down"}),
        (["^gate$", "linear_x"], {"gate", "linear_x"}),
        (lambda layer: layer.name == "up", {"up"}),
        ("rglru|down|conv", {"down"}),
    ],
)
def test_filters(base, filters, expected):
    model = float_model(base)
    model.quantize("int8", filters=filters)
    assert {path.split("/")[-1] for path in modes_of(model)} == expected


@pytest.mark.backend_independent
def test_what_cannot_be_is_refused(base):
    model = float_model(base)
    for filters in ("rglru", ["conv"], lambda layer: False):
        with pytest.raises(ValueError, match="match at least one layer"):
            model.quantize("int8", filters=filters)
    with pytest.raises(ValueError, match="GPTQConfig"):
        model.quantize("gptq")
    assert not modes_of(model)
    for dtype in ("int4_from_float32", "float8_from_mixed_bfloat16"):
        with pytest.raises(ValueError, match="Load the model in float, then"):
            keras_griffin.GriffinCausalLM.from_preset(
                "griffin_shakespeare_en", dtype=dtype
            )


def test_float8_trains(base):
    model = float_model(base)
    model.quantize("float8")
    down = model.backbone.blocks[0].mlp.down
    assert not to_numpy(down.inputs_amax_history.value).any()
    model.compile(
        optimizer="sgd",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(PROMPTS, np.roll(IDS, -1, 1), epochs=2, verbose=0)
    assert to_numpy(down.inputs_amax_history.value).any()
    assert to_numpy(down.kernel_scale.value) != 1.0
    assert all(np.isfinite(to_numpy(v.value)).all() for v in model.variables)


DTYPES = {
    "bfloat16": "bfloat16",
    "float16": "float16",
    "mixed": "mixed_bfloat16",
    "map": keras.dtype_policies.DTypePolicyMap(
        default_policy="float32",
        policy_map={
            "token_embedding": keras.DTypePolicy("bfloat16"),
            "block_0/.*": keras.DTypePolicy("mixed_bfloat16"),
        },
    ),
}


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize(
    "dtype", ["bfloat16", *once("float16", "mixed", "map")]
)
def test_dtype_on_load(base, dtype, quantized, tmp_path):
    if quantized and dtype in ("float16", "map"):
        pytest.skip("Keras refuses int8 from float16; a map is the int8 model")
    model = float_model(base)
    if quantized:
        model.quantize("int8")
    model.backbone.save_to_preset(str(tmp_path))
    again = keras_griffin.GriffinBackbone.from_preset(
        str(tmp_path), dtype=DTYPES[dtype]
    )
    again = keras_griffin.GriffinCausalLM(again)
    dtypes = {v.path: v.dtype for v in again.variables}
    kernel = dtypes["block_0/mlp/down/kernel"]
    param = dtypes["block_0/recurrent_block/rglru/recurrence_param"]
    half = dtype if dtype in ("bfloat16", "float16") else "float32"
    assert kernel == ("int8" if quantized else half)
    assert param == half
    if dtype == "map":
        assert dtypes["token_embedding/embeddings"] == "bfloat16"
        down = again.backbone.blocks[0].mlp.down
        assert down.compute_dtype == "bfloat16"
        assert again.backbone.final_norm.compute_dtype == "float32"
    expected = base[1]
    outputs = logits(again)
    assert outputs.dtype == np.float32
    # 8 bits of mantissa, and again random weights.
    tolerance = 0.25 * np.abs(expected).max()
    assert 0 < np.abs(outputs - expected).max() < tolerance
    _, state = again.prefill(PROMPTS)
    state_dtype = state["blocks"][0]["recurrent"].dtype
    assert keras.backend.standardize_dtype(state_dtype) == "float32"
    if dtype == "map":  # whole rows go the way of one token after the other
        np.testing.assert_allclose(
            run(again, IDS)[:, -1], outputs, atol=tolerance / 5
        )
