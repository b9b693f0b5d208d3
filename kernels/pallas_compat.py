"""What is experimental in JAX, or changes between its versions, in one place.

Pallas has no home outside `jax.experimental` (jax 0.4.30 to 0.11, at least).
Only the files named `*pallas*.py` import this one, so that a machine without
JAX never does.
"""

from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as pltriton

from keras_griffin.kernels.dispatch_jax import result

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
