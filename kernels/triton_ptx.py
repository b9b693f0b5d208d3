"""Compiles a Triton kernel for a GPU, which need not be here.

And says it to XLA, on JAX and TensorFlow. XLA's name for the call is its own
("__gpu$"), with no promise; it is read in `xla/service/gpu/kernel_call.cc` and
is there in jax 0.10.2 and in TensorFlow 2.21.
"""

import keras
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from keras_griffin.kernels.triton_plan import STAGES

POINTERS = {
    "float32": "*fp32",
    "bfloat16": "*bf16",
    "float16": "*fp16",
    "int8": "*i8",
}
ALIGNED = [["tt.divisibility", 16]]  # bytes, as XLA and PyTorch allocate
PTX_VERSION = 87  # of CUDA 12.8, as old as the assembler of Triton 3.6
WARP = 32  # threads
TARGET = "__gpu$xla.gpu.ptx"
# Triton's kernels end with two pointers to scratch memory, which ours lack.
SCRATCH = 2, 16  # pointers, bytes


def compile_kernel(kernel, plan, arguments, capability, numbers=()):
    """The compiled kernel, with `asm["ptx"]`, `metadata` and `asm["cubin"]`.

    Args:
        kernel, plan, arguments: see `triton_plan.run_over_time`. What has a
            `dtype` becomes a pointer, all else a constant.
        capability: tuple of two ints, of the GPU.
        numbers: names of ints that are arguments and no constants, as PyTorch
            calls a kernel.
    """
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        value = arguments[name]
        if hasattr(value, "dtype"):
            dtype = keras.backend.standardize_dtype(value.dtype)
            signature[name] = POINTERS[dtype]
            attributes[i,] = ALIGNED
        elif name in numbers:
            signature[name] = "i32"
        else:
            signature[name] = "constexpr"
            constants[i,] = value
    source = ASTSource(kernel, signature, constants, attributes)
    major, minor = capability
    return triton.compile(
        source,
        target=GPUTarget("cuda", 10 * major + minor, WARP),
        options={
            "num_warps": plan.warps,
            "num_stages": STAGES,
            "ptx_version": PTX_VERSION,
        },
    )


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
