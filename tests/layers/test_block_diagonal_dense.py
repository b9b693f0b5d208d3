import keras
import numpy as np
import pytest

from keras_griffin.layers import BlockDiagonalDense
from support import numpy_layers
from support.checks import to_numpy
from support.layers import assert_equals_reference
from support.layers import normal
from support.layers import probe_of


@pytest.mark.parametrize("units", [8, 12])
def test_equals_numpy(units):
    probe = probe_of(BlockDiagonalDense(units, num_blocks=4))
    assert_equals_reference(
        probe, numpy_layers.block_diagonal_dense, normal((3, 5, 8))
    )


@pytest.mark.backend_independent
def test_initial_variance_is_that_of_one_block():
    layer = BlockDiagonalDense(64, num_blocks=4)
    layer.build((None, None, 128))
    kernel = to_numpy(layer.kernel.value)
    assert kernel.shape == (4, 32, 16)
    np.testing.assert_allclose(np.var(kernel), 1 / 32, rtol=0.15)
    # Not truncated: truncation at two deviations would end at 2.3.
    assert np.max(np.abs(kernel)) > 2.5 / np.sqrt(32)
    # The blocks differ.
    assert np.std(kernel, axis=0).min() > 0.0
    np.testing.assert_array_equal(to_numpy(layer.bias.value), 0.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_float16"])
def test_output_has_the_compute_dtype(dtype):
    layer = BlockDiagonalDense(8, num_blocks=4, dtype=dtype)
    y = layer(np.ones((2, 3, 8), "float32"))
    assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype


def test_blocks_must_divide_the_units():
    with pytest.raises(ValueError, match="must divide units.*divisor of 10"):
        BlockDiagonalDense(10, num_blocks=4)


def test_blocks_must_divide_the_width():
    layer = BlockDiagonalDense(8, num_blocks=4)
    with pytest.raises(ValueError, match="must divide the width of the input"):
        layer.build((None, None, 6))
