"""Runs a Triton kernel on TensorFlow: its PTX in a call of XLA.

The call is a program of XLA's own, which `tf.function(jit_compile=True)` around
takes in. It is `tf2xla`'s (TensorFlow 2.21), beside TensorFlow's public names.
"""

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

from keras_griffin.kernels.triton_plan import OLDEST
from keras_griffin.kernels.triton_plan import Output
from keras_griffin.kernels.triton_plan import refuse


def capability():
    """The compute capability of the GPU here; `None` if there is none."""
    for device in tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(device)
        return details.get("compute_capability")
    return None


def check_call(x):
    """Raises without an NVIDIA GPU, and where the grid is not known."""
    if (capability() or (0, 0)) < OLDEST:
        refuse("need an NVIDIA GPU, Ampere or later", capability())
    if not x.shape.is_fully_defined():
        refuse(
            "need sizes that are known, on TensorFlow",
            f"x.shape={tuple(x.shape)}",
            "Make batches of one size, `dataset.batch(n, drop_remainder=True)`"
            ", or use implementation='ops'",
        )


def run(kernel, plan, arguments):
    """See `triton_plan.run_over_time`."""
    from keras_griffin.kernels import triton_ptx

    compiled = triton_ptx.compile_kernel(kernel, plan, arguments, capability())
    arrays = [arguments[name] for name in kernel.arg_names]
    arrays = [value for value in arrays if hasattr(value, "dtype")]
    outputs = [isinstance(value, Output) for value in arrays]
    pointers, size = triton_ptx.SCRATCH
    scratch = tf.zeros(size, "uint8")
    return call(
        [v for v in arrays if not isinstance(v, Output)] + [scratch] * pointers,
        [(tuple(v.shape), v.dtype) for v in arrays if isinstance(v, Output)],
        triton_ptx.describe(compiled, plan, outputs),
    )


@tf.function(jit_compile=True, autograph=False)
def call(operands, outputs, text):
    from keras_griffin.kernels import triton_ptx

    specs = [tf.TensorSpec(shape, dtype) for shape, dtype in outputs]
    return xla.custom_call_v2(
        triton_ptx.TARGET, operands, specs, backend_config=text
    )
