"""`linear_scan` in plain operations, for every backend and device."""

import importlib

import keras
from keras import ops

from keras_griffin.kernels.custom_gradient import custom_gradient
from keras_griffin.kernels.linear_scan.numbers import add
from keras_griffin.kernels.linear_scan.numbers import conjugate
from keras_griffin.kernels.linear_scan.numbers import multiply

_loop = importlib.import_module(
    f"keras_griffin.kernels.linear_scan.loop_{keras.config.backend()}"
).loop


def scan_float32(x, a, carry, reverse=False, shifted=False):
    """Scans over axis 1, with a gradient that is a scan as well.

        carry = y[t] = a[t] * carry + x[t]                  (shifted=False)
        y[t] = carry + x[t],  carry = a[t] * y[t]           (shifted=True)

    Each of the two is the transpose of the other, with time reversed and `a`
    conjugated; hence both.

    Args:
        x, a: tuples, `(real,)` or `(real, imaginary)`, of float32 tensors
            `(batch, time, width)`.
        carry: such a tuple of tensors `(batch, width)`.
        reverse: bool. Runs from the last time step to the first.
        shifted: bool. See above.

    Returns:
        `(y, carry)`: tuples like `x` and `carry`; `carry` after the last step.
    """
    time = x[0].shape[1]  # None if unknown
    if time == 0:
        return x, carry
    if time == 1:
        x, a = (tuple(part[:, 0] for part in z) for z in (x, a))
        if shifted:
            y = add(carry, x)
            carry = multiply(a, y)
        else:
            y = carry = add(multiply(a, carry), x)
        return tuple(part[:, None] for part in y), carry
    results = _SCANS[len(x), bool(reverse), bool(shifted)](*x, *a, *carry)
    return results[: len(x)], results[len(x) :]


def previous(y, first, reverse):
    """`y` one step earlier in scan order; `first` at the first step."""
    first = tuple(part[:, None] for part in first)
    if reverse:
        order = [
            (part[:, 1:], part0) for part, part0 in zip(y, first, strict=True)
        ]
    else:
        order = [
            (part0, part[:, :-1]) for part, part0 in zip(y, first, strict=True)
        ]
    return tuple(ops.concatenate(parts, axis=1) for parts in order)


def _make_scan(parts, reverse, shifted):
    def function(*inputs):
        x, a, carry = _cut(inputs, parts)
        y, carry = _loop(x, a, carry, reverse, shifted)
        return (*y, *carry)

    def residuals(inputs, outputs):
        _, a, carry = _cut(inputs, parts)
        return (*a, *carry, *outputs[:parts])

    def backward(kept, gradients):
        a, carry, y = _cut(kept, parts)
        dy, d_last = _cut(gradients, parts)
        dx, d_carry = scan_float32(
            dy, conjugate(a), d_last, not reverse, not shifted
        )
        if shifted:
            da = multiply(previous(dx, d_last, not reverse), conjugate(y))
        else:
            da = multiply(dx, conjugate(previous(y, carry, reverse)))
        return (*dx, *da, *d_carry)

    return custom_gradient(function, residuals, backward)


def _cut(tensors, size):
    return [tuple(tensors[i : i + size]) for i in range(0, len(tensors), size)]


_SCANS = {
    (parts, reverse, shifted): _make_scan(parts, reverse, shifted)
    for parts in (1, 2)
    for reverse in (False, True)
    for shifted in (False, True)
}
