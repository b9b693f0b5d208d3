import keras
import numpy as np
import pytest

from keras_griffin.kernels.rg_lru.reference import rg_lru_gradients
from keras_griffin.kernels.rg_lru.reference import rg_lru_reference
from support.cases import RG_LRU_CASES
from support.cases import RGLRUCase
from support.kernels import assert_rg_lru_case
from support.kernels import in_float64

COMPILES_FAST = keras.config.backend() == "jax"


@pytest.mark.parametrize("is_complex", [False, True])
def test_reference_gradients_against_differences(is_complex):
    case = RGLRUCase(
        "masks", is_complex=is_complex, has_reset=True, has_padding=True
    )
    inputs, dy, d_final = case.make()
    inputs = in_float64(inputs)
    gradients = rg_lru_gradients(inputs, dy, d_final)

    def loss(**changed):
        y, final_state = rg_lru_reference(**{**inputs, **changed})
        return np.sum(y * dy) + np.sum(final_state * d_final)

    rng = np.random.default_rng(1)
    for name, gradient in gradients.items():
        direction = rng.normal(size=gradient.shape)
        step = 1e-5 * direction
        expected = (
            loss(**{name: inputs[name] + step})
            - loss(**{name: inputs[name] - step})
        ) / 2e-5
        np.testing.assert_allclose(
            np.sum(gradient * direction), expected, rtol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("case", RG_LRU_CASES, ids=str)
def test_values_and_gradients(case):
    assert_rg_lru_case(case, compiled=COMPILES_FAST)
