"""The unit on PyTorch, by Triton.

To PyTorch a pass of the Triton kernels is one operation, with a gradient.
`torch.compile` does not look inside, and Triton is imported when it runs.
"""

import torch

from keras_griffin.kernels.rg_lru import ops_rg_lru
from keras_griffin.kernels.rg_lru.ops_rg_lru import Inputs
from keras_griffin.kernels.rg_lru.triton_plan import check
from keras_griffin.kernels.triton_torch import capability
from keras_griffin.kernels.triton_torch import check_device
from keras_griffin.kernels.triton_torch import run

REAL_INPUTS = (
    "Tensor x, Tensor recurrence_gate_kernel, Tensor recurrence_gate_bias, "
    "Tensor input_gate_kernel, Tensor input_gate_bias, "
    "Tensor recurrence_param, Tensor? reset, Tensor? padding_mask, "
    "Tensor initial_state"
)
FLOATS = 6  # of them, before the masks


def rg_lru_triton(inputs):
    """`(y, final_state)`. No step, and one, are plain operations."""
    x = inputs.x
    if x.numel() == 0 or x.shape[1] == 1:
        return ops_rg_lru.rg_lru_ops(*inputs)
    check(x, inputs.recurrence_gate_kernel, inputs.phase_param)
    check_device(x)
    return _forward_op(*inputs[:FLOATS], *inputs[FLOATS + 1 :])


def _inputs(*tensors):
    return Inputs(*tensors[:FLOATS], None, *tensors[FLOATS:])


@torch.library.custom_op(
    "keras_griffin::rg_lru",
    mutates_args=(),
    schema=f"({REAL_INPUTS}) -> (Tensor, Tensor)",
)
def _forward_op(*tensors):
    from keras_griffin.kernels.rg_lru.triton_passes import forward

    return forward(run, capability(tensors[0]), _inputs(*tensors))


@_forward_op.register_fake
def _(x, *others):
    return x.new_empty(x.shape), torch.empty_like(others[-1])


@torch.library.custom_op(
    "keras_griffin::rg_lru_backward",
    mutates_args=(),
    schema=f"({REAL_INPUTS}, Tensor y, Tensor dy, Tensor d_last) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward_op(*tensors):
    from keras_griffin.kernels.rg_lru.triton_passes import backward

    *inputs, y, dy, d_last = tensors
    gradients = backward(
        run, capability(y), _inputs(*inputs), y, dy, d_last, _add_products
    )
    # Both matrices' are halves of one array, which no results may be.
    return tuple(g.contiguous() for g in gradients if g is not None)


@_backward_op.register_fake
def _(*tensors):
    floats = (*tensors[:FLOATS], tensors[FLOATS + 2])
    return tuple(z.new_empty(z.shape) for z in floats)


def _add_products(dx, dz, matrices):
    """`dx += dz W^T`, in place, as cuBLAS can."""
    blocks, block, _ = matrices.shape
    by_block = dx.view(-1, blocks, block).transpose(0, 1)
    dz = dz.view(-1, blocks, 2 * block).transpose(0, 1)
    torch.baddbmm(by_block, dz, matrices.mT, out=by_block)
    return dx


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[0])


def _gradient(ctx, dy, d_last):
    *inputs, y = ctx.saved_tensors
    if torch.is_grad_enabled():  # Second derivatives: the kernels have none.
        gradients = ops_rg_lru.backward(_inputs(*inputs), y, dy, d_last)
        return gradients[:FLOATS] + gradients[FLOATS + 1 :]
    *gradients, d_initial = _backward_op(*inputs, y, dy, d_last)
    return (*gradients, None, None, d_initial)


_forward_op.register_autograd(_gradient, setup_context=_save)
