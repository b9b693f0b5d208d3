"""A dense layer on all tokens of a batch, as fast as the backend can."""

import keras
from keras import ops

from keras_griffin import keras_compat


def apply_dense(dense, x):
    """Returns `dense(x)`.

    On JAX the tokens become the rows of one matrix: for an input of rank 3,
    XLA on a CPU (jax 0.10) takes two to three times as long for the gradient
    of the kernel. On several devices the axes stay apart: of a merged axis,
    XLA could not shard the second one. On PyTorch see `linear_torch`.

    An adapter acts on the tokens, `y = x W + (x A) B + b`. Keras' float layer
    computes `x (W + A B) + b`: it forms a whole kernel in each step, and one
    more for the gradient of `W + A B`.

    Args:
        dense: a built `keras.layers.Dense` without activation.
        x: tensor `(..., width)`.
    """
    if keras.config.backend() == "jax":
        if keras.distribution.distribution() is None and len(x.shape) != 2:
            y = apply_dense(dense, ops.reshape(x, (-1, x.shape[-1])))
            return ops.reshape(y, (*ops.shape(x)[:-1], y.shape[-1]))
    is_int8 = _is_for_int8(dense, x)
    if dense.quantization_mode and not is_int8:
        return dense(x)  # Keras' own: adapters on tokens there too
    x = ops.cast(x, dense.compute_dtype)
    if not (dense.lora_enabled or is_int8 or _has_own_product(x)):
        if keras.config.backend() != "torch" or dense.bias is None:
            return dense(x)
        return _with_bias(dense, x)
    y = (_int8_product if is_int8 else _product)(dense, x)
    if dense.bias is not None:
        y = y + ops.cast(dense.bias, y.dtype)
    return y + _adapter(dense, x) if dense.lora_enabled else y


def order_kernels(model, is_filled=True):
    """On PyTorch, has the kernels in memory as its products want them."""
    if keras.config.backend() == "torch":
        from keras_griffin.layers.linear_torch import store_columns

        store_columns(model, is_filled)


def _adapter(dense, x):
    a, b = (
        ops.cast(v, x.dtype) for v in (dense.lora_kernel_a, dense.lora_kernel_b)
    )
    scale = dense.lora_alpha / dense.lora_rank
    return ops.matmul(scale * ops.matmul(x, a), b)


def _product(dense, x):
    kernel = ops.cast(keras_compat.kernel_without_adapter(dense), x.dtype)
    if not _has_own_product(x):
        return ops.matmul(x, kernel)
    from keras_griffin.layers import linear_torch

    return linear_torch.product(x, kernel)


def _with_bias(dense, x):
    from keras_griffin.layers import linear_torch

    if not linear_torch.adds_bias(x):
        return dense(x)
    kernel, bias = (ops.cast(v, x.dtype) for v in (dense.kernel, dense.bias))
    return linear_torch.product_with_bias(x, kernel, bias)


def _int8_product(dense, x):
    from keras_griffin.layers import linear_torch

    kernel = keras_compat.kernel_without_adapter(dense).value
    scale = ops.convert_to_tensor(dense.kernel_scale)
    return linear_torch.Int8Linear.apply(
        x, kernel, scale, dense.inputs_quantizer
    )


def _is_for_int8(dense, x):
    if keras.config.backend() != "torch" or dense.quantization_mode != "int8":
        return False
    from keras_griffin.layers import linear_torch

    return dense.inputs_quantizer is not None and linear_torch.takes_int8(x)


def _has_own_product(x):
    if keras.config.backend() != "torch":
        return False
    from keras_griffin.layers import linear_torch

    return linear_torch.is_usable(x)
