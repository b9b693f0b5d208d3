"""Compiles a Triton kernel for a GPU, which need not be here."""

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
