from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_griffin.layers.base_layer import BaseLayer


@keras.saving.register_keras_serializable(package="keras_griffin")
class BlockDiagonalDense(BaseLayer):
    """Dense layer whose matrix is block-diagonal.

    `y = concat_g(x_g W_g + b_g)`, where `x_g` is the g-th of `num_blocks`
    contiguous slices of the last axis of `x`.

    It costs `num_blocks` times less than a dense layer, and slices on
    different devices need no communication: the reason for which the paper
    uses it for the gates of the RG-LRU.

    It takes no LoRA and is not quantized: it is small, and its products stay
    in float32 in an RG-LRU. Train it whole.

    Args:
        units: int. Width of the output. A multiple of `num_blocks`.
        num_blocks: int. Number of blocks; must divide `units` and the width
            of the input. Defaults to `16`, the paper's.
        kernel_initializer: initializer of each block. Defaults to
            `"lecun_normal"` without truncation: variance 1 / block width.
        bias_initializer: initializer of the bias. Defaults to `"zeros"`.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        x: float tensor `(batch, time, width)`.

    Returns:
        Tensor `(batch, time, units)`.

    Raises:
        ValueError: if `num_blocks` does not divide `units` or the width.

    Example:
    ```python
    gate = keras_griffin.layers.BlockDiagonalDense(units=64, num_blocks=4)
    y = gate(keras.random.normal((2, 5, 64)))  # (2, 5, 64)
    gate.kernel.shape  # (4, 16, 16)
    ```

    Source:
        arXiv:2402.19427, section 4.1; recurrentgemma
        `jax/layers.py::BlockDiagonalLinear`.
    """

    def __init__(
        self,
        units: int,
        num_blocks: int = 16,
        kernel_initializer: Any = None,
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.num_blocks = num_blocks
        if kernel_initializer is None:
            kernel_initializer = fan_in_normal()
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self._check_divides("units", units)

    def build(self, input_shape: Any) -> None:
        width = input_shape[-1]
        self._check_divides("the width of the input", width)
        shape = (
            self.num_blocks,
            width // self.num_blocks,
            self.units // self.num_blocks,
        )
        self.kernel = self.add_weight(
            name="kernel", shape=shape, initializer=self._blocks_initializer
        )
        self.bias = self.add_weight(
            name="bias",
            shape=(shape[0], shape[2]),
            initializer=self.bias_initializer,
        )

    def _blocks_initializer(self, shape, dtype=None):
        # Keras would take the fan-in of a rank-3 kernel for that of a
        # convolution; the matrix side by side has a block's own fan-in.
        blocks, rows, columns = shape
        matrix = self.kernel_initializer((rows, blocks * columns), dtype=dtype)
        return ops.transpose(
            ops.reshape(matrix, (rows, blocks, columns)), (1, 0, 2)
        )

    def call(self, x: Any) -> Any:
        batch, time = ops.shape(x)[:2]
        x = ops.reshape(x, (batch, time, self.num_blocks, -1))
        kernel = ops.cast(self.kernel, x.dtype)
        y = ops.einsum("btgi,gij->btgj", x, kernel)
        y = y + ops.cast(self.bias, x.dtype)
        return ops.reshape(y, (batch, time, self.units))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (*input_shape[:-1], self.units)

    def _check_divides(self, name, value):
        if value % self.num_blocks:
            raise ValueError(
                f"`num_blocks` must divide {name}. Received: "
                f"num_blocks={self.num_blocks}, {name}={value}. Choose a "
                f"divisor of {value}."
            )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "units": self.units,
            "num_blocks": self.num_blocks,
            "kernel_initializer": keras.initializers.serialize(
                self.kernel_initializer
            ),
            "bias_initializer": keras.initializers.serialize(
                self.bias_initializer
            ),
        }


def fan_in_normal(scale=1.0):
    """Normal, not truncated, of variance `scale` / fan-in.

    Source: recurrentgemma, all of its linear layers.
    """
    return keras.initializers.VarianceScaling(
        scale=scale, mode="fan_in", distribution="untruncated_normal"
    )
