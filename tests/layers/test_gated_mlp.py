from keras_griffin.layers import GatedMLP
from support import numpy_layers
from support.checks import to_numpy
from support.layers import assert_equals_reference
from support.layers import normal
from support.layers import probe_of


def test_equals_numpy():
    probe = probe_of(GatedMLP(12))
    assert_equals_reference(probe, numpy_layers.gated_mlp, normal((3, 5, 8)))


def test_all_three_layers_have_a_bias():
    layer = GatedMLP(12)
    layer.build((None, None, 8))
    shapes = {
        name: tuple(to_numpy(getattr(layer, name).bias.value).shape)
        for name in ("gate", "up", "down")
    }
    assert shapes == {"gate": (12,), "up": (12,), "down": (8,)}
