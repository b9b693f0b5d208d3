import keras
import ml_dtypes
import numpy as np
import pytest

from keras_griffin.checkpoints import arrays

# More columns than are copied together, of three thicknesses.
SHAPE = (3, 2 * arrays.COLUMNS + 1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_tensor_of_a_view(dtype, is_transposed):
    x = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    x = x.astype(arrays.np_dtype(dtype))
    view = x[::-1].T if is_transposed else x
    copy = arrays.row_by_row(view)
    assert copy.flags.c_contiguous
    assert copy.ctypes.data % arrays.ALIGNMENT == 0
    assert copy.dtype == view.dtype
    np.testing.assert_array_equal(copy, view)

    if (keras.config.backend(), dtype) == ("jax", "float64"):
        return  # JAX has none by default
    tensor = arrays.adopt(copy)
    assert keras.backend.standardize_dtype(tensor.dtype) == dtype
    np.testing.assert_array_equal(arrays.to_numpy(tensor), view)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
def test_other_ranks(shape):
    x = np.arange(np.prod(shape)).reshape(shape).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(arrays.row_by_row(x.T), x.T)
