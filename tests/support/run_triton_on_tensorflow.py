"""The Triton kernels through TensorFlow's caller, with an interpreter as GPU.

In place of the call to XLA stands one to Python, of `interpreted_calls.py`, so
that nothing here is compiled. Values and gradients are compared with the
float64 loops.
"""

import functools
import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tensorflow as tf  # noqa: E402

from keras_griffin.kernels import triton_tensorflow  # noqa: E402
from keras_griffin.kernels.linear_scan import triton_plan  # noqa: E402
from support.cases import RGLRUCase  # noqa: E402
from support.cases import ScanCase  # noqa: E402
from support.interpreted_calls import calls  # noqa: E402
from support.interpreted_calls import interpret  # noqa: E402
from support.kernels import assert_rg_lru_case  # noqa: E402
from support.kernels import assert_scan_case  # noqa: E402


def call(operands, outputs, text):
    run = functools.partial(interpret, text)
    results = tf.numpy_function(run, operands, [dtype for _, dtype in outputs])
    return [
        tf.ensure_shape(result, shape)
        for result, (shape, _) in zip(results, outputs, strict=True)
    ]


def main():
    triton_tensorflow.call = call
    triton_tensorflow.capability = lambda: (9, 0)
    for case in (
        RGLRUCase("plain", has_initial_state=False),
        RGLRUCase("masks", time=9, has_reset=True, has_padding=True),
        RGLRUCase("bfloat16", dtype="bfloat16", time=5, has_reset=True),
        RGLRUCase("parts", batch=1, time=200, gate_blocks=1, width=4),
    ):
        assert_rg_lru_case(case, implementation="triton_gpu")
    # Forward once, backward once; the last of them twice.
    assert calls.count("backward_kernel") == 5
    triton_plan.CHUNK = 8  # the interpreter is slow
    for case in (
        ScanCase("plain", has_initial_state=False),
        ScanCase("float16", time=9, dtype="float16", reverse=True),
        ScanCase("parts", batch=1, time=35, width=3, reverse=True),
    ):
        assert_scan_case(case, implementation="triton_gpu")
    print("all equal")


if __name__ == "__main__":
    main()
