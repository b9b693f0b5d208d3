"""A recorded step equals the eager one, and follows the weights."""

import functools

import keras
import numpy as np
import pytest

if keras.config.backend() != "torch":
    pytest.skip("recording is PyTorch's", allow_module_level=True)

import torch

from keras_griffin.generation import recorded_torch
from keras_griffin.generation.decoding import decode_token
from keras_griffin.generation.recorded_torch import STEPS_BEFORE_RECORDING
from keras_griffin.generation.recorded_torch import RecordedStep
from support.checks import assert_close
from support.models import PATTERNS
from support.models import tiny_model
from support.models import tokens

GENERATE = {"max_new_tokens": 80, "stop_token_ids": None}


def record(function, *args):
    """A `RecordedStep` that has recorded for these arguments."""
    recorded = RecordedStep(function)
    for _ in range(STEPS_BEFORE_RECORDING + 1):
        recorded(*args)
    assert len(recorded._recordings) == 1
    return recorded


def targets(recorded):
    """Operations of the two parts of the one step that is recorded."""
    ((*parts, _),) = recorded._recordings.values()
    return [
        [n.target for n in part.__self__.graph.nodes if n.op == "call_function"]
        for part in parts
    ]


def copy_of(model):
    copy = tiny_model()
    copy.set_weights(model.get_weights())
    return copy


def generate(model):
    return model.generate({"token_ids": tokens(2, 9)}, **GENERATE)["token_ids"]


@pytest.mark.parametrize("batch", [1, 3, 6])
def test_a_models_step(batch):
    model = tiny_model(block_types=PATTERNS["mixed"])
    state = model.init_state(batch, max_length=40)
    _, state = model.prefill({"token_ids": tokens(batch, 20)}, state)
    token = torch.from_numpy(tokens(batch, 1)[:, 0])
    recorded = record(functools.partial(decode_token, model), token, state)
    actual, expected = state, state
    for i in range(20):
        token = torch.from_numpy(tokens(batch, 1, seed=i)[:, 0])
        logits, actual = recorded(token, actual)
        with torch.no_grad():
            wanted, expected = decode_token(model, token, expected)
        assert_close(logits, wanted.numpy())
    for one, other in zip(
        keras.tree.flatten(actual), keras.tree.flatten(expected), strict=True
    ):
        assert_close(one, other.numpy())


def test_generated_text_is_the_eager_models():
    model = tiny_model()
    eager = copy_of(model)
    eager.compile(sampler="greedy", run_eagerly=True)
    np.testing.assert_array_equal(generate(model), generate(eager))
    (recorded,) = model._functions._steps.values()
    assert recorded._recordings
    assert not eager._functions._steps


@pytest.mark.parametrize("how", ["assign", "data", "new data"])
def test_weights_are_read_anew(how):
    model = tiny_model()
    text = generate(model)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        value = torch.from_numpy(
            0.1 * rng.normal(size=variable.shape).astype("float32")
        )
        if how == "assign":
            variable.assign(value)
        elif how == "data":
            variable.value.data.copy_(value)
        else:
            variable.value.data = value
    fresh = copy_of(model)
    again = generate(model)
    assert np.any(again != text)
    np.testing.assert_array_equal(again, generate(fresh))
    state = model.init_state(2, max_length=9)
    token = tokens(2, 1)[:, 0]
    for _ in range(STEPS_BEFORE_RECORDING + 1):
        model.decode_step(token, state)
    for variable in model.variables:
        variable.value.data *= 2.0
    expected, _ = copy_of(model).decode_step(token, state)
    assert_close(model.decode_step(token, state)[0], expected.numpy())


def test_what_weights_decide_is_computed_once():
    weight = torch.nn.Parameter(torch.ones(3))
    recorded = record(lambda x: x * torch.exp(weight + 1.0), torch.ones(2, 3))
    aten = torch.ops.aten
    assert targets(recorded)[1] == [aten.mul.Tensor]
    (value,) = list(recorded._of_weights.values())[0]
    recorded(torch.ones(2, 3))
    assert list(recorded._of_weights.values())[0][0] is value


def test_large_values_are_not_kept(monkeypatch):
    monkeypatch.setattr(recorded_torch, "MAX_KEPT", 0)
    # As many bytes as a quarter of what they unfold to.
    packed = torch.ones(200, 200, dtype=torch.int8)
    x = torch.ones(9, 200)
    recorded = record(lambda x: x @ packed.to(torch.float32), x)
    (kept,) = recorded._of_weights.values()
    assert [value.dtype for value in kept] == [torch.int8]
    # What takes no more memory than its sources is.
    weight = torch.ones(200, 200)
    recorded = record(lambda x: x.bfloat16() @ weight.bfloat16(), x)
    (kept,) = recorded._of_weights.values()
    assert [value.dtype for value in kept] == [torch.bfloat16]


def test_few_bits_are_unfolded_once():
    packed = torch.ones(200, 200, dtype=torch.int8)
    recorded = record(
        lambda x: x @ packed.to(torch.float32), torch.ones(9, 200)
    )
    assert targets(recorded)[1] == [torch.ops.aten.mm.default]


def test_what_is_written_is_a_new_value():
    def function(x):
        y = torch.zeros_like(x)
        z = torch.zeros_like(x)
        y += x
        return y, z

    x = torch.ones(2)
    recorded = record(function, x)
    for _ in range(2):
        y, z = recorded(x)
        assert y.tolist() == [1.0, 1.0] and z.tolist() == [0.0, 0.0]


def test_equal_operations_are_one():
    recorded = record(lambda x: (x.exp() + 1, x.exp() + 2), torch.ones(2))
    assert targets(recorded)[1].count(torch.ops.aten.exp.default) == 1


def test_other_shapes_and_dtypes_are_recorded_anew():
    recorded = RecordedStep(lambda x: {"double": 2 * x})
    for x in (torch.ones(2), torch.ones(3), torch.ones(3).bfloat16()):
        for _ in range(STEPS_BEFORE_RECORDING + 2):
            double = recorded(x)["double"]
        assert double.dtype == x.dtype
        assert double.tolist() == [2.0] * len(x)
    assert len(recorded._recordings) == 3


def test_names_of_the_state_dict_stay():
    model = tiny_model()
    list(model.parameters())  # Keras names them here
    names = list(model.state_dict())
    generate(model)
    assert names
    assert list(model.state_dict()) == names


def test_inference_mode():
    model = tiny_model()
    expected = generate(copy_of(model))
    with torch.inference_mode():
        inside = generate(model)
        built_inside = copy_of(model)
        also_inside = generate(built_inside)
    for text in (inside, also_inside, generate(model), generate(built_inside)):
        np.testing.assert_array_equal(text, expected)


def test_autocast_ends_with_its_context():
    model = tiny_model()
    eager = copy_of(model)
    eager.compile(sampler="greedy", run_eagerly=True)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(generate(model), generate(eager))
    np.testing.assert_array_equal(generate(model), generate(eager))
    # Nor does what was recorded before change what autocast gives.
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(generate(model), generate(eager))


def test_int64_tokens():
    model = tiny_model()
    expected = generate(copy_of(model))
    ids = torch.from_numpy(tokens(2, 9).astype("int64"))
    actual = model.generate({"token_ids": ids}, **GENERATE)["token_ids"]
    np.testing.assert_array_equal(actual, expected)
    state = model.init_state(2, max_length=50)
    same = state
    for i in range(STEPS_BEFORE_RECORDING + 2):
        token = tokens(2, 1, seed=i)[:, 0]
        logits, state = model.decode_step(token, state)
        others, same = model.decode_step(token.astype("int64"), same)
        assert_close(others, logits.numpy())
    # A step of the user's own may take them as they are.
    token = torch.from_numpy(token.astype("int64"))
    recorded = record(functools.partial(decode_token, model), token, state)
    with torch.no_grad():
        expected, _ = decode_token(model, token, state)
    assert_close(recorded(token, state)[0], expected.numpy())


def test_text_of_a_model_with_jit_compile():
    model = tiny_model()
    expected = generate(copy_of(model))
    model.compile(sampler="greedy", jit_compile=True)
    np.testing.assert_array_equal(generate(model), expected)
