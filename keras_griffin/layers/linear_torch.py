"""Products of PyTorch. On a GPU they add the bias, too; else: on a CPU.

float32 by oneDNN: torch 2.13 gives them to MKL, at half of oneDNN's speed on
an AMD CPU with AVX-512, where a training step took 1.6 times as long. No public
switch changes that without fewer bits.

16-bit kernels column by column: see `store_columns`. One token is multiplied
as a vector then, which takes three quarters of the time. int8 products by
`torch._int_mm`: Keras 3.15 has it on GPUs alone, and elsewhere makes int32
copies of all weights, 20 times as slow for a token. It gives the same numbers,
and has no public name (torch 2.6 to 2.14).
"""

import keras
import torch

from keras_griffin import keras_compat

# Below, moving numbers into oneDNN's layout costs more than it brings.
MIN_ROWS = 64


def is_usable(x):
    """Whether `product` is quicker than Keras' own."""
    # First of all: a comparison would bind an exported program to a size.
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    rows = x.shape[:-1].numel()
    if x.dtype == torch.float32:
        return rows >= MIN_ROWS and torch.backends.mkldnn.is_available()
    return rows == 1 and x.itemsize == 2


def adds_bias(x):
    """Whether a product adds its bias by itself: on GPUs, in one launch."""
    return x.device.type != "cpu" and not torch.compiler.is_compiling()


def product_with_bias(x, kernel, bias):
    """`x @ kernel + bias`, which is rounded once."""
    y = torch.addmm(bias, x.reshape(-1, x.shape[-1]), kernel)
    return y.reshape(*x.shape[:-1], -1)


def product(x, kernel):
    """`x @ kernel`, of a tensor and a matrix."""
    if x.dtype == torch.float32:
        y = Linear.apply(x.reshape(-1, x.shape[-1]), kernel)
    elif kernel.t().is_contiguous():  # see `store_columns`
        y = torch.mv(kernel.t(), x.reshape(-1))
    else:
        return torch.matmul(x, kernel)
    return y.reshape(*x.shape[:-1], -1)


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


def takes_int8(x):
    return (
        x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class Int8Linear(torch.autograd.Function):
    """`x kernel / scale` with `x` rounded to int8, as Keras' `Dense` has it.

    The gradient is that of the dequantized kernel, as if nothing were rounded.

    Args:
        x: `(..., in)`.
        kernel: `(in, out)` int8.
        scale: `(out,)` or `(1, out)`.
        quantizer: the layer's `inputs_quantizer`.
    """

    @staticmethod
    def forward(ctx, x, kernel, scale, quantizer):
        ctx.save_for_backward(kernel, scale)
        rounded, x_scale = quantizer(x, axis=-1)
        rows = rounded.reshape(-1, rounded.shape[-1])
        y = torch._int_mm(rows, kernel).reshape(*x.shape[:-1], -1)
        return y.to(x.dtype) / (scale * x_scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        kernel, scale = ctx.saved_tensors
        return dy @ (kernel.to(dy.dtype) / scale).t(), None, None, None


def store_columns(model, is_filled=True):
    """Puts small-number kernels of `Dense` layers in memory by columns.

    Kernels in 16 bits and int8; their shape stays. A product with one token
    takes half the time so, in int8 three quarters (torch 2.13, a CPU with AMX),
    and with many tokens no more than before. In float32 it does not matter.

    Args:
        model: a layer.
        is_filled: bool. Whether the kernels hold numbers yet; else nothing is
            copied. Defaults to `True`.
    """
    for layer in keras_compat.all_layers(model):
        if not isinstance(layer, keras.layers.Dense) or not layer.built:
            continue
        if layer.quantization_mode not in (None, "int8"):
            continue
        kernel = keras_compat.kernel_without_adapter(layer)
        if not keras_compat.has_value(kernel):
            continue
        value = kernel.value
        if value.itemsize <= 2 and value.is_contiguous():
            rows = value.data.t()
            value.data = (
                rows.contiguous() if is_filled else rows.new_empty(rows.shape)
            ).t()
