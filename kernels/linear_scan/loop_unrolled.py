"""The time loop without a loop, for converters that know none.

    x[t], a[t] = x[t] + a[t] x[t - s], a[t] a[t - s]        for s = 1, 2, 4 ...

After the rounds with `s < time` every `x[t]` has all before it (Hillis and
Steele, "Data parallel algorithms", 1986).
"""

import keras
from keras import ops

from keras_griffin.kernels.dispatch import doublings
from keras_griffin.kernels.linear_scan.complex_arithmetic import add
from keras_griffin.kernels.linear_scan.complex_arithmetic import multiply


def loop(x, a, carry, reverse, shifted):
    """See `ops_scan.make_scan`. Tuples of float32 tensors."""
    if reverse:
        x, a = _flipped(x), _flipped(a)
    time = ops.shape(x[0])[1]
    column = ops.arange(time, dtype="int32")
    last = a
    if shifted:
        # y[t] = a[t - 1] y[t - 1] + x[t]
        one = (1.0,) + (0.0,) * (len(a) - 1)
        a = _earlier(a, column, 1, one)
    carry = tuple(part[:, None] for part in carry)
    first = (column == 0)[:, None]
    x = tuple(
        ops.where(first, after, part)
        for part, after in zip(x, add(multiply(a, carry), x), strict=True)
    )
    zero = (0.0,) * len(x)
    for step in doublings(x[0].shape[1]):
        x = add(x, multiply(a, _earlier(x, column, step, zero)))
        a = multiply(a, _earlier(a, column, step, zero))
    carry = tuple(part[:, -1] for part in x)
    if shifted:
        carry = multiply(tuple(part[:, -1] for part in last), carry)
    return _flipped(x) if reverse else x, carry


def take_columns(x, index):
    """Columns of `x` `(batch, time, ...)`, by an index of rank 1."""
    if keras.config.backend() == "torch":
        # Keras' `take` squeezes the axis, which ONNX takes at its word.
        return x.index_select(1, ops.cast(index, "int64"))
    return ops.take(x, index, axis=1)


def _earlier(z, column, step, before):
    """`z[t - step]`, and `before` where that is none."""
    index = ops.maximum(column - step, 0)
    known = (column >= step)[:, None]
    return tuple(
        ops.where(known, take_columns(part, index), value)
        for part, value in zip(z, before, strict=True)
    )


def _flipped(z):
    return tuple(ops.flip(part, axis=1) for part in z)
