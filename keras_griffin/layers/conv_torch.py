"""The causal convolution on PyTorch, with its own gradient.

PyTorch's gradient of each slice is a whole array, mostly of zeros, which it
then adds to the others. Here shifted products go where they belong.
"""

import torch

from keras_griffin.kernels import dispatch


def is_usable(inputs, kernel):
    """Whether `convolve` is quicker; compilers fuse plain operations."""
    if torch.compiler.is_compiling() or dispatch.is_converting:
        return False
    return _needs_gradient(inputs, kernel) or len(kernel) == inputs.shape[1]


def _needs_gradient(inputs, kernel):
    wanted = inputs.requires_grad or kernel.requires_grad
    return torch.is_grad_enabled() and wanted


def convolve(inputs, kernel, bias, positions):
    """`y[t] = bias + sum_s kernel[size - 1 - s] * inputs[size - 1 + t - s]`.

    Args:
        inputs: `(batch, size - 1 + time, width)`.
        kernel: `(size, width)`.
        bias: `(width,)`.
        positions: `(batch, time)`. Terms with `s` beyond are left out.
    """
    size = len(kernel)
    if not _needs_gradient(inputs, kernel):
        return _one_token(inputs, kernel, bias, positions)
    # `(batch, time, size - 1)`: of `s = size - 1 ... 1`, as in the kernel.
    shifts = torch.arange(size - 1, 0, -1, device=inputs.device)
    seen = (positions[..., None] >= shifts).to(inputs.dtype)
    return _Convolution.apply(inputs, kernel, bias, seen)


def _one_token(inputs, kernel, bias, positions):
    shifts = torch.arange(len(kernel) - 1, -1, -1, device=inputs.device)
    seen = positions[..., None] >= shifts[:, None]  # `(batch, size, 1)`
    dtype = torch.promote_types(kernel.dtype, torch.float32)
    y = (torch.where(seen, inputs, 0.0) * kernel.to(dtype)).sum(1, True) + bias
    return y.to(inputs.dtype)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs, kernel, bias, seen):
        ctx.save_for_backward(inputs, kernel, bias, seen)
        *earlier, x = _shifted(inputs, len(kernel))
        y = torch.addcmul(bias, x, kernel[-1])
        for s, z in enumerate(earlier):
            y.addcmul_(z * kernel[s], seen[..., s, None])
        return y

    @staticmethod
    def backward(ctx, dy):
        inputs, kernel, bias, seen = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives
            return (*_differentiable(inputs, kernel, bias, seen, dy), None)
        size = len(kernel)
        d_inputs = torch.empty_like(inputs)
        d_inputs[:, : size - 1] = 0
        *d_earlier, dx = _shifted(d_inputs, size)
        *earlier, x = _shifted(inputs, size)
        torch.mul(dy, kernel[-1], out=dx)
        d_kernel = []
        for s, (z, dz) in enumerate(zip(earlier, d_earlier, strict=True)):
            masked = dy * seen[..., s, None]
            dz.addcmul_(masked, kernel[s])
            d_kernel.append(masked.mul_(z).sum((0, 1)))
        d_kernel.append((dy * x).sum((0, 1)))
        return d_inputs, torch.stack(d_kernel), dy.sum((0, 1)), None


def _differentiable(*tensors):
    *arrays, seen, dy = tensors
    inputs, kernel, bias = arrays
    *earlier, x = _shifted(inputs, len(kernel))
    y = x * kernel[-1] + bias
    for s, z in enumerate(earlier):
        y = y + z * seen[..., s, None] * kernel[s]
    wanted = [z for z in arrays if z.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return [next(found) if z.requires_grad else None for z in arrays]


def _shifted(inputs, size):
    """Of each tap, what it is multiplied by; the last is the token itself."""
    time = inputs.shape[1] - size + 1
    return [inputs[:, s : s + time] for s in range(size)]
