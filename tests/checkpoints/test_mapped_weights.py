"""On PyTorch the pages of a safetensors file are the weights of a model."""

import os

import numpy as np

import keras_griffin
from support import peers
from support.checks import to_numpy
from support.models import randomize

FILE = "model.safetensors"


def weights(model):
    return [to_numpy(v.value).copy() for v in model.weights]


def test_weights_change_alone_and_over_their_own_file(tmp_path):
    load = keras_griffin.GriffinBackbone.from_preset
    made = keras_griffin.GriffinBackbone(**peers.GRIFFIN)
    randomize(made)
    made.export_to_transformers(tmp_path / "old")
    first, second = (load(str(tmp_path / "old")) for _ in range(2))
    before = weights(second)
    for variable in first.weights:
        variable.assign(to_numpy(variable.value) + 1)
    changed = weights(first)
    first.export_to_transformers(tmp_path / "new")
    os.replace(tmp_path / "new" / FILE, tmp_path / "old" / FILE)
    again = load(str(tmp_path / "old"))
    for model, expected in (
        (first, changed),
        (second, before),
        (again, changed),
    ):
        for value, wanted in zip(weights(model), expected, strict=True):
            np.testing.assert_array_equal(value, wanted)
    assert any(np.any(a != b) for a, b in zip(before, changed, strict=True))
