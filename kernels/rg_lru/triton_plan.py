"""What the Triton kernels of `rg_lru` take, and how they cut it up."""

from keras.backend import standardize_dtype

from keras_griffin.kernels import triton_plan
from keras_griffin.kernels.triton_plan import Plan
from keras_griffin.kernels.triton_plan import cut_time
from keras_griffin.kernels.triton_plan import refuse
from keras_griffin.kernels.triton_plan import shared_memory

# Channels of a gate block: columns of both matrices are held on chip.
MAX_BLOCK = {"float32": 128, "bfloat16": 256, "float16": 256}
SMALLEST_DOT = 16  # rows and columns of a product
# What the compiler fits in registers: benchmarks/results/kernels_on_a_gpu.md
CHUNK = 64
CHANNELS, WARPS = 32, 4
CHANNELS_OF_FORWARD = 64  # in 16 bits, if two matrices' of them fit
WARPS_OF_FLOAT32 = 8
SCRATCH = 8 << 10  # bytes, for what passes between warps


def check(x, gate_kernel, phase_param):
    """Raises `NotImplementedError` for what the kernels do not take."""
    triton_plan.check(x)
    if phase_param is not None:
        refuse("of `rg_lru` take real numbers", "`phase_param`")
    block, dtype = gate_kernel.shape[1], standardize_dtype(x.dtype)
    if block > MAX_BLOCK[dtype]:
        refuse(
            f"of `rg_lru` take {dtype} in gate blocks of at most "
            f"{MAX_BLOCK[dtype]} channels",
            block,
        )


def make_plan(shape, block, dtype, capability, is_forward):
    """How the work is cut up.

    Args:
        shape: `(batch, time, width)`.
        block: int. Width of a gate block.
        dtype: string, of `x`.
        capability: tuple of two ints, of the GPU; `None` for any.
        is_forward: bool. Which pass.
    """
    batch, time, width = shape
    padded, chunk, channels = pad(block), min(CHUNK, pad(time)), CHANNELS
    if is_forward and dtype != "float32":
        held = padded * (2 * CHANNELS_OF_FORWARD + CHUNK) * 2 + SCRATCH
        if held <= shared_memory(capability):
            channels = CHANNELS_OF_FORWARD
    channels = min(channels, padded)
    warps = WARPS_OF_FLOAT32 if dtype == "float32" else WARPS
    programs = batch * (width // block) * -(-block // channels)
    parts, chunks = cut_time(time, chunk, programs)
    constants = {
        "T": time,
        "PARTS": parts,
        "CHUNKS": chunks,
        "BLOCKS": width // block,
        "K": block,
        "K_PADDED": padded,
        "CHANNELS": channels,
        "CHUNK": chunk,
    }
    return Plan(programs * parts, warps, parts, constants)


def pad(size):
    """The next power of two, of those that products take."""
    return max(SMALLEST_DOT, 1 << (size - 1).bit_length())
