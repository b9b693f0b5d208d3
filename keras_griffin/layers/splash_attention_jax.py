"""Windowed attention by JAX's splash kernel, which keeps no logits: TPUs."""

import functools

import jax
import jax.numpy as jnp
import keras
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask,
)

from keras_griffin.kernels.dispatch import resolve
from keras_griffin.kernels.dispatch_jax import find_mesh

LANES = 128  # head_dim has to be a multiple
# Queries and keys of a step of the kernel: a quarter of RecurrentGemma's
# window, and less than a third of the 16 MiB of VMEM.
BLOCK = 512
# Up to so many blocks in a row, one kernel computes all gradients, in less time
# (`benchmarks/results/block_on_a_tpu_tried.md`). For each block of keys it
# writes a gradient of q, which are then added: for long rows too many.
MAX_FUSED_BLOCKS = 4


def takes(q):
    """Whether `attend` can compute this, and for a TPU.

    Decided while tracing, not when lowering: the plain operations keep what
    their gradient needs, the kernel computes it anew.
    """
    if resolve("auto") in ("ops", "pallas_gpu"):
        return False
    # Exported for every length, a row has none that is known.
    time = q.shape[1]
    if not isinstance(time, int) or time < BLOCK or q.shape[-1] % LANES:
        return False
    distribution = keras.distribution.distribution()
    if distribution is None:
        return jax.default_backend() == "tpu" and jax.device_count() == 1
    device = distribution.device_mesh.devices.flat[0]
    platform = getattr(device, "platform", str(device).partition(":")[0])
    mesh = find_mesh()
    # A kernel sees all keys of a row.
    time_is_whole = (
        mesh is None or mesh.sizes.get(mesh.names.get("sequence"), 1) == 1
    )
    return platform == "tpu" and time_is_whole


def attend(q, k, v, positions, window, block=BLOCK, interpret=False):
    """Attention of tokens to themselves and the `window` before them.

    Args:
        q: `(batch, time, heads, head_dim)`.
        k, v: `(batch, time, head_dim)`.
        positions: `(batch, time)` in the documents of a row, without gaps.
        window: int, or `None` for all tokens before.
        block: int. Multiple of 128.
        interpret: bool. Whether to run Pallas' interpreter, without a TPU.

    Returns:
        `(batch, time, heads, head_dim)`.
    """
    run = functools.partial(
        _attend, window=window, block=block, interpret=interpret
    )
    mesh = find_mesh()
    if mesh is None:
        return run(q, k, v, positions)
    heads = ("batch", None, "model", None)
    keys = ("batch", None, None)
    (y,) = mesh.run(
        lambda *args: (run(*args),),
        (q, k, v, positions),
        in_axes=(heads, keys, keys, ("batch", None)),
        out_axes=(heads,),
        split=mesh.split(batch=q.shape[0], model=q.shape[2]),
    )
    return y


def _attend(q, k, v, positions, window, block, interpret):
    time, heads = q.shape[1:3]
    # The number of a document: how many have started.
    documents = jnp.cumsum(positions == 0, axis=1).astype("int32")
    after = -time % block
    q, k, v, documents = (
        jnp.pad(x, ((0, 0), (0, after)) + ((0, 0),) * (x.ndim - 2))
        for x in (q, k, v, documents)
    )
    attend = make_kernel(time + after, heads, window, block, interpret)

    def row(q, k, v, documents):
        ids = splash_attention_kernel.SegmentIds(q=documents, kv=documents)
        return attend(q.swapaxes(0, 1), k, v, ids).swapaxes(0, 1)

    return jax.vmap(row)(q, k, v, documents)[:, :time].astype(q.dtype)


def make_kernel(time, heads, window, block=BLOCK, interpret=False):
    """The kernel of one row; it knows which pairs of blocks it skips.

    Args:
        time: int. Tokens of the row, a multiple of `block`.
        window, block, interpret: as of `attend`.
    """
    mask = splash_attention_mask.LocalMask((time, time), (window, 0), 0)
    is_fused = time <= MAX_FUSED_BLOCKS * block
    return splash_attention_kernel.make_splash_mqa_single_device(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            block_q_dq=None if is_fused else block,
            block_kv_dq=None if is_fused else block,
            use_fused_bwd_kernel=is_fused,
        ),
        interpret=interpret,
    )
