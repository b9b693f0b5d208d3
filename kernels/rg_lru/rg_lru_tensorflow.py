"""The unit on TensorFlow, by Triton."""

from keras_griffin.kernels import triton_tensorflow
from keras_griffin.kernels.rg_lru import ops_rg_lru
from keras_griffin.kernels.rg_lru.ops_rg_lru import Inputs
from keras_griffin.kernels.rg_lru.ops_rg_lru import make_rg_lru
from keras_griffin.kernels.rg_lru.triton_plan import check


def rg_lru_triton(inputs):
    """`(y, final_state)`. No step, and one, are plain operations."""
    x = inputs.x
    if 0 in tuple(x.shape) or x.shape[1] == 1:
        return ops_rg_lru.rg_lru_ops(*inputs)
    check(x, inputs.recurrence_gate_kernel, inputs.phase_param)
    triton_tensorflow.check_call(x)
    return _unit(*inputs)


def _forward(*inputs):
    from keras_griffin.kernels.rg_lru import triton_passes

    return triton_passes.forward(
        triton_tensorflow.run, triton_tensorflow.capability(), Inputs(*inputs)
    )


def _backward(*args):
    from keras_griffin.kernels.rg_lru import triton_passes

    return triton_passes.backward(
        triton_tensorflow.run, triton_tensorflow.capability(), *args
    )


_unit = make_rg_lru(_forward, _backward)
