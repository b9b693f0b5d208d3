"""KerasHub's check of a layer, for all of ours."""

import keras
import pytest

from keras_griffin import layers
from support.keras_hub_checks import keras_hub_checks
from support.layers import WIDTH
from support.layers import normal

RECURRENT = {"units": WIDTH, "num_gate_blocks": 2}
CASES = {
    layers.BlockDiagonalDense: ({"units": WIDTH, "num_blocks": 2}, 2),
    layers.CausalConv1D: ({}, 2),
    layers.GatedMLP: ({"intermediate_dim": 4}, 6),
    layers.LocalMQA: ({"num_query_heads": 2, "head_dim": 4}, 5),
    layers.RGLRU: (RECURRENT, 5),
    layers.RecurrentBlock: (RECURRENT, 13),
    layers.ResidualBlock: (None, 13),
    layers.RMSNormalization: ({}, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("cls", CASES)
def test_layer(cls):
    arguments, num_weights = CASES[cls]
    if arguments is None:
        arguments = {
            "temporal": layers.LocalMQA(2, 4),
            "mlp": layers.GatedMLP(4),
        }
    keras_hub_checks().run_layer_test(
        cls,
        arguments,
        input_data=keras.ops.convert_to_tensor(normal((2, 3, WIDTH))),
        expected_output_shape=(2, 3, WIDTH),
        expected_num_trainable_weights=num_weights,
        run_precision_checks=cls is not layers.ResidualBlock,
    )
