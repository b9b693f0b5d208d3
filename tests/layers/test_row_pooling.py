"""One vector a row: that of its last document, wherever pads are."""

import numpy as np
import pytest
from keras import ops

from keras_griffin.layers.row_pooling import RowPooling
from support.checks import assert_close
from support.checks import value_and_grad

MASK = np.array(
    [
        [1, 1, 1, 1, 1],  # one document
        [0, 1, 0, 1, 0],  # pads anywhere
        [3, 3, 2, 0, 3],  # a number comes back: another document
        [1, 2, 2, 0, 2],  # packed
        [0, 0, 0, 0, 0],  # nothing
    ]
)
COUNTED = {
    "last": [[4], [3], [4], [4], []],
    "mean": [[0, 1, 2, 3, 4], [1, 3], [4], [1, 2, 4], []],
}
X = np.random.default_rng(0).normal(size=(5, 5, 3)).astype("float32")


def expected_of(x, mode):
    rows = [x[i, where] for i, where in enumerate(COUNTED[mode])]
    return np.stack([r.mean(0) if len(r) else np.zeros(3) for r in rows])


@pytest.mark.parametrize("mode", COUNTED)
def test_values_and_gradients(mode):
    layer = RowPooling.from_config(RowPooling(mode).get_config())
    cotangent = np.random.default_rng(1).normal(size=(5, 3)).astype("float32")
    x = np.where(MASK[..., None] != 0, X, np.inf)  # pads are garbage
    (pooled,), (gradient,) = value_and_grad(
        lambda x: layer(x, ops.convert_to_tensor(MASK)),
        x,
        cotangents=[cotangent],
    )
    assert_close(pooled, expected_of(X, mode))
    expected = np.zeros_like(X)
    for i, where in enumerate(COUNTED[mode]):
        expected[i, where] = cotangent[i] / max(1, len(where))
    assert_close(gradient, expected, kind="gradients")


def test_a_mask_of_bools_and_16_bit_inputs():
    x = ops.cast(X, "bfloat16")
    pooled = RowPooling("mean")(x[:2], ops.convert_to_tensor(MASK[:2] != 0))
    assert pooled.dtype == ops.ones(1).dtype
    assert_close(pooled, expected_of(X, "mean")[:2], "bfloat16")


@pytest.mark.backend_independent
def test_other_modes_are_refused():
    with pytest.raises(ValueError, match="`pooling_mode` must be one of"):
        RowPooling("first")
