import keras
import numpy as np
import pytest

from keras_griffin.kernels.linear_scan import linear_scan
from keras_griffin.kernels.linear_scan.reference import linear_scan_gradients
from keras_griffin.kernels.linear_scan.reference import linear_scan_reference
from support.cases import SCAN_CASES
from support.checks import assert_close
from support.checks import value_and_grad


def complex_array(parts):
    """One float64 or complex128 array of a case's tuple."""
    if parts is None:
        return None
    parts = [part.astype("float64") for part in parts]
    return parts[0] if len(parts) == 1 else parts[0] + 1j * parts[1]


def parts_of(array, count):
    return [array] if count == 1 else [array.real, array.imag]


def expected_results(case):
    x, a, h, dy, d_final = (complex_array(z) for z in case.make())
    values = linear_scan_reference(x, a, h, case.reverse)
    gradients = linear_scan_gradients(x, a, h, dy, d_final, case.reverse)
    if h is None:
        gradients = gradients[:2]
    count = 2 if case.is_complex else 1
    return (
        [part for z in values for part in parts_of(z, count)],
        [part for z in gradients for part in parts_of(z, count)],
    )


def run_case(case, compiled=False):
    """`linear_scan` on a case: flat lists of values and of gradients."""
    x, a, h, dy, d_final = case.make()
    count = len(x)

    def function(*flat):
        groups = [
            flat[i : i + count] if case.is_complex else flat[i]
            for i in range(0, len(flat), count)
        ]
        return linear_scan(*groups, reverse=case.reverse)

    arrays = [*x, *a, *(h or ())]
    return value_and_grad(
        function, *arrays, cotangents=[*dy, *d_final], compiled=compiled
    )


def assert_case(case, compiled=False):
    values, gradients = run_case(case, compiled)
    expected_values, expected_gradients = expected_results(case)
    for i, (value, expected) in enumerate(
        zip(values, expected_values, strict=True)
    ):
        assert_close(value, expected, case.dtype, name=f"output {i}")
    for i, (gradient, expected) in enumerate(
        zip(gradients, expected_gradients, strict=True)
    ):
        assert_close(
            gradient, expected, case.dtype, "gradients", f"gradient {i}"
        )


def test_reference_by_hand():
    x = np.array([1.0, 2.0, 3.0]).reshape(1, 3, 1)
    a = np.array([0.5, 2.0, -1.0]).reshape(1, 3, 1)
    y, final_state = linear_scan_reference(x, a, np.array([[4.0]]))
    assert y.ravel().tolist() == [3.0, 8.0, -5.0]
    assert final_state.tolist() == [[-5.0]]
    y, final_state = linear_scan_reference(x, a, np.array([[4.0]]), True)
    assert y.ravel().tolist() == [1.0, 0.0, -1.0]
    assert final_state.tolist() == [[1.0]]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("is_complex", [False, True])
def test_reference_gradients_against_differences(reverse, is_complex):
    rng = np.random.default_rng(0)

    def draw(*shape):
        real = rng.normal(size=shape)
        return real + 1j * rng.normal(size=shape) if is_complex else real

    x, a, dy = draw(2, 5, 3), draw(2, 5, 3), draw(2, 5, 3)
    h, d_final = draw(2, 3), draw(2, 3)

    def loss(*arguments):
        y, final_state = linear_scan_reference(*arguments, reverse)
        return np.real(np.vdot(dy, y) + np.vdot(d_final, final_state))

    directions = draw(2, 5, 3), draw(2, 5, 3), draw(2, 3)
    gradients = linear_scan_gradients(x, a, h, dy, d_final, reverse)
    for i in range(3):
        near = [
            loss(
                *(
                    z + step * direction * (i == j)
                    for j, (z, direction) in enumerate(
                        zip((x, a, h), directions, strict=True)
                    )
                )
            )
            for step in (1e-5, -1e-5)
        ]
        expected = (near[0] - near[1]) / 2e-5
        actual = np.real(np.vdot(gradients[i], directions[i]))
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


# On JAX an eager run compiles many small programs; a compiled one a single one.
COMPILES_FAST = keras.config.backend() == "jax"


@pytest.mark.parametrize("case", SCAN_CASES, ids=str)
def test_values_and_gradients(case):
    assert_case(case, compiled=COMPILES_FAST)
