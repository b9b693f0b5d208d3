"""`GriffinBackbone.intermediates` against the model in float64."""

import keras
import numpy as np
import pytest
from keras import ops

from support import numpy_layers
from support.checks import assert_close
from support.checks import to_numpy
from support.layers import assert_same_intermediates
from support.layers import compiled
from support.models import PATTERNS
from support.models import TINY
from support.models import scatter
from support.models import tiny_backbone
from support.models import tokens

# Attention in between, so that names are not just counted.
PATTERN = ("recurrent", "local_attention", "recurrent")


def intermediates(backbone, **inputs):
    tensors = keras.tree.map_structure(ops.convert_to_tensor, inputs)
    return compiled(backbone.intermediates)(tensors)


def expected_intermediates(backbone, row):
    """Of one document without pads."""
    weights = {
        weight.path.removeprefix(f"{backbone.name}/"): to_numpy(
            weight.value
        ).astype("float64")
        for weight in backbone.weights
    }
    found = {}
    x = weights["token_embedding/embeddings"][row][None]
    for i, block_type in enumerate(PATTERN):
        block = numpy_layers.inside(weights, f"block_{i}")

        def temporal(weights, x, is_recurrent=block_type == "recurrent"):
            if is_recurrent:
                return numpy_layers.recurrent_block(weights, x)
            heads, window = (
                TINY["num_query_heads"],
                TINY["attention_window_size"],
            )
            return numpy_layers.mqa(weights, x, heads, window)

        mixer = "recurrent_block" if block_type == "recurrent" else "attention"
        block = {
            name.replace(f"{mixer}/", "temporal/", 1)
            if name.startswith(f"{mixer}/")
            else name: value
            for name, value in block.items()
        }
        if block_type == "recurrent":
            found[f"block_{i}"] = numpy_layers.recurrent_block_intermediates(
                numpy_layers.inside(block, "temporal"),
                numpy_layers.rms_normalization(
                    numpy_layers.inside(block, "temporal_norm"), x
                ),
            )
        x = numpy_layers.residual_block(block, x, temporal)
    return found


@pytest.mark.parametrize("recurrence", ["real", "complex"])
def test_rows_with_pads_and_documents(recurrence):
    backbone = tiny_backbone(block_types=PATTERN, recurrence=recurrence)
    first, second, third = (
        tokens(1, length, seed=length)[0] for length in (9, 5, 12)
    )
    # One row with two documents, one with one; pads anywhere.
    rows = [np.concatenate([first, second]), third]
    token_ids, mask = scatter(rows, width=17)
    padding_mask = mask.astype("int32")
    padding_mask[0, mask[0]] = [1] * len(first) + [2] * len(second)
    found = intermediates(
        backbone, token_ids=token_ids, padding_mask=padding_mask
    )
    assert sorted(found) == ["block_0", "block_2"]
    alone = [expected_intermediates(backbone, row) for row in (first, second)]
    third = expected_intermediates(backbone, third)
    for name, values in found.items():
        values = {key: to_numpy(value) for key, value in values.items()}
        assert_same_intermediates(
            {key: value[0, mask[0]] for key, value in values.items()},
            {
                key: np.concatenate([row[name][key][0] for row in alone])
                for key in values
            },
        )
        assert_same_intermediates(
            {key: value[1, mask[1]] for key, value in values.items()},
            {key: third[name][key][0] for key in values},
        )
        for row in range(2):
            pads = np.flatnonzero(~mask[row])
            assert np.all(values["recurrence_gate"][row, pads] == 0.0)
            assert np.all(values["input_gate"][row, pads] == 0.0)
            for column in pads[pads > 0]:
                np.testing.assert_array_equal(
                    values["state"][row, column],
                    values["state"][row, column - 1],
                )


def test_the_mask_may_be_left_out():
    backbone = tiny_backbone(block_types=PATTERN)
    token_ids = tokens(1, 9)
    found = intermediates(backbone, token_ids=token_ids)
    expected = expected_intermediates(backbone, token_ids[0])
    for name in expected:
        assert_same_intermediates(found[name], expected[name])


def test_the_last_state_is_the_state_to_go_on_with():
    backbone = tiny_backbone()
    token_ids = tokens(2, 9)

    def run(token_ids):
        _, state = backbone.call_with_state(token_ids, backbone.init_state(2))
        return backbone.intermediates({"token_ids": token_ids}), state

    found, state = compiled(run)(ops.convert_to_tensor(token_ids))
    for i in (0, 1):
        expected = state["blocks"][i]["recurrent"]
        assert_close(found[f"block_{i}"]["state"][:, -1], expected)


def test_no_recurrence_nothing_to_see():
    backbone = tiny_backbone(block_types=PATTERNS["mqa"], num_layers=1)
    assert intermediates(backbone, token_ids=tokens(1, 3)) == {}


def test_wrong_inputs_are_refused():
    backbone = tiny_backbone(block_types=PATTERNS["mqa"], num_layers=1)
    with pytest.raises(ValueError, match="must be a dict with 'token_ids'"):
        backbone.intermediates(tokens(1, 3))
