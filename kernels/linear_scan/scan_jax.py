"""The scans on JAX, by the name of their implementation.

Kernels are imported where they are used: not every machine has Pallas.
"""

import functools

import jax

from keras_griffin.kernels.dispatch_jax import alike
from keras_griffin.kernels.dispatch_jax import choose
from keras_griffin.kernels.dispatch_jax import over_sequence
from keras_griffin.kernels.dispatch_jax import takes
from keras_griffin.kernels.linear_scan.complex_arithmetic import add
from keras_griffin.kernels.linear_scan.complex_arithmetic import conjugate
from keras_griffin.kernels.linear_scan.complex_arithmetic import multiply
from keras_griffin.kernels.linear_scan.ops_scan import loop_in_float32
from keras_griffin.kernels.linear_scan.ops_scan import make_scan
from keras_griffin.kernels.linear_scan.ops_scan import scan_backward

SEQUENCE = ("batch", "sequence", "model")
STATE = ("batch", "model")


def scan_over_mesh(name, x, a, carry, reverse=False, shifted=False):
    """See `ops_scan.make_scan`; divided over the mesh, if there is one."""
    name, mesh = choose(name, (*x, *a, *carry))
    scan = get_scan(name)
    if mesh is None:
        return scan(*alike((x, a, carry)), reverse, shifted)
    batch, time, width = x[0].shape
    split = mesh.split(batch=batch, sequence=time, model=width)
    parts = len(x)

    def run(*arrays):
        x, a, carry = (
            arrays[i : i + parts] for i in range(0, 3 * parts, parts)
        )
        if "sequence" in split:
            unit = _over_sequence(scan, split["sequence"], reverse, shifted)
            y, last = unit((x, a), carry)
        else:
            y, last = scan(x, a, carry, reverse, shifted)
        return (*y, *last)

    results = mesh.run(
        run,
        (*x, *a, *carry),
        [SEQUENCE] * (2 * parts) + [STATE] * parts,
        [SEQUENCE] * parts + [STATE] * parts,
        split,
    )
    return results[:parts], results[parts:]


@functools.cache
def get_scan(name):
    """The scan on one device; see `ops_scan.make_scan`."""
    return make_scan(get_loop(name))


def get_loop(name):
    """The loop of an implementation; see `ops_scan.make_scan`."""
    if name == "ops":
        return loop_in_float32
    if name == "auto":
        return _auto_loop
    if name == "triton_gpu":
        return _triton_loop
    return _kernel(name).loop


def _kernel(name):
    if name == "pallas_tpu":
        from keras_griffin.kernels.linear_scan import pallas_tpu as kernel
    else:
        from keras_griffin.kernels.linear_scan import pallas_gpu as kernel
    return kernel


@functools.partial(jax.jit, static_argnums=(3, 4))
def _auto_loop(x, a, carry, reverse, shifted):
    def fixed(loop):
        return functools.partial(loop, reverse=reverse, shifted=shifted)

    kernels = {"tpu": _kernel("pallas_tpu"), "cuda": _kernel("pallas_gpu")}
    return jax.lax.platform_dependent(
        x,
        a,
        carry,
        default=fixed(loop_in_float32),
        **{
            platform: fixed(kernel.loop)
            for platform, kernel in kernels.items()
            if takes(platform, kernel.check, x, a)
        },
    )


@functools.partial(jax.jit, static_argnums=(3, 4))
def _triton_loop(x, a, carry, reverse, shifted):
    from keras_griffin.kernels import triton_jax
    from keras_griffin.kernels.linear_scan import triton_plan

    triton_plan.check(x, a)
    y, last = triton_plan.loop(
        triton_jax.run, x[0], a[0], carry[0], reverse, shifted
    )
    return (y,), (last,)


def multiply_add(product, state, end, conjugated):
    """`product * state + end`."""
    if conjugated:
        product = conjugate(product)
    return add(multiply(product, state), end)


def _over_sequence(scan, axis, reverse, shifted):
    def decay(inputs):
        _, a = inputs
        one = (1.0,) + (0.0,) * (len(a) - 1)
        return jax.lax.reduce(
            tuple(part.astype("float32") for part in a), one, multiply, (1,)
        )

    def forward(inputs, state):
        return scan(*inputs, state, reverse, shifted)

    def backward(inputs, state, y, dy, d_last):
        _, a = inputs
        dx, da, d_state = scan_backward(
            scan, a, state, y, dy, d_last, reverse, shifted
        )
        d_inputs = jax.tree.map(
            lambda part, like: part.astype(like.dtype), (dx, da), inputs
        )
        return d_inputs, d_state

    return over_sequence(axis, decay, forward, backward, multiply_add, reverse)
