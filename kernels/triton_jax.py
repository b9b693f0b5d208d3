"""Runs a Triton kernel on JAX: its PTX, made while tracing, in a call of XLA.

XLA's name for the call is its own ("__gpu$"), with no promise; it is read in
`xla/service/gpu/kernel_call.cc` and is there in jax 0.10.2. A test lowers it.
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

TARGET = "__gpu$xla.gpu.ptx"
WARP = 32  # threads
# Triton's kernels end with two pointers to scratch memory, which ours lack.
SCRATCH = 2, 16  # pointers, bytes

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
    from keras_griffin.kernels.triton_ptx import compile_kernel

    compiled = compile_kernel(kernel, plan, arguments, capability() or OLDEST)
    arrays = [arguments[name] for name in kernel.arg_names]
    arrays = [value for value in arrays if hasattr(value, "dtype")]
    outputs = [isinstance(value, Output) for value in arrays]
    inputs = [v for v in arrays if not isinstance(v, Output)]
    call = jax.ffi.ffi_call(
        TARGET,
        [
            result(value.shape, value.dtype, inputs)
            for value in arrays
            if isinstance(value, Output)
        ],
        custom_call_api_version=2,
        legacy_backend_config=describe(compiled, plan, outputs),
        vmap_method="sequential",
    )
    pointers, size = SCRATCH
    scratch = only_cuda(jax.numpy.zeros(size, "uint8"))
    return call(*inputs, *[scratch] * pointers)


def describe(compiled, plan, outputs):
    """What XLA is told of a kernel: a dictionary of MLIR.

    Args:
        outputs: list of bools, for each array whether it is a result.
    """
    ptx = compiled.asm["ptx"].replace("\\", "\\5C")
    ptx = ptx.replace('"', "\\22").replace("\n", "\\0A")
    places = [f"{i} : i32" for i, is_output in enumerate(outputs) if is_output]
    entries = {
        "name": f'"{compiled.metadata.name}"',
        "kernel_type": '"ptx"',
        "kernel_data": f'"{ptx}"',
        "grid_x": f"{plan.programs} : i32",
        "grid_y": "1 : i32",
        "grid_z": "1 : i32",
        "block_x": f"{WARP * plan.warps} : i32",
        "block_y": "1 : i32",
        "block_z": "1 : i32",
        "shared_mem_bytes": f"{compiled.metadata.shared} : i32",
        "output_indices": f"[{', '.join(places)}]",
    }
    text = ", ".join(f"{key} = {value}" for key, value in entries.items())
    return f"{{{text}}}"
