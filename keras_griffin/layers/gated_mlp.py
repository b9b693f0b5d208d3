from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_griffin.layers.apply_dense import apply_dense
from keras_griffin.layers.base_layer import BaseLayer
from keras_griffin.layers.block_diagonal_dense import fan_in_normal


@keras.saving.register_keras_serializable(package="keras_griffin")
class GatedMLP(BaseLayer):
    """The gated MLP of Griffin ("GeGeLU").

    `y = W_down (GeLU(W_gate x) * (W_up x))`, all with biases; GeLU in its
    tanh form.

    Args:
        intermediate_dim: int. Width of each of the two branches; the paper
            uses 3 times the width of `x` [channels].
        output_kernel_initializer: initializer of `W_down`. Defaults to a
            normal of variance 1 / `intermediate_dim`.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        x: float tensor `(batch, time, width)`.

    Returns:
        Tensor of the shape of `x`.

    Example:
    ```python
    mlp = keras_griffin.layers.GatedMLP(intermediate_dim=192)
    y = mlp(keras.random.normal((2, 10, 64)))  # (2, 10, 64)
    ```

    Source:
        arXiv:2402.19427, section 2.2; recurrentgemma
        `jax/modules.py::MLPBlock`, whose two branches are one weight.
    """

    def __init__(
        self,
        intermediate_dim: int,
        output_kernel_initializer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.intermediate_dim = intermediate_dim
        self.output_kernel_initializer = keras.initializers.get(
            output_kernel_initializer or fan_in_normal()
        )

        def branch(name):
            return keras.layers.Dense(
                intermediate_dim,
                kernel_initializer=fan_in_normal(),
                dtype=self.dtype_policy,
                name=name,
            )

        self.gate = branch("gate")
        self.up = branch("up")

    def build(self, input_shape: Any) -> None:
        self.gate.build(input_shape)
        self.up.build(input_shape)
        self.down = keras.layers.Dense(
            input_shape[-1],
            kernel_initializer=self.output_kernel_initializer,
            dtype=self.dtype_policy,
            name="down",
        )
        self.down.build((*input_shape[:-1], self.intermediate_dim))

    def call(self, x: Any) -> Any:
        once, gradient_once = _barriers()
        gate = apply_dense(self.gate, gradient_once(x))
        gate = ops.gelu(gate, approximate=True)
        product = gate * apply_dense(self.up, gradient_once(x))
        return apply_dense(self.down, once(product))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "intermediate_dim": self.intermediate_dim,
            "output_kernel_initializer": keras.initializers.serialize(
                self.output_kernel_initializer
            ),
        }


def _barriers():
    """What keeps XLA for TPUs from computing things in each product."""
    if keras.config.backend() != "jax":
        return (lambda x: x,) * 2
    from keras_griffin.layers import computed_once_jax

    return (
        computed_once_jax.computed_once,
        computed_once_jax.gradient_computed_once,
    )
