"""What both TPU kernels of `rg_lru` compute: gates, decay, normaliser, scan.

Factors are folded into the small arrays outside: a sigmoid is
`(1 + tanh(z / 2)) / 2`, so the gates' matrices are halved, and
`|a| = 2^(rate (1 + tanh))` with `rate = -4 softplus(Lambda) / log(2)`. Phases
are counted in turns.

Functions of arrays take 16 time steps of 128 channels. Kernels call them in
`jax.jit`, so that JAX traces them once and not for each such piece.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from keras_griffin.kernels.linear_scan.pallas_chunk import CHUNK
from keras_griffin.kernels.linear_scan.pallas_chunk import ROWS
from keras_griffin.kernels.linear_scan.pallas_chunk import scan_chunk
from keras_griffin.kernels.pallas_compat import LANES
from keras_griffin.kernels.pallas_compat import pl
from keras_griffin.kernels.rg_lru.ops_rg_lru import MAX_SQRT_DERIVATIVE

# Below this the series of 1 - exp(v) is exact in float32: |v|^3 / 24 < 2e-8.
SERIES_FROM = -(2.0**-7)
# Values of `jax_default_matmul_precision`: products of bfloat16, one pass.
ONE_PASS = ("default", "bfloat16", "BF16_BF16_F32")


def _in_square(function):
    """Coefficients in `u^2` for |u| <= 1/2, exact in float32."""
    polynomial = np.polynomial.Chebyshev.interpolate(
        lambda square: function(np.sqrt(square)), 4, domain=(0.0, 0.25)
    )
    return polynomial.convert(kind=np.polynomial.Polynomial).coef.tolist()


# sin(pi u) / u and cos(pi u)
HALF_SINE = _in_square(lambda u: np.pi * np.sinc(u))
HALF_COSINE = _in_square(lambda u: np.cos(np.pi * u))


def for_chunks(plan, run, prepare, reverse=False):
    """Calls `run(chunk, following)` for each chunk, `prepare(chunk)` before.

    Unrolled, `run` itself prepares the chunk that follows.
    """
    count = plan.chunks
    if not plan.is_loop:
        order = range(count)[::-1] if reverse else range(count)
        prepare(order[0])
        for chunk, following in zip(order, (*order[1:], None), strict=True):
            run(chunk, following)
        return

    def step(i, _):
        chunk = count - 1 - i if reverse else i
        prepare(chunk)
        run(chunk, None)

    jax.lax.fori_loop(0, count, step, None)


def rows_of(chunk, row, count=ROWS):
    """Time steps of a chunk of a block."""
    start = chunk * CHUNK
    if not isinstance(chunk, int):
        start = pl.multiple_of(start, CHUNK)
    return pl.ds(start + row, count)


def slot_of(plan, chunk):
    return 0 if plan.is_loop else chunk % plan.slots


def lanes_of(plan, tile):
    """Where the parts of 128 units are."""
    return tuple(
        pl.ds(k * plan.units + tile * LANES, LANES) for k in range(plan.parts)
    )


def gate_columns(plan, tile):
    """Where in `z` the two gates of 128 units are."""
    column = tile * LANES
    (start, stop) = next(
        columns for _, columns in plan.products if columns[1] > column
    )
    return pl.ds(start + column, LANES), pl.ds(stop + column, LANES)


def numbers(plan, ref, chunk, row, tile):
    """16 time steps of 128 units, as a tuple of parts."""
    rows = rows_of(chunk, row)
    return tuple(ref[0, rows, lanes] for lanes in lanes_of(plan, tile))


def gates_of(plan, z, chunk, row, tile):
    """16 time steps of the products of both gates."""
    rows, slot = pl.ds(row, ROWS), slot_of(plan, chunk)
    return tuple(z[slot, rows, columns] for columns in gate_columns(plan, tile))


def vectors_of(vectors, tile):
    """Both biases, the rate and, if complex, the turns of 128 units."""
    lanes = pl.ds(tile * LANES, LANES)
    return tuple(vectors[0, k : k + 1, lanes] for k in range(vectors.shape[1]))


def scan(plan, x, a, slot, tile, carry, reverse=False, shifted=False):
    lanes = lanes_of(plan, tile)
    first = tuple(carry[:, part] for part in lanes)
    last = scan_chunk(x, a, slot, first, reverse, shifted)
    for part, value in zip(lanes, last, strict=True):
        carry[:, part] = value


def with_products(plan, refs):
    return [
        (*product, ref)
        for product, ref in zip(plan.products, refs, strict=True)
    ]


def multiply_gates(plan, chunk, x, matrices, z):
    """Both gates' `x W` of one chunk, into `z`."""
    for (first, last), (start, stop), w in with_products(plan, matrices):
        rows = x[0, rows_of(chunk, 0, CHUNK), first:last]
        z[slot_of(plan, chunk), :, 2 * start : 2 * stop] = dot(
            plan, rows, w[0], 1, 0
        )


def dot(plan, p, q, p_axis, q_axis):
    return jax.lax.dot_general(
        p,
        q,
        (((p_axis,), (q_axis,)), ((), ())),
        precision=_precision(plan),
        preferred_element_type=jnp.float32,
    )


def _precision(plan):
    """float32 is not rounded to bfloat16, unless JAX's setting asks for it."""
    asked = jax.config.jax_default_matmul_precision
    if plan.is_exact and asked not in ONE_PASS:
        return jax.lax.Precision.HIGHEST
    return jax.lax.Precision.DEFAULT


def columns_of(chunk, ref):
    """One number a time step, from lanes to all lanes of a row each."""
    values = ref[0, :, rows_of(chunk, 0, CHUNK)]
    return jnp.transpose(jnp.broadcast_to(values, (LANES, CHUNK)))


def tanhs(z, vectors):
    """Of both gates."""
    return tuple(jnp.tanh(part + vectors[k]) for k, part in enumerate(z))


def decay(is_exact, r, vectors, keep, pad):
    """`|a|` and `1 - |a|^2`: 0 and 1 at resets, 1 and 0 at pads."""
    log2_a = vectors[2] * r
    a = jnp.exp2(log2_a) * keep + pad
    # Rounding must not make it negative.
    square = jnp.maximum(1.0 - a * a, 0.0)
    if is_exact:
        v = (2.0 * math.log(2.0)) * log2_a
        series = -v * (1.0 + v * (0.5 + v * (1.0 / 6.0)))
        is_near_one = (v > SERIES_FROM) & (keep > 0.0)
        square = jnp.where(is_near_one, series, square)
    return a, square


def turned(modulus, r, vectors, keep):
    """`a`, of its modulus and, if complex, its phase: 0 at resets and pads."""
    if len(vectors) == 3:
        return (modulus,)
    turns = vectors[3] * (r * keep)
    turns = turns - jnp.round(turns)
    # By half the angle, which is shorter than four quadrants.
    square = turns * turns
    sine = turns * _polynomial(HALF_SINE, square)
    cosine = _polynomial(HALF_COSINE, square)
    return (
        modulus - 2.0 * modulus * (sine * sine),
        2.0 * modulus * (sine * cosine),
    )


def _polynomial(coefficients, u):
    *rest, value = coefficients
    for coefficient in reversed(rest):
        value = coefficient + u * value
    return value


def root(is_exact, square):
    if is_exact:
        return jnp.sqrt(square)
    # Shorter than the refined root of v5e; it need not be exact in float32.
    return jnp.exp2(0.5 * jnp.log2(square))


def inverse(is_exact, square):
    """`1 / sqrt(square)`, bounded: the derivative of the root is half of it."""
    bound = 2.0 * MAX_SQRT_DERIVATIVE
    if is_exact:
        return jax.lax.rsqrt(jnp.maximum(square, bound**-2))
    return jnp.minimum(jnp.exp2(-0.5 * jnp.log2(square)), bound)
