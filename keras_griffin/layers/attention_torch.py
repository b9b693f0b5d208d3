"""Attention of many tokens on PyTorch for CUDA, without logits in memory.

By `scaled_dot_product_attention`, for which PyTorch takes the kernel that fits.
On a CPU the operations of `windowed_attention` stay.
"""

import torch
from torch.nn import functional

from keras_griffin.kernels import dispatch


def is_usable(q):
    return q.is_cuda and not dispatch.is_converting


def attend(q, k, v, positions, window, before, block, earlier):
    """See `windowed_attention`: blocks of queries, each to a slice of keys.

    Args:
        q: `(batch, time, heads, head_dim)`, scaled.
        k, v: `(batch, before + time, head_dim)`.
        positions: `(batch, time)`.
        window: int, or `None`.
        before: int. Keys before the first query.
        block: int. Queries of a block.
        earlier: int. Keys that a block sees before its first query.
    """
    batch, time, heads, head_dim = q.shape
    after = -time % block

    def windows(x):
        # One copy; of slices, PyTorch's gradient would be whole arrays.
        x = functional.pad(x, (0, 0, earlier - before, after))
        x = x.unfold(1, earlier + block, block).transpose(2, 3)
        x = x.reshape(-1, 1, earlier + block, head_dim)
        return x.expand(-1, heads, -1, -1)

    if after:
        q = functional.pad(q, (0, 0, 0, 0, 0, after))
        positions = functional.pad(positions, (0, after))
    q = q.reshape(-1, block, heads, head_dim).transpose(1, 2)
    reach = positions.reshape(-1, 1, block, 1)
    if window is not None:
        reach = reach.clamp(max=window)
    query, key = (
        torch.arange(n, dtype=torch.int32, device=q.device)
        for n in (block, earlier + block)
    )
    distance = (query + earlier)[:, None] - key
    seen = (distance >= 0) & (distance <= reach)
    mixed = functional.scaled_dot_product_attention(
        q, windows(k), windows(v), attn_mask=seen, scale=1.0
    )
    mixed = mixed.transpose(1, 2).reshape(batch, -1, heads, head_dim)
    return mixed[:, :time]
