"""The loop of `linear_scan` as a Pallas TPU kernel.

The grid is `(channels, batch, time)`, time innermost, with the carry in
scratch. A grid step copies a block of `x` and `a` into scratch, chunk by chunk,
and scans it there (`pallas_chunk.py`).
"""

import functools

import jax
import jax.numpy as jnp

from keras_griffin.kernels.linear_scan.pallas_chunk import CHUNK
from keras_griffin.kernels.linear_scan.pallas_chunk import ROWS
from keras_griffin.kernels.linear_scan.pallas_chunk import chunk_scratch
from keras_griffin.kernels.linear_scan.pallas_chunk import get_rows
from keras_griffin.kernels.linear_scan.pallas_chunk import put_rows
from keras_griffin.kernels.linear_scan.pallas_chunk import scan_chunk
from keras_griffin.kernels.pallas_compat import LANES
from keras_griffin.kernels.pallas_compat import VMEM
from keras_griffin.kernels.pallas_compat import CompilerParams
from keras_griffin.kernels.pallas_compat import pl
from keras_griffin.kernels.pallas_compat import result

MAX_TILES = 4  # times 128 channels in a grid step
MAX_CHUNKS = 4  # times 128 time steps in a grid step
DTYPES = (jnp.float32, jnp.bfloat16)


def check(x, a):
    """Raises `NotImplementedError` for what the kernel does not take."""
    for part in (*x, *a):
        if part.dtype not in DTYPES:
            raise NotImplementedError(
                "The TPU kernel of `linear_scan` takes float32 and bfloat16. "
                f"Received: {part.dtype}. Use one of these, or "
                "implementation='ops'."
            )


@functools.partial(jax.jit, static_argnames=("reverse", "shifted"))
def loop(x, a, carry, reverse, shifted):
    """See `ops_scan.make_scan`; `y` has the dtype of `x`."""
    check(x, a)
    batch, time, width = x[0].shape
    tiles = _divisor(-(-width // LANES), MAX_TILES)
    chunks = _divisor(-(-time // CHUNK), MAX_CHUNKS)
    block = (1, chunks * CHUNK, tiles * LANES)
    blocks = -(-time // block[1])
    missing = (
        (0, 0),
        (0, blocks * block[1] - time),
        (0, -width % block[2]),
    )
    # What follows the end in time passes the carry on: a = 1, x = 0.
    a = _padded(a, missing, (1.0,) + (0.0,) * (len(a) - 1))
    x = _padded(x, missing, (0.0,) * len(x))
    carry = tuple(
        jnp.pad(part, (missing[0], missing[2]))[:, None] for part in carry
    )
    shape = x[0].shape

    def at(i):
        return blocks - 1 - i if reverse else i

    sequence = pl.BlockSpec(block, lambda k, b, i: (b, at(i), k))
    state = pl.BlockSpec((1, 1, block[2]), lambda k, b, i: (b, 0, k))
    parts = len(x)
    inputs = (*x, *a, *carry)
    results = pl.pallas_call(
        functools.partial(
            _kernel,
            parts=parts,
            tiles=tiles,
            chunks=chunks,
            reverse=reverse,
            shifted=shifted,
        ),
        grid=(shape[2] // block[2], batch, blocks),
        in_specs=[sequence] * (2 * parts) + [state] * parts,
        out_specs=[sequence] * parts + [state] * parts,
        out_shape=[
            *(result(shape, part.dtype, inputs) for part in x),
            *(result(c.shape, jnp.float32, inputs) for c in carry),
        ],
        scratch_shapes=[chunk_scratch(2 * tiles)] * (2 * parts)
        + [VMEM((1, block[2]), jnp.float32)] * parts,
        compiler_params=CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
    )(*inputs)
    y, last = results[:parts], results[parts:]
    return (
        tuple(part[:, :time, :width] for part in y),
        tuple(part[:, 0, :width] for part in last),
    )


def _kernel(*refs, parts, tiles, chunks, reverse, shifted):
    x, a, first, y, last, x_chunk, a_chunk, carry = (
        refs[i : i + parts] for i in range(0, 8 * parts, parts)
    )

    @pl.when(pl.program_id(2) == 0)
    def _():
        for ref, value in zip(carry, first, strict=True):
            ref[...] = value[0]

    for chunk in range(chunks)[::-1] if reverse else range(chunks):
        for tile in range(tiles):
            # Two chunks in turn, so that one may begin as the other ends.
            slot = chunk % 2 * tiles + tile
            lanes = pl.ds(tile * LANES, LANES)
            for row in range(0, CHUNK, ROWS):
                rows = pl.ds(chunk * CHUNK + row, ROWS)
                for source, target in zip(
                    (*x, *a), (*x_chunk, *a_chunk), strict=True
                ):
                    put_rows(target, slot, row, source[0, rows, lanes])
            h = scan_chunk(
                x_chunk,
                a_chunk,
                slot,
                tuple(ref[:, lanes] for ref in carry),
                reverse,
                shifted,
            )
            for ref, part in zip(carry, h, strict=True):
                ref[:, lanes] = part
            for row in range(0, CHUNK, ROWS):
                rows = pl.ds(chunk * CHUNK + row, ROWS)
                for source, target in zip(x_chunk, y, strict=True):
                    value = get_rows(source, slot, row)
                    target[0, rows, lanes] = value.astype(target.dtype)
    for ref, value in zip(last, carry, strict=True):
        ref[0] = value[...]


def _padded(parts, missing, fill):
    """Pads time by `fill`; what is put in channels does not matter."""
    return tuple(
        jnp.pad(part, missing, constant_values=value)
        for part, value in zip(parts, fill, strict=True)
    )


def _divisor(number, most):
    """The largest of 1, 2, 4 ... `most` that divides."""
    while number % most:
        most //= 2
    return most
