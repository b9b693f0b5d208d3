"""The unit on JAX, by the name of its implementation.

Kernels are imported where they are used: not every machine has Pallas.
"""

import functools

import jax
import jax.numpy as jnp

from keras_griffin.kernels.dispatch import log_once
from keras_griffin.kernels.dispatch_jax import by_platform
from keras_griffin.kernels.dispatch_jax import find_mesh
from keras_griffin.kernels.dispatch_jax import over_sequence
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
    batch, time, _ = inputs.x.shape
    if time <= 1:  # one update of the state: nothing for a kernel
        return get_rg_lru("ops")(inputs)
    try:
        mesh = find_mesh()
    except NotImplementedError as error:
        if name.startswith("pallas"):
            raise
        if name == "auto":
            log_once(f"Plain operations instead of a kernel: {error}")
        return get_rg_lru("ops")(inputs)
    if mesh is None:
        return get_rg_lru(name)(inputs)
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
        return _around_scan(name)(inputs)

    def run(*arrays):
        inputs = Inputs(*arrays)
        if "sequence" not in split:
            return get_rg_lru(name)(inputs)
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
    return make_rg_lru(*_with_scan(functools.partial(scan_over_mesh, name)))


def _with_scan(scan):
    return (
        functools.partial(ops_rg_lru.forward, scan),
        functools.partial(ops_rg_lru.backward, scan),
    )


@functools.cache
def _passes(name):
    """`(forward, backward)` on one device."""
    if name in ("ops", "pallas_gpu"):
        return tuple(map(jax.jit, _with_scan(get_scan(name))))
    if name == "pallas_tpu":
        return _pallas_tpu_forward, _pallas_tpu_backward
    # On other platforms, and for what the kernel refuses, the scan chooses.
    ops = _with_scan(get_scan("auto"))

    @jax.jit
    def forward(inputs):
        return by_platform({"tpu": _pallas_tpu_forward}, ops[0], inputs)

    @jax.jit
    def backward(*args):
        return by_platform({"tpu": _pallas_tpu_backward}, ops[1], *args)

    return forward, backward


def _pallas_tpu_forward(inputs):
    from keras_griffin.kernels.rg_lru import pallas_tpu

    return pallas_tpu.forward(inputs)


def _pallas_tpu_backward(*args):
    from keras_griffin.kernels.rg_lru import pallas_tpu

    return pallas_tpu.backward(*args)


def _over_sequence(name, axis):
    forward, backward = _passes(name)

    def run(inputs, state):
        y, last = forward(inputs._replace(initial_state=state[0]))
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
