"""Mistyped arguments and samplers are refused, with the nearest known name."""

import pytest

import keras_griffin
from support.models import tiny_backbone
from support.models import tiny_model

pytestmark = pytest.mark.backend_independent

PRESET = "griffin_shakespeare_en"


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiny_backbone(num_layers=1, dropot=0.1),
        lambda: keras_griffin.GriffinBackbone.from_preset(PRESET, dropot=0.1),
    ],
)
def test_arguments_of_the_backbone(make):
    with pytest.raises(ValueError, match="'dropot'. Did you mean dropout"):
        make()


def test_arguments_of_the_language_model():
    backbone = tiny_backbone(num_layers=1)
    with pytest.raises(ValueError, match="Did you mean preprocessor"):
        keras_griffin.GriffinCausalLM(backbone, preprocesor=None)
    with pytest.raises(ValueError, match="Did you mean preprocessor"):
        keras_griffin.GriffinCausalLM.from_preset(PRESET, preprocesor=None)


@pytest.mark.parametrize(
    "make",
    [
        keras_griffin.GriffinTokenizer,
        keras_griffin.GriffinTokenizer.from_preset,
        keras_griffin.GriffinCausalLMPreprocessor,
        keras_griffin.GriffinCausalLMPreprocessor.from_preset,
        keras_griffin.GriffinTextClassifierPreprocessor,
        keras_griffin.GriffinTextClassifierPreprocessor.from_preset,
        keras_griffin.GriffinTextEmbedderPreprocessor,
        keras_griffin.GriffinTextEmbedderPreprocessor.from_preset,
    ],
)
def test_arguments_of_preprocessing(make):
    with pytest.raises(ValueError, match="Did you mean sequence_length"):
        make(PRESET, sequence_lenght=4)


def test_arguments_of_training():
    with pytest.raises(ValueError, match="Did you mean weight_decay"):
        keras_griffin.GriffinAdamW(weight_decy=0.1)
    with pytest.raises(ValueError, match="Did you mean beta"):
        keras_griffin.GriffinDPO(None, betta=0.1)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("recurrentgemma-2b", "recurrent_gemma_2b_en"),
        ("recurrentgemma-2b-it", "recurrent_gemma_instruct_2b_en"),
        ("google/recurrentgemma-9b-its", "recurrent_gemma_instruct_9b_en"),
        ("griffin_shakespear_en", PRESET),
    ],
)
def test_presets(name, expected):
    with pytest.raises(ValueError, match=f"Did you mean {expected}"):
        keras_griffin.GriffinCausalLM.from_preset(name)


def test_what_other_libraries_call_it():
    with pytest.raises(ValueError, match="Did you mean dtype"):
        keras_griffin.GriffinCausalLM.from_preset(PRESET, torch_dtype="float16")
    model = tiny_model(num_layers=1)
    with pytest.raises(ValueError, match="Did you mean max_new_tokens"):
        model.generate({}, max_tokens=3)
    with pytest.raises(ValueError, match="Did you mean top_p"):
        model.compile(sampler="topp")


@pytest.mark.parametrize("sampler", ["gredy", 3, dict])
def test_samplers(sampler):
    with pytest.raises(ValueError, match="`sampler` must be a name"):
        tiny_model(num_layers=1, sampler=sampler)
