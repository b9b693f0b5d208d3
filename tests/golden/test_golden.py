"""Values of DeepMind's implementation that need no peer installed.

`griffin.npz` comes from `make_golden.py`, which says where it is from.
"""

import json
import pathlib

import keras
import numpy as np
import pytest

from keras_griffin.checkpoints import deepmind
from keras_griffin.layers import RGLRU
from keras_griffin.models.griffin_backbone import GriffinBackbone
from keras_griffin.models.griffin_causal_lm import GriffinCausalLM
from support import peers

# max |ours - theirs| / max |theirs|
TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 2e-5
FILE = pathlib.Path(__file__).parent / "griffin.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(FILE) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def model(golden):
    settings = json.loads(str(golden["settings"]))
    model = GriffinCausalLM(GriffinBackbone(**settings))
    deepmind.load_flax_params(model.backbone, tree(golden, "params/"))
    return model


def tree(golden, prefix):
    """Returns the nested dict whose leaves were stored under a prefix."""
    root = {}
    for name, leaf in golden.items():
        if not name.startswith(prefix):
            continue
        *levels, last = name.removeprefix(prefix).split("/")
        branch = root
        for level in levels:
            branch = branch.setdefault(level, {})
        branch[last] = leaf
    return root


def test_logits(golden, model):
    segment_pos = golden["segment_pos"]
    inputs = peers.our_inputs(golden["token_ids"], segment_pos)
    logits = peers.our_outputs(model, inputs)
    for i, real in enumerate(segment_pos >= 0):
        error = peers.relative_error(logits[i][real], golden["logits"][i][real])
        assert error < TOLERANCE


def test_decoding(golden, model):
    tokens, expected = golden["token_ids"][:1], golden["logits"][:1]
    logits, state = model.prefill({"token_ids": tokens[:, :2]})
    for t in range(2, tokens.shape[1]):
        logits = keras.ops.convert_to_numpy(logits)
        assert peers.relative_error(logits, expected[:, t - 1]) < TOLERANCE
        logits, state = model.decode_step(tokens[:, t], state)


def test_gradients(golden, model):
    inputs = peers.our_inputs(golden["token_ids"], golden["segment_pos"])
    received = peers.our_gradients(model, inputs, golden["cotangent"])
    expected = tree(golden, "gradients/")
    for path, variable, gradient in peers.paired_with_flax(
        model.backbone, expected
    ):
        error = peers.relative_error(received[id(variable)], gradient)
        assert error < GRADIENT_TOLERANCE, path


def test_complex_rglru(golden):
    x, segment_pos = golden["complex_x"], golden["segment_pos"]
    layer = RGLRU(x.shape[-1], num_gate_blocks=2, recurrence="complex")
    layer.build(x.shape)
    peers.load_complex_rglru(layer, tree(golden, "complex_params/"))
    inputs = peers.our_inputs(golden["token_ids"], segment_pos)
    y, state = layer(x, padding_mask=inputs["padding_mask"], return_state=True)
    real = segment_pos >= 0
    y = keras.ops.convert_to_numpy(y)[real]
    state = keras.ops.convert_to_numpy(state["recurrent"])
    assert peers.relative_error(y, golden["complex_y"][real]) < TOLERANCE
    assert peers.relative_error(state, golden["complex_state"]) < TOLERANCE
