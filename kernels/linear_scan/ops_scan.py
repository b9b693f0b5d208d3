"""`linear_scan` in plain operations, for every backend and device."""

import importlib

import keras
from keras import ops

from keras_griffin.kernels import dispatch
from keras_griffin.kernels.custom_gradient import custom_gradient
from keras_griffin.kernels.linear_scan.complex_arithmetic import add
from keras_griffin.kernels.linear_scan.complex_arithmetic import conjugate
from keras_griffin.kernels.linear_scan.complex_arithmetic import multiply
from keras_griffin.kernels.linear_scan.loop_unrolled import (
    loop as unrolled_loop,
)

# The backend's loop: see `make_scan`, but `x` and `a` are float32.
loop = importlib.import_module(
    f"keras_griffin.kernels.linear_scan.loop_{keras.config.backend()}"
).loop


def make_scan(loop):
    """Makes the scan over axis 1, with a gradient that is a scan as well.

        carry = y[t] = a[t] * carry + x[t]                  (shifted=False)
        y[t] = carry + x[t],  carry = a[t] * y[t]           (shifted=True)

    Each of the two is the transpose of the other, with time reversed and `a`
    conjugated; hence both. Call it once for each loop, at module level.

    Args:
        loop: callable `(x, a, carry, reverse, shifted)` to `(y, carry)`, which
            computes this without a gradient. `x` and `a` are tuples, `(real,)`
            or `(real, imaginary)`, of tensors `(batch, time, width)`; `carry`
            is such a tuple of float32 tensors `(batch, width)`; `y` has the
            dtype of `x`, and `carry` is that after the last step. With
            `reverse` it runs from the last time step to the first. Where
            there is at most one time step it is not called.

    Returns:
        A callable like `loop`, where `reverse` and `shifted` default to
        `False`.
    """

    def scan(x, a, carry, reverse=False, shifted=False):
        if x[0].shape[1] in (0, 1):
            return run_loop(x, a, carry, reverse, shifted, loop)
        results = scans[len(x), bool(reverse), bool(shifted)](*x, *a, *carry)
        return results[: len(x)], results[len(x) :]

    scans = {
        (parts, reverse, shifted): _make_scan(
            loop, scan, parts, reverse, shifted
        )
        for parts in (1, 2)
        for reverse in (False, True)
        for shifted in (False, True)
    }
    return scan


def run_loop(x, a, carry, reverse=False, shifted=False, loop=loop):
    """The scan without a gradient; one time step is an update, not a loop."""
    time = x[0].shape[1]  # None if unknown
    if time == 0:
        return x, carry
    if time != 1:
        run = unrolled_loop if dispatch.is_converting else loop
        return run(x, a, carry, reverse, shifted)
    dtype = x[0].dtype
    x, a = (_cast([part[:, 0] for part in z], "float32") for z in (x, a))
    if shifted:
        y = add(carry, x)
        carry = multiply(a, y)
    else:
        y = carry = add(multiply(a, carry), x)
    return _cast([part[:, None] for part in y], dtype), carry


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


def scan_backward(scan, a, carry, y, dy, d_last, reverse, shifted):
    """Gradients of `x`, `a` and `carry`, in float32; see `make_scan`."""
    # So that `da` comes of an unrounded `dx`.
    dy = _cast(dy, "float32")
    dx, d_carry = scan(dy, conjugate(a), d_last, not reverse, not shifted)
    if shifted:
        da = multiply(previous(dx, d_last, not reverse), conjugate(y))
    else:
        y = _cast(y, "float32")
        da = multiply(dx, conjugate(previous(y, carry, reverse)))
    return dx, da, d_carry


def _make_scan(loop, scan, parts, reverse, shifted):
    def function(*inputs):
        x, a, carry = _cut(inputs, parts)
        y, carry = loop(x, a, carry, reverse, shifted)
        return (*y, *carry)

    def residuals(inputs, outputs):
        _, a, carry = _cut(inputs, parts)
        return (*a, *carry, *outputs[:parts])

    def backward(kept, gradients):
        a, carry, y = _cut(kept, parts)
        dy, d_last = _cut(gradients, parts)
        dx, da, d_carry = scan_backward(
            scan, a, carry, y, dy, d_last, reverse, shifted
        )
        return (
            *_cast(dx, dy[0].dtype),
            *_cast(da, a[0].dtype),
            *d_carry,
        )

    return custom_gradient(function, residuals, backward)


def _cast(numbers, dtype):
    return tuple(ops.cast(part, dtype) for part in numbers)


def _cut(tensors, size):
    return [tuple(tensors[i : i + size]) for i in range(0, len(tensors), size)]


def loop_in_float32(x, a, carry, reverse, shifted):
    """The backend's loop, which takes float32, on every dtype."""
    run = unrolled_loop if dispatch.is_converting else loop
    y, carry = run(
        _cast(x, "float32"), _cast(a, "float32"), carry, reverse, shifted
    )
    return _cast(y, x[0].dtype), carry


scan_ops = make_scan(loop_in_float32)
