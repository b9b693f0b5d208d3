"""The unit on JAX, by the name of its implementation.

Kernels are imported where they are used: not every machine has Pallas.
"""

import functools

import jax
import jax.numpy as jnp

from keras_griffin.kernels.dispatch import log_once
from keras_griffin.kernels.dispatch_jax import alike
from keras_griffin.kernels.dispatch_jax import choose
from keras_griffin.kernels.dispatch_jax import over_sequence
from keras_griffin.kernels.dispatch_jax import takes
from keras_griffin.kernels.linear_scan import ops_scan
from keras_griffin.kernels.linear_scan.scan_jax import get_loop
from keras_griffin.kernels.linear_scan.scan_jax import get_scan
from keras_griffin.kernels.linear_scan.scan_jax import multiply_add
from keras_griffin.kernels.linear_scan.scan_jax import scan_over_mesh
from keras_griffin.kernels.rg_lru import ops_rg_lru
from keras_griffin.kernels.rg_lru.ops_rg_lru import Inputs
from keras_griffin.kernels.rg_lru.ops_rg_lru import make_rg_lru

SEQUENCE = ("batch", "sequence", "model")
ROWS = ("batch", "sequence")
STATE = ("batch", "model")
# What divides each of the inputs: channels at whole blocks of the gates.
AXES = Inputs(
    x=SEQUENCE,
    recurrence_gate_kernel=("model", None, None),
    recurrence_gate_bias=("model", None),
    input_gate_kernel=("model", None, None),
    input_gate_bias=("model", None),
    recurrence_param=("model",),
    phase_param=("model",),
    reset=ROWS,
    padding_mask=ROWS,
    initial_state=STATE,
)


def rg_lru_over_mesh(name, inputs):
    """`(y, final_state)`; divided over the mesh, if there is one."""
    name, mesh = choose(name, inputs)
    if mesh is None:
        return get_rg_lru(name)(*alike(inputs))
    batch, time, _ = inputs.x.shape
    blocks = inputs.recurrence_gate_kernel.shape[0]
    is_complex = inputs.phase_param is not None
    if is_complex and mesh.divides("model", 1) and mesh.divides("sequence", 1):
        split = mesh.split(batch=batch)
    elif not is_complex and mesh.divides("model", blocks):
        split = mesh.split(batch=batch, sequence=time, model=blocks)
    elif mesh.explicit:
        log_once(
            "Each device computes the whole recurrence of its rows: its "
            f"{blocks} gate blocks, complex or not divisible, cannot be "
            "divided over a mesh of explicit axes."
        )
        split = mesh.split(batch=batch)
    else:
        # XLA divides the gates, and the scan divides its channels itself.
        return _around_scan(name)(*inputs)

    def run(*arrays):
        if "sequence" not in split:
            return get_rg_lru(name)(*arrays)
        inputs = Inputs(*arrays)
        unit = _over_sequence(name, split["sequence"])
        y, (last,) = unit(
            inputs._replace(initial_state=None), (inputs.initial_state,)
        )
        return y, last

    return mesh.run(run, inputs, AXES, (SEQUENCE, STATE), split)


@functools.cache
def get_rg_lru(name):
    """The unit on one device; see `ops_rg_lru.make_rg_lru`."""
    return make_rg_lru(*_passes(name))


@functools.cache
def _around_scan(name):
    scan = functools.partial(scan_over_mesh, name)
    return make_rg_lru(
        functools.partial(ops_rg_lru.forward, scan=scan),
        functools.partial(ops_rg_lru.backward, scan=scan),
    )


@functools.cache
def _passes(name):
    """`(forward, backward)` on one device."""
    if name == "auto":
        return _auto_forward, jax.jit(_auto_backward)
    if name == "pallas_tpu":
        from keras_griffin.kernels.rg_lru.pallas_tpu_backward import backward
        from keras_griffin.kernels.rg_lru.pallas_tpu_forward import forward

        return forward, backward
    if name == "triton_gpu":
        return _triton_forward, jax.jit(_triton_backward)
    return tuple(map(jax.jit, _around_loop(name)))


def _around_loop(name):
    """Plain operations around the loop of an implementation.

    Only the backward pass is ever differentiated, for a second derivative.
    """
    loop = ops_scan.loop if name == "ops" else get_loop(name)
    return (
        functools.partial(
            ops_rg_lru.forward,
            scan=functools.partial(ops_scan.run_loop, loop=loop),
        ),
        functools.partial(ops_rg_lru.backward, scan=get_scan(name)),
    )


@jax.jit
def _auto_forward(*inputs):
    return _by_platform(0, Inputs(*inputs), *inputs)


@jax.custom_jvp
def _auto_backward(inputs, *others):
    return _by_platform(1, inputs, inputs, *others)


@_auto_backward.defjvp
def _second_derivative(primals, tangents):
    # The kernel has none: it is that of the plain operations.
    return jax.jvp(_around_loop("auto")[1], primals, tangents)


@jax.jit
def _triton_forward(*inputs):
    from keras_griffin.kernels import triton_jax
    from keras_griffin.kernels.rg_lru import triton_passes
    from keras_griffin.kernels.rg_lru import triton_plan

    inputs = Inputs(*inputs)
    triton_plan.check(
        inputs.x, inputs.recurrence_gate_kernel, inputs.phase_param
    )
    return triton_passes.forward(
        triton_jax.run, triton_jax.capability(), inputs
    )


@jax.custom_jvp
def _triton_backward(*args):
    from keras_griffin.kernels import triton_jax
    from keras_griffin.kernels.rg_lru import triton_passes

    return triton_passes.backward(
        triton_jax.run, triton_jax.capability(), *args
    )


@_triton_backward.defjvp
def _second_derivative_of_triton(primals, tangents):
    return jax.jvp(_around_loop("ops")[1], primals, tangents)


def _by_platform(which, inputs, *args):
    """The forward pass (0) or the backward pass (1) of the platform."""
    from keras_griffin.kernels.rg_lru.pallas_tpu_plan import make_plan

    passes = _around_loop("pallas_tpu")
    if takes("tpu", make_plan, inputs.x, inputs.recurrence_gate_kernel):
        passes = _passes("pallas_tpu")
    return jax.lax.platform_dependent(
        *args,
        tpu=passes[which],
        cuda=_around_loop("pallas_gpu")[which],
        default=_around_loop("ops")[which],
    )


def _over_sequence(name, axis):
    forward, backward = _passes(name)

    def run(inputs, state):
        y, last = forward(*inputs._replace(initial_state=state[0]))
        return y, (last,)

    def run_backward(inputs, state, y, dy, d_last):
        gradients = backward(
            inputs._replace(initial_state=state[0]), y, dy, d_last[0]
        )
        return (
            gradients._replace(initial_state=None),
            (gradients.initial_state,),
        )

    return over_sequence(axis, _decay, run, run_backward, multiply_add)


def _decay(inputs):
    """The product of `a` over time, by the sum of its logarithms."""
    _, log_a, reset = ops_rg_lru.recurrence_gate(
        ops_rg_lru.without_pads(inputs)
    )
    product = jnp.exp(jnp.sum(log_a, axis=1))
    if reset is not None:
        product = jnp.where(jnp.any(reset, axis=1), 0.0, product)
    return (product,)
