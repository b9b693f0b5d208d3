"""The keys and values that a row has seen last, in slots that go round.

Token n of a row is in slot n modulo slots.
"""

from keras import ops

from keras_griffin.layers.windowed_attention import masked_softmax


def init_ring(batch_size, slots, head_dim, dtype):
    """Returns empty slots."""
    shape = (batch_size, slots, head_dim)
    return {
        "keys": ops.zeros(shape, dtype=dtype),
        "values": ops.zeros(shape, dtype=dtype),
    }


def read_ring(state, before):
    """The last `before` keys and values, oldest first."""
    slots = state["keys"].shape[1]
    index = state["length"][:, None] - before
    index = index + ops.arange(before, dtype="int32")[None, :]
    index = ops.mod(index, slots)[:, :, None]
    return (
        ops.take_along_axis(state["keys"], index, axis=1),
        ops.take_along_axis(state["values"], index, axis=1),
    )


def write_ring(k, v, layout, state):
    """Puts a row's real tokens into their slots."""
    write = _one_token if k.shape[1] == 1 else _many_tokens
    keys, values = write(k, v, layout, state)
    return {"keys": keys, "values": values}


def _many_tokens(k, v, layout, state):
    slots = state["keys"].shape[1]
    length = state["length"][:, None]
    num_real = layout.num_real
    if layout.mask is not None:
        num_real = num_real[:, None]
    last = length + num_real - 1
    # The newest token that belongs into each slot, counted from the first of
    # these tokens; below 0: the slot keeps what it has.
    slot = ops.arange(slots, dtype="int32")[None, :]
    source = last - ops.mod(last - slot, slots) - length
    keep = (source < 0)[:, :, None]
    index = ops.maximum(source + 1, 0)[:, :, None]
    for old, new in ((state["keys"], k), (state["values"], v)):
        new = ops.cast(new, old.dtype)
        # A token in front: so there is one where all are kept.
        new = ops.concatenate([old[:, :1], new], axis=1)
        new = ops.take_along_axis(new, index, axis=1)
        yield ops.where(keep, old, new)


def _one_token(k, v, layout, state):
    """Touches one slot and no other."""
    slots = state["keys"].shape[1]
    slot = ops.mod(state["length"], slots)
    rows = ops.arange(ops.shape(k)[0], dtype="int32")
    index = ops.stack([rows, slot], axis=-1)
    for old, new in ((state["keys"], k), (state["values"], v)):
        new = ops.cast(new, old.dtype)
        if layout.mask is not None:
            kept = ops.take_along_axis(old, slot[:, None, None], axis=1)
            new = ops.where(layout.mask[:, :, None], new, kept)
        yield ops.scatter_update(old, index, new[:, 0])


def attend_ring(q, positions, length, ring):
    """Attention of one token to the slots, which hold it already.

    Args:
        q: `(batch, 1, heads, head_dim)`, scaled.
        positions: `(batch, 1)`.
        length: `(batch,)` tokens of each row before this one.
        ring: dict of `"keys"` and `"values"`.
    """
    keys, values = ring["keys"], ring["values"]
    slots = keys.shape[1]
    slot = ops.arange(slots, dtype="int32")[None, :]
    distance = ops.mod(length[:, None] - slot, slots)
    logits = ops.matmul(q[:, 0], ops.transpose(keys, (0, 2, 1)))
    weights = masked_softmax(
        ops.cast(logits, "float32"), (distance <= positions)[:, None, :]
    )
    return ops.matmul(ops.cast(weights, values.dtype), values)[:, None]
