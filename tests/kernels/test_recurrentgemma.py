"""`rg_lru` against the original code, values and gradients."""

import keras
import numpy as np
import pytest

from keras_griffin.kernels.rg_lru import rg_lru
from support.cases import RGLRUCase
from support.checks import assert_close
from support.checks import value_and_grad

layers = pytest.importorskip(
    "recurrentgemma.jax.layers",
    reason="compares with recurrentgemma[jax], which is not installed",
)

NAMES = {
    "recurrence_gate_kernel": ("a_gate", "w"),
    "recurrence_gate_bias": ("a_gate", "b"),
    "input_gate_kernel": ("input_gate", "w"),
    "input_gate_bias": ("input_gate", "b"),
    "recurrence_param": ("a_param",),
    "phase_param": ("a_imag_param",),
}


@pytest.mark.parametrize("is_complex", [False, True])
def test_equal_to_recurrentgemma(is_complex):
    import jax
    from recurrentgemma import common

    case = RGLRUCase(
        "documents",
        time=40,
        is_complex=is_complex,
        has_reset=True,
        # Version 1.0.1 casts complex decays to real numbers if there is one.
        has_initial_state=not is_complex,
    )
    inputs, dy, d_final = case.make()
    reset = inputs.pop("reset")
    original = layers.RGLRU(
        width=case.width,
        num_heads=case.gate_blocks,
        scan_type=common.ScanType.LINEAR_NATIVE,
        only_real=not is_complex,
    )
    # Their layer resets where the position in the document is 0.
    positions = np.where(reset, 0, 1 + np.arange(case.time)).astype("int32")

    def run_original(inputs):
        params = {}
        for name, path in NAMES.items():
            if name in inputs:
                group = params
                for key in path[:-1]:
                    group = group.setdefault(key, {})
                group[path[-1]] = inputs[name]
        return original.apply(
            {"params": params},
            inputs["x"],
            jax.numpy.asarray(positions),
            inputs.get("initial_state"),
        )

    def both(inputs):
        results, transpose = jax.vjp(run_original, inputs)
        return results, transpose((dy, d_final))[0]

    expected, expected_gradients = jax.jit(both)(inputs)
    values, gradients = value_and_grad(
        lambda *tensors: rg_lru(
            **dict(zip(inputs, tensors, strict=True)), reset=reset
        ),
        *inputs.values(),
        cotangents=[dy, d_final],
        compiled=keras.config.backend() == "jax",  # fewer compilations there
    )
    for value, their_value in zip(values, expected, strict=True):
        assert_close(value, their_value)
    for name, gradient in zip(inputs, gradients, strict=True):
        assert_close(
            gradient, expected_gradients[name], kind="gradients", name=name
        )
