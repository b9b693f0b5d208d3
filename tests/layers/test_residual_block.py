import functools

import keras
import numpy as np
import pytest

from keras_griffin.layers import GatedMLP
from keras_griffin.layers import LocalMQA
from keras_griffin.layers import ResidualBlock
from support import numpy_layers
from support.checks import to_numpy
from support.layers import NUM_REAL
from support.layers import WIDTH
from support.layers import WINDOW
from support.layers import assert_equals_reference
from support.layers import make_probe
from support.layers import normal

TEMPORAL = {
    "residual_recurrent": numpy_layers.recurrent_block,
    "residual_local": functools.partial(
        numpy_layers.mqa, heads=2, window=WINDOW
    ),
    "residual_global": functools.partial(
        numpy_layers.mqa, heads=2, window=None
    ),
}


@pytest.mark.parametrize("name", TEMPORAL)
def test_equals_numpy(name):
    assert_equals_reference(
        make_probe(name),
        functools.partial(numpy_layers.residual_block, temporal=TEMPORAL[name]),
        normal((3, NUM_REAL, WIDTH)),
    )


def test_dropout_is_for_training_only():
    layer = ResidualBlock(
        LocalMQA(1, 4, window_size=2), GatedMLP(4), dropout=0.5
    )
    x = normal((1, 3, 8))
    y = to_numpy(layer(x))
    np.testing.assert_array_equal(to_numpy(layer(x, training=False)), y)
    first, second = (to_numpy(layer(x, training=True)) for _ in range(2))
    assert np.any(first != y)
    assert np.any(first != second)


@pytest.mark.parametrize("silent", ["temporal", "mlp"])
def test_dropout_drops_both_branches(silent):
    layer = ResidualBlock(
        LocalMQA(1, 4, window_size=2), GatedMLP(4), dropout=0.5
    )
    layer.build((None, None, 64))
    last = {"temporal": layer.temporal.output_dense, "mlp": layer.mlp.down}
    for name, dense in last.items():
        value = 0.0 if name == silent else 1.0
        dense.kernel.assign(np.full(dense.kernel.shape, value))
        dense.bias.assign(np.full(dense.bias.shape, value))
    x = normal((1, 2, 64))
    update = to_numpy(layer(x, training=True)) - x
    assert 0.3 < np.mean(update == 0.0) < 0.7


def test_parts_of_another_type():
    mlp, attention = GatedMLP(4), LocalMQA(1, 4)
    with pytest.raises(ValueError, match="`temporal` must be a RecurrentBlock"):
        ResidualBlock(mlp, mlp)
    with pytest.raises(ValueError, match="`mlp` must be a GatedMLP"):
        ResidualBlock(attention, keras.layers.Dense(4))
