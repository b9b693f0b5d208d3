"""Arrays that XLA computes once, and not inside of each product around them.

XLA for TPUs takes a cheap input of a matrix product into the product, and
computes it anew for each tile; so it does with a sum of two products. On a v6e
the product then waits for it (`benchmarks/results/block_on_a_tpu.md`). The
values are the same.
"""

import jax


@jax.custom_jvp
def computed_once(x):
    """`x`, computed once; its gradient as XLA likes."""
    return jax.lax.optimization_barrier(x)


@computed_once.defjvp
def _computed_once_jvp(primals, tangents):
    return computed_once(*primals), tangents[0]


@jax.custom_jvp
def gradient_computed_once(x):
    """`x`; the gradient from this use of it is computed once, by itself."""
    return x


@gradient_computed_once.defjvp
def _gradient_computed_once_jvp(primals, tangents):
    # The transpose of a barrier is one too.
    return primals[0], jax.lax.optimization_barrier(tangents[0])
