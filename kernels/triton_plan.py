"""What the Triton kernels take, and how work is cut up. It needs no Triton."""

import collections
import importlib.metadata
import importlib.util
import os
import sys

import keras
from packaging.version import Version

# A kernel's result, before there is one.
Output = collections.namedtuple("Output", "shape dtype")
# How a kernel is run: programs, their warps, parts of time, constants by name.
Plan = collections.namedtuple("Plan", "programs warps parts constants")

DTYPES = ("float32", "bfloat16", "float16")
STAGES = 1  # loads of one chunk: other programs fill the waits
OLDEST = (8, 0)  # compute capability: Ampere, the first with bfloat16
# Bytes that a program may have. Consumer cards have less than an A100.
SHARED_MEMORY = {(8, 0): 163 << 10, (8, 7): 163 << 10}
SHARED_MEMORY_OF_HOPPER = 227 << 10  # and of Blackwell
SHARED_MEMORY_ELSEWHERE = 99 << 10
# Two programs a multiprocessor of an H100. One number for all cards, so that
# a program that was traced elsewhere is the same.
PROGRAMS = 2 * 132
FEWEST_PARTS = 4  # time in parts is read twice


def _crashes_late():
    """Whether Triton ends the process when it comes after TensorFlow.

    3.6.0 does not, 3.7.0 does (with TensorFlow 2.21).
    """
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return False
    return Version(version) >= Version("3.7")


CRASHES_LATE = _crashes_late()


def refuse(rule, received, instead="Use implementation='ops'"):
    raise NotImplementedError(
        f"The Triton kernels {rule}. Received: {received}. {instead}."
    )


def check(*arrays):
    """Raises `NotImplementedError` without Triton, and for other dtypes."""
    if importlib.util.find_spec("triton") is None:
        refuse("need triton", "no such package", "`pip install triton`")
    if CRASHES_LATE and "tensorflow" in sys.modules:
        if "triton" not in sys.modules:
            refuse(
                "need triton to be imported before TensorFlow, as it crashes "
                "later",
                "tensorflow first",
                "`import triton` at the top, or install triton 3.6",
            )
    for array in arrays:
        dtype = keras.backend.standardize_dtype(array.dtype)
        if dtype not in DTYPES:
            refuse("take 16-bit and 32-bit floats", dtype)


def is_interpreted():
    """Whether Triton runs its kernels in Python, on a CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def shared_memory(capability):
    """Bytes that a program may have on a GPU of a compute capability.

    `None`: on any.
    """
    if capability is None:
        return SHARED_MEMORY_ELSEWHERE
    if capability[0] in (9, 10):
        return SHARED_MEMORY_OF_HOPPER
    return SHARED_MEMORY.get(capability, SHARED_MEMORY_ELSEWHERE)


def cut_time(time, chunk, programs):
    """Parts of time, and chunks of a part.

    Args:
        time: int [steps].
        chunk: int [steps].
        programs: int. How many there are without parts.
    """
    chunks = -(-time // chunk)
    parts = min(chunks, PROGRAMS // programs)
    if parts < FEWEST_PARTS:
        return 1, chunks
    size = -(-chunks // parts)
    return -(-chunks // size), size


def run_over_time(run, kernel, plan, arguments, outputs):
    """Runs a kernel, twice where time is in parts; see `triton_parts.py`.

    Args:
        run: callable `(kernel, plan, arguments)` to the list of results, of
            the backend. `arguments` is a dict in the kernel's order: arrays,
            `None`, an `Output` for each result, and numbers.
        kernel: function of Triton with `products` and `ends` among its
            arguments.
        arguments: dict of arrays and `None`, one of them `x`.
        outputs: dict of `Output`.
    """

    def call(**others):
        return run(kernel, plan, {**arguments, **others, **plan.constants})

    nothing = {"products": None, "ends": None}
    if plan.parts == 1:
        return call(**nothing, **outputs)
    batch, _, width = arguments["x"].shape
    part = Output((batch, plan.parts, width), "float32")
    unused = dict.fromkeys(outputs)
    products, ends = call(products=part, ends=part, **unused)
    return call(products=products, ends=ends, **outputs)
