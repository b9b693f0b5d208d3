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


def record(function, *args):
    """A started `RecordedStep` that has recorded for these arguments."""
    recorded = RecordedStep(function)
    step = recorded.start()
    for _ in range(STEPS_BEFORE_RECORDING + 1):
        step(*args)
    assert len(recorded._recordings) == 1
    return recorded


def graph_of(part):
    return getattr(part, "__self__", part).graph


def targets(recorded):
    """The operations of the one step that is recorded."""
    ((_, step_part, _),) = recorded._recordings.values()
    nodes = graph_of(step_part).nodes
    return [node.target for node in nodes if node.op == "call_function"]


@pytest.mark.parametrize("batch", [1, 3, 6])
def test_a_models_step(batch):
    model = tiny_model(block_types=PATTERNS["mixed"])
    state = model.init_state(batch, max_length=40)
    _, state = model.prefill({"token_ids": tokens(batch, 20)}, state)
    token = torch.from_numpy(tokens(batch, 1)[:, 0])
    recorded = record(functools.partial(decode_token, model), token, state)
    actual, expected = state, state
    step = recorded.start()
    for i in range(20):
        token = torch.from_numpy(tokens(batch, 1, seed=i)[:, 0])
        logits, actual = step(token, actual)
        with torch.no_grad():
            wanted, expected = decode_token(model, token, expected)
        assert_close(logits, wanted.numpy())
    for one, other in zip(
        keras.tree.flatten(actual), keras.tree.flatten(expected), strict=True
    ):
        assert_close(one, other.numpy())


def test_generated_text_is_the_eager_models():
    model, eager = tiny_model(), tiny_model()
    eager.set_weights(model.get_weights())
    eager.compile(sampler="greedy", run_eagerly=True)
    inputs = {"token_ids": tokens(2, 9)}
    options = {"max_new_tokens": 80, "stop_token_ids": None}
    np.testing.assert_array_equal(
        model.generate(inputs, **options)["token_ids"],
        eager.generate(inputs, **options)["token_ids"],
    )
    (recorded,) = (
        function
        for function in model._functions._functions.values()
        if isinstance(function, RecordedStep)
    )
    assert recorded._recordings
    assert not any(
        isinstance(function, RecordedStep)
        for function in eager._functions._functions.values()
    )


def test_weights_are_read_anew():
    weight = torch.nn.Parameter(torch.ones(3, 3))

    def function(x):
        return x @ torch.exp(weight).T + 1.0

    x = torch.ones(2, 3)
    recorded = record(function, x)
    with torch.no_grad():
        weight += 1.0
    assert_close(recorded.start()(x), function(x).detach().numpy())


def test_what_weights_decide_is_computed_once():
    weight = torch.nn.Parameter(torch.ones(3))
    recorded = record(lambda x: x * torch.exp(weight + 1.0), torch.ones(2, 3))
    ((weights_part, step_part, _),) = recorded._recordings.values()
    calls = [
        [
            node.target
            for node in graph_of(part).nodes
            if node.op == "call_function"
        ]
        for part in (weights_part, step_part)
    ]
    assert [len(part) for part in calls] == [2, 1]


def test_large_values_are_not_kept(monkeypatch):
    monkeypatch.setattr(recorded_torch, "MAX_KEPT", 0)
    # As many bytes as a quarter of what they unfold to.
    packed = torch.ones(200, 200, dtype=torch.int8)
    recorded = record(
        lambda x: x @ packed.to(torch.float32), torch.ones(9, 200)
    )
    ((weights_part, _, _),) = recorded._recordings.values()
    kept = weights_part()
    assert [x.dtype for x in kept] == [torch.int8]
    # Nor are matrices of floats kept twice.
    weight = torch.ones(200, 200)
    recorded = record(lambda x: x @ weight, torch.ones(9, 200))
    assert targets(recorded) == [torch.ops.aten.mm.default]


def test_few_bits_are_unfolded_once():
    packed = torch.ones(200, 200, dtype=torch.int8)
    recorded = record(
        lambda x: x @ packed.to(torch.float32), torch.ones(9, 200)
    )
    assert torch.ops.aten._to_copy.default not in targets(recorded)


def test_what_is_written_is_a_new_value():
    def function(x):
        y = torch.zeros_like(x)
        z = torch.zeros_like(x)
        y += x
        return y, z

    x = torch.ones(2)
    recorded = record(function, x)
    y, z = recorded.start()(x)
    assert y.tolist() == [1.0, 1.0] and z.tolist() == [0.0, 0.0]
    assert torch.ops.aten.add_.Tensor not in targets(recorded)


@pytest.mark.parametrize("activation", ["none", "tanh", "erf"])
def test_products_are_onednns(activation):
    weight, other = torch.randn(8, 5), torch.randn(5, 8)
    bias = torch.randn(5)

    def function(x):
        y = x @ weight + bias
        if activation != "none":
            y = torch.nn.functional.gelu(y, approximate=activation_name)
        return y @ other + y.sum(-1, keepdim=True)

    activation_name = "none" if activation == "erf" else activation
    x = torch.randn(3, 1, 8)
    recorded = record(function, x)
    assert_close(recorded.start()(x), function(x).numpy())
    found = targets(recorded)
    product = torch.ops.mkldnn._linear_pointwise.default
    assert found.count(product) == 2
    assert torch.ops.aten.mm.default not in found
    # The bias is in the product, and the GELU that it knows.
    assert found.count(torch.ops.aten.add.Tensor) == 1
    assert (torch.ops.aten.gelu.default in found) == (activation == "erf")


def test_packed_matrices_are_kept_until_they_change():
    weight = torch.randn(8, 5)
    x = torch.randn(3, 8)
    recorded = record(lambda x: x @ weight, x)
    _, (packed,) = recorded._of_weights
    recorded.start()(x)
    _, (same,) = recorded._of_weights
    assert same is packed
    weight *= 2.0
    assert_close(recorded.start()(x), (x @ weight).numpy())
    # As a new array in the place of the old one.
    weight.data = torch.randn(8, 5)
    assert_close(recorded.start()(x), (x @ weight).numpy())


def test_other_shapes_and_dtypes_are_recorded_anew():
    recorded = RecordedStep(lambda x: {"double": 2 * x})
    for x in (torch.ones(2), torch.ones(3), torch.ones(3).bfloat16()):
        for _ in range(STEPS_BEFORE_RECORDING + 2):
            double = recorded.start()(x)["double"]
        assert double.dtype == x.dtype
        assert double.tolist() == [2.0] * len(x)
    assert len(recorded._recordings) == 3
