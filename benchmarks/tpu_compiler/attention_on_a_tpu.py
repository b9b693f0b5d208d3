"""Local attention of RecurrentGemma 2B at 8192 tokens, for the TPU compiler.

    cd benchmarks/tpu_compiler
    python tpu_schedule.py attention_on_a_tpu.py:CASE

CASE is one of `plain`, `splash` (forward) and `plain_grad`, `splash_grad`
(forward and backward): the layer's two ways, plain operations and JAX's splash
attention. Results: results/attention_on_a_tpu.md.
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


def attend_plain(q, k, v, positions):
    from keras_griffin.layers import windowed_attention

    return windowed_attention.windowed_attention(q, k, v, positions, WINDOW)


def attend_splash(q, k, v, positions):
    from keras_griffin.layers import splash_attention_jax

    return splash_attention_jax.attend(q, k, v, positions, WINDOW)


def with_gradient(attend):
    def run(q, k, v, positions, cotangent):
        y, pull = jax.vjp(lambda q, k, v: attend(q, k, v, positions), q, k, v)
        return y, pull(cotangent)

    return run


def plain(spec):
    return attend_plain, arguments(spec)


def splash(spec):
    return attend_splash, arguments(spec)


def plain_grad(spec):
    inputs = arguments(spec)
    return with_gradient(attend_plain), (*inputs, inputs[0])


def splash_grad(spec):
    inputs = arguments(spec)
    return with_gradient(attend_splash), (*inputs, inputs[0])
