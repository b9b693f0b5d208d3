"""Matrix products by oneDNN, for PyTorch on a CPU.

PyTorch gives float32 products to MKL, which on CPUs other than Intel's runs at
half of their speed (torch 2.13; an AMD CPU with AVX-512). oneDNN comes with
PyTorch as well, and runs at all of it.
"""

import torch

# Rows. Below that, moving numbers into oneDNN's layout costs more than it
# brings.
MIN_ROWS = 64


def is_usable(x):
    """Whether `linear` may and should multiply `x` `(..., width)`."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.shape[:-1].numel() >= MIN_ROWS
        and torch.backends.mkldnn.is_available()
        and not torch.compiler.is_compiling()
    )


def linear(x, kernel):
    """`x @ kernel`, of `(..., width)` and `(width, units)`."""
    y = _Linear.apply(x.reshape(-1, x.shape[-1]), kernel)
    return y.reshape(*x.shape[:-1], kernel.shape[1])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, kernel):
        ctx.save_for_backward(x, kernel)
        return _product(x, kernel)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, kernel = ctx.saved_tensors
        needs_dx, needs_d_kernel = ctx.needs_input_grad
        dx = _product(dy, kernel.t()) if needs_dx else None
        d_kernel = _product(x.t(), dy) if needs_d_kernel else None
        return dx, d_kernel


def _product(a, b):
    # `linear` wants its second matrix transposed.
    a = a.detach().contiguous().to_mkldnn()
    return torch.nn.functional.linear(a, b.detach().t()).to_dense()
