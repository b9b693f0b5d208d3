from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_griffin.layers.apply_dense import apply_dense
from keras_griffin.layers.block_diagonal_dense import fan_in_normal
from keras_griffin.layers.causal_conv1d import CausalConv1D
from keras_griffin.layers.rglru import InnerRGLRU
from keras_griffin.layers.temporal_layer import TemporalLayer


@keras.saving.register_keras_serializable(package="keras_griffin")
class RecurrentBlock(TemporalLayer):
    """The recurrent mixer of Griffin and Hawk: two branches and an RG-LRU.

    `y = W_out (RGLRU(Conv1D(W_x x)) * GeLU(W_y x))`, all with biases.

    Args:
        units: int. Width of the two branches, `D_RNN` in the paper [channels].
        num_gate_blocks: int. See `RGLRU`. Defaults to `16`.
        conv_kernel_size: int. See `CausalConv1D`. Defaults to `4` [tokens].
        recurrence: `"real"` or `"complex"`. See `RGLRU`. Defaults to `"real"`.
        decay_initializer: see `RGLRU`. Defaults to `"reference"`.
        output_kernel_initializer: initializer of `W_out`. Defaults to a
            normal of variance 1 / `units`.
        implementation: see `RGLRU`. Defaults to `"auto"`.
        **kwargs: see `TemporalLayer` and `keras.layers.Layer`.

    Call arguments: see `TemporalLayer`. The state's own part is that of the
        convolution (`"inputs"`) and of the RG-LRU (`"recurrent"`).

    Returns:
        `y` `(batch, time, width)`, as wide as `x`, or `(y, state)`; with
        `return_intermediates=True` the RG-LRU's too, see `RGLRU`.

    Raises:
        ValueError: as `RGLRU` and `CausalConv1D`.

    Example:
    ```python
    block = keras_griffin.layers.RecurrentBlock(units=96, num_gate_blocks=4)
    y = block(keras.random.normal((2, 10, 64)))  # (2, 10, 64)
    ```

    Source:
        arXiv:2402.19427, section 2.3; recurrentgemma
        `jax/modules.py::RecurrentBlock`.
    """

    def __init__(
        self,
        units: int,
        num_gate_blocks: int = 16,
        conv_kernel_size: int = 4,
        recurrence: str = "real",
        decay_initializer: Any = "reference",
        output_kernel_initializer: Any = None,
        implementation: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.num_gate_blocks = num_gate_blocks
        self.conv_kernel_size = conv_kernel_size
        self.recurrence = recurrence
        self.implementation = implementation
        self.output_kernel_initializer = keras.initializers.get(
            output_kernel_initializer or fan_in_normal()
        )

        def branch(name):
            return keras.layers.Dense(
                units,
                kernel_initializer=fan_in_normal(),
                dtype=self.dtype_policy,
                name=name,
            )

        self.linear_x = branch("linear_x")
        self.linear_y = branch("linear_y")
        self.conv = CausalConv1D(
            conv_kernel_size, dtype=self.dtype_policy, name="conv"
        )
        self.rglru = InnerRGLRU(
            units,
            num_gate_blocks=num_gate_blocks,
            recurrence=recurrence,
            decay_initializer=decay_initializer,
            implementation=implementation,
            dtype=self.dtype_policy,
            name="rglru",
        )

    def build(self, input_shape: Any) -> None:
        inner_shape = (*input_shape[:-1], self.units)
        self.linear_x.build(input_shape)
        self.linear_y.build(input_shape)
        self.conv.build(inner_shape)
        self.rglru.build(inner_shape)
        self.linear_out = keras.layers.Dense(
            input_shape[-1],
            kernel_initializer=self.output_kernel_initializer,
            dtype=self.dtype_policy,
            name="linear_out",
        )
        self.linear_out.build(inner_shape)

    def init_mixer_state(
        self, batch_size: int, max_length: int | None = None
    ) -> dict[str, Any]:
        return {
            **self.conv.init_mixer_state(batch_size),
            **self.rglru.init_mixer_state(batch_size),
        }

    def intermediates_spec(self, shape: Any) -> dict[str, Any]:
        return self.rglru.intermediates_spec((*shape[:-1], self.units))

    def mix(
        self, x: Any, layout: Any, state: Any, intermediates: Any = None
    ) -> tuple[Any, Any]:
        gate = ops.gelu(apply_dense(self.linear_y, x), approximate=True)
        x, conv_state = self.conv.mix(
            apply_dense(self.linear_x, x), layout, state
        )
        x, rglru_state = self.rglru.mix(x, layout, state, intermediates)
        y = apply_dense(self.linear_out, x * gate)
        return y, None if state is None else {**conv_state, **rglru_state}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "units": self.units,
            "num_gate_blocks": self.num_gate_blocks,
            "conv_kernel_size": self.conv_kernel_size,
            "recurrence": self.recurrence,
            "decay_initializer": keras.initializers.serialize(
                self.rglru.decay_initializer
            ),
            "output_kernel_initializer": keras.initializers.serialize(
                self.output_kernel_initializer
            ),
            "implementation": self.implementation,
        }
