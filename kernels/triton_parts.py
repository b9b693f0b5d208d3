"""What the Triton kernels share: the scan of a chunk, and time in parts.

Where rows and channels alone do not fill a GPU, time is cut into parts and a
kernel runs twice. The first run finds what each part does to a state, multiply
by `products` and add `ends`; in the second each part folds those before it and
starts from there. No program waits for another one.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def then(a, b, a_later, b_later):
    """`h -> a h + b`, followed by `h -> a_later h + b_later`."""
    return a_later * a, a_later * b + b_later


@triton.jit
def last_row(z):
    """The last row of a chunk `(steps, channels)`."""
    steps: tl.constexpr = z.shape[0]
    step = tl.arange(0, steps)[:, None]
    return tl.sum(tl.where(step == steps - 1, z, 0.0), 0)


@triton.jit
def row_before(z, first):
    """A chunk one step later, with `first` in its first row."""
    steps: tl.constexpr = z.shape[0]
    channels: tl.constexpr = z.shape[1]
    step = tl.arange(0, steps)[:, None]
    before = tl.maximum(step - 1, 0)
    before = tl.broadcast_to(before, (steps, channels))
    return tl.where(step == 0, first[None, :], tl.gather(z, before, 0))


@triton.jit
def enter(h, products, ends, part, at, inside, D):
    """The state at the start of a part, from `h` at the start of all.

    `at` are the offsets of the part; those before it lie before it.
    """
    at -= part * D
    for _ in range(part):
        product = tl.load(products + at, mask=inside, other=0.0)
        h = product * h + tl.load(ends + at, mask=inside, other=0.0)
        at += D
    return h


@triton.jit
def rounded(z, dtype: tl.constexpr):
    """float32 in another dtype, to the nearest number.

    Triton's interpreter (3.7) drops the last bits for bfloat16.
    """
    if INTERPRETED and dtype == tl.bfloat16:
        bits = z.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        z = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
    return z.to(dtype)
