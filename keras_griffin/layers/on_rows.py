"""A dense layer on all tokens of a batch as the rows of one matrix."""

import keras
from keras import ops


def on_rows(dense, x):
    """Returns `dense(x)`, computed on `x` as a matrix with a row for a token.

    For an input of rank 3, XLA on a CPU (jax 0.10) computes the gradient of
    the kernel two to three times slower than for a matrix; other backends make
    a matrix of it themselves. On several devices the axes stay apart: of a
    merged axis, XLA could not shard the second one.

    Args:
        dense: callable from `(rows, width)` to `(rows, units)`.
        x: tensor `(..., width)`.
    """
    if keras.config.backend() != "jax" or len(x.shape) == 2:
        return dense(x)
    if keras.distribution.distribution() is not None:
        return dense(x)
    y = dense(ops.reshape(x, (-1, x.shape[-1])))
    return ops.reshape(y, (*ops.shape(x)[:-1], y.shape[-1]))
