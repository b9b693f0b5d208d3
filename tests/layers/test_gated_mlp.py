import keras
import pytest

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


@pytest.mark.skipif(keras.config.backend() != "jax", reason="XLA's barriers")
def test_the_product_is_computed_once():
    """A barrier before the last product, and one a use of x in the gradient."""
    import jax

    layer = GatedMLP(12)
    layer.build((None, None, 8))
    x = normal((3, 5, 8))
    forward = jax.make_jaxpr(layer)(x)
    both = jax.make_jaxpr(jax.grad(lambda x: layer(x).sum()))(x)
    assert str(forward).count("optimization_barrier") == 1
    assert str(both).count("optimization_barrier") == 3
