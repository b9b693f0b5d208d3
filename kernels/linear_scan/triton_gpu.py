"""The loop of `linear_scan` for CUDA, in Triton.

A program takes some channels of one row and one part of time, and goes through
it in chunks whose loads do not wait for the state. What is computed in two
runs, and why, is in `../triton_parts.py`.
"""

import triton
import triton.language as tl

from keras_griffin.kernels.triton_parts import enter
from keras_griffin.kernels.triton_parts import last_row
from keras_griffin.kernels.triton_parts import rounded
from keras_griffin.kernels.triton_parts import row_before
from keras_griffin.kernels.triton_parts import then


@triton.jit
def scan_kernel(
    x, a, h0, products, ends, y, last, T, PARTS, CHUNKS,
    D: tl.constexpr, REVERSE: tl.constexpr, SHIFTED: tl.constexpr,
    CHANNELS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """`y` and `last`; without `y` the parts' `products` and `ends`.

    See `ops_scan.make_scan`. Parts and chunks are in the scan's order.
    """
    tiles: tl.constexpr = (D + CHANNELS - 1) // CHANNELS
    d = tl.program_id(0) % tiles * CHANNELS + tl.arange(0, CHANNELS)
    part = tl.program_id(0) // tiles % PARTS
    row = (tl.program_id(0) // tiles // PARTS).to(tl.int64)
    inside = d < D
    x += row * T * D
    a += row * T * D
    at_part = (row * PARTS + part) * D + d
    product = tl.full((CHANNELS,), 1.0, tl.float32)
    h = tl.full((CHANNELS,), 0.0, tl.float32)
    if y is not None:
        y += row * T * D
        h = tl.load(h0 + row * D + d, mask=inside, other=0.0)
        if products is not None:
            h = enter(h, products, ends, part, at_part, inside, D)
    step = tl.arange(0, CHUNK)
    for chunk in range(part * CHUNKS, (part + 1) * CHUNKS):
        start = chunk * CHUNK
        real = (start + step < T)[:, None] & inside[None, :]
        if REVERSE:
            here = (T - 1 - start).to(tl.int64) * D - step[:, None] * D
        else:
            here = start.to(tl.int64) * D + step[:, None] * D
        here += d[None, :]
        x_t = tl.load(x + here, mask=real, other=0.0).to(tl.float32)
        a_t = tl.load(a + here, mask=real, other=1.0).to(tl.float32)
        if SHIFTED:
            a_all, h_all = tl.associative_scan((a_t, a_t * x_t), 0, then)
        else:
            a_all, h_all = tl.associative_scan((a_t, x_t), 0, then)
        h_all += a_all * h[None, :]
        if y is None:
            product *= last_row(a_all)
        elif SHIFTED:
            y_t = x_t + row_before(h_all, h)
            tl.store(y + here, rounded(y_t, y.dtype.element_ty), mask=real)
        else:
            tl.store(y + here, rounded(h_all, y.dtype.element_ty), mask=real)
        h = last_row(h_all)
    if y is None:
        tl.store(products + at_part, product, mask=inside)
        tl.store(ends + at_part, h, mask=inside)
    elif part == PARTS - 1:
        tl.store(last + row * D + d, h, mask=inside)
