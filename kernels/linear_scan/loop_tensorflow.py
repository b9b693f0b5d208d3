"""The time loop on TensorFlow: one pass, always compiled by XLA.

XLA updates the output in place. As plain graph operations the loop takes
about ten times longer (README.md). Inside an XLA program or on a TPU the
compiled function is inlined; otherwise it is a cluster of its own, compiled
once for each shape and shared by all layers.
"""

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

from keras_griffin.kernels.linear_scan.complex_arithmetic import add
from keras_griffin.kernels.linear_scan.complex_arithmetic import multiply


@tf.function(jit_compile=True, autograph=False, reduce_retracing=True)
def _loop(x, a, carry, reverse, shifted):
    batch, time, width = tf.unstack(tf.shape(x[0]))
    time_is_known = x[0].shape[1] is not None
    if not time_is_known:
        # If time is 0, XLA still compiles a loop that reads one step.
        extra = tf.zeros((batch, 1, width))
        x, a = (tuple(tf.concat((z, extra), 1) for z in t) for t in (x, a))

    def step(i, carry, y):
        t = time - 1 - i if reverse else i
        start = (0, t, 0)

        def row(z):
            return xla.dynamic_slice(z, start, (batch, 1, width))

        x_t, a_t = tuple(map(row, x)), tuple(map(row, a))
        if shifted:
            y_t = add(carry, x_t)
            carry = multiply(a_t, y_t)
        else:
            y_t = carry = add(multiply(a_t, carry), x_t)
        y = tuple(
            xla.dynamic_update_slice(z, z_t, start)
            for z, z_t in zip(y, y_t, strict=True)
        )
        return i + 1, carry, y

    unknown_rows = tf.TensorShape((None, None, None))
    _, carry, y = tf.while_loop(
        lambda i, carry, y: i < time,
        step,
        (0, tuple(c[:, None] for c in carry), tuple(map(tf.zeros_like, x))),
        shape_invariants=(
            tf.TensorShape(()),
            (unknown_rows,) * len(x),
            (unknown_rows,) * len(x),
        ),
        maximum_iterations=time,
    )
    if not time_is_known:
        y = tuple(z[:, :time] for z in y)
    return y, tuple(c[:, 0] for c in carry)


def loop(x, a, carry, reverse, shifted):
    """See `ops_scan.make_scan`. Tuples of float32 tensors."""
    y, last = _loop(x, a, carry, reverse, shifted)
    for result, like in zip((*y, *last), (*x, *carry), strict=True):
        result.set_shape(like.shape)  # the loop forgets static shapes
    return y, last
