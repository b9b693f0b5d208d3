"""What `linear_scan` means: a loop in float64. Tests only."""

import numpy as np


def linear_scan_reference(x, a, initial_state=None, reverse=False):
    """`(y, final_state)` of `linear_scan`, as float64 or complex128.

    Complex numbers are complex arrays here, not pairs.
    """
    y = np.zeros(x.shape, np.result_type(x, a, np.float64))
    h = np.zeros((x.shape[0], x.shape[2]), y.dtype)
    if initial_state is not None:
        h = h + initial_state
    steps = range(x.shape[1])
    for t in reversed(steps) if reverse else steps:
        h = a[:, t] * h + x[:, t]
        y[:, t] = h
    return y, h


def linear_scan_gradients(
    x, a, initial_state, dy, d_final_state, reverse=False
):
    """Gradients of `sum(y * dy) + sum(final_state * d_final_state)`.

    The real parts and the imaginary parts are separate variables: a complex
    gradient is `d/d(real) + i d/d(imaginary)`, and the sums above are those of
    the products of like parts.

    Returns:
        `(dx, da, d_initial_state)`.
    """
    y, _ = linear_scan_reference(x, a, initial_state, reverse)
    h0 = np.zeros(d_final_state.shape, y.dtype)
    if initial_state is not None:
        h0 = h0 + initial_state
    dx, da = np.zeros_like(y), np.zeros_like(y)
    dh = d_final_state.astype(y.dtype)  # gradient of the state after step t
    order = list(range(x.shape[1]))
    if reverse:
        order.reverse()
    for i in reversed(range(len(order))):
        t = order[i]
        h_before = y[:, order[i - 1]] if i else h0
        dh = dh + dy[:, t]
        dx[:, t] = dh
        da[:, t] = dh * np.conj(h_before)
        dh = dh * np.conj(a[:, t])
    return dx, da, dh
