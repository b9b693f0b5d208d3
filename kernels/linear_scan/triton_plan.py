"""What the Triton kernel of `linear_scan` takes, and how it is cut up."""

import keras

from keras_griffin.kernels import triton_plan
from keras_griffin.kernels.triton_plan import Output
from keras_griffin.kernels.triton_plan import Plan
from keras_griffin.kernels.triton_plan import cut_time
from keras_griffin.kernels.triton_plan import refuse
from keras_griffin.kernels.triton_plan import run_over_time

CHANNELS = 64
CHUNK = 32
WARPS = 2


def check(x, a):
    """Raises `NotImplementedError` for what the kernel does not take."""
    triton_plan.check(*x, *a)
    if len(x) == 2:
        refuse("of `linear_scan` take real numbers", "pairs")


def loop(run, x, a, carry, reverse, shifted):
    """See `ops_scan.make_scan` and, for `run`, `triton_plan.run_over_time`."""
    from keras_griffin.kernels.linear_scan.triton_gpu import scan_kernel

    plan = make_plan(x.shape, reverse, shifted)
    dtype = keras.backend.standardize_dtype(x.dtype)
    outputs = {
        "y": Output(x.shape, dtype),
        "last": Output(carry.shape, "float32"),
    }
    arguments = {"x": x, "a": a, "h0": carry}
    return tuple(run_over_time(run, scan_kernel, plan, arguments, outputs))


def make_plan(shape, reverse, shifted):
    """How the work is cut up; `shape` is `(batch, time, width)`."""
    batch, time, width = shape
    programs = batch * -(-width // CHANNELS)
    parts, chunks = cut_time(time, CHUNK, programs)
    constants = {
        "T": time,
        "PARTS": parts,
        "CHUNKS": chunks,
        "D": width,
        "REVERSE": reverse,
        "SHIFTED": shifted,
        "CHANNELS": CHANNELS,
        "CHUNK": CHUNK,
    }
    return Plan(programs * parts, WARPS, parts, constants)
