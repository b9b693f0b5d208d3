import keras
import numpy as np
import pytest

from keras_griffin.kernels import dispatch
from keras_griffin.kernels.linear_scan.reference import linear_scan_gradients
from keras_griffin.kernels.linear_scan.reference import linear_scan_reference
from support.cases import SCAN_CASES
from support.cases import ScanCase
from support.kernels import assert_scan_case


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
    assert_scan_case(case, compiled=COMPILES_FAST)


def test_errors_do_not_grow_with_time():
    """The tolerances of short scans, after 131,072 steps."""
    case = ScanCase(
        "very long", batch=1, time=131072, width=2, decay="near_one"
    )
    assert_scan_case(case, compiled=COMPILES_FAST)


@pytest.mark.skipif(
    keras.config.backend() == "jax", reason="JAX exports loops as they are"
)
@pytest.mark.parametrize(
    "case",
    [
        ScanCase("for a converter", time=11),
        ScanCase("for a converter backwards", time=8, reverse=True),
        ScanCase("for a converter complex", is_complex=True, decay="resets"),
    ],
    ids=str,
)
def test_without_a_loop(case):
    # Its gradient has the other two scans, the shifted and the reversed one.
    with dispatch.converting():
        assert_scan_case(case)
