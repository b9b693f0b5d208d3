from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_griffin.layers.apply_dense import apply_dense
from keras_griffin.layers.block_diagonal_dense import fan_in_normal
from keras_griffin.layers.ring_buffer import attend_ring
from keras_griffin.layers.ring_buffer import init_ring
from keras_griffin.layers.ring_buffer import read_ring
from keras_griffin.layers.ring_buffer import write_ring
from keras_griffin.layers.temporal_layer import TemporalLayer
from keras_griffin.layers.windowed_attention import windowed_attention


@keras.saving.register_keras_serializable(package="keras_griffin")
class LocalMQA(TemporalLayer):
    """Multi-query attention over a sliding window, or over everything.

    ```
    q = RoPE(W_q x),  k = RoPE(W_k x),  v = W_v x       one k and v, H queries
    y[t] = W_o softmax_s(q[t] k[s] / sqrt(head_dim)) v[s]
    over s of the same document with 0 <= t - s <= window_size
    ```

    Time and memory are O(time x window): queries are taken in blocks, and each
    block sees one slice of keys. No (time, time) mask is ever made, unless the
    window is as long as the row. On TPUs JAX's splash kernel attends, without
    logits in memory, where a row has at least 512 tokens and `head_dim` is a
    multiple of 128.

    Args:
        num_query_heads: int. Number of query heads; keys and values have one.
        head_dim: int. Width of a head [channels].
        window_size: int or `None`. A token sees itself and the `window_size`
            tokens before it: `window_size + 1` keys, as in the reference
            code. `None`: all tokens before it. Defaults to `1024` [tokens].
        rope_max_wavelength: float. Base of the rotary wavelengths. Defaults
            to `10_000.0` [tokens].
        rope_fraction: float in [0, 1]. Part of each head that is rotated; 0
            for no positions. Defaults to `0.5`.
        output_kernel_initializer: initializer of `W_o`. Defaults to a normal
            of variance 1 / fan-in.
        **kwargs: see `TemporalLayer` and `keras.layers.Layer`.

    Call arguments: see `TemporalLayer`. The state's own part is `"keys"` and
        `"values"` `(batch, slots, head_dim)`, ring buffers with
        `window_size + 1` slots (global attention: `max_length`): token n of
        a row is in slot n modulo slots.

    Returns:
        `y` `(batch, time, width)`, as wide as `x`, or `(y, state)`.

    Raises:
        ValueError: for a window below 0, a fraction outside of [0, 1], a
            rotated part of odd width, or a state of global attention made
            without `max_length`.

    Numerics:
        Angles and softmax in float32; products in the compute dtype.

    Example:
    ```python
    attention = keras_griffin.layers.LocalMQA(4, 16, window_size=8)
    x = keras.random.normal((2, 100, 64))
    y, state = attention(x, return_state=True)
    state["keys"].shape  # (2, 9, 16), however long x is
    ```

    Source:
        arXiv:2402.19427, section 2.3; recurrentgemma
        `jax/modules.py::LocalAttentionBlock`.
    """

    def __init__(
        self,
        num_query_heads: int,
        head_dim: int,
        window_size: int | None = 1024,
        rope_max_wavelength: float = 10_000.0,
        rope_fraction: float = 0.5,
        output_kernel_initializer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if window_size is not None and window_size < 0:
            raise ValueError(
                "`window_size` must be 0 or more tokens, or None for global "
                f"attention. Received: window_size={window_size}. The paper "
                "uses 1024."
            )
        if not 0 <= rope_fraction <= 1:
            raise ValueError(
                "`rope_fraction` must lie in [0, 1]. Received: "
                f"rope_fraction={rope_fraction}. The reference code rotates "
                "0.5 of each head."
            )
        self.num_query_heads = num_query_heads
        self.head_dim = head_dim
        self.window_size = window_size
        self.rope_max_wavelength = rope_max_wavelength
        self.rope_fraction = rope_fraction
        self._rotated_dim = int(head_dim * rope_fraction)
        if self._rotated_dim % 2:
            raise ValueError(
                "`head_dim * rope_fraction` must be even: RoPE turns pairs. "
                f"Received: head_dim={head_dim}, rope_fraction="
                f"{rope_fraction}. Use a head_dim that is a multiple of 4."
            )
        self.output_kernel_initializer = keras.initializers.get(
            output_kernel_initializer or fan_in_normal()
        )

        def projection(units, name):
            return keras.layers.Dense(
                units,
                use_bias=False,
                kernel_initializer=fan_in_normal(),
                dtype=self.dtype_policy,
                name=name,
            )

        self.query = projection(num_query_heads * head_dim, "query")
        self.key = projection(head_dim, "key")
        self.value = projection(head_dim, "value")

    def build(self, input_shape: Any) -> None:
        self.query.build(input_shape)
        self.key.build(input_shape)
        self.value.build(input_shape)
        self.output_dense = keras.layers.Dense(
            input_shape[-1],
            kernel_initializer=self.output_kernel_initializer,
            dtype=self.dtype_policy,
            name="output_dense",
        )
        self.output_dense.build(
            (*input_shape[:-1], self.num_query_heads * self.head_dim)
        )

    def init_mixer_state(
        self, batch_size: int, max_length: int | None = None
    ) -> dict[str, Any]:
        if self.window_size is not None:
            slots = self.window_size + 1
        elif max_length is not None:
            slots = max_length
        else:
            raise ValueError(
                "The state of global attention has a slot for every token, so "
                "that it needs to know how many. Received: max_length=None. "
                "Make the first state by `init_state(batch_size, max_length)`."
            )
        return init_ring(batch_size, slots, self.head_dim, self.compute_dtype)

    def mix(self, x: Any, layout: Any, state: Any) -> tuple[Any, Any]:
        batch, time = ops.shape(x)[:2]
        if isinstance(time, int) and time == 0:
            return x, state and {key: state[key] for key in ("keys", "values")}
        heads = (batch, time, self.num_query_heads, self.head_dim)
        q = ops.reshape(apply_dense(self.query, x), heads)
        cos, sin = self._cos_and_sin(layout.positions, x.dtype)
        q = self._rotate(q, ops.expand_dims(cos, 2), ops.expand_dims(sin, 2))
        q = q * ops.cast(self.head_dim**-0.5, q.dtype)
        k = self._rotate(apply_dense(self.key, x), cos, sin)
        v = apply_dense(self.value, x)
        ring: Any = None
        before: Any = ()
        if state is not None:
            ring = write_ring(k, v, layout, state)
        if state is not None and isinstance(time, int) and time == 1:
            mixed = attend_ring(q, layout.positions, state["length"], ring)
        else:
            if not layout.is_start:
                slots = ring["keys"].shape[1]
                before = read_ring(
                    state, slots if self.window_size is None else slots - 1
                )
            mixed = windowed_attention(
                q, k, v, layout.positions, self.window_size, *before
            )
        mixed = ops.reshape(
            mixed, (batch, time, self.num_query_heads * self.head_dim)
        )
        return apply_dense(self.output_dense, mixed), ring

    def _cos_and_sin(self, positions, dtype):
        """Of the rotary angles, `(batch, time, rotated_dim / 2)`."""
        half = self._rotated_dim // 2
        exponent = ops.arange(half, dtype="float32") / max(half, 1)
        frequency = self.rope_max_wavelength**-exponent
        positions = ops.expand_dims(ops.cast(positions, "float32"), -1)
        angle = positions * frequency
        return ops.cast(ops.cos(angle), dtype), ops.cast(ops.sin(angle), dtype)

    def _rotate(self, x, cos, sin):
        half = self._rotated_dim // 2
        if keras.config.backend() == "torch":
            # Its gradient of a slice is a whole array, mostly of zeros, and
            # `ops.split` (Keras 3.15) asks the device where to split.
            sizes = (half, half, x.shape[-1] - 2 * half)
            first, second, rest = x.split(sizes, -1)
        else:
            first, second = x[..., :half], x[..., half : 2 * half]
            rest = x[..., 2 * half :]
        return ops.concatenate(
            [first * cos - second * sin, second * cos + first * sin, rest],
            axis=-1,
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_query_heads": self.num_query_heads,
            "head_dim": self.head_dim,
            "window_size": self.window_size,
            "rope_max_wavelength": self.rope_max_wavelength,
            "rope_fraction": self.rope_fraction,
            "output_kernel_initializer": keras.initializers.serialize(
                self.output_kernel_initializer
            ),
        }
