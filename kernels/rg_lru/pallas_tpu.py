"""`rg_lru` as one Pallas TPU kernel, and its gradient as another.

Both go over `(channels, batch, time)`, channels outermost, so that the gates'
matrices are fetched once; complex numbers over `(halves of the batch, batch,
time)`, as a gate reads other channels than it acts on. A grid step takes a
block of time through the gates' matrix products, the element-wise equations and
the scan, chunk by chunk. Where there are few channels, the products of the next
chunk are issued before the vector work of this one.

Factors are folded into the small arrays outside: a sigmoid is
`(1 + tanh(z / 2)) / 2`, so the gates' matrices are halved, and
`|a| = 2^(rate (1 + tanh))` with `rate = -4 softplus(Lambda) / log(2)`. Phases
are counted in turns.
"""

import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np

from keras_griffin.kernels.linear_scan.numbers import conjugate
from keras_griffin.kernels.linear_scan.numbers import multiply
from keras_griffin.kernels.linear_scan.pallas_chunk import CHUNK
from keras_griffin.kernels.linear_scan.pallas_chunk import ROWS
from keras_griffin.kernels.linear_scan.pallas_chunk import chunk_scratch
from keras_griffin.kernels.linear_scan.pallas_chunk import get_rows
from keras_griffin.kernels.linear_scan.pallas_chunk import put_rows
from keras_griffin.kernels.linear_scan.pallas_chunk import scan_chunk
from keras_griffin.kernels.pallas_compat import LANES
from keras_griffin.kernels.pallas_compat import SUBLANES
from keras_griffin.kernels.pallas_compat import VMEM
from keras_griffin.kernels.pallas_compat import CompilerParams
from keras_griffin.kernels.pallas_compat import pl
from keras_griffin.kernels.pallas_compat import result
from keras_griffin.kernels.rg_lru.ops_rg_lru import DECAY_SCALE
from keras_griffin.kernels.rg_lru.ops_rg_lru import MAX_SQRT_DERIVATIVE

# The code of a grid step is that of about so many chunks of 128 channels. More
# hides more of the first product, and compiles longer. Wider ones go through
# their chunks in a loop, in which the products of a tile hide behind another.
CODE_SIZE = 8
MAX_GROUP = 2048  # channels of a grid step; its matrices have to fit in VMEM
MAX_LOOP = 4  # chunks
MAX_LOOP_BYTES = 24 * 2**20  # of the four sequences of the backward kernel
VMEM_LIMIT = 64 * 2**20  # bytes, for groups of many channels: v5p has no more
NARROW_GROUP = 512  # channels that fit in the compiler's own limit
# Below this the series of 1 - exp(v) is exact in float32: |v|^3 / 24 < 2e-8.
SERIES_FROM = -(2.0**-7)


def _in_square(function):
    """Coefficients in `u^2` for |u| <= 1/2, exact in float32."""
    polynomial = np.polynomial.Chebyshev.interpolate(
        lambda square: function(np.sqrt(square)), 4, domain=(0.0, 0.25)
    )
    return polynomial.convert(kind=np.polynomial.Polynomial).coef.tolist()


# sin(pi u) / u and cos(pi u)
HALF_SINE = _in_square(lambda u: np.pi * np.sinc(u))
HALF_COSINE = _in_square(lambda u: np.cos(np.pi * u))


class Plan(typing.NamedTuple):
    """How the channels are laid out; see `make_plan`.

    `units` are channels of real numbers, or pairs of channels; real parts lie
    in the first half of a group and imaginary parts in the second.
    """

    parts: int  # of a number: 1, or 2 if complex
    batch: int
    time: int  # a multiple of `block`
    groups: int
    splits: int  # of the batch, for the cores of a chip to share
    units: int  # of a group, a multiple of 128
    block: int  # time steps of a grid step
    is_loop: bool  # over the chunks of a block
    products: tuple  # ((first row, last row), (first column, last column))
    dtype: typing.Any
    gate_blocks: int  # blocks of the gates in a group
    gap: int  # channels added to each half of a complex group

    @property
    def width(self):
        return self.parts * self.units

    @property
    def tiles(self):
        return self.units // LANES

    @property
    def chunks(self):
        return self.block // CHUNK

    @property
    def slots(self):
        """Chunks in scratch: two in turn, so that one begins in the other."""
        return 1 if self.is_loop else 2

    @property
    def is_exact(self):
        return self.dtype == jnp.float32


def make_plan(x, kernel):
    """The layout for `x` `(batch, time, width)` and the gates' `kernel`.

    Real numbers: a group is the least number of gate blocks whose channels
    fill vregs. Complex numbers: all is one group, as a gate reads other
    channels than it acts on. The block-diagonal matrix of a group is multiplied
    in pieces of whole vregs: columns that need the same rows go together, and
    what lies outside the blocks is zero.
    """
    batch, time, channels = x.shape
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError(
            "The TPU kernel of `rg_lru` takes float32 and bfloat16. Received: "
            f"x.dtype={x.dtype}. Use one of these, or implementation='ops'."
        )
    blocks, rows, columns = kernel.shape
    parts = rows // columns
    if parts == 1:
        units = math.lcm(columns, LANES)
        if units > MAX_GROUP:
            raise NotImplementedError(
                "The TPU kernel of `rg_lru` takes gate blocks whose width and "
                f"128 have a common multiple of at most {MAX_GROUP}. Received: "
                f"blocks of width {columns}. Use a multiple of 16 or "
                "implementation='ops'."
            )
        if units == LANES and channels % (2 * LANES) == 0:
            units = 2 * LANES
        blocks, gap = units // columns, 0
    else:
        units = -(-channels // parts // LANES) * LANES
        if units > MAX_GROUP:
            raise NotImplementedError(
                "The TPU kernel of `rg_lru` takes complex units of at most "
                f"{MAX_GROUP} numbers. Received: {channels // parts}. Use "
                "fewer, or implementation='ops'."
            )
        gap = units - channels // parts
    tiles = units // LANES

    def place(channel):
        return channel if 2 * channel < channels else channel + gap

    products = []
    for tile in range(tiles):
        start = tile * LANES
        used = _blocks_of(start, start + LANES, columns, blocks)
        first = place(used[0] * rows)
        last = place((used[-1] + 1) * rows - 1) + 1
        needed = first // LANES * LANES, -(-last // LANES) * LANES
        if products and products[-1][0] == needed:
            start = products.pop()[1][0]
        products.append((needed, (start, (tile + 1) * LANES)))
    is_loop = parts * tiles > CODE_SIZE
    chunks = max(CODE_SIZE // (parts * tiles), 1)
    if is_loop:
        sequences = 4 * 2 * CHUNK * parts * units * x.dtype.itemsize
        chunks = max(min(MAX_LOOP_BYTES // sequences, MAX_LOOP), 1)
    while chunks > 1 and -(-time // CHUNK) % chunks:
        chunks //= 2
    block = chunks * CHUNK
    return Plan(
        parts=parts,
        batch=batch,
        time=-(-time // block) * block,
        groups=-(-channels // (parts * units)),
        splits=2 if parts == 2 and batch % 2 == 0 else 1,
        units=units,
        block=block,
        is_loop=is_loop,
        products=tuple(products),
        dtype=x.dtype,
        gate_blocks=blocks,
        gap=gap,
    )


def _blocks_of(start, stop, columns, blocks):
    """The gate blocks that have some of the columns."""
    return range(start // columns, min(-(-stop // columns), blocks))


@jax.jit
def forward(inputs):
    """`(y, final_state)`; see `ops_rg_lru.make_rg_lru`."""
    x = inputs.x
    if 0 in x.shape:
        return x, inputs.initial_state
    plan = make_plan(x, inputs.recurrence_gate_kernel)
    matrices, vectors = _parameters(plan, inputs)
    y, last = _call(
        functools.partial(_forward_kernel, plan),
        plan,
        (_sequence(_real_x(inputs), plan), *_masks(plan, inputs)),
        (*(m.astype(plan.dtype) for m in matrices), vectors),
        (_pad_channels(inputs.initial_state[:, None], plan),),
        out_sequences=1,
        out_matrices=(),
        scratch=(
            VMEM((plan.slots, CHUNK, 2 * plan.units), jnp.float32),
            *[chunk_scratch(plan.slots * plan.tiles)] * (2 * plan.parts),
        ),
    )
    return _cut_channels(y[:, : x.shape[1]], x, plan), _cut_channels(
        last[:, 0], x, plan
    )


@jax.jit
def backward(inputs, y, dy, d_final):
    """Gradients of all `inputs`; `None` for masks."""
    x = inputs.x
    if 0 in x.shape:
        zeros = jax.tree.map(jnp.zeros_like, inputs)
        return zeros._replace(
            reset=None, padding_mask=None, initial_state=d_final
        )
    plan = make_plan(x, inputs.recurrence_gate_kernel)
    sequences = [_sequence(v, plan) for v in (_real_x(inputs), y, dy)]
    learned = inputs._replace(
        x=None, reset=None, padding_mask=None, initial_state=None
    )
    (matrices, vectors), transpose = jax.vjp(
        functools.partial(_parameters, plan), learned
    )
    # A sum for each of the splits.
    sums = plan.groups * plan.splits
    shapes = [(sums, *m.shape[1:]) for m in matrices]
    rows = vectors.shape[1]
    dx, d_state, *d_matrices, d_vectors = _call(
        functools.partial(_backward_kernel, plan),
        plan,
        (*sequences, *_masks(plan, inputs)),
        (*(m.astype(plan.dtype) for m in matrices), vectors),
        (_pad_channels(d_final[:, None], plan),),
        out_sequences=1,
        out_matrices=(*shapes, (sums, rows, SUBLANES, plan.units)),
        scratch=(
            VMEM((plan.slots, CHUNK, 2 * plan.units), jnp.float32),
            *[chunk_scratch(plan.slots * plan.tiles)] * (2 * plan.parts),
            VMEM((CHUNK, plan.width), jnp.float32),
            VMEM((plan.block, 2 * plan.units), plan.dtype),
        ),
        reverse=True,
    )
    if plan.splits > 1:
        d_matrices = [jnp.sum(d, axis=0, keepdims=True) for d in d_matrices]
        d_vectors = jnp.sum(d_vectors, axis=0, keepdims=True)
    (gradients,) = transpose((tuple(d_matrices), jnp.sum(d_vectors, axis=2)))
    return gradients._replace(
        x=_cut_channels(dx[:, : x.shape[1]], x, plan),
        initial_state=_cut_channels(d_state[:, 0], x, plan),
    )


def _call(
    kernel,
    plan,
    sequences,
    matrices,
    states,
    out_sequences,
    out_matrices,
    scratch,
    reverse=False,
):
    """Runs a kernel over `(groups or splits, batch, time)`.

    Sequences, then matrices, then states are its inputs; sequences, states and
    matrices its outputs. `keep` and `pad`, `(batch, 1, time)`, are sequences
    as well.
    """
    blocks = plan.time // plan.block
    rows = plan.batch // plan.splits

    def at(i):
        return blocks - 1 - i if reverse else i

    def row(k, b):
        return b if plan.splits == 1 else k * rows + b

    def group(k):
        return k if plan.splits == 1 else 0

    def sequence(value):
        if value.shape[1] == 1:
            return pl.BlockSpec(
                (1, 1, plan.block), lambda k, b, i: (row(k, b), 0, at(i))
            )
        return wide

    wide = pl.BlockSpec(
        (1, plan.block, plan.width),
        lambda k, b, i: (row(k, b), at(i), group(k)),
    )
    state = pl.BlockSpec(
        (1, 1, plan.width), lambda k, b, i: (row(k, b), 0, group(k))
    )

    def matrix(shape, index=group):
        rest = (0,) * (len(shape) - 1)
        return pl.BlockSpec((1, *shape[1:]), lambda k, b, i: (index(k), *rest))

    channels = plan.groups * plan.width
    inputs = (*sequences, *matrices, *states)
    is_narrow = plan.width <= NARROW_GROUP
    return pl.pallas_call(
        kernel,
        grid=(plan.groups * plan.splits, rows, blocks),
        in_specs=[
            *(sequence(value) for value in sequences),
            *(matrix(value.shape) for value in matrices),
            *(state for _ in states),
        ],
        out_specs=[
            *(wide for _ in range(out_sequences)),
            state,
            *(matrix(shape, lambda k: k) for shape in out_matrices),
        ],
        out_shape=[
            *(
                result((plan.batch, plan.time, channels), plan.dtype, inputs)
                for _ in range(out_sequences)
            ),
            result((plan.batch, 1, channels), jnp.float32, inputs),
            *(result(shape, jnp.float32, inputs) for shape in out_matrices),
        ],
        scratch_shapes=[*scratch, VMEM((1, plan.width), jnp.float32)],
        compiler_params=CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=None if is_narrow else VMEM_LIMIT,
        ),
    )(*inputs)


def _forward_kernel(plan, x, keep, pad, *refs):
    count, parts = len(plan.products), plan.parts
    matrices, refs = refs[:count], refs[count:]
    vectors, state, y, last, z, *refs, carry = refs
    b, a = refs[:parts], refs[parts:]

    @pl.when(pl.program_id(2) == 0)
    def _():
        carry[...] = state[0]

    def run(chunk, following):
        if following is not None:
            _products(plan, following, x, matrices, z)
        keep_rows, pad_rows = _columns(chunk, keep), _columns(chunk, pad)
        for tile in range(plan.tiles):
            slot = _slot(plan, chunk) * plan.tiles + tile
            for row in range(0, CHUNK, ROWS):
                part = slice(row, row + ROWS)
                tanh_r, tanh_i = _tanhs(plan, chunk, row, tile, z, vectors)
                r = 1.0 + tanh_r
                modulus, square = _decay(
                    plan, r, tile, vectors, keep_rows[part], pad_rows[part]
                )
                a_t = _turned(modulus, r, tile, vectors, keep_rows[part], parts)
                scale = _root(plan, square) * (0.5 * tanh_i + 0.5)
                x_t = _numbers(plan, x, chunk, row, tile)
                for k in range(parts):
                    put_rows(b[k], slot, row, scale * x_t[k])
                    put_rows(a[k], slot, row, a_t[k])
            _scan(plan, b, a, slot, tile, carry)
            for row in range(0, CHUNK, ROWS):
                for ref, lanes in zip(b, _lanes(plan, tile), strict=True):
                    h = get_rows(ref, slot, row)
                    y[0, _rows(chunk, row), lanes] = h.astype(plan.dtype)

    _for_chunks(plan, run, lambda i: _products(plan, i, x, matrices, z))
    last[0] = carry[...]


def _backward_kernel(plan, x, y, dy, keep, pad, *refs):
    count, parts = len(plan.products), plan.parts
    matrices, refs = refs[:count], refs[count:]
    vectors, d_final, dx, d_state, *refs = refs
    d_matrices, refs = refs[:count], refs[count:]
    d_vectors, z, *refs, dx_sum, dz, carry = refs
    g, a = refs[:parts], refs[parts:]

    @pl.when(pl.program_id(2) == 0)
    def _():
        carry[...] = d_final[0]

    @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
    def _():
        for ref in (*d_matrices, d_vectors):
            ref[...] = jnp.zeros(ref.shape, jnp.float32)

    def run(chunk, following):
        if following is not None:
            _products(plan, following, x, matrices, z)
        keep_rows, pad_rows = _columns(chunk, keep), _columns(chunk, pad)
        for tile in range(plan.tiles):
            slot = _slot(plan, chunk) * plan.tiles + tile
            at = pl.ds(tile * LANES, LANES)

            def decay(row, r, tile=tile, keep=keep_rows, pad=pad_rows):
                part = slice(row, row + ROWS)
                return _decay(plan, r, tile, vectors, keep[part], pad[part])

            for row in range(0, CHUNK, ROWS):
                r = 1.0 + _tanhs(plan, chunk, row, tile, z, vectors)[0]
                a_t = _turned(
                    decay(row, r)[0],
                    *(r, tile, vectors, keep_rows[row : row + ROWS], parts),
                )
                dy_t = _numbers(plan, dy, chunk, row, tile)
                for k, part in enumerate(conjugate(a_t)):
                    put_rows(a[k], slot, row, part)
                    put_rows(g[k], slot, row, dy_t[k])
            # g[t] = dy[t] + conj(a[t+1]) g[t+1]
            _scan(plan, g, a, slot, tile, carry, reverse=True, shifted=True)
            sums = [jnp.zeros((SUBLANES, LANES), jnp.float32)] * (2 + parts)
            for row in range(0, CHUNK, ROWS):
                rows = _rows(chunk, row)
                tanh_r, tanh_i = _tanhs(plan, chunk, row, tile, z, vectors)
                r = 1.0 + tanh_r
                modulus, square = decay(row, r)
                m_t, m_inverse = _root(plan, square), _inverse(plan, square)
                g_t = tuple(get_rows(ref, slot, row) for ref in g)
                i_twice = 1.0 + tanh_i
                ix = tuple(
                    0.5 * part * i_twice
                    for part in _numbers(plan, x, chunk, row, tile)
                )
                y_t = _numbers(plan, y, chunk, row, tile)
                # a[t] h[t-1] = h[t] - b[t], and d(m^2) = d(m) / (2 m).
                ah = tuple(
                    part - m_t * other
                    for part, other in zip(y_t, ix, strict=True)
                )
                d_log = multiply(g_t, conjugate(ah))
                g_ix = sum(p * q for p, q in zip(g_t, ix, strict=True))
                d_modulus = modulus * modulus * (g_ix * m_inverse)
                r_keep = r * keep_rows[row : row + ROWS]
                # By the rates of `_parameters`: in units of log2 and of turns.
                scaled = [math.log(2.0) * (d_log[0] - d_modulus) * r_keep]
                if parts == 2:
                    scaled.append((2.0 * math.pi) * d_log[1] * r_keep)
                d_r = sum(
                    value * vectors[0, 2 + k : 3 + k, at]
                    for k, value in enumerate(scaled)
                )
                dz_r = d_r * (1.0 - tanh_r)
                dz_i = (g_ix * m_t) * (1.0 - tanh_i)
                scale = m_t * (0.5 * i_twice)
                for part, lanes in zip(g_t, _lanes(plan, tile), strict=True):
                    dx_sum[pl.ds(row, ROWS), lanes] = part * scale
                at_r, at_i = _gate_columns(plan, tile)
                dz[rows, pl.ds(at_r, LANES)] = dz_r.astype(plan.dtype)
                dz[rows, pl.ds(at_i, LANES)] = dz_i.astype(plan.dtype)
                for k, value in enumerate((dz_r, dz_i, *scaled)):
                    sums[k] = sums[k] + value[:SUBLANES] + value[SUBLANES:]
            for k, value in enumerate(sums):
                d_vectors[0, k, :, at] += value
        rows = _rows(chunk, 0, CHUNK)
        for (first, last), (start, stop), w in _zip(plan, matrices):
            columns = pl.ds(2 * start, 2 * (stop - start))
            dx_sum[:, first:last] += _dot(plan, dz[rows, columns], w[0], 1, 1)
        dx[0, rows, :] = dx_sum[...].astype(plan.dtype)

    _for_chunks(
        plan, run, lambda i: _products(plan, i, x, matrices, z), reverse=True
    )
    for (first, last), (start, stop), dw in _zip(plan, d_matrices):
        columns = pl.ds(2 * start, 2 * (stop - start))
        dw[0] += _dot(plan, x[0, :, first:last], dz[:, columns], 0, 0)
    d_state[0] = carry[...]


def _for_chunks(plan, run, prepare, reverse=False):
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


def _rows(chunk, row, count=ROWS):
    """Time steps of a chunk of a block."""
    start = chunk * CHUNK
    if not isinstance(chunk, int):
        start = pl.multiple_of(start, CHUNK)
    return pl.ds(start + row, count)


def _slot(plan, chunk):
    return 0 if plan.is_loop else chunk % plan.slots


def _lanes(plan, tile):
    """Where the parts of 128 units are."""
    return tuple(
        pl.ds(k * plan.units + tile * LANES, LANES) for k in range(plan.parts)
    )


def _numbers(plan, ref, chunk, row, tile):
    """16 time steps of 128 units, in float32, as a tuple of parts."""
    rows = _rows(chunk, row)
    return tuple(
        ref[0, rows, lanes].astype(jnp.float32) for lanes in _lanes(plan, tile)
    )


def _scan(plan, x, a, slot, tile, carry, reverse=False, shifted=False):
    lanes = _lanes(plan, tile)
    first = tuple(carry[:, part] for part in lanes)
    last = scan_chunk(x, a, slot, first, reverse, shifted)
    for part, value in zip(lanes, last, strict=True):
        carry[:, part] = value


def _zip(plan, refs):
    return [
        (*product, ref)
        for product, ref in zip(plan.products, refs, strict=True)
    ]


def _products(plan, chunk, x, matrices, z):
    """Both gates' `x W` of one chunk, into `z`."""
    for (first, last), (start, stop), w in _zip(plan, matrices):
        rows = x[0, _rows(chunk, 0, CHUNK), first:last]
        z[_slot(plan, chunk), :, 2 * start : 2 * stop] = _dot(
            plan, rows, w[0], 1, 0
        )


def _dot(plan, p, q, p_axis, q_axis):
    return jax.lax.dot_general(
        p,
        q,
        (((p_axis,), (q_axis,)), ((), ())),
        # The default would round float32 to bfloat16.
        precision=jax.lax.Precision.HIGHEST if plan.is_exact else None,
        preferred_element_type=jnp.float32,
    )


def _gate_columns(plan, tile):
    """Where in `z` the two gates of 128 channels are."""
    column = tile * LANES
    for _, (start, stop) in plan.products:
        if start <= column < stop:
            return start + column, stop + column
    raise ValueError(f"No product has the tile {tile}: {plan.products}.")


def _tanhs(plan, chunk, row, tile, z, vectors):
    lanes = pl.ds(tile * LANES, LANES)
    rows = pl.ds(row, ROWS)
    return tuple(
        jnp.tanh(
            z[_slot(plan, chunk), rows, pl.ds(column, LANES)]
            + vectors[0, gate : gate + 1, lanes]
        )
        for gate, column in enumerate(_gate_columns(plan, tile))
    )


def _decay(plan, r, tile, vectors, keep, pad):
    """`|a|` and `1 - |a|^2`: 0 and 1 at resets, 1 and 0 at pads."""
    log2_a = vectors[0, 2:3, pl.ds(tile * LANES, LANES)] * r
    a = jnp.exp2(log2_a) * keep + pad
    # Rounding must not make it negative.
    square = jnp.maximum(1.0 - a * a, 0.0)
    if plan.is_exact:
        v = (2.0 * math.log(2.0)) * log2_a
        series = -v * (1.0 + v * (0.5 + v * (1.0 / 6.0)))
        is_near_one = (v > SERIES_FROM) & (keep > 0.0)
        square = jnp.where(is_near_one, series, square)
    return a, square


def _turned(modulus, r, tile, vectors, keep, parts):
    """`a`, of its modulus and, if complex, its phase: 0 at resets and pads."""
    if parts == 1:
        return (modulus,)
    turns = vectors[0, 3:4, pl.ds(tile * LANES, LANES)] * (r * keep)
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


def _root(plan, square):
    if plan.is_exact:
        return jnp.sqrt(square)
    # Shorter than the refined root of v5e; it need not be exact in float32.
    return jnp.exp2(0.5 * jnp.log2(square))


def _inverse(plan, square):
    """`1 / sqrt(square)`, bounded: the derivative of the root is half of it."""
    bound = 2.0 * MAX_SQRT_DERIVATIVE
    if plan.is_exact:
        return jax.lax.rsqrt(jnp.maximum(square, bound**-2))
    return jnp.minimum(jnp.exp2(-0.5 * jnp.log2(square)), bound)


def _columns(chunk, ref):
    """One number a time step, from lanes to all lanes of a row each."""
    values = ref[0, :, _rows(chunk, 0, CHUNK)]
    return jnp.transpose(jnp.broadcast_to(values, (LANES, CHUNK)))


def _pad_channels(value, plan):
    """As wide as the grid, each half of complex numbers by itself."""
    missing = plan.gap
    if plan.parts == 1:
        missing = plan.groups * plan.width - value.shape[-1]
    if missing == 0:
        return value
    missing = ((0, 0),) * (value.ndim - 1) + ((0, missing),)
    halves = jnp.split(value, plan.parts, axis=-1)
    return jnp.concatenate([jnp.pad(half, missing) for half in halves], -1)


def _cut_channels(value, x, plan):
    """Takes away what `_pad_channels` adds to the channels of `x`."""
    if plan.gap == 0:
        return value[..., : x.shape[-1]]
    halves = jnp.split(value, plan.parts, axis=-1)
    return jnp.concatenate([half[..., : -plan.gap] for half in halves], -1)


def _real_x(inputs):
    """Zeros for `x` where padded, so that a NaN there reaches nothing."""
    if inputs.padding_mask is None:
        return inputs.x
    return jnp.where(inputs.padding_mask[..., None], inputs.x, 0)


def _sequence(value, plan):
    """As long and wide as the grid."""
    missing = plan.time - value.shape[1]
    value = jnp.pad(value.astype(plan.dtype), ((0, 0), (0, missing), (0, 0)))
    return _pad_channels(value, plan)


def _masks(plan, inputs):
    """`(batch, 1, time)`: 0 at resets and pads, else 1; 1 at pads, else 0."""
    batch, time, _ = inputs.x.shape
    is_pad = jnp.zeros((batch, time), bool)
    if inputs.padding_mask is not None:
        is_pad = ~inputs.padding_mask
    is_reset = is_pad if inputs.reset is None else inputs.reset | is_pad
    missing = ((0, 0), (0, plan.time - time))
    is_pad = jnp.pad(is_pad, missing, constant_values=True)
    is_reset = jnp.pad(is_reset, missing, constant_values=True)
    return tuple(
        mask.astype(jnp.float32)[:, None] for mask in (~is_reset, is_pad)
    )


def _parameters(plan, inputs):
    """What the kernels read: the gates' matrices, and vectors."""
    return _pack_kernels(
        plan, inputs.recurrence_gate_kernel, inputs.input_gate_kernel
    ), _pack_vectors(plan, inputs)


def _pack_kernels(plan, *kernels):
    """For each product, both gates' halved matrices side by side."""
    missing = plan.groups * plan.gate_blocks - kernels[0].shape[0]
    grouped = []
    for kernel in kernels:
        kernel = jnp.pad(
            0.5 * kernel.astype(jnp.float32), ((0, missing), (0, 0), (0, 0))
        )
        grouped.append(
            kernel.reshape(plan.groups, plan.gate_blocks, *kernel.shape[1:])
        )
    return tuple(
        jnp.concatenate([_rectangle(plan, k, *p) for k in grouped], axis=-1)
        for p in plan.products
    )


def _rectangle(plan, kernel, rows, columns):
    """A part of the block-diagonal matrix of each group."""
    _, _, height, width = kernel.shape
    middle = plan.units - plan.gap  # where the second half begins, if any
    pieces = []
    for k in _blocks_of(*columns, width, plan.gate_blocks):
        start = max(columns[0] - k * width, 0)
        stop = min(columns[1] - k * width, width)
        piece = kernel[:, k, :, start:stop]
        first = k * height
        if plan.gap and first < middle < first + height:
            cut = jnp.split(piece, [middle - first], axis=1)
            gap = jnp.zeros((plan.groups, plan.gap, stop - start))
            piece = jnp.concatenate([cut[0], gap, cut[1]], axis=1)
        elif first >= middle:
            first += plan.gap
        above = first - rows[0]
        below = rows[1] - rows[0] - above - piece.shape[1]
        pieces.append(jnp.pad(piece, ((0, 0), (above, below), (0, 0))))
    missing = columns[1] - columns[0] - sum(p.shape[-1] for p in pieces)
    pieces.append(jnp.zeros((*pieces[0].shape[:2], missing)))
    return jnp.concatenate(pieces, axis=-1)


def _pack_vectors(plan, inputs):
    """Halved biases and the rates: `(groups, 3 or 4, units)`."""
    vectors = [
        0.5 * inputs.recurrence_gate_bias.reshape(-1),
        0.5 * inputs.input_gate_bias.reshape(-1),
        -0.5
        * DECAY_SCALE
        / math.log(2.0)
        * jax.nn.softplus(inputs.recurrence_param.astype(jnp.float32)),
    ]
    if plan.parts == 2:
        vectors.append(inputs.phase_param.astype(jnp.float32) / (4.0 * math.pi))
    vectors = jnp.stack([v.astype(jnp.float32) for v in vectors])
    missing = plan.groups * plan.units - vectors.shape[-1]
    vectors = jnp.pad(vectors, ((0, 0), (0, missing)))
    return vectors.reshape(-1, plan.groups, plan.units).transpose(1, 0, 2)
