from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_griffin.layers.base_layer import BaseLayer
from keras_griffin.layers.rglru import InnerRGLRU
from keras_griffin.layers.token_layout import TokenLayout

ARGUMENTS = (
    "units",
    "num_gate_blocks",
    "recurrence",
    "decay_initializer",
    "gate_initializer",
    "implementation",
)


@keras.saving.register_keras_serializable(package="keras_griffin")
class RGLRUCell(BaseLayer):
    """One step of an `RGLRU`, for `keras.layers.RNN` and cells around it.

    `RNN(RGLRUCell(units), return_sequences=True)` equals `RGLRU(units)` with
    the same weights, masks included, and takes them by `set_weights`. It is
    slower by far: `RGLRU` has a kernel for the loop.

    Args:
        units: int. Width of input, state and output [channels].
        num_gate_blocks: int. See `RGLRU`. Defaults to `16`.
        recurrence: `"real"` or `"complex"`. See `RGLRU`. Defaults to `"real"`.
        decay_initializer: see `RGLRU`. Defaults to `"reference"`.
        gate_initializer: see `RGLRU`. Defaults to a normal of variance 1 /
            block width.
        implementation: see `RGLRU`. Defaults to `"auto"`.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        x: float tensor `(batch, units)`.
        states: list of h `(batch, units)` and of the tokens that each row has
            seen `(batch, 1)`: at the first one, `h = i * x`.

    Returns:
        `(y, states)`, `y` `(batch, units)`.

    Raises:
        ValueError: as `RGLRU`.

    Numerics:
        As `RGLRU`. States are float32 in every dtype policy; the RNN rounds
        those that it returns.

    Example:
    ```python
    cell = keras_griffin.layers.RGLRUCell(64, num_gate_blocks=4)
    rnn = keras.layers.RNN(cell, return_sequences=True)
    y = rnn(keras.random.normal((2, 10, 64)))  # (2, 10, 64)
    ```
    """

    def __init__(
        self,
        units: int,
        num_gate_blocks: int = 16,
        recurrence: str = "real",
        decay_initializer: Any = "reference",
        gate_initializer: Any = None,
        implementation: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rglru = InnerRGLRU(
            units,
            num_gate_blocks=num_gate_blocks,
            recurrence=recurrence,
            decay_initializer=decay_initializer,
            gate_initializer=gate_initializer,
            implementation=implementation,
            dtype=self.dtype_policy,
            name="rglru",
        )
        self.state_size = (units, 1)
        self.output_size = units
        self.build((None, units))

    @property
    def compute_dtype(self) -> str:
        # The one in which `keras.layers.RNN` keeps the states.
        return "float32"

    def build(self, input_shape: Any) -> None:
        self.rglru.build((None, *input_shape))

    def call(self, x: Any, states: Sequence[Any]) -> tuple[Any, list[Any]]:
        h, seen = states
        layout = TokenLayout(ops.shape(x)[0], 1, positions=seen)
        x = ops.cast(x, self.rglru.compute_dtype)
        y, state = self.rglru.mix(x[:, None], layout, {"recurrent": h})
        return y[:, 0], [state["recurrent"], ops.ones_like(seen)]

    def get_config(self) -> dict[str, Any]:
        config = self.rglru.get_config()
        own = {name: config[name] for name in ARGUMENTS}
        return {**super().get_config(), **own}
