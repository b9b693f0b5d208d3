"""JAX's splash kernel computes what the layer's plain operations do."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_griffin.layers.windowed_attention import windowed_attention
from support.checks import assert_close
from support.checks import value_and_grad
from support.processes import xla_flags

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="The kernel is JAX's."
)

BATCH, TIME, HEADS, HEAD_DIM, WINDOW = 2, 200, 2, 128, 70


def arrays():
    rng = np.random.default_rng(0)
    q = rng.normal(size=(BATCH, TIME, HEADS, HEAD_DIM)) / HEAD_DIM**0.5
    k, v = rng.normal(size=(2, BATCH, TIME, HEAD_DIM))
    # Documents shorter and longer than the window.
    positions = np.stack(
        [
            np.concatenate([np.arange(n) for n in lengths])
            for lengths in [(30, 170), (90, 1, 109)]
        ]
    )
    return [x.astype("float32") for x in (q, k, v)], positions.astype("int32")


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("window", [WINDOW, None])
def test_values_and_gradients(window, is_fused, monkeypatch):
    from keras_griffin.layers import splash_attention_jax

    if not is_fused:
        monkeypatch.setattr(splash_attention_jax, "MAX_FUSED_BLOCKS", 1)
    floats, positions = arrays()
    cotangent = np.random.default_rng(1).normal(size=floats[0].shape)
    results = [
        value_and_grad(
            function, *floats, cotangents=[cotangent.astype("float32")]
        )
        for function in (
            lambda q, k, v: splash_attention_jax.attend(
                q, k, v, positions, window, block=128, interpret=True
            ),
            lambda q, k, v: windowed_attention(q, k, v, positions, window),
        )
    ]
    (actual, gradients), (expected, expected_gradients) = results
    assert_close(actual[0], expected[0])
    for name, new, old in zip(
        "qkv", gradients, expected_gradients, strict=True
    ):
        assert_close(new, old, kind="gradients", name=name)


# Rows and heads are divided; keys get their gradient from all heads.
ON_A_MESH = """
import jax, keras, numpy as np
from keras_griffin.layers.splash_attention_jax import attend
from layers.test_splash_attention import WINDOW, arrays

floats, positions = arrays()

def loss(q, k, v):
    y = attend(q, k, v, positions, WINDOW, block=128, interpret=True)
    return (y ** 2).sum()

alone = jax.grad(loss, argnums=(0, 1, 2))(*floats)
mesh = keras.distribution.DeviceMesh((2, 2), ("batch", "model"))
layouts = keras.distribution.LayoutMap(mesh)
keras.distribution.set_distribution(
    keras.distribution.ModelParallel(layout_map=layouts)
)
divided = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*floats)
for a, b in zip(divided, alone):
    np.testing.assert_allclose(a, b, atol=5e-5 * np.abs(b).max(), rtol=0)
text = jax.jit(loss).lower(*floats).compile().as_text()
assert "all-reduce" in text, "nothing was divided"
"""


def test_gradients_on_a_mesh():
    tests = Path(__file__).parent.parent
    result = subprocess.run(
        [sys.executable, "-c", ON_A_MESH],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "KERAS_BACKEND": "jax",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": xla_flags(4),
            "PYTHONPATH": f"{tests}:{tests.parent}",
        },
    )
    assert result.returncode == 0, result.stderr


def test_it_is_taken_for_tpus_alone(monkeypatch):
    import jax

    from keras_griffin.kernels.dispatch import set_implementation
    from keras_griffin.layers import splash_attention_jax

    q = np.zeros((1, 512, 2, 128), "float32")
    assert not splash_attention_jax.takes(q)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert splash_attention_jax.takes(q)
    assert not splash_attention_jax.takes(q[:, :400])
    assert not splash_attention_jax.takes(q[..., :64])
    set_implementation("ops")
    try:
        assert not splash_attention_jax.takes(q)
    finally:
        set_implementation(None)

    class Parallel:
        class device_mesh:
            devices = np.array(["tpu:0"])

    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(keras.distribution, "distribution", lambda: Parallel)
    monkeypatch.setattr(splash_attention_jax, "find_mesh", lambda: None)
    assert splash_attention_jax.takes(q)
