import keras
import numpy as np
import pytest

from keras_griffin.kernels.rg_lru import rg_lru
from keras_griffin.kernels.rg_lru.reference import rg_lru_gradients
from keras_griffin.kernels.rg_lru.reference import rg_lru_reference
from support.cases import RG_LRU_CASES
from support.cases import RGLRUCase
from support.checks import assert_close
from support.checks import value_and_grad

MASKS = ("reset", "padding_mask")
COMPILES_FAST = keras.config.backend() == "jax"


def in_float64(inputs):
    return {
        name: value if name in MASKS else value.astype("float64")
        for name, value in inputs.items()
    }


def assert_case(case, compiled=False):
    inputs, dy, d_final = case.make()
    masks = {name: inputs[name] for name in MASKS if name in inputs}
    names = [name for name in inputs if name not in MASKS]

    def function(*tensors):
        return rg_lru(**dict(zip(names, tensors, strict=True)), **masks)

    values, gradients = value_and_grad(
        function,
        *(inputs[name] for name in names),
        cotangents=[dy, d_final],
        compiled=compiled,
    )
    exact = in_float64(inputs)
    for name, value, expected in zip(
        ("y", "final_state"), values, rg_lru_reference(**exact), strict=True
    ):
        assert_close(value, expected, case.dtype, name=name)
    expected = rg_lru_gradients(
        exact, dy.astype("float64"), d_final.astype("float64")
    )
    for name, gradient in zip(names, gradients, strict=True):
        assert_close(gradient, expected[name], case.dtype, "gradients", name)


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
    assert_case(case, compiled=COMPILES_FAST)
