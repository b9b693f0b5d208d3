"""The layers in float64, in NumPy, as their equations stand in the paper.

Each takes `(weights, x)`, `weights` by the names of `Probe.names`, and one row
is one document.
"""

import numpy as np

from keras_griffin.kernels.rg_lru.reference import Pieces
from keras_griffin.kernels.rg_lru.reference import rg_lru_reference

EPSILON = 1e-6


def inside(weights, prefix):
    """The weights of the sub-layer `prefix`."""
    return {
        name.removeprefix(f"{prefix}/"): value
        for name, value in weights.items()
        if name.startswith(f"{prefix}/")
    }


def dense(weights, x):
    return x @ weights["kernel"] + weights.get("bias", 0.0)


def gelu(x):
    inner = np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1.0 + np.tanh(inner))


def rms_normalization(weights, x, epsilon=EPSILON):
    mean_square = np.mean(x**2, axis=-1, keepdims=True)
    return x / np.sqrt(mean_square + epsilon) * (1.0 + weights["scale"])


def block_diagonal_dense(weights, x):
    kernel = weights["kernel"]
    slices = np.split(x, len(kernel), axis=-1)
    parts = [part @ block for part, block in zip(slices, kernel, strict=True)]
    return np.concatenate(parts, axis=-1) + weights["bias"].reshape(-1)


def causal_conv1d(weights, x):
    kernel = weights["kernel"]
    before = np.zeros((x.shape[0], len(kernel) - 1, x.shape[2]))
    x = np.concatenate([before, x], axis=1)
    y = np.zeros_like(x[:, len(kernel) - 1 :]) + weights["bias"]
    for i, row in enumerate(kernel):
        y += row * x[:, i : i + y.shape[1]]
    return y


def rglru(weights, x):
    return rglru_intermediates(weights, x)["state"]


def rglru_intermediates(weights, x, reset=None, padding_mask=None, state=None):
    """What `return_intermediates` gives, with pads where they stand in `x`."""
    rows = x.shape[:2]
    if reset is None:
        reset = np.zeros(rows, bool)
        reset[:, 0] = True
    if padding_mask is None:
        padding_mask = np.ones(rows, bool)
    arguments = {
        "x": x,
        "recurrence_gate_kernel": weights["recurrence_gate/kernel"],
        "recurrence_gate_bias": weights["recurrence_gate/bias"],
        "input_gate_kernel": weights["input_gate/kernel"],
        "input_gate_bias": weights["input_gate/bias"],
        "recurrence_param": weights["recurrence_param"],
        "phase_param": weights.get("phase_param"),
        "reset": reset,
        "padding_mask": padding_mask,
    }
    p = Pieces(**arguments)
    real = padding_mask[..., None]
    h, _ = rg_lru_reference(**arguments, initial_state=state)
    return {
        "recurrence_gate": np.where(real, p.r, 0.0),
        "input_gate": np.where(real, p.i, 0.0),
        "decay": p.merged(np.where(real, p.a, 1.0)),
        "state": h,
    }


def recurrent_block(weights, x):
    gate = gelu(dense(inside(weights, "linear_y"), x))
    h = recurrent_block_intermediates(weights, x)["state"]
    return dense(inside(weights, "linear_out"), h * gate)


def recurrent_block_intermediates(weights, x):
    x = dense(inside(weights, "linear_x"), x)
    x = causal_conv1d(inside(weights, "conv"), x)
    return rglru_intermediates(inside(weights, "rglru"), x)


def gated_mlp(weights, x):
    gate = gelu(dense(inside(weights, "gate"), x))
    up = dense(inside(weights, "up"), x)
    return dense(inside(weights, "down"), gate * up)


def rope(x, rotated, wavelength):
    """Turns the first `rotated` channels of `x` (batch, time, heads, dim)."""
    half = rotated // 2
    turned = x.copy()
    for i in range(half):
        angle = np.arange(x.shape[1]) / wavelength ** (i / half)
        angle = angle[None, :, None]
        first, second = x[..., i], x[..., i + half]
        turned[..., i] = first * np.cos(angle) - second * np.sin(angle)
        turned[..., i + half] = second * np.cos(angle) + first * np.sin(angle)
    return turned


def mqa(weights, x, heads, window, fraction=0.5, wavelength=10_000.0):
    """Dense attention under a mask; `window` `None` for all tokens."""
    batch, time, _ = x.shape
    dim = weights["key/kernel"].shape[1]

    def project(name, heads):
        y = x @ weights[f"{name}/kernel"]
        return y.reshape(batch, time, heads, dim)

    rotated = int(dim * fraction)
    q = rope(project("query", heads), rotated, wavelength)
    k = rope(project("key", 1), rotated, wavelength)[:, :, 0]
    logits = np.einsum("bthd,bsd->bhts", q, k) / np.sqrt(dim)
    distance = np.arange(time)[:, None] - np.arange(time)[None, :]
    seen = distance >= 0
    if window is not None:
        seen &= distance <= window
    logits = np.where(seen, logits, -np.inf)
    logits -= np.max(logits, axis=-1, keepdims=True)
    shares = np.exp(logits)
    shares /= np.sum(shares, axis=-1, keepdims=True)
    mixed = np.einsum("bhts,bsd->bthd", shares, project("value", 1)[:, :, 0])
    mixed = mixed.reshape(batch, time, heads * dim)
    return dense(inside(weights, "output_dense"), mixed)


def residual_block(weights, x, temporal):
    """`temporal`: callable like these, the mixer along time."""
    y = rms_normalization(inside(weights, "temporal_norm"), x)
    x = x + temporal(inside(weights, "temporal"), y)
    y = rms_normalization(inside(weights, "mlp_norm"), x)
    return x + gated_mlp(inside(weights, "mlp"), y)
