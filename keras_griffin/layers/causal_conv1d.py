from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_griffin.layers.temporal_layer import TemporalLayer

# Variance of the initial kernel times its length: std 0.05 at length 4.
# Source: recurrentgemma `jax/layers.py::Conv1D`.
KERNEL_VARIANCE = 0.01


@keras.saving.register_keras_serializable(package="keras_griffin")
class CausalConv1D(TemporalLayer):
    """Depthwise causal convolution that can stop and go on.

    `y[t] = bias + sum_s kernel[kernel_size - 1 - s] * x[t - s]`, over
    `s = 0 ... kernel_size - 1`, where `x[t - s]` counts as 0 outside of the
    token's own document.

    It is written as `kernel_size` shifted products and not as a convolution:
    documents are cut by a mask, pads by compact rows, and there is nothing
    to gain from a convolution kernel at four products a value.

    Args:
        kernel_size: int. Tokens that each output sees, itself included.
            Defaults to `4`, the paper's.
        kernel_initializer: initializer of the kernel `(kernel_size, width)`.
            Defaults to a normal of variance 0.01 / `kernel_size`.
        bias_initializer: initializer of the bias. Defaults to `"zeros"`.
        **kwargs: see `TemporalLayer` and `keras.layers.Layer`.

    Call arguments: see `TemporalLayer`. The state's own part is `"inputs"`
        `(batch, kernel_size - 1, width)`: the last inputs, oldest first.

    Returns:
        `y` `(batch, time, width)`, or `(y, state)`.

    Raises:
        ValueError: if `kernel_size` is less than 1.

    Example:
    ```python
    conv = keras_griffin.layers.CausalConv1D(kernel_size=4)
    x = keras.random.normal((2, 6, 8))
    y = conv(x)
    head, state = conv(x[:, :5], return_state=True)
    tail = conv(x[:, 5:], initial_state=state)  # equals y[:, 5:]
    ```

    Source:
        arXiv:2402.19427, section 2.3; recurrentgemma `jax/layers.py::Conv1D`.
    """

    def __init__(
        self,
        kernel_size: int = 4,
        kernel_initializer: Any = None,
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if kernel_size < 1:
            raise ValueError(
                "`kernel_size` must be at least 1: a token sees itself. "
                f"Received: kernel_size={kernel_size}. The paper uses 4."
            )
        self.kernel_size = kernel_size
        if kernel_initializer is None:
            kernel_initializer = keras.initializers.RandomNormal(
                stddev=(KERNEL_VARIANCE / kernel_size) ** 0.5
            )
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def build(self, input_shape: Any) -> None:
        self.width = input_shape[-1]
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.kernel_size, self.width),
            initializer=self.kernel_initializer,
        )
        self.bias = self.add_weight(
            name="bias", shape=(self.width,), initializer=self.bias_initializer
        )

    def init_mixer_state(
        self, batch_size: int, max_length: int | None = None
    ) -> dict[str, Any]:
        if not self.built:
            raise ValueError(
                "The state of a convolution is as wide as its input. "
                f"Received: {self.name!r}, which has seen none. Call "
                "`layer.build((None, None, width))` first."
            )
        shape = (batch_size, self.kernel_size - 1, self.width)
        return {"inputs": ops.zeros(shape, dtype=self.compute_dtype)}

    def mix(self, x: Any, layout: Any, state: Any) -> tuple[Any, Any]:
        batch, time = ops.shape(x)[:2]
        if state is None:
            before = self.init_mixer_state(batch)["inputs"]
        else:
            before = state["inputs"]
        before = ops.cast(before, x.dtype)
        # Column t + kernel_size - 1 of `inputs` is token t.
        inputs = ops.concatenate([before, x], axis=1)
        kernel = ops.cast(self.kernel, x.dtype)
        bias, positions = ops.cast(self.bias, x.dtype), layout.positions
        if keras.config.backend() == "torch":
            from keras_griffin.layers import conv_torch

            if conv_torch.is_usable(inputs, kernel):
                y = conv_torch.convolve(inputs, kernel, bias, positions)
                return y, state and self._state_after(inputs, layout)
        y = x * kernel[-1] + bias
        for s in range(1, self.kernel_size):
            start = self.kernel_size - 1 - s
            in_document = ops.cast(positions >= s, x.dtype)
            earlier = inputs[:, start : start + time]
            earlier = earlier * ops.expand_dims(in_document, -1)
            y = y + earlier * kernel[start]
        return y, state and self._state_after(inputs, layout)

    def _state_after(self, inputs, layout):
        if layout.mask is None:
            start = ops.shape(inputs)[1] - (self.kernel_size - 1)
            return {"inputs": inputs[:, start:]}
        columns = ops.arange(self.kernel_size - 1, dtype="int32")[None, :]
        columns = layout.num_real[:, None] + columns
        last = ops.take_along_axis(inputs, columns[:, :, None], axis=1)
        return {"inputs": last}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "kernel_initializer": keras.initializers.serialize(
                self.kernel_initializer
            ),
            "bias_initializer": keras.initializers.serialize(
                self.bias_initializer
            ),
        }
