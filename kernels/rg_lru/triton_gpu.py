"""`rg_lru` for CUDA, in Triton: one kernel a pass.

A program takes some channels of a gate block, of one row and one part of time.
It keeps its columns of both gates' matrices on chip and goes through time in
chunks: gates, decay and normaliser, the scan of the chunk, the result. The
letters are those of `README.md`. What is computed in two runs, and why, is in
`../triton_parts.py`.

    marks[t]   0 at a pad, 1 at a token, 2 where the state is dropped
    rate       -8 softplus(recurrence_param), so that log a = rate r
"""

import triton
import triton.language as tl

from keras_griffin.kernels.triton_parts import INTERPRETED
from keras_griffin.kernels.triton_parts import enter
from keras_griffin.kernels.triton_parts import last_row
from keras_griffin.kernels.triton_parts import rounded
from keras_griffin.kernels.triton_parts import row_before
from keras_griffin.kernels.triton_parts import then

SERIES_BELOW = tl.constexpr(0.25)  # six terms are exact to 5e-8 there
MIN_SQUARE = tl.constexpr(2.5e-7)  # see ops_rg_lru.py


@triton.jit
def forward_kernel(
    x, w_r, b_r, w_i, b_i, rate, marks, h0, products, ends, y, last,
    T, PARTS, CHUNKS, BLOCKS: tl.constexpr, K: tl.constexpr,
    K_PADDED: tl.constexpr, CHANNELS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """`y` and `last`; without `y` the parts' `products` and `ends`."""
    D: tl.constexpr = BLOCKS * K
    row, part, block, j = place(PARTS, BLOCKS, K, CHANNELS)
    k, step = tl.arange(0, K_PADDED), tl.arange(0, CHUNK)
    d, inside = block * K + j, j < K
    w_r, b_r = load_gate(w_r, b_r, block, k, j, K)
    w_i, b_i = load_gate(w_i, b_i, block, k, j, K)
    rate = tl.load(rate + d, mask=inside, other=0.0)
    at_state, at_part = row * D + d, (row * PARTS + part) * D + d
    product = tl.full((CHANNELS,), 1.0, tl.float32)
    h = tl.full((CHANNELS,), 0.0, tl.float32)
    if y is not None:
        h = tl.load(h0 + at_state, mask=inside, other=0.0)
        if products is not None:
            h = enter(h, products, ends, part, at_part, inside, D)
    for chunk in range(part * CHUNKS, (part + 1) * CHUNKS):
        t = chunk * CHUNK + step
        mark = load_marks(marks, row, t, T)
        here = (row * T + chunk * CHUNK) * D + block * K
        tile = step[:, None] * D + j[None, :]
        x_k = load_x(x + here, step[:, None] * D, k, mark, K)
        x_d = load_x(x + here, step[:, None] * D, j, mark, K).to(tl.float32)
        r = tl.where((mark > 0)[:, None], gate(x_k, w_r, b_r), 0.0)
        i = gate(x_k, w_i, b_i)
        a, square = decay(rate[None, :] * r)
        m = tl.where((mark > 1)[:, None], 1.0, tl.sqrt(square))
        a = tl.where((mark > 1)[:, None], 0.0, a)
        a, b = tl.associative_scan((a, m * i * x_d), 0, then)
        b += a * h[None, :]
        h = last_row(b)
        if y is None:
            product *= last_row(a)
        else:
            real = (t < T)[:, None] & inside[None, :]
            tl.store(y + here + tile, rounded(b, y.dtype.element_ty), mask=real)
    if y is None:
        tl.store(products + at_part, product, mask=inside)
        tl.store(ends + at_part, h, mask=inside)
    elif part == PARTS - 1:
        tl.store(last + at_state, h, mask=inside)


@triton.jit
def backward_kernel(
    x, w_r, b_r, w_i, b_i, rate, marks, h0, y, dy, d_last, products, ends,
    dx, dz, sum_r, sum_i, sum_rate, d_h0, T, PARTS, CHUNKS,
    BLOCKS: tl.constexpr, K: tl.constexpr, K_PADDED: tl.constexpr,
    CHANNELS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The gradients up to the gates' products, from the last step to the first.

        u[t] = a[t] g[t],    g[t] = dy[t] + u[t+1]

    `dx` is m i g, what reaches `x` past the gates; `dz` the gradient of the
    gates' products, r and then i of each block. `sum_r`, `sum_i` and `sum_rate`
    are those over a part of time of both and of the gradient of `rate`. Without
    `dx` only the parts' `products` and `ends`.
    """
    D: tl.constexpr = BLOCKS * K
    row, part, block, j = place(PARTS, BLOCKS, K, CHANNELS)
    k, step = tl.arange(0, K_PADDED), tl.arange(0, CHUNK)
    d, inside = block * K + j, j < K
    w_r, b_r = load_gate(w_r, b_r, block, k, j, K)
    w_i, b_i = load_gate(w_i, b_i, block, k, j, K)
    rate = tl.load(rate + d, mask=inside, other=0.0)
    at_state, at_part = row * D + d, (row * PARTS + part) * D + d
    product = tl.full((CHANNELS,), 1.0, tl.float32)
    zeros = tl.full((CHANNELS,), 0.0, tl.float32)
    u, total_r, total_i, total_rate = zeros, zeros, zeros, zeros
    if dx is not None:
        first = tl.load(h0 + at_state, mask=inside, other=0.0)
        u = tl.load(d_last + at_state, mask=inside, other=0.0)
        if products is not None:
            u = enter(u, products, ends, part, at_part, inside, D)
    for chunk in range(part * CHUNKS, (part + 1) * CHUNKS):
        t = T - 1 - chunk * CHUNK - step
        mark = load_marks(marks, row, t, T)
        real = (t >= 0)[:, None] & inside[None, :]
        here = (row * T + T - 1 - chunk * CHUNK) * D + block * K
        tile = -step[:, None] * D + j[None, :]
        x_k = load_x(x + here, -step[:, None] * D, k, mark, K)
        g = tl.load(dy + here + tile, mask=real, other=0.0).to(tl.float32)
        r = tl.where((mark > 0)[:, None], gate(x_k, w_r, b_r), 0.0)
        a, square = decay(rate[None, :] * r)
        a = tl.where((mark > 1)[:, None], 0.0, a)
        a_all, u_all = tl.associative_scan((a, a * g), 0, then)
        u_all += a_all * u[None, :]
        if dx is None:
            product *= last_row(a_all)
        else:
            g += row_before(u_all, u)
            h = load_before(y + here - D + tile, first, t, real)
            x_d = load_x(x + here, -step[:, None] * D, j, mark, K)
            i = gate(x_k, w_i, b_i)
            m = tl.where((mark > 1)[:, None], 1.0, tl.sqrt(square))
            at = dz + 2 * here - 2 * step[:, None] * D + j[None, :]
            sums = store_gradients(
                dx + here + tile, at, real, g, h, x_d, r, i, a, m, square,
                rate, K,
            )  # fmt: skip
            total_r, total_i = total_r + sums[0], total_i + sums[1]
            total_rate += sums[2]
        u = last_row(u_all)
    if dx is None:
        tl.store(products + at_part, product, mask=inside)
        tl.store(ends + at_part, u, mask=inside)
    else:
        tl.store(sum_r + at_part, total_r, mask=inside)
        tl.store(sum_i + at_part, total_i, mask=inside)
        tl.store(sum_rate + at_part, total_rate, mask=inside)
        if part == PARTS - 1:
            tl.store(d_h0 + at_state, u, mask=inside)


@triton.jit
def place(PARTS, BLOCKS: tl.constexpr, K: tl.constexpr, CHANNELS: tl.constexpr):
    """Row, part of time, gate block and channels in it of a program.

    Those that read the same of `x` follow each other, so that it is in L2.
    """
    tiles: tl.constexpr = (K + CHANNELS - 1) // CHANNELS
    tile = tl.program_id(0) % (BLOCKS * tiles)
    rest = tl.program_id(0) // (BLOCKS * tiles)
    j = tile % tiles * CHANNELS + tl.arange(0, CHANNELS)
    return (rest // PARTS).to(tl.int64), rest % PARTS, tile // tiles, j


@triton.jit
def load_gate(w, b, block, k, j, K: tl.constexpr):
    """Columns of a block of a gate's matrix, and of its bias."""
    at = block * K * K + k[:, None] * K + j[None, :]
    inside = (k < K)[:, None] & (j < K)[None, :]
    return (
        tl.load(w + at, mask=inside, other=0.0),
        tl.load(b + block * K + j, mask=j < K, other=0.0),
    )


@triton.jit
def load_marks(marks, row, t, T):
    """The marks of a chunk; before and after all time are pads."""
    inside = (t >= 0) & (t < T)
    if marks is None:
        mark = inside.to(tl.int8)
    else:
        mark = tl.load(marks + row * T + t, mask=inside, other=0)
    return mark


@triton.jit
def load_x(x, rows, channels, mark, K: tl.constexpr):
    """A chunk of `x`, with zeros at pads, whatever is there."""
    mask = (mark > 0)[:, None] & (channels < K)[None, :]
    return tl.load(x + rows + channels[None, :], mask=mask, other=0.0)


@triton.jit
def load_before(y, first, t, real):
    """The states before a chunk's steps; `y` points to them."""
    h = tl.load(y, mask=real & (t > 0)[:, None], other=0.0)
    return tl.where((t == 0)[:, None], first[None, :], h.to(tl.float32))


@triton.jit
def gate(x_k, w, b):
    return tl.sigmoid(multiply(x_k, w) + b[None, :])


@triton.jit
def decay(log_a):
    """`a`, and `1 - a^2` by a series where `a` is near 1."""
    a = tl.exp(log_a)
    u = 2.0 * log_a
    series = 1.0 + u * (1.0 / 5.0) * (1.0 + u * (1.0 / 6.0))
    series = 1.0 + u * (1.0 / 3.0) * (1.0 + u * (1.0 / 4.0) * series)
    series = -u * (1.0 + u * (1.0 / 2.0) * series)
    return a, tl.where(u > -SERIES_BELOW, series, 1.0 - a * a)


@triton.jit
def store_gradients(
    dx, dz, real, g, h, x, r, i, a, m, square, rate, K: tl.constexpr
):
    """Writes a chunk of `dx` and `dz`; sums of `dz_r`, `dz_i` and `d_rate`."""
    tl.store(dx, rounded(m * i * g, dx.dtype.element_ty), mask=real)
    gx = g * x.to(tl.float32)  # dm = i (g x),  di = m (g x)
    dz_i = gx * m * (i - i * i)
    tl.store(dz + K, rounded(dz_i, dz.dtype.element_ty), mask=real)
    sum_i = tl.sum(dz_i, 0)
    d_square = gx * i * tl.rsqrt(tl.maximum(square, MIN_SQUARE))
    d_log_a = a * (g * h - a * d_square)
    dz_r = d_log_a * rate[None, :] * (r - r * r)
    tl.store(dz, rounded(dz_r, dz.dtype.element_ty), mask=real)
    return tl.sum(dz_r, 0), sum_i, tl.sum(d_log_a * r, 0)


@triton.jit
def multiply(x, w):
    """A product in float32, of 32-bit numbers by three of TF32."""
    if INTERPRETED:  # It multiplies the bits of bfloat16 numbers (3.7 to 3.9).
        x, w = x.to(tl.float32), w.to(tl.float32)
    return tl.dot(x, w, input_precision="tf32x3")
