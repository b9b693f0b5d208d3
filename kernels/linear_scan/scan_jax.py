"""The scans on JAX, by the name of their implementation.

Kernels are imported where they are used: not every machine has Pallas.
"""

import functools

import jax

from keras_griffin.kernels.dispatch import log_once
from keras_griffin.kernels.dispatch_jax import by_platform
from keras_griffin.kernels.dispatch_jax import find_mesh
from keras_griffin.kernels.dispatch_jax import over_sequence
from keras_griffin.kernels.linear_scan.numbers import add
from keras_griffin.kernels.linear_scan.numbers import conjugate
from keras_griffin.kernels.linear_scan.numbers import multiply
from keras_griffin.kernels.linear_scan.ops_scan import loop_in_float32
from keras_griffin.kernels.linear_scan.ops_scan import make_scan
from keras_griffin.kernels.linear_scan.ops_scan import scan_backward

SEQUENCE = ("batch", "sequence", "model")
STATE = ("batch", "model")


def scan_over_mesh(name, x, a, carry, reverse=False, shifted=False):
    """See `ops_scan.make_scan`; divided over the mesh, if there is one."""
    scan = get_scan(name)
    batch, time, width = x[0].shape
    if time <= 1:
        return scan(x, a, carry, reverse, shifted)
    try:
        mesh = find_mesh()
    except NotImplementedError as error:
        if name.startswith("pallas"):
            raise
        if name == "auto":
            log_once(f"Plain operations instead of a kernel: {error}")
        return get_scan("ops")(x, a, carry, reverse, shifted)
    if mesh is None:
        return scan(x, a, carry, reverse, shifted)
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
    loops = {
        "ops": loop_in_float32,
        "pallas_tpu": _pallas_tpu_loop,
        "pallas_gpu": _pallas_gpu_loop,
        "auto": _auto_loop,
    }
    return make_scan(loops[name])


def _pallas_tpu_loop(x, a, carry, reverse, shifted):
    from keras_griffin.kernels.linear_scan.pallas_tpu import loop

    return loop(x, a, carry, reverse, shifted)


def _pallas_gpu_loop(x, a, carry, reverse, shifted):
    from keras_griffin.kernels.linear_scan.pallas_gpu import loop

    return loop(x, a, carry, reverse, shifted)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _auto_loop(x, a, carry, reverse, shifted):
    def this_way(loop):
        return functools.partial(loop, reverse=reverse, shifted=shifted)

    return by_platform(
        {
            "tpu": this_way(_pallas_tpu_loop),
            "cuda": this_way(_pallas_gpu_loop),
        },
        this_way(loop_in_float32),
        x,
        a,
        carry,
    )


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
