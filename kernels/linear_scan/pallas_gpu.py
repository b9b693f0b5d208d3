"""The loop of `linear_scan` as a Pallas kernel for CUDA, through Triton.

A program takes some channels of a row from the first time step to the last,
with the state in registers. The loads of several steps are issued together:
they do not wait for the state, so that their latencies overlap.
"""

import functools

import jax
import jax.numpy as jnp

from keras_griffin.kernels.linear_scan.complex_arithmetic import add
from keras_griffin.kernels.linear_scan.complex_arithmetic import multiply
from keras_griffin.kernels.pallas_compat import pl
from keras_griffin.kernels.pallas_compat import pltriton
from keras_griffin.kernels.pallas_compat import result

CHANNELS = 64  # of a program: two warps, one channel a thread
STEPS = 16  # whose loads are issued together
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


def check(x, a):
    """Raises `NotImplementedError` for what the kernel does not take."""
    for part in (*x, *a):
        if part.dtype not in DTYPES:
            raise NotImplementedError(
                "The GPU kernel of `linear_scan` takes 16-bit and 32-bit "
                f"floats. Received: {part.dtype}. Use one of these, or "
                "implementation='ops'."
            )


@functools.partial(jax.jit, static_argnames=("reverse", "shifted"))
def loop(x, a, carry, reverse, shifted):
    """See `ops_scan.make_scan`; `y` has the dtype of `x`."""
    check(x, a)
    batch, _, width = x[0].shape
    parts = len(x)
    inputs = (*x, *a, *carry)
    results = pl.pallas_call(
        functools.partial(_kernel, parts, reverse, shifted),
        grid=(batch, -(-width // CHANNELS)),
        out_shape=[
            *(result(part.shape, part.dtype, inputs) for part in x),
            *(result(c.shape, jnp.float32, inputs) for c in carry),
        ],
        compiler_params=pltriton.CompilerParams(num_warps=CHANNELS // 32),
    )(*inputs)
    return tuple(results[:parts]), tuple(results[parts:])


def _kernel(parts, reverse, shifted, *refs):
    x, a, first, y, last = (
        refs[i : i + parts] for i in range(0, 5 * parts, parts)
    )
    _, time, width = x[0].shape
    row = pl.program_id(0)
    start = pl.program_id(1) * CHANNELS
    channels = pl.ds(start, CHANNELS)
    mask = start + jnp.arange(CHANNELS) < width

    def load(refs, *step):
        return tuple(
            pltriton.load(ref.at[row, *step, channels], mask=mask, other=0.0)
            .astype(jnp.float32)
            for ref in refs
        )  # fmt: skip

    def store(refs, values, *step):
        for ref, value in zip(refs, values, strict=True):
            pltriton.store(
                ref.at[row, *step, channels], value.astype(ref.dtype), mask=mask
            )

    def run(begin, count, h):
        steps = [begin + k for k in range(count)]
        if reverse:
            steps = [time - 1 - t for t in steps]
        loaded = [(load(x, t), load(a, t)) for t in steps]
        for t, (x_t, a_t) in zip(steps, loaded, strict=True):
            if shifted:
                y_t = add(h, x_t)
                h = multiply(a_t, y_t)
            else:
                y_t = h = add(multiply(a_t, h), x_t)
            store(y, y_t, t)
        return h

    whole, rest = divmod(time, STEPS)
    h = load(first)
    if whole:
        h = jax.lax.fori_loop(
            0, whole, lambda i, h: run(i * STEPS, STEPS, h), h
        )
    store(last, run(jnp.int32(whole * STEPS), rest, h))
