"""Local attention of RecurrentGemma 2B at 8192 tokens, for the TPU compiler.

    cd benchmarks/tpu_compiler
    python tpu_schedule.py attention_on_a_tpu.py:CASE

CASE is one of `ours`, `splash` (forward) and `ours_grad`, `splash_grad`
(forward and backward): the layer's own code, and JAX's splash attention with
the same window. Results: results/attention_on_a_tpu.md.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp

BATCH, TIME, HEADS, HEAD_DIM, WINDOW = 1, 8192, 10, 256, 2048


def arguments(spec):
    return (
        spec((BATCH, TIME, HEADS, HEAD_DIM), jnp.bfloat16),
        spec((BATCH, TIME, HEAD_DIM), jnp.bfloat16),
        spec((BATCH, TIME, HEAD_DIM), jnp.bfloat16),
        spec((BATCH, TIME), jnp.int32),
    )


def attend_ours(q, k, v, positions):
    from keras_griffin.layers import LocalMQA

    layer = LocalMQA(HEADS, HEAD_DIM, window_size=WINDOW, dtype="bfloat16")
    return layer._attend(q, k, v, positions)


def attend_splash(q, k, v, positions):
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernel,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

    mask = masks.LocalMask((TIME, TIME), (WINDOW, 0), 0)
    block = 512
    attend = kernel.make_splash_mqa_single_device(
        masks.MultiHeadMask([mask] * HEADS),
        block_sizes=kernel.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
    )
    # A document's number: how many have started up to here.
    documents = jnp.cumsum(positions == 0, axis=1).astype(jnp.int32)

    def row(q, k, v, documents):
        ids = kernel.SegmentIds(q=documents, kv=documents)
        return attend(q.swapaxes(0, 1), k, v, ids).swapaxes(0, 1)

    return jax.vmap(row)(q, k, v, documents)


def with_gradient(attend):
    def run(q, k, v, positions, cotangent):
        y, pull = jax.vjp(lambda q, k, v: attend(q, k, v, positions), q, k, v)
        return y, pull(cotangent)

    return run


def ours(spec):
    return attend_ours, arguments(spec)


def splash(spec):
    return attend_splash, arguments(spec)


def ours_grad(spec):
    inputs = arguments(spec)
    return with_gradient(attend_ours), (*inputs, inputs[0])


def splash_grad(spec):
    inputs = arguments(spec)
    return with_gradient(attend_splash), (*inputs, inputs[0])
