"""What is experimental in JAX, or changes between its versions, in one place.

Pallas has no home outside `jax.experimental` (jax 0.4.30 to 0.11, at least).
Only the files named `*pallas*.py` import this one, so that a machine without
JAX never does.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as pltriton

# Renamed in jax 0.7; both names are admitted.
CompilerParams = getattr(pltpu, "CompilerParams", None) or getattr(
    pltpu, "TPUCompilerParams", None
)
VMEM = pltpu.VMEM

LANES = 128  # of a vector register (vreg)
SUBLANES = 8  # of a vreg of 32-bit numbers

__all__ = [
    "LANES",
    "SUBLANES",
    "VMEM",
    "CompilerParams",
    "pl",
    "pltpu",
    "pltriton",
    "result",
    "rotate",
]


def rotate(rows, shift):
    """Rotates the rows of a `(8, 128)` vreg: row `k` goes to `k + shift`."""
    return pltpu.roll(rows, shift % SUBLANES, 0)


def result(shape, dtype, inputs):
    """A result of a kernel: in a `shard_map` it varies as all inputs do.

    Since jax 0.6 `pallas_call` wants to be told, and there is no public way to
    unite the types of several arrays but an operation on all of them.
    """
    like = jax.eval_shape(lambda *values: sum(map(jnp.sum, values)), *inputs)
    return like.update(shape=shape, dtype=dtype)
