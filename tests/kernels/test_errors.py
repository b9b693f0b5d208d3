"""Every `raise` of the kernels."""

import numpy as np
import pytest

from keras_griffin.kernels.linear_scan import linear_scan
from keras_griffin.kernels.rg_lru import rg_lru
from support.cases import RGLRUCase

X = np.ones((2, 3, 4), "float32")
STATE = np.ones((2, 4), "float32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (X, X, None, False, "fast"),
            "one of 'auto', 'ops', 'pallas_tpu', 'pallas_gpu', .*'fast'",
        ),
        ((X[0], X[0]), r"`x` must have the shape .*x.shape=\(3, 4\)"),
        ((X, X[:, :2]), r"same shape.*\(2, 3, 4\) and, in `a`, \(2, 2, 4\)"),
        ((X, X[0]), r"same shape.*in `a`, \(3, 4\)"),
        (((X, X[:1]), (X, X)), r"same shape.*in `x`, \(1, 3, 4\)"),
        ((X.astype("int32"), X), "`x` must have a float dtype.*int32"),
        ((X, X.astype("int32")), "`a` must have a float dtype.*int32"),
        ((X, X, STATE[:1]), r"`initial_state` must .*\(1, 4\)"),
        ((X, X, STATE.astype("int32")), "`initial_state` must have a float"),
        ((X, (X, X)), "all be pairs.*x as a tensor, a as a tuple of 2"),
        (((X, X), X), "all be pairs.*x as a pair, a as a tensor"),
        (((X, X, X), X), "all be pairs.*x as a tuple of 3"),
        (((X, X), (X, X), STATE), "initial_state as a tensor"),
    ],
)
def test_linear_scan(arguments, message):
    with pytest.raises(ValueError, match=message):
        linear_scan(*arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"implementation": "fast"},
            "one of 'auto', 'ops', 'pallas_tpu', 'pallas_gpu', .*'fast'",
        ),
        ({"x": X[0]}, r"`x` must have the shape .*x.shape=\(3, 4\)"),
        ({"x": X.astype("int32")}, "`x` must have a float dtype.*int32"),
        ({"x": X[..., :3]}, "divisible by the number of gate blocks.*blocks=2"),
        (
            {"x": X[..., :3], "phase_param": STATE[0]},
            r"must be even with `phase_param`.*\(2, 3, 3\)",
        ),
        (
            {"input_gate_kernel": np.ones((4, 1, 1), "float32")},
            r"`input_gate_kernel` must have the shape \(2, 2, 2\)",
        ),
        (
            {"recurrence_gate_kernel": np.ones((2, 2), "float32")},
            r"`recurrence_gate_kernel` must have the shape",
        ),
        (
            {"recurrence_gate_bias": STATE},
            r"`recurrence_gate_bias` must have the shape \(2, 2\)",
        ),
        (
            {"input_gate_bias": STATE[0]},
            r"`input_gate_bias` must have the shape \(2, 2\)",
        ),
        (
            {"recurrence_param": STATE},
            r"`recurrence_param` must have the shape \(4,\)",
        ),
        (
            {"recurrence_param": np.ones(4, "int32")},
            "`recurrence_param` must have a float dtype.*int32",
        ),
        ({"reset": np.ones((2, 4), bool)}, r"`reset` must .*\(2, 3\)"),
        ({"padding_mask": np.ones(3, bool)}, "`padding_mask` must have"),
        ({"initial_state": STATE[:, :3]}, "`initial_state` must have"),
    ],
)
def test_rg_lru(changes, message):
    inputs, _, _ = RGLRUCase("valid", time=3, width=4, gate_blocks=2).make()
    with pytest.raises(ValueError, match=message):
        rg_lru(**{**inputs, **changes})


def test_phase_param_has_half_the_width():
    case = RGLRUCase("valid", width=4, gate_blocks=2, is_complex=True)
    inputs, _, _ = case.make()
    inputs["phase_param"] = STATE[0]
    with pytest.raises(ValueError, match=r"`phase_param` .*\(2,\)"):
        rg_lru(**inputs)
