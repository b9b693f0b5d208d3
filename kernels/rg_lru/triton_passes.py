"""The passes of `rg_lru` around its Triton kernels, for every backend.

For `run` see `triton_plan.run_over_time` of the folder above.
"""

import keras
from keras import ops

from keras_griffin.kernels.rg_lru.ops_rg_lru import DECAY_SCALE
from keras_griffin.kernels.rg_lru.ops_rg_lru import Inputs
from keras_griffin.kernels.rg_lru.ops_rg_lru import rate
from keras_griffin.kernels.rg_lru.ops_rg_lru import without_pads
from keras_griffin.kernels.rg_lru.triton_gpu import backward_kernel
from keras_griffin.kernels.rg_lru.triton_gpu import forward_kernel
from keras_griffin.kernels.rg_lru.triton_plan import make_plan
from keras_griffin.kernels.triton_plan import Output
from keras_griffin.kernels.triton_plan import run_over_time


def forward(run, capability, inputs):
    """`(y, final_state)`."""
    outputs = {
        "y": Output(inputs.x.shape, _dtype(inputs)),
        "last": Output(inputs.initial_state.shape, "float32"),
    }
    plan = _plan(inputs, capability, is_forward=True)
    arguments = _arguments(inputs)
    return tuple(run_over_time(run, forward_kernel, plan, arguments, outputs))


def add_products(dx, dz, matrices):
    """`dx` and what the gates add to it, `dz W^T`."""
    share = ops.einsum("btgj,gkj->btgk", dz, matrices)
    return dx + ops.reshape(share, dx.shape)


def backward(run, capability, inputs, y, dy, d_last, add_products=add_products):
    """The gradients, as `Inputs`."""
    shape, dtype = inputs.x.shape, _dtype(inputs)
    batch, time, _ = shape
    blocks, block, _ = inputs.recurrence_gate_kernel.shape
    plan = _plan(inputs, capability, is_forward=False)
    total = Output((batch * plan.parts, blocks, block), "float32")
    outputs = {
        "dx": Output(shape, dtype),
        "dz": Output((batch, time, blocks, 2 * block), dtype),
        "sum_r": total,
        "sum_i": total,
        "sum_rate": total,
        "d_h0": Output(inputs.initial_state.shape, "float32"),
    }
    arguments = {**_arguments(inputs), "y": y, "dy": dy, "d_last": d_last}
    dx, dz, *sums, d_initial = run_over_time(
        run, backward_kernel, plan, arguments, outputs
    )
    d_r_bias, d_i_bias, d_rate = (ops.sum(z, axis=0) for z in sums)
    param = ops.cast(inputs.recurrence_param, "float32")
    d_param = -DECAY_SCALE * ops.sigmoid(param) * ops.reshape(d_rate, (-1,))
    x = ops.reshape(without_pads(inputs).x, (batch, time, blocks, block))
    d_kernels = ops.einsum("btgk,btgj->gkj", x, dz)
    gradients = inputs._replace(
        x=add_products(dx, dz, _matrices(inputs)),
        recurrence_gate_kernel=d_kernels[:, :, :block],
        recurrence_gate_bias=d_r_bias,
        input_gate_kernel=d_kernels[:, :, block:],
        input_gate_bias=d_i_bias,
        recurrence_param=d_param,
        reset=None,
        padding_mask=None,
        initial_state=d_initial,
    )
    return Inputs(
        *(
            None if gradient is None else ops.cast(gradient, like.dtype)
            for gradient, like in zip(gradients, inputs, strict=True)
        )
    )


def _plan(inputs, *others, **options):
    block = inputs.recurrence_gate_kernel.shape[1]
    shape = inputs.x.shape
    return make_plan(shape, block, _dtype(inputs), *others, **options)


def _dtype(inputs):
    return keras.backend.standardize_dtype(inputs.x.dtype)


def _arguments(inputs):
    """What both kernels read."""
    dtype = inputs.x.dtype
    return {
        "x": inputs.x,
        "w_r": ops.cast(inputs.recurrence_gate_kernel, dtype),
        "b_r": ops.cast(inputs.recurrence_gate_bias, "float32"),
        "w_i": ops.cast(inputs.input_gate_kernel, dtype),
        "b_i": ops.cast(inputs.input_gate_bias, "float32"),
        "rate": rate(inputs),
        "marks": _marks(inputs.reset, inputs.padding_mask),
        "h0": inputs.initial_state,
    }


def _marks(reset, padding_mask):
    """0 at a pad, 1 at a token, 2 where a sequence begins; int8."""
    if reset is None and padding_mask is None:
        return None
    marks = 1
    if reset is not None:
        marks = 1 + ops.cast(reset, "int8")
    if padding_mask is not None:
        marks = marks * ops.cast(padding_mask, "int8")
    return marks


def _matrices(inputs):
    """Both gates' blocks side by side, as `dz` has them."""
    kernels = inputs.recurrence_gate_kernel, inputs.input_gate_kernel
    return ops.concatenate(
        [ops.cast(kernel, inputs.x.dtype) for kernel in kernels], axis=-1
    )
