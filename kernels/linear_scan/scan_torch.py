"""The scan on PyTorch, by Triton."""

import torch

from keras_griffin.kernels.linear_scan.ops_scan import make_scan
from keras_griffin.kernels.linear_scan.ops_scan import scan_ops
from keras_griffin.kernels.linear_scan.triton_plan import check
from keras_griffin.kernels.linear_scan.triton_plan import loop
from keras_griffin.kernels.triton_torch import check_device
from keras_griffin.kernels.triton_torch import run


def scan_triton(x, a, carry, reverse=False, shifted=False):
    """See `ops_scan.make_scan`. No step, and one, are plain operations."""
    if x[0].numel() == 0 or x[0].shape[1] == 1:
        return scan_ops(x, a, carry, reverse, shifted)
    check(x, a)
    check_device(x[0])
    return _scan(x, a, carry, reverse, shifted)


def _loop(x, a, carry, reverse, shifted):
    y, last = _loop_op(x[0], a[0], carry[0], reverse, shifted)
    return (y,), (last,)


_scan = make_scan(_loop)


@torch.library.custom_op("keras_griffin::triton_scan", mutates_args=())
def _loop_op(
    x: torch.Tensor,
    a: torch.Tensor,
    carry: torch.Tensor,
    reverse: bool,
    shifted: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return loop(run, x, a, carry, reverse, shifted)


@_loop_op.register_fake
def _(x, a, carry, reverse, shifted):
    return x.new_empty(x.shape), torch.empty_like(carry)
