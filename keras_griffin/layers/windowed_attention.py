"""Attention of many tokens at once, each to a window before it."""

import keras
from keras import ops

# Logit of keys out of sight; finite, so that a row of them alone gives no NaN.
MASKED = -1e30

# Queries that share one slice of keys: a quarter of the window wastes a
# quarter of the products, and a matrix product wants at least this many rows.
MIN_QUERY_BLOCK = 64


def windowed_attention(
    q, k, v, positions, window, keys_before=None, values_before=None
):
    """Attention of a row's tokens to themselves and those before them.

    Args:
        q: `(batch, time, heads, head_dim)`, scaled.
        k, v: `(batch, time, head_dim)`.
        positions: `(batch, time)`.
        window: int, tokens before each that it sees. `None`: all.
        keys_before, values_before: `(batch, before, head_dim)`, the tokens
            just before these, oldest first, or `None`.

    Returns:
        `(batch, time, heads, head_dim)`.
    """
    if keys_before is None and keras.config.backend() == "jax":
        from keras_griffin.layers import splash_attention_jax

        if splash_attention_jax.takes(q):
            return splash_attention_jax.attend(q, k, v, positions, window)

    time = ops.shape(q)[1]
    before = 0
    if keys_before is not None:
        before = ops.shape(keys_before)[1]
        k = ops.concatenate([keys_before, k], axis=1)
        v = ops.concatenate([values_before, v], axis=1)
    if isinstance(time, int):
        one_block = window is None or time + before <= window + MIN_QUERY_BLOCK
    else:
        # `torch.export` would bind blocks of an unknown time to its example's.
        one_block = window is None or keras.config.backend() == "torch"
    # Blocks of `block` queries; each needs its own keys and `earlier` ones.
    block, earlier = time, before
    if not one_block:
        block = max(window // 4, min(window, MIN_QUERY_BLOCK), 1)
        earlier = -(-window // block) * block
    if keras.config.backend() == "torch":
        from keras_griffin.layers import attention_torch

        if attention_torch.is_usable(q):
            return attention_torch.attend(
                q, k, v, positions, window, before, block, earlier
            )
    if one_block:
        one = q[:, None], k[:, None], v[:, None], positions[:, None]
        return _attend_blocks(*one, before, window)[:, 0]

    num_blocks = (time + block - 1) // block
    after = num_blocks * block - time

    def blocks(x, start):
        x = _pad_time(x, start, after)
        return ops.reshape(x, (ops.shape(x)[0], -1, block, *x.shape[2:]))

    def windows(x):
        x = blocks(x, earlier - before)
        parts = [x[:, j : j + num_blocks] for j in range(earlier // block + 1)]
        return ops.concatenate(parts, axis=2)

    mixed = _attend_blocks(
        blocks(q, 0),
        windows(k),
        windows(v),
        blocks(positions, 0),
        earlier,
        window,
    )
    return ops.reshape(mixed, (ops.shape(q)[0], -1, *q.shape[2:]))[:, :time]


def _attend_blocks(q, k, v, positions, before, window):
    """Attention of blocks of queries to one slice of keys each.

    Query r and key s are `before + r - s` tokens apart.

    Args:
        q: `(batch, blocks, queries, heads, head_dim)`.
        k, v: `(batch, blocks, keys, head_dim)`.
        positions: `(batch, blocks, queries)`.
        before: int. Keys before the first query.
        window: int, or `None`.
    """
    queries = ops.shape(q)[2]
    # Heads are an axis of their own, which a device mesh may divide.
    logits = ops.cast(ops.einsum("bnqhd,bnkd->bnqhk", q, k), "float32")
    distance = (
        before
        + ops.arange(queries, dtype="int32")[:, None]
        - ops.arange(ops.shape(k)[2], dtype="int32")[None, :]
    )
    reach = positions if window is None else ops.minimum(positions, window)
    seen = ops.logical_and(
        distance >= 0, distance <= ops.expand_dims(reach, -1)
    )
    weights = masked_softmax(logits, ops.expand_dims(seen, -2))
    return ops.einsum("bnqhk,bnkd->bnqhd", ops.cast(weights, v.dtype), v)


def masked_softmax(logits, seen):
    """Softmax over the last axis, of the keys that are seen."""
    # Keras warns of a softmax over one value, which is what a lone token has.
    if logits.shape[-1] == 1:
        return ops.ones_like(logits)
    return ops.softmax(ops.where(seen, logits, MASKED), axis=-1)


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
