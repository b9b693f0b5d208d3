"""A dense layer on all tokens of a batch, as fast as the backend can."""

import keras
from keras import ops


def apply_dense(dense, x):
    """Returns `dense(x)`.

    On JAX the tokens become the rows of one matrix: for an input of rank 3,
    XLA on a CPU (jax 0.10) takes two to three times as long for the gradient
    of the kernel. On several devices the axes stay apart: of a merged axis,
    XLA could not shard the second one. On PyTorch see `linear_torch`.

    Args:
        dense: a `keras.layers.Dense` without activation.
        x: tensor `(..., width)`.
    """
    backend = keras.config.backend()
    if backend == "torch" and not dense.quantization_mode:
        from keras_griffin.layers import linear_torch

        if linear_torch.is_usable(x):
            # `dense.kernel` has LoRA's part in it.
            kernel = ops.convert_to_tensor(dense.kernel)
            y = linear_torch.Linear.apply(x.reshape(-1, x.shape[-1]), kernel)
            y = y.reshape(*x.shape[:-1], -1)
            return y if dense.bias is None else y + dense.bias.value
    if backend == "jax" and keras.distribution.distribution() is None:
        y = dense(ops.reshape(x, (-1, x.shape[-1])))
        return ops.reshape(y, (*ops.shape(x)[:-1], y.shape[-1]))
    return dense(x)
