import keras
import numpy as np
import pytest

from keras_griffin.layers import RMSNormalization
from support import numpy_layers
from support.checks import assert_close
from support.checks import to_numpy
from support.layers import assert_equals_reference
from support.layers import normal
from support.layers import probe_of


def test_equals_numpy():
    probe = probe_of(RMSNormalization())
    x = normal((3, 5, 8))
    x[0, 0] = 0.0
    assert_equals_reference(probe, numpy_layers.rms_normalization, x)


def test_starts_at_scale_one():
    layer = RMSNormalization()
    layer.build((None, None, 8))
    np.testing.assert_array_equal(to_numpy(layer.scale.value), 0.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_float16"])
def test_float32_inside(dtype):
    """The squares are beyond what float16 can hold."""
    layer = RMSNormalization(dtype=dtype)
    layer.build((None, None, 4))
    x = np.array([[[1e3, 2e3, -3e3, 4e3]]], "float32")
    y = layer(x)
    precision = layer.compute_dtype
    assert keras.backend.standardize_dtype(y.dtype) == precision
    expected = numpy_layers.rms_normalization(
        {"scale": np.zeros(4)}, to_numpy(keras.ops.cast(x, precision))
    )
    assert_close(y, expected, dtype=precision)
