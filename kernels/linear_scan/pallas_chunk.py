"""The scan of a chunk of time inside a TPU kernel.

A chunk of 128 time steps is cut into 8 segments of 16, and a vreg holds one
step of all 8: sublane `s` of the vreg `j` is step `j` of segment `s`. So a step
of the scan is one multiplication and one addition for 8 x 128 numbers, where
the natural order (a vreg is 8 steps in a row) needs three rounds of shifts.
The scan runs twice: from zero, for what each segment hands on, and from what
the segments before it have handed on.

The vregs come from VMEM by loads with a stride. An odd stride, hence the pitch
of 17 rows, visits all 8 memory banks; 16 would make four loads of each.
"""

import jax
import jax.numpy as jnp

from keras_griffin.kernels.linear_scan.complex_arithmetic import add
from keras_griffin.kernels.linear_scan.complex_arithmetic import multiply
from keras_griffin.kernels.pallas_compat import LANES
from keras_griffin.kernels.pallas_compat import SUBLANES
from keras_griffin.kernels.pallas_compat import VMEM
from keras_griffin.kernels.pallas_compat import pl
from keras_griffin.kernels.pallas_compat import rotate

STEPS = 16  # of a segment
CHUNK = SUBLANES * STEPS  # time steps
_PITCH = STEPS + 1  # rows
_HEIGHT = SUBLANES * _PITCH  # rows of a chunk in scratch
ROWS = 16  # read or written at once: a vreg of bfloat16, two of float32


def chunk_scratch(tiles):
    """Scratch for one chunk of `tiles` times 128 channels, float32."""
    return VMEM((tiles * _HEIGHT, LANES), jnp.float32)


def put_rows(ref, tile, row, value):
    """Writes the time steps `row` to `row + 16` of a chunk into scratch."""
    value = value.astype(jnp.float32)
    for start in range(0, ROWS, SUBLANES):
        rows = value[start : start + SUBLANES]
        ref[_place(tile, row + start), :] = rows


def get_rows(ref, tile, row):
    """Reads what `put_rows` writes."""
    starts = range(row, row + ROWS, SUBLANES)
    return jnp.concatenate([ref[_place(tile, start), :] for start in starts])


def scan_chunk(x, a, tile, carry, reverse=False, shifted=False):
    """Scans one chunk in scratch; `y` takes the place of `x`.

    See `ops_scan.make_scan` for the equations and for `shifted`.

    Args:
        x, a: tuples, `(real,)` or `(real, imaginary)`, of scratch references.
        tile: int, which 128 channels.
        carry: such a tuple of arrays `(1, 128)`.
        reverse, shifted: bool.

    Returns:
        The carry after the chunk.
    """

    def place(i):
        return _step(tile, STEPS - 1 - i if reverse else i)

    def load(refs, i):
        return tuple(ref[place(i), :] for ref in refs)

    def advance(h, a_i, x_i):
        if shifted:
            y = add(h, x_i)
            return y, multiply(a_i, y)
        y = add(multiply(a_i, h), x_i)
        return y, y

    # What each segment hands on: `product * h + total` for an incoming `h`.
    product, total = load(a, 0), load(x, 0)
    if shifted:
        total = multiply(product, total)

    def compose(i, segment):
        product, total = segment
        a_i = load(a, i)
        _, total = advance(total, a_i, load(x, i))
        return multiply(product, a_i), total

    # Unrolled when lowering, so that it is traced once.
    product, total = jax.lax.fori_loop(
        1, STEPS, compose, (product, total), unroll=True
    )

    # The same scan over the 8 segments. With a product of 0 at its edge it
    # needs no masks.
    row = jax.lax.broadcasted_iota(jnp.int32, (SUBLANES, LANES), 0)
    at_edge = row == (SUBLANES - 1 if reverse else 0)
    forth = -1 if reverse else 1
    carry = tuple(jnp.broadcast_to(c, (SUBLANES, LANES)) for c in carry)
    entering = add(multiply(product, carry), total)
    total = _select(at_edge, entering, total)
    product = _select(at_edge, (jnp.zeros(row.shape),) * len(x), product)
    for shift in (1, 2, 4):
        total = add(multiply(product, _rotate(total, forth * shift)), total)
        product = multiply(product, _rotate(product, forth * shift))

    def run(i, h):
        y, h = advance(h, load(a, i), load(x, i))
        for ref, part in zip(x, y, strict=True):
            ref[place(i), :] = part
        return h

    h = _select(at_edge, carry, _rotate(total, forth))
    jax.lax.fori_loop(0, STEPS, run, h, unroll=True)
    last = slice(0, 1) if reverse else slice(SUBLANES - 1, SUBLANES)
    return tuple(part[last] for part in total)


def _place(tile, row):
    segment, step = divmod(row, STEPS)
    return pl.ds(tile * _HEIGHT + segment * _PITCH + step, SUBLANES)


def _step(tile, j):
    return pl.ds(tile * _HEIGHT + j, SUBLANES, stride=_PITCH)


def _select(condition, p, q):
    return tuple(jnp.where(condition, u, v) for u, v in zip(p, q, strict=True))


def _rotate(p, shift):
    return tuple(rotate(part, shift) for part in p)
