"""8 devices compute what one does, and send what the paper says."""

import json
import re

import pytest

from support.processes import run
from support.tolerances import TOLERANCES

# JAX in a process of its own, whatever the backend of this one.
pytestmark = [pytest.mark.backend_independent, pytest.mark.slow]

# After 5 steps: the tolerance of one gradient.
TOLERANCE = TOLERANCES["float32"].gradients

RUNS = [
    "plain, batch 8",
    "plain, batch 2, model 4",
    "plain, model 8",
    "packed, remat, batch 2, model 2, sequence 2",
    "lora, batch 2, model 4, weights replicated",
]

# Rows of 8 x 32 tokens, width 16, on 8 devices.


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("eight_devices") / "results.json"
    run("distribution/eight_devices.py", path, devices=8)
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", RUNS)
def test_losses_and_weights_are_those_of_one_device(results, name):
    assert results[f"{name}: losses"] < TOLERANCE
    assert results[f"{name}: weights"] < TOLERANCE
    variant = name.split(", ")[0]
    (trained,) = (
        count
        for key, count in results.items()
        if key.startswith(variant) and key.endswith(": trained")
    )
    assert trained >= 12  # weights of which some entry moved by 5 steps


def test_the_loss_in_pieces_over_batch_and_sequence(results):
    """Each device takes three pieces of its own tokens, and sends no logits."""
    assert results["cut: loops"] == 2  # forward and backward
    logits = 4 * 6 * 64 // 2  # of a piece, and "model" divides the vocabulary
    assert results["cut: largest sent"] < logits
    # Against one device with all logits at once.
    assert results["cut: loss"] < TOLERANCES["float32"].values
    assert results["cut: sparse_categorical_accuracy"] == 0
    assert results["cut: weights"] < TOLERANCE


def test_stateful_training_is_that_of_one_device(results):
    assert results["stateful: losses"] < TOLERANCE
    assert results["stateful: values"] < TOLERANCE  # the state's among them
    refusal = "batch_size=9, 'batch' of size 2. Take a multiple"
    assert refusal in results["stateful: refusal"]
    layouts = results["stateful: layouts"]
    assert layouts["blocks_0_inputs"] == ["batch", None, "model"]
    assert layouts["blocks_0_recurrent"] == ["batch", "model"]
    assert layouts["blocks_1_keys"] == ["batch", None, None]
    assert layouts["position"] == ["batch"]


def test_generated_tokens_are_those_of_one_device(results):
    assert results["plain, batch 2, model 4: other tokens"] == 0


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    path = tmp_path_factory.mktemp("generation") / "results.json"
    run("distribution/generation_on_eight_devices.py", path, devices=8)
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    "name",
    [
        "batch 2, model 4: 8 rows",
        "batch 2, model 4: 3 rows",  # which the mesh does not divide
        "batch 8: 8 rows",
    ],
)
def test_generation_is_that_of_one_device(generated, name):
    """Ragged rows: tokens, scores, and the state that is returned."""
    found = {
        key.removeprefix(f"{name}: "): value
        for key, value in generated.items()
        if key.startswith(f"{name}: ")
    }
    whole = found.pop("whole on a device")
    assert found.pop("greedy") == found.pop("goes on") == 0
    assert found.keys() >= {"score", "state.length", "state.blocks.1.keys"}
    assert max(found.values()) < TOLERANCES["float32"].values
    if "8 rows" in name:
        # Each device has the states of its own rows or channels.
        assert whole == []


def test_streamed_text_is_that_of_one_device(generated):
    expected, found = generated["streams"]
    assert len(expected) > 1
    assert found == expected


def test_an_engine_serves_what_one_device_generates(tmp_path):
    path = tmp_path / "results.json"
    run("distribution/serving_on_eight_devices.py", path, devices=8)
    results = json.loads(path.read_text())
    assert len(results) == 2
    for found in results.values():
        assert found["other texts"] == 0
        assert found["hits"] > 0
        assert found["compiled"] == 0


@pytest.mark.parametrize(
    "name, small",
    [
        # About 0.1 % of a model's weights.
        ("plain, batch 8", r"conv_kernel|conv/kernel|gate.bias"),
        ("plain, batch 2, model 4", None),
        ("plain, model 8", r"(key|value).kernel"),
    ],
)
def test_no_device_holds_a_whole_matrix(results, name, small):
    """Moments of the optimizer included, but for what is declared."""
    whole = results[f"{name}: whole on a device"]
    assert [p for p in whole if not (small and re.search(small, p))] == []


def sizes(results, mesh):
    for found, count in results[f"collectives, {mesh}"].items():
        where, what, shape = (found + " ").split(" ")[:3]
        shape = [int(n) for n in shape.split(",") if n]
        yield where, what, shape, count


@pytest.mark.parametrize("mesh", ["batch 8", "model 8"])
def test_the_recurrence_needs_no_communication(results, mesh):
    """Nothing is sent in a loop, which the scans are."""
    assert {where for where, *_ in sizes(results, mesh)} == {"entry"}


def test_fully_sharded_sends_weights_and_gradients(results):
    """Gathered weights, summed gradients, no activations but embeddings."""
    for _, what, shape, _ in sizes(results, "batch 8"):
        if what == "all-to-all":
            continue  # of the looked up embeddings, divided by width
        assert shape[:2] != [8, 32] or len(shape) < 3 or shape[2] == 1, shape


def test_model_parallel_sends_what_megatron_sends(results):
    """One sum after each pair of layers, and one before it backwards.

    Forward 1 for the embedding and 2 a block. Backward the inputs of 2
    layers side by side: 2 tensors each for MLP and recurrent block, 1 for
    the query (key and value are whole), 1 for the logits. XLA for a TPU adds
    the two before it sends them.
    """
    activations = 0
    for _, what, shape, count in sizes(results, "model 8"):
        shape = [n for n in shape if n > 1]  # a piece of all tokens is an axis
        # For the accuracy each device tells every token its largest logit.
        is_accuracy = shape == [8, 32, 8]
        assert what == "all-reduce" or is_accuracy, (what, shape)
        if shape == [8, 32, 16]:
            activations += count
    forward = 1 + 2 * 2
    backward = 1 + (2 + 2) + (2 + 1)
    assert activations == forward + backward
