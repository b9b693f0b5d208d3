"""RMS normalization on PyTorch, with its own gradient.

Written in Keras' operations, of which PyTorch knows one at a time, it passes
over whole arrays in float32 26 times, here 10 times.
"""

import torch

from keras_griffin.kernels import dispatch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def is_usable(x):
    """Whether `rms_norm` takes `x`; compilers fuse plain operations."""
    return (
        x.dtype in DTYPES
        and not dispatch.is_converting
        and not torch.compiler.is_compiling()
    )


def rms_norm(x, scale, epsilon, dtype):
    """`x / sqrt(mean(x^2) + epsilon) * (1 + scale)`, in float32.

    Args:
        x: `(..., width)`, of `DTYPES`.
        scale: `(width,)` float32.
        epsilon: float.
        dtype: string, of the result.
    """
    dtype = getattr(torch, dtype)
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        return _RMSNorm.apply(x, scale, epsilon, dtype)
    return _forward(x, scale, epsilon, dtype)[0]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, epsilon, dtype):
        y, inverse = _forward(x, scale, epsilon, dtype)
        ctx.save_for_backward(x, scale, inverse)
        ctx.epsilon = epsilon
        return y

    @staticmethod
    def backward(ctx, dy):
        x, scale, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives
            y = _plain(x, scale, ctx.epsilon).to(dy.dtype)
            wanted = [z for z in (x, scale) if z.requires_grad]
            found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
            dx, d_scale = (
                next(found) if z.requires_grad else None for z in (x, scale)
            )
            return dx, d_scale, None, None
        width = x.shape[-1]
        weight = 1.0 + scale
        y = x * inverse
        of_weight = y * dy
        d_scale = of_weight.reshape(-1, width).sum(0)
        if not ctx.needs_input_grad[0]:
            return None, d_scale, None, None
        along_y = (of_weight @ weight)[..., None]
        d_y = (dy * weight).addcmul_(y, along_y, value=-1.0 / width)
        dx = torch.mul(d_y, inverse, out=torch.empty_like(x))
        return dx, d_scale, None, None


def _forward(x, scale, epsilon, dtype):
    """The result, and what each row of `x` is multiplied by."""
    norm = torch.linalg.vector_norm(
        x, dim=-1, keepdim=True, dtype=torch.float32
    )
    epsilon = torch.full((), epsilon, dtype=torch.float32, device=x.device)
    width = x.shape[-1]
    inverse = torch.addcmul(epsilon, norm, norm, value=1.0 / width).rsqrt_()
    y = x * inverse
    result = torch.empty_like(x, dtype=dtype)
    return torch.addcmul(y, y, scale, out=result), inverse


def _plain(x, scale, epsilon):
    x = x.float()
    square = x.square().mean(-1, keepdim=True)
    return x * torch.rsqrt(square + epsilon) * (1.0 + scale)
