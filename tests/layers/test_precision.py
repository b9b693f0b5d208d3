"""16-bit dtypes: what stays float32, and how near results are to it."""

import keras
import numpy as np
import pytest

from keras_griffin.layers import GatedMLP
from keras_griffin.layers import LocalMQA
from keras_griffin.layers import RecurrentBlock
from keras_griffin.layers import ResidualBlock
from support.checks import assert_close
from support.checks import to_numpy
from support.layers import BATCH
from support.layers import NUM_REAL
from support.layers import TEMPORAL_LAYERS
from support.layers import WIDTH
from support.layers import fresh_state
from support.layers import make_probe
from support.layers import normal
from support.layers import probe_of
from support.layers import random_cotangents
from support.layers import run_pieces
from support.tolerances import TOLERANCES

POLICIES = ["bfloat16", "float16", "mixed_bfloat16", "mixed_float16"]
# Between them they contain all that the package's layers compute.
NAMES = ["rglru_complex", "residual_recurrent", "residual_local"]
# The table is for one rounding at the end. In a layer each of the products,
# gates, norms and sums rounds.
ROUNDINGS = 10


def assert_near(actual, expected, dtype, kind, name):
    actual, expected = to_numpy(actual), to_numpy(expected)
    assert np.all(np.isfinite(actual)), name
    error = np.max(np.abs(actual - expected))
    allowed = ROUNDINGS * getattr(TOLERANCES[dtype], kind)
    scale = np.max(np.abs(expected))
    assert error <= allowed * scale, (name, error / scale, allowed)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", NAMES)
def test_near_float32(name, policy):
    probe = probe_of(TEMPORAL_LAYERS[name](dtype=policy))
    exact = make_probe(name)
    dtype = probe.layer.compute_dtype
    x = normal((BATCH, NUM_REAL, WIDTH))
    state = fresh_state(exact.layer)
    result = probe(x, initial_state=fresh_state(probe.layer))
    expected = exact(x, initial_state=state)
    assert keras.backend.standardize_dtype(result.y.dtype) == dtype
    for leaf, value in result.state.items():
        found = keras.backend.standardize_dtype(value.dtype)
        wanted = {"recurrent": "float32"}.get(leaf, dtype)
        if leaf in ("position", "segment_id", "length"):
            wanted = "int32"
        assert found == wanted, leaf
        assert_near(value, expected.state[leaf], dtype, "values", leaf)
    assert_near(result.y, expected.y, dtype, "values", "y")
    assert_near(result.dx, expected.dx, dtype, "gradients", "dx")
    for leaf, one, other, weight in zip(
        probe.names,
        result.dweights,
        expected.dweights,
        probe.layer.trainable_weights,
        strict=True,
    ):
        assert one.dtype == weight.value.dtype
        assert_near(one, other, dtype, "gradients", leaf)


def test_state_is_handed_on_in_float32():
    """Else each call would round it: splitting would change the result.

    Of the unit alone: what comes before it in a block is rounded to bfloat16
    wherever a compiler's fusions end, which depends on the shape.
    """
    probe = probe_of(TEMPORAL_LAYERS["rglru"](dtype="mixed_bfloat16"))
    x = normal((BATCH, 6, WIDTH))
    dy = normal(x.shape, seed=1)
    state = fresh_state(probe.layer)
    dstate = random_cotangents(state)
    whole = probe(x, initial_state=state, dy=dy, dstate=dstate)
    pieces = [{"x": x[:, [t]], "dy": dy[:, [t]]} for t in range(6)]
    parts = run_pieces(probe, pieces, state, dstate)
    assert_close(parts.state["recurrent"], whole.state["recurrent"])
    assert_close(parts.y, whole.y)


@pytest.mark.parametrize("policy", ["float16", "mixed_float16"])
def test_training_in_float16_stays_finite(policy):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((12, 8)),
            ResidualBlock(
                RecurrentBlock(8, num_gate_blocks=2, dtype=policy),
                GatedMLP(8, dtype=policy),
                dtype=policy,
            ),
            ResidualBlock(
                LocalMQA(2, 4, window_size=4, dtype=policy),
                GatedMLP(8, dtype=policy),
                dtype=policy,
            ),
            keras.layers.Dense(8, dtype="float32"),
        ]
    )
    model.compile(
        # float16 has no room for the squares that Adam keeps.
        optimizer=keras.optimizers.SGD(0.05),
        loss="mean_squared_error",
        jit_compile=False if keras.config.backend() != "jax" else "auto",
    )
    x = 3.0 * normal((4, 12, 8))
    x[0] = 0.0  # what the square roots of norm and decay like least
    target = np.roll(x, 1, axis=1)
    losses = [float(model.train_on_batch(x, target)) for _ in range(8)]
    assert np.all(np.isfinite(losses))
    assert losses[-1] < losses[0]
    for weight in model.trainable_weights:
        assert np.all(np.isfinite(to_numpy(weight.value))), weight.path
