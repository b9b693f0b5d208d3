"""The time loop on JAX: one pass that updates the output in place.

`jax.lax.scan` wants time as its first axis and pays for three transpositions;
slices of axis 1 need none (five times faster on a CPU, see README.md).
"""

import functools

import jax
import jax.numpy as jnp

from keras_griffin.kernels.linear_scan.complex_arithmetic import add
from keras_griffin.kernels.linear_scan.complex_arithmetic import multiply


@functools.partial(jax.jit, static_argnames=("reverse", "shifted"))
def loop(x, a, carry, reverse, shifted):
    """See `ops_scan.make_scan`. Tuples of float32 arrays."""
    time = x[0].shape[1]

    def step(i, state):
        carry, y = state
        t = time - 1 - i if reverse else i
        x_t, a_t = jax.tree.map(
            lambda z: jax.lax.dynamic_index_in_dim(z, t, 1, keepdims=False),
            (x, a),
        )
        if shifted:
            y_t = add(carry, x_t)
            carry = multiply(a_t, y_t)
        else:
            y_t = carry = add(multiply(a_t, carry), x_t)
        y = tuple(
            jax.lax.dynamic_update_index_in_dim(z, z_t, t, 1)
            for z, z_t in zip(y, y_t, strict=True)
        )
        return carry, y

    y = jax.tree.map(jnp.zeros_like, x)
    carry, y = jax.lax.fori_loop(0, time, step, (carry, y))
    return y, carry
