"""Checkpoints of floats that become int8 models as they are read."""

import numpy as np
import pytest

import keras_griffin
from keras_griffin.training import quantization
from support import peers
from support.checks import to_numpy
from support.models import randomize
from support.models import tokens
from support.once import once

LOAD = keras_griffin.GriffinCausalLM.from_preset


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("floats")
    backbone = keras_griffin.GriffinBackbone(
        **{
            **peers.GRIFFIN,
            # What DeepMind's archives are taken to have.
            "attention_window_size": 2048,
            "final_logit_soft_cap": 30.0,
        }
    )
    randomize(backbone)
    backbone.save_to_preset(root / "keras")
    backbone.export_to_transformers(root / "transformers")
    for framework in ("flax", "torch"):
        backbone.export_to_deepmind(root / framework, framework)
    return root


def check_equal(received, expected):
    for ours, theirs in zip(received.weights, expected.weights, strict=True):
        assert ours.path == theirs.path
        np.testing.assert_array_equal(
            to_numpy(ours.value), to_numpy(theirs.value)
        )


@pytest.mark.parametrize(
    "form", ["transformers", *once("keras", "flax", "torch")]
)
def test_as_if_quantized_later(folders, form, monkeypatch, tmp_path):
    monkeypatch.setattr(quantization, "ROUNDED_AT_ONCE", 100)
    expected = LOAD(str(folders / form), preprocessor=None)
    expected.quantize("int8")
    loaded = LOAD(
        str(folders / form), dtype="int8_from_float32", preprocessor=None
    )
    assert loaded.backbone.blocks[0].mlp.down.quantization_mode == "int8"
    check_equal(loaded, expected)
    loaded.save_to_preset(tmp_path / "int8")
    again = LOAD(str(tmp_path / "int8"), preprocessor=None)
    check_equal(again, expected)
    prompt = {"token_ids": tokens(2, 5)}
    logits = [to_numpy(m.prefill(prompt)[0]) for m in (again, expected)]
    np.testing.assert_array_equal(*logits)


def test_floats_of_bfloat16(folders):
    loaded = LOAD(
        str(folders / "transformers"),
        dtype="int8_from_bfloat16",
        preprocessor=None,
    )
    down = loaded.backbone.blocks[0].mlp.down
    assert down.compute_dtype == down.bias.dtype == "bfloat16"
    assert loaded.backbone.token_embedding.quantization_mode == "int8"


def test_what_cannot_be_rounded_on_the_way(folders):
    with pytest.raises(ValueError, match="Load the model in float"):
        LOAD(str(folders / "transformers"), dtype="int4_from_float32")
