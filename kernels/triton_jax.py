"""Runs a Triton kernel on JAX: its PTX, made while tracing, in a call of XLA.

A test lowers it.
"""

import functools

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching
from jax.interpreters import mlir

from keras_griffin.kernels.dispatch_jax import result
from keras_griffin.kernels.triton_plan import OLDEST
from keras_griffin.kernels.triton_plan import Output
from keras_griffin.kernels.triton_plan import refuse

# Of JAX's ways to tell platforms apart this one alone may raise when lowering.
_only_cuda = Primitive("keras_griffin_only_cuda")
_only_cuda.def_abstract_eval(lambda x: x)
mlir.register_lowering(_only_cuda, lambda context, x: [x], platform="cuda")
batching.defvectorized(_only_cuda)


@functools.partial(mlir.register_lowering, _only_cuda)
def _refuse(context, x):
    refuse("need an NVIDIA GPU", context.module_context.platforms)


def only_cuda(x):
    """`x`; raises where a program is lowered for another platform."""
    return _only_cuda.bind(x)


def capability():
    """The compute capability of the GPU here; `None` if there is none.

    PTX for the oldest runs on all later ones.
    """
    try:
        device = jax.devices("cuda")[0]
    except RuntimeError:
        return None
    major, minor = device.compute_capability.split(".")
    return int(major), int(minor)


def run(kernel, plan, arguments):
    """See `triton_plan.run_over_time`."""
    from keras_griffin.kernels import triton_ptx

    compiled = triton_ptx.compile_kernel(
        kernel, plan, arguments, capability() or OLDEST
    )
    arrays = [arguments[name] for name in kernel.arg_names]
    arrays = [value for value in arrays if hasattr(value, "dtype")]
    outputs = [isinstance(value, Output) for value in arrays]
    inputs = [v for v in arrays if not isinstance(v, Output)]
    call = jax.ffi.ffi_call(
        triton_ptx.TARGET,
        [
            result(value.shape, value.dtype, inputs)
            for value in arrays
            if isinstance(value, Output)
        ],
        custom_call_api_version=2,
        legacy_backend_config=triton_ptx.describe(compiled, plan, outputs),
        vmap_method="sequential",
    )
    pointers, size = triton_ptx.SCRATCH
    scratch = only_cuda(jax.numpy.zeros(size, "uint8"))
    return call(*inputs, *[scratch] * pointers)
