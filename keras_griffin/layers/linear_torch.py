"""float32 products by oneDNN, for PyTorch on a CPU.

torch 2.13 gives them to MKL, at half of oneDNN's speed on an AMD CPU with
AVX-512: a training step took 1.6 times as long. No public switch changes that
without fewer bits.
"""

import torch

# Below, moving numbers into oneDNN's layout costs more than it brings.
MIN_ROWS = 64


def is_usable(x):
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.shape[:-1].numel() >= MIN_ROWS
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class Linear(torch.autograd.Function):
    """`x @ kernel`, of matrices."""

    @staticmethod
    def forward(ctx, x, kernel):
        ctx.save_for_backward(x, kernel)
        return _product(x, kernel)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, kernel = ctx.saved_tensors
        needs_dx, needs_dkernel = ctx.needs_input_grad
        dx = _product(dy, kernel.t()) if needs_dx else None
        return dx, _product(x.t(), dy) if needs_dkernel else None


def _product(a, b):
    a = a.detach().contiguous().to_mkldnn()
    return torch.nn.functional.linear(a, b.detach().t()).to_dense()
