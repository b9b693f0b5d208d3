from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_griffin.layers.base_layer import BaseLayer


@keras.saving.register_keras_serializable(package="keras_griffin")
class RMSNormalization(BaseLayer):
    """Root mean square normalization whose scale is an offset from 1.

    `y = x / sqrt(mean(x^2) + epsilon) * (1 + scale)`

    Keras' own `keras.layers.RMSNormalization` stores the scale itself; the
    checkpoints of RecurrentGemma store its distance from 1, which weight
    decay may pull to 0 without harm.

    Args:
        epsilon: float. Added to the mean square. Defaults to `1e-6`.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        x: float tensor `(batch, time, width)`, or any shape whose last axis
            is normalized.

    Returns:
        Tensor of the shape of `x`, in the layer's compute dtype.

    Numerics:
        float32 inside whatever the dtype of `x`. (DeepMind computes in the
        dtype of the activations, Hugging Face in float32.)

    Example:
    ```python
    norm = keras_griffin.layers.RMSNormalization()
    y = norm(keras.random.normal((2, 5, 8)))  # (2, 5, 8)
    ```

    Source:
        arXiv:2402.19427, section 2.1; recurrentgemma `jax/layers.py::RMSNorm`.
    """

    def __init__(self, epsilon: float = 1e-6, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape: Any) -> None:
        self.scale = self.add_weight(
            name="scale",
            shape=(input_shape[-1],),
            initializer="zeros",
            # Rounding 1 + scale to bfloat16 would lose most of the offset.
            autocast=False,
        )

    def call(self, x: Any) -> Any:
        if keras.config.backend() == "torch":
            from keras_griffin.layers import rms_norm_torch

            if rms_norm_torch.is_usable(x):
                scale = ops.cast(self.scale, "float32")
                return rms_norm_torch.rms_norm(
                    x, scale, self.epsilon, self.compute_dtype
                )
        x = ops.cast(x, "float32")
        mean_square = ops.mean(ops.square(x), axis=-1, keepdims=True)
        scale = ops.cast(self.scale, "float32")
        y = x * ops.rsqrt(mean_square + self.epsilon) * (1.0 + scale)
        return ops.cast(y, self.compute_dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}
