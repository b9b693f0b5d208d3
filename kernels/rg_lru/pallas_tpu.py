"""`rg_lru` as one Pallas TPU kernel, and its gradient as another.

Both go over `(channels, batch, time)`, channels outermost, so that the gates'
matrices are fetched once. A grid step takes a block of time through the gates'
matrix products, the element-wise equations and the scan, chunk by chunk; the
products of the next chunk are issued before the vector work of this one.

Factors are folded into the small arrays outside: a sigmoid is
`(1 + tanh(z / 2)) / 2`, so the gates' matrices are halved, and
`a = 2^(rate (1 + tanh))` with `rate = -4 softplus(Lambda) / log(2)`.
"""

import functools
import math
import typing

import jax
import jax.numpy as jnp

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
from keras_griffin.kernels.rg_lru.ops_rg_lru import Inputs

# The unrolled code of a grid step is that of about so many chunks of 128
# channels. More hides more of the first product, and compiles longer.
CODE_SIZE = 8
MAX_GROUP = 2048  # channels of a grid step; its matrices have to fit in VMEM
VMEM_LIMIT = 64 * 2**20  # bytes, for groups of many channels: v5p has no more
NARROW_GROUP = 512  # channels that fit in the compiler's own limit
# Below this the series of 1 - exp(v) is exact in float32: |v|^3 / 24 < 2e-8.
SERIES_FROM = -(2.0**-7)


class Plan(typing.NamedTuple):
    """How the channels are laid out; see `make_plan`."""

    batch: int
    time: int  # a multiple of `block`
    groups: int
    width: int  # channels of a group
    block: int  # time steps of a grid step
    products: tuple  # ((first row, last row), (first column, last column))
    dtype: typing.Any
    gate_blocks: int  # blocks of the gates in a group
    gate_width: int

    @property
    def tiles(self):
        return self.width // LANES

    @property
    def chunks(self):
        return self.block // CHUNK

    @property
    def is_exact(self):
        return self.dtype == jnp.float32


def make_plan(x, kernel):
    """The layout for `x` `(batch, time, width)` and the gates' `kernel`.

    A group is the least number of gate blocks whose channels fill vregs. Its
    block-diagonal matrix is multiplied in pieces of whole vregs: columns that
    need the same rows go together, and what lies outside the blocks is zero.
    """
    batch, time, channels = x.shape
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError(
            "The TPU kernel of `rg_lru` takes float32 and bfloat16. Received: "
            f"x.dtype={x.dtype}. Use one of these, or implementation='ops'."
        )
    gate_width = kernel.shape[1]
    width = math.lcm(gate_width, LANES)
    if width > MAX_GROUP:
        raise NotImplementedError(
            "The TPU kernel of `rg_lru` takes gate blocks whose width and 128 "
            f"have a common multiple of at most {MAX_GROUP}. Received: blocks "
            f"of width {gate_width}. Use a multiple of 16 or "
            "implementation='ops'."
        )
    if width == LANES and channels % (2 * LANES) == 0:
        width = 2 * LANES
    rows = []
    for tile in range(width // LANES):
        first = tile * LANES // gate_width * gate_width
        last = -(-(tile + 1) * LANES // gate_width) * gate_width
        rows.append((first // LANES * LANES, -(-last // LANES) * LANES))
    products = []
    for tile, needed in enumerate(rows):
        start = tile * LANES
        if products and products[-1][0] == needed:
            start = products.pop()[1][0]
        products.append((needed, (start, (tile + 1) * LANES)))
    chunks = max(CODE_SIZE // (width // LANES), 1)
    while chunks > 1 and -(-time // CHUNK) % chunks:
        chunks //= 2
    block = chunks * CHUNK
    return Plan(
        batch=batch,
        time=-(-time // block) * block,
        groups=-(-channels // width),
        width=width,
        block=block,
        products=tuple(products),
        dtype=x.dtype,
        gate_blocks=width // gate_width,
        gate_width=gate_width,
    )


@jax.jit
def forward(inputs):
    """`(y, final_state)` on real numbers; see `ops_rg_lru.make_rg_lru`."""
    x = inputs.x
    if 0 in x.shape:
        return x, inputs.initial_state
    plan = make_plan(x, inputs.recurrence_gate_kernel)
    state = _pad_channels(inputs.initial_state[:, None], plan)
    y, last = _call(
        functools.partial(_forward_kernel, plan),
        plan,
        (_sequence(_real_x(inputs), plan), *_masks(plan, inputs)),
        (*_matrices(plan, inputs), *_vectors(plan, inputs)),
        (state,),
        out_sequences=1,
        out_matrices=(),
        scratch=(
            VMEM((2, CHUNK, 2 * plan.width), jnp.float32),
            chunk_scratch(2 * plan.tiles),
            chunk_scratch(2 * plan.tiles),
        ),
    )
    _, time, channels = x.shape
    return y[:, :time, :channels], last[:, 0, :channels]


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
    matrices, transpose = jax.vjp(
        lambda *kernels: _pack_kernels(plan, *kernels),
        inputs.recurrence_gate_kernel,
        inputs.input_gate_kernel,
    )
    vectors, transpose_vectors = jax.vjp(
        lambda *values: _pack_vectors(plan, *values),
        inputs.recurrence_gate_bias,
        inputs.input_gate_bias,
        inputs.recurrence_param,
    )
    shapes = [m.shape for m in matrices]
    dx, d_state, *rest = _call(
        functools.partial(_backward_kernel, plan),
        plan,
        (*sequences, *_masks(plan, inputs)),
        (*(m.astype(plan.dtype) for m in matrices), vectors),
        (_pad_channels(d_final[:, None], plan),),
        out_sequences=1,
        out_matrices=(*shapes, (plan.groups, 3, SUBLANES, plan.width)),
        scratch=(
            VMEM((2, CHUNK, 2 * plan.width), jnp.float32),
            chunk_scratch(2 * plan.tiles),
            chunk_scratch(2 * plan.tiles),
            VMEM((CHUNK, plan.width), jnp.float32),
            VMEM((plan.block, 2 * plan.width), plan.dtype),
        ),
        reverse=True,
    )
    *d_matrices, d_vectors = rest
    d_kernels = transpose(
        tuple(
            d.astype(m.dtype) for d, m in zip(d_matrices, matrices, strict=True)
        )
    )
    d_vectors = transpose_vectors(jnp.sum(d_vectors, axis=2))
    _, time, channels = x.shape
    return Inputs(
        x=dx[:, :time, :channels],
        recurrence_gate_kernel=d_kernels[0],
        input_gate_kernel=d_kernels[1],
        recurrence_gate_bias=d_vectors[0],
        input_gate_bias=d_vectors[1],
        recurrence_param=d_vectors[2],
        phase_param=None,
        reset=None,
        padding_mask=None,
        initial_state=d_state[:, 0, :channels],
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
    """Runs a kernel over `(groups, batch, time)`.

    Sequences, then matrices, then states are its inputs; sequences, states and
    matrices its outputs. `keep` and `pad`, `(batch, 1, time)`, are sequences
    as well.
    """
    blocks = plan.time // plan.block

    def at(i):
        return blocks - 1 - i if reverse else i

    def sequence(value):
        if value.shape[1] == 1:
            return pl.BlockSpec(
                (1, 1, plan.block), lambda k, b, i: (b, 0, at(i))
            )
        return wide

    wide = pl.BlockSpec(
        (1, plan.block, plan.width), lambda k, b, i: (b, at(i), k)
    )
    state = pl.BlockSpec((1, 1, plan.width), lambda k, b, i: (b, 0, k))

    def matrix(shape):
        rest = (0,) * (len(shape) - 1)
        return pl.BlockSpec((1, *shape[1:]), lambda k, b, i: (k, *rest))

    channels = plan.groups * plan.width
    inputs = (*sequences, *matrices, *states)
    is_narrow = plan.width <= NARROW_GROUP
    return pl.pallas_call(
        kernel,
        grid=(plan.groups, plan.batch, blocks),
        in_specs=[
            *(sequence(value) for value in sequences),
            *(matrix(value.shape) for value in matrices),
            *(state for _ in states),
        ],
        out_specs=[
            *(wide for _ in range(out_sequences)),
            state,
            *(matrix(shape) for shape in out_matrices),
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
    count = len(plan.products)
    matrices, refs = refs[:count], refs[count:]
    vectors, state, y, last, z, b, a, carry = refs

    @pl.when(pl.program_id(2) == 0)
    def _():
        carry[...] = state[0]

    _products(plan, 0, x, matrices, z)
    for chunk in range(plan.chunks):
        if chunk + 1 < plan.chunks:
            _products(plan, chunk + 1, x, matrices, z)
        keep_rows, pad_rows = _columns(chunk, keep), _columns(chunk, pad)
        for tile in range(plan.tiles):
            slot = chunk % 2 * plan.tiles + tile
            lanes = pl.ds(tile * LANES, LANES)
            for row in range(0, CHUNK, ROWS):
                part = slice(row, row + ROWS)
                tanh_r, tanh_i = _tanhs(plan, chunk, row, tile, z, vectors)
                a_t, square = _decay(
                    plan,
                    tanh_r,
                    vectors[0, 2:3, lanes],
                    keep_rows[part],
                    pad_rows[part],
                )
                x_t = x[0, pl.ds(chunk * CHUNK + row, ROWS), lanes]
                i_t = 0.5 * tanh_i + 0.5
                m_t = _root(plan, square)
                put_rows(b, slot, row, m_t * (i_t * x_t.astype(jnp.float32)))
                put_rows(a, slot, row, a_t)
            (carry[:, lanes],) = scan_chunk(
                (b,), (a,), slot, (carry[:, lanes],)
            )
            for row in range(0, CHUNK, ROWS):
                rows = pl.ds(chunk * CHUNK + row, ROWS)
                y[0, rows, lanes] = get_rows(b, slot, row).astype(plan.dtype)
    last[0] = carry[...]


def _backward_kernel(plan, x, y, dy, keep, pad, *refs):
    count = len(plan.products)
    matrices, refs = refs[:count], refs[count:]
    vectors, d_final, dx, d_state, *refs = refs
    d_matrices, refs = refs[:count], refs[count:]
    d_vectors, z, g, a, dx_sum, dz, carry = refs

    @pl.when(pl.program_id(2) == 0)
    def _():
        carry[...] = d_final[0]

    @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
    def _():
        for ref in (*d_matrices, d_vectors):
            ref[...] = jnp.zeros(ref.shape, jnp.float32)

    order = range(plan.chunks)[::-1]
    _products(plan, order[0], x, matrices, z)
    for chunk in order:
        if chunk:
            _products(plan, chunk - 1, x, matrices, z)
        keep_rows, pad_rows = _columns(chunk, keep), _columns(chunk, pad)
        for tile in range(plan.tiles):
            slot = chunk % 2 * plan.tiles + tile
            lanes = pl.ds(tile * LANES, LANES)
            rate = vectors[0, 2:3, lanes]

            def decay(row, tanh_r, rate=rate, keep=keep_rows, pad=pad_rows):
                part = slice(row, row + ROWS)
                return _decay(plan, tanh_r, rate, keep[part], pad[part])

            for row in range(0, CHUNK, ROWS):
                tanh_r, _ = _tanhs(plan, chunk, row, tile, z, vectors)
                rows = pl.ds(chunk * CHUNK + row, ROWS)
                put_rows(a, slot, row, decay(row, tanh_r)[0])
                put_rows(g, slot, row, dy[0, rows, lanes].astype(jnp.float32))
            # g[t] = dy[t] + a[t+1] g[t+1]
            (carry[:, lanes],) = scan_chunk(
                (g,), (a,), slot, (carry[:, lanes],), reverse=True, shifted=True
            )
            sums = [jnp.zeros((SUBLANES, LANES), jnp.float32)] * 3
            for row in range(0, CHUNK, ROWS):
                rows = pl.ds(chunk * CHUNK + row, ROWS)
                tanh_r, tanh_i = _tanhs(plan, chunk, row, tile, z, vectors)
                a_t, square = decay(row, tanh_r)
                m_t, m_inverse = _root(plan, square), _inverse(plan, square)
                g_t = get_rows(g, slot, row)
                half_x = 0.5 * x[0, rows, lanes].astype(jnp.float32)
                y_t = y[0, rows, lanes].astype(jnp.float32)
                i_twice = 1.0 + tanh_i
                ix = half_x * i_twice
                b_t = m_t * ix
                g_ix = g_t * ix
                # a[t] h[t-1] = h[t] - b[t], and d(m^2) = d(m) / (2 m).
                d_log_a = g_t * (y_t - b_t) - a_t * a_t * (g_ix * m_inverse)
                scaled = d_log_a * keep_rows[row : row + ROWS] * (1.0 + tanh_r)
                # d_log2_a = ln(2) d_log_a; `rate` is in units of log2.
                scaled = math.log(2.0) * scaled
                dz_r = scaled * (1.0 - tanh_r) * rate
                dz_i = (g_ix * m_t) * (1.0 - tanh_i)
                dx_sum[pl.ds(row, ROWS), lanes] = g_t * m_t * (0.5 * i_twice)
                at_r, at_i = _gate_columns(plan, tile)
                dz[rows, pl.ds(at_r, LANES)] = dz_r.astype(plan.dtype)
                dz[rows, pl.ds(at_i, LANES)] = dz_i.astype(plan.dtype)
                for k, value in enumerate((dz_r, dz_i, scaled)):
                    sums[k] = sums[k] + value[:SUBLANES] + value[SUBLANES:]
            for k, value in enumerate(sums):
                d_vectors[0, k, :, lanes] += value
        rows = pl.ds(chunk * CHUNK, CHUNK)
        for (first, last), (start, stop), w in _zip(plan, matrices):
            columns = pl.ds(2 * start, 2 * (stop - start))
            dx_sum[:, first:last] += _dot(plan, dz[rows, columns], w[0], 1, 1)
        dx[0, rows, :] = dx_sum[...].astype(plan.dtype)
    for (first, last), (start, stop), dw in _zip(plan, d_matrices):
        columns = pl.ds(2 * start, 2 * (stop - start))
        dw[0] += _dot(plan, x[0, :, first:last], dz[:, columns], 0, 0)
    d_state[0] = carry[...]


def _zip(plan, refs):
    return [
        (*product, ref)
        for product, ref in zip(plan.products, refs, strict=True)
    ]


def _products(plan, chunk, x, matrices, z):
    """Both gates' `x W` of one chunk, into `z`."""
    for (first, last), (start, stop), w in _zip(plan, matrices):
        rows = x[0, pl.ds(chunk * CHUNK, CHUNK), first:last]
        z[chunk % 2, :, 2 * start : 2 * stop] = _dot(plan, rows, w[0], 1, 0)


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
            z[chunk % 2, rows, pl.ds(column, LANES)]
            + vectors[0, gate : gate + 1, lanes]
        )
        for gate, column in enumerate(_gate_columns(plan, tile))
    )


def _decay(plan, tanh_r, rate, keep, pad):
    """`a` and `1 - a^2`: 0 and 1 at resets, 1 and 0 at pads."""
    log2_a = rate * (1.0 + tanh_r)
    a = jnp.exp2(log2_a) * keep + pad
    # Rounding must not make it negative.
    square = jnp.maximum(1.0 - a * a, 0.0)
    if plan.is_exact:
        v = (2.0 * math.log(2.0)) * log2_a
        series = -v * (1.0 + v * (0.5 + v * (1.0 / 6.0)))
        is_near_one = (v > SERIES_FROM) & (keep > 0.0)
        square = jnp.where(is_near_one, series, square)
    return a, square


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
    values = ref[0, :, pl.ds(chunk * CHUNK, CHUNK)]
    return jnp.transpose(jnp.broadcast_to(values, (LANES, CHUNK)))


def _pad_channels(value, plan):
    missing = plan.groups * plan.width - value.shape[-1]
    return jnp.pad(value, ((0, 0),) * (value.ndim - 1) + ((0, missing),))


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


def _matrices(plan, inputs):
    return tuple(
        m.astype(plan.dtype)
        for m in _pack_kernels(
            plan, inputs.recurrence_gate_kernel, inputs.input_gate_kernel
        )
    )


def _vectors(plan, inputs):
    return (
        _pack_vectors(
            plan,
            inputs.recurrence_gate_bias,
            inputs.input_gate_bias,
            inputs.recurrence_param,
        ),
    )


def _pack_kernels(plan, *kernels):
    """For each product, both gates' halved matrices side by side."""
    blocks, size = plan.gate_blocks, plan.gate_width
    grouped = []
    for kernel in kernels:
        missing = plan.groups * blocks - kernel.shape[0]
        kernel = jnp.pad(
            0.5 * kernel.astype(jnp.float32), ((0, missing), (0, 0), (0, 0))
        )
        kernel = kernel.reshape(plan.groups, blocks, size, size)
        diagonal = jnp.eye(blocks, dtype=jnp.float32)
        dense = jnp.einsum("gbij,bc->gbicj", kernel, diagonal)
        grouped.append(dense.reshape(plan.groups, plan.width, plan.width))
    return tuple(
        jnp.concatenate(
            [matrix[:, first:last, start:stop] for matrix in grouped],
            axis=-1,
        )
        for (first, last), (start, stop) in plan.products
    )


def _pack_vectors(plan, recurrence_gate_bias, input_gate_bias, param):
    """Halved biases and the rate: `(groups, 3, width)`."""
    param = param.astype(jnp.float32)
    rate = -0.5 * DECAY_SCALE / math.log(2.0) * jax.nn.softplus(param)
    vectors = jnp.stack(
        [
            0.5 * recurrence_gate_bias.astype(jnp.float32).reshape(-1),
            0.5 * input_gate_bias.astype(jnp.float32).reshape(-1),
            rate,
        ]
    )
    vectors = _pad_channels(vectors, plan)
    return vectors.reshape(3, plan.groups, plan.width).transpose(1, 0, 2)
