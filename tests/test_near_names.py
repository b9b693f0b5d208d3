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


@pytest.mark.parametrize("sampler", ["gredy", 3, dict])
def test_samplers(sampler):
    with pytest.raises(ValueError, match="`sampler` must be a name"):
        tiny_model(num_layers=1, sampler=sampler)
