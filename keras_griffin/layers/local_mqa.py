import keras
from keras import ops

from keras_griffin.layers.block_diagonal_dense import fan_in_normal
from keras_griffin.layers.on_rows import on_rows
from keras_griffin.layers.temporal_layer import TemporalLayer

# Added to logits of keys out of sight; finite, so that a row of them alone
# gives no NaN.
MASKED = -1e30

# Queries that share one slice of keys: a quarter of the window wastes a
# quarter of the products, and a matrix product wants at least this many rows.
MIN_QUERY_BLOCK = 64

# The layer's own part of its state.
RING_KEYS = ("keys", "values")


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
        **kwargs: see `keras.layers.Layer`.

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
        num_query_heads,
        head_dim,
        window_size=1024,
        rope_max_wavelength=10_000.0,
        rope_fraction=0.5,
        output_kernel_initializer=None,
        **kwargs,
    ):
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

    def build(self, input_shape):
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

    def init_mixer_state(self, batch_size, max_length=None):
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
        shape = (batch_size, slots, self.head_dim)
        return {
            "keys": ops.zeros(shape, dtype=self.compute_dtype),
            "values": ops.zeros(shape, dtype=self.compute_dtype),
        }

    def mix(self, x, layout, state):
        batch, time = ops.shape(x)[:2]
        if isinstance(time, int) and time == 0:
            return x, state and {name: state[name] for name in RING_KEYS}
        q = ops.reshape(
            on_rows(self.query, x),
            (batch, time, self.num_query_heads, self.head_dim),
        )
        turns = self._turns(layout.positions, x.dtype)
        q = self._rotate(q, [turn[:, :, None] for turn in turns])
        q = q * ops.cast(self.head_dim**-0.5, q.dtype)
        k = self._rotate(on_rows(self.key, x), turns)
        v = on_rows(self.value, x)
        if state is None:
            mixed, new_state = self._attend(q, k, v, layout.positions), None
        else:
            new_state = self._write(k, v, layout, state)
            if isinstance(time, int) and time == 1:
                mixed = self._attend_ring(q, layout, state, new_state)
            else:
                before = self._read(state)
                mixed = self._attend(q, k, v, layout.positions, *before)
        mixed = ops.reshape(
            mixed, (batch, time, self.num_query_heads * self.head_dim)
        )
        return on_rows(self.output_dense, mixed), new_state

    # --- Rotary positions ---

    def _turns(self, positions, dtype):
        """Cosines and sines `(batch, time, rotated_dim / 2)`."""
        half = self._rotated_dim // 2
        exponent = ops.arange(half, dtype="float32") / max(half, 1)
        frequency = self.rope_max_wavelength**-exponent
        angle = ops.cast(positions, "float32")[..., None] * frequency
        return ops.cast(ops.cos(angle), dtype), ops.cast(ops.sin(angle), dtype)

    def _rotate(self, x, turns):
        cos, sin = turns
        half = self._rotated_dim // 2
        first, second = x[..., :half], x[..., half : 2 * half]
        return ops.concatenate(
            [
                first * cos - second * sin,
                second * cos + first * sin,
                x[..., 2 * half :],
            ],
            axis=-1,
        )

    # --- Many tokens at once ---

    def _attend(self, q, k, v, positions, keys_before=None, values_before=None):
        """Attention of a row's tokens to themselves and those before them.

        Args:
            q: `(batch, time, heads, head_dim)`.
            k, v: `(batch, time, head_dim)`.
            positions: `(batch, time)`.
            keys_before, values_before: `(batch, before, head_dim)`, the
                tokens just before these, oldest first, or `None`.

        Returns:
            `(batch, time, heads, head_dim)`.
        """
        time = ops.shape(q)[1]
        before = 0 if keys_before is None else ops.shape(keys_before)[1]
        window = self.window_size
        if keys_before is None and keras.config.backend() == "jax":
            from keras_griffin.layers import splash_attention_jax

            if splash_attention_jax.takes(q):
                return splash_attention_jax.attend(q, k, v, positions, window)

        one_block = window is None or (
            isinstance(time, int) and time + before <= window + MIN_QUERY_BLOCK
        )
        if one_block:
            if before:
                k = ops.concatenate([keys_before, k], axis=1)
                v = ops.concatenate([values_before, v], axis=1)
            return self._attend_block(
                q[:, None], k[:, None], v[:, None], positions[:, None], before
            )[:, 0]

        # Blocks of `block` queries; block i needs the keys of itself and of
        # the `reach` blocks before it.
        block = max(window // 4, min(window, MIN_QUERY_BLOCK), 1)
        reach = -(-window // block)
        num_blocks = -(-time // block)
        after = num_blocks * block - time

        def blocks(x, start):
            batch = ops.shape(x)[0]
            x = _pad_time(x, start, after)
            shape = (batch, -1, block, *x.shape[2:])
            return ops.reshape(x, shape)

        def windows(x, x_before):
            if x_before is not None:
                x = ops.concatenate([x_before, x], axis=1)
            x = blocks(x, reach * block - before)
            parts = [x[:, j : j + num_blocks] for j in range(reach + 1)]
            return ops.concatenate(parts, axis=2)

        mixed = self._attend_block(
            blocks(q, 0),
            windows(k, keys_before),
            windows(v, values_before),
            blocks(positions, 0),
            reach * block,
        )
        shape = (ops.shape(q)[0], -1, self.num_query_heads, self.head_dim)
        return ops.reshape(mixed, shape)[:, :time]

    def _attend_block(self, q, k, v, positions, before):
        """Attention of blocks of queries to one slice of keys each.

        Query r and key s are `before + r - s` tokens apart.

        Args:
            q: `(batch, blocks, queries, heads, head_dim)`.
            k, v: `(batch, blocks, keys, head_dim)`.
            positions: `(batch, blocks, queries)`.
            before: int. Keys before the first query.
        """
        queries = ops.shape(q)[2]
        # Heads are an axis of their own, which a device mesh may divide.
        logits = ops.cast(ops.einsum("bnqhd,bnkd->bnqhk", q, k), "float32")
        distance = (
            before
            + ops.arange(queries, dtype="int32")[:, None]
            - ops.arange(ops.shape(k)[2], dtype="int32")[None, :]
        )
        reach = positions
        if self.window_size is not None:
            reach = ops.minimum(reach, self.window_size)
        seen = ops.logical_and(distance >= 0, distance <= reach[..., None])
        logits = ops.where(seen[..., None, :], logits, MASKED)
        weights = ops.cast(_softmax(logits), v.dtype)
        return ops.einsum("bnqhk,bnkd->bnqhd", weights, v)

    # --- The ring buffer ---

    def _read(self, state):
        """Keys and values before the next token, oldest first."""
        keys, values = state["keys"], state["values"]
        slots = keys.shape[1]
        before = slots - 1 if self.window_size is not None else slots
        index = state["length"][:, None] - before
        index = index + ops.arange(before, dtype="int32")[None, :]
        index = ops.mod(index, slots)[:, :, None]
        return (
            ops.take_along_axis(keys, index, axis=1),
            ops.take_along_axis(values, index, axis=1),
        )

    def _write(self, k, v, layout, state):
        """Puts a row's real tokens into their slots."""
        slots = state["keys"].shape[1]
        if k.shape[1] == 1:
            return self._write_one(k, v, layout, state)
        length = state["length"][:, None]
        num_real = layout.num_real
        if layout.mask is not None:
            num_real = num_real[:, None]
        last = length + num_real - 1
        # The newest token that belongs into each slot, counted from the first
        # of these tokens; below 0: the slot keeps what it has.
        slot = ops.arange(slots, dtype="int32")[None, :]
        source = last - ops.mod(last - slot, slots) - length
        keep = (source < 0)[:, :, None]

        def write(old, new):
            new = ops.cast(new, old.dtype)
            # A token in front: so there is one where all are kept.
            new = ops.concatenate([old[:, :1], new], axis=1)
            index = ops.maximum(source + 1, 0)[:, :, None]
            new = ops.take_along_axis(new, index, axis=1)
            return ops.where(keep, old, new)

        return {
            "keys": write(state["keys"], k),
            "values": write(state["values"], v),
        }

    def _write_one(self, k, v, layout, state):
        """Puts a token into its slot, and touches no other."""
        slots = state["keys"].shape[1]
        slot = ops.mod(state["length"], slots)
        rows = ops.arange(ops.shape(k)[0], dtype="int32")
        index = ops.stack([rows, slot], axis=-1)

        def write(old, new):
            new = ops.cast(new, old.dtype)
            if layout.mask is not None:
                kept = ops.take_along_axis(old, slot[:, None, None], axis=1)
                new = ops.where(layout.mask[:, :, None], new, kept)
            return ops.scatter_update(old, index, new[:, 0])

        return {
            "keys": write(state["keys"], k),
            "values": write(state["values"], v),
        }

    def _attend_ring(self, q, layout, state, new_state):
        """Attention of one token to the ring that holds it already."""
        keys, values = new_state["keys"], new_state["values"]
        slots = keys.shape[1]
        slot = ops.arange(slots, dtype="int32")[None, :]
        distance = ops.mod(state["length"][:, None] - slot, slots)
        logits = ops.matmul(q[:, 0], ops.transpose(keys, (0, 2, 1)))
        seen = (distance <= layout.positions)[:, None, :]
        logits = ops.where(seen, ops.cast(logits, "float32"), MASKED)
        weights = ops.cast(_softmax(logits), values.dtype)
        return ops.matmul(weights, values)[:, None]

    def get_config(self):
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


def _softmax(logits):
    # Keras warns of a softmax over one value, which is what a lone token has.
    if logits.shape[-1] == 1:
        return ops.ones_like(logits)
    return ops.softmax(logits, axis=-1)


def _pad_time(x, before, after):
    """Zeros before and after axis 1."""
    batch, rest = ops.shape(x)[0], tuple(x.shape[2:])
    return ops.concatenate(
        [
            ops.zeros((batch, before, *rest), dtype=x.dtype),
            x,
            ops.zeros((batch, after, *rest), dtype=x.dtype),
        ],
        axis=1,
    )
