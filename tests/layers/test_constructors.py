"""Every argument of every layer: it matters, and it survives its config."""

import inspect
import json

import keras
import numpy as np
import pytest

from keras_griffin import layers
from support.checks import to_numpy
from support.layers import WIDTH
from support.layers import compiled
from support.layers import normal

RECURRENT = {"units": 8, "num_gate_blocks": 2}
RGLRU = {
    "units": 4,
    "num_gate_blocks": 4,
    "recurrence": "complex",
    "decay_initializer": "paper",
    "gate_initializer": "ones",
    "implementation": "ops",
}
ATTENTION = {"num_query_heads": 2, "head_dim": 8, "window_size": 4}


def residual(**changes):
    return {
        "temporal": layers.LocalMQA(**ATTENTION),
        "mlp": layers.GatedMLP(8),
        **changes,
    }


# A layer's arguments, and another value for each argument that it has.
ARGUMENTS = {
    layers.BlockDiagonalDense: (
        {"units": 8, "num_blocks": 2},
        {
            "units": 12,
            "num_blocks": 4,
            "kernel_initializer": "ones",
            "bias_initializer": "ones",
        },
    ),
    layers.CausalConv1D: (
        {"kernel_size": 4},
        {
            "kernel_size": 3,
            "kernel_initializer": "ones",
            "bias_initializer": "ones",
        },
    ),
    layers.GatedMLP: (
        {"intermediate_dim": 8},
        {"intermediate_dim": 12, "output_kernel_initializer": "ones"},
    ),
    layers.LocalMQA: (
        ATTENTION,
        {
            "num_query_heads": 3,
            "head_dim": 4,
            "window_size": None,
            "rope_max_wavelength": 3.0,
            "rope_fraction": 1.0,
            "output_kernel_initializer": "ones",
        },
    ),
    layers.RGLRU: (RECURRENT, RGLRU),
    layers.RGLRUCell: (RECURRENT, RGLRU),
    layers.RecurrentBlock: (
        RECURRENT,
        {
            "units": 12,
            "num_gate_blocks": 4,
            "conv_kernel_size": 3,
            "recurrence": "complex",
            "decay_initializer": "paper",
            "output_kernel_initializer": "ones",
            "implementation": "ops",
        },
    ),
    layers.ResidualBlock: (
        residual(),
        {
            "temporal": layers.RecurrentBlock(**RECURRENT),
            "mlp": layers.GatedMLP(12),
            "layer_norm_epsilon": 0.1,
            "dropout": 0.5,
        },
    ),
    layers.RMSNormalization: ({}, {"epsilon": 0.1}),
    layers.ReversibleEmbedding: (
        {"input_dim": 5, "output_dim": 8},
        {"input_dim": 6, "output_dim": 4},
    ),
}
CASES = [
    pytest.param(cls, base, name, value, id=f"{cls.__name__}-{name}")
    for cls, (base, changes) in ARGUMENTS.items()
    for name, value in changes.items()
]


def build(cls, arguments):
    """The layer, built with the same random numbers each time."""
    keras.utils.set_random_seed(0)
    arguments = {
        name: type(value).from_config(value.get_config())
        if isinstance(value, keras.layers.Layer)
        else value
        for name, value in arguments.items()
    }
    layer = cls(**arguments)
    knows = cls in (layers.RGLRU, layers.RGLRUCell)
    width = arguments["units"] if knows else WIDTH
    layer.build((None, None, width))
    return layer


def run(layer):
    keras.utils.set_random_seed(0)
    x = 0.3 * normal((1, 7, WIDTH))
    return to_numpy(compiled(lambda x: layer(x, training=True))(x))


@pytest.mark.parametrize("cls", ARGUMENTS)
@pytest.mark.backend_independent
def test_every_argument_is_in_the_table(cls):
    parameters = inspect.signature(cls.__init__).parameters
    assert set(parameters) - {"self", "kwargs"} == set(ARGUMENTS[cls][1])


@pytest.mark.backend_independent
def test_every_layer_is_in_the_table():
    classes = {
        value
        for value in vars(layers).values()
        if inspect.isclass(value) and issubclass(value, keras.layers.Layer)
    }
    assert classes == set(ARGUMENTS)


@pytest.mark.backend_independent
@pytest.mark.parametrize("cls, base, name, value", CASES)
def test_argument_changes_the_layer(cls, base, name, value):
    if name == "implementation":
        pytest.skip("every implementation computes the same")
    one, other = build(cls, base), build(cls, {**base, name: value})
    weights, others = (
        [to_numpy(weight.value) for weight in layer.weights]
        for layer in (one, other)
    )
    if [w.shape for w in weights] != [w.shape for w in others]:
        return
    if all(np.array_equal(*pair) for pair in zip(weights, others, strict=True)):
        assert np.max(np.abs(run(one) - run(other))) > 1e-3


@pytest.mark.parametrize("cls, base, name, value", CASES)
@pytest.mark.backend_independent
def test_argument_survives_the_config(cls, base, name, value):
    layer = cls(**{**base, name: value}, dtype="mixed_bfloat16", name="me")
    config = layer.get_config()
    assert json.dumps(config[name]) != json.dumps(
        cls(**base).get_config()[name]
    )
    # As a file keeps it.
    config = json.loads(json.dumps(config))
    restored = cls.from_config(config)
    assert json.loads(json.dumps(restored.get_config())) == config
    again = keras.saving.deserialize_keras_object(
        json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    )
    assert type(again) is cls
    assert again.get_config() == restored.get_config()
    assert again.dtype_policy.name == "mixed_bfloat16"
    assert again.name == "me"


@pytest.mark.backend_independent
def test_restored_layer_has_the_same_parts():
    block = layers.ResidualBlock(**residual(dropout=0.25))
    restored = layers.ResidualBlock.from_config(block.get_config())
    assert restored.temporal.window_size == 4
    assert restored.mlp.intermediate_dim == 8
    assert restored.temporal_dropout.rate == restored.mlp_dropout.rate == 0.25
    assert restored.temporal_norm.epsilon == 1e-6
