"""The backward pass of `rg_lru` as a Pallas TPU kernel."""

import functools
import math
import typing

import jax
import jax.numpy as jnp

from keras_griffin.kernels.linear_scan.complex_arithmetic import conjugate
from keras_griffin.kernels.linear_scan.complex_arithmetic import multiply
from keras_griffin.kernels.linear_scan.pallas_chunk import CHUNK
from keras_griffin.kernels.linear_scan.pallas_chunk import ROWS
from keras_griffin.kernels.linear_scan.pallas_chunk import chunk_scratch
from keras_griffin.kernels.linear_scan.pallas_chunk import get_rows
from keras_griffin.kernels.linear_scan.pallas_chunk import put_rows
from keras_griffin.kernels.pallas_compat import LANES
from keras_griffin.kernels.pallas_compat import SUBLANES
from keras_griffin.kernels.pallas_compat import VMEM
from keras_griffin.kernels.pallas_compat import pl
from keras_griffin.kernels.rg_lru import pallas_tpu_gates as gates
from keras_griffin.kernels.rg_lru import pallas_tpu_plan as layout


@jax.jit
def backward(inputs, y, dy, d_final):
    """Gradients of all `inputs`; `None` for masks."""
    x = inputs.x
    plan = layout.make_plan(x, inputs.recurrence_gate_kernel)
    sequences = (layout.real_x(inputs), y, dy)
    learned = inputs._replace(
        x=None, reset=None, padding_mask=None, initial_state=None
    )
    (matrices, vectors), transpose = jax.vjp(
        functools.partial(layout.parameters, plan), learned
    )
    # A sum for each of the splits.
    sums = plan.groups * plan.splits
    shapes = [(sums, *m.shape[1:]) for m in matrices]
    rows = vectors.shape[1]
    dx, d_state, *d_matrices, d_vectors = layout.call(
        functools.partial(_kernel, plan),
        plan,
        (
            *(layout.pad_sequence(value, plan) for value in sequences),
            *layout.masks(plan, inputs),
        ),
        (*(m.astype(plan.dtype) for m in matrices), vectors),
        (layout.pad_channels(d_final[:, None], plan),),
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
        x=layout.cut_channels(dx[:, : x.shape[1]], x, plan),
        initial_state=layout.cut_channels(d_state[:, 0], x, plan),
    )


class _Refs(typing.NamedTuple):
    """What the kernel reads, writes, and keeps in scratch."""

    x: typing.Any
    y: typing.Any
    dy: typing.Any
    masks: tuple  # keep, pad
    matrices: tuple
    vectors: typing.Any
    d_final: typing.Any
    dx: typing.Any
    d_state: typing.Any
    d_matrices: tuple
    d_vectors: typing.Any
    z: typing.Any
    g: tuple
    a: tuple
    dx_sum: typing.Any
    dz: typing.Any
    carry: typing.Any


def _kernel(plan, x, y, dy, keep, pad, *refs):
    count, parts = len(plan.products), plan.parts
    matrices, refs = refs[:count], refs[count:]
    vectors, d_final, dx, d_state, *refs = refs
    d_matrices, refs = refs[:count], refs[count:]
    d_vectors, z, *refs, dx_sum, dz, carry = refs
    refs = _Refs(
        *(x, y, dy, (keep, pad), matrices, vectors, d_final, dx, d_state),
        *(d_matrices, d_vectors, z, refs[:parts], refs[parts:]),
        *(dx_sum, dz, carry),
    )

    @pl.when(pl.program_id(2) == 0)
    def _():
        carry[...] = d_final[0]

    @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
    def _():
        for ref in (*d_matrices, d_vectors):
            ref[...] = jnp.zeros(ref.shape, jnp.float32)

    def prepare(chunk):
        gates.multiply_gates(plan, chunk, x, matrices, z)

    def run(chunk, following):
        if following is not None:
            prepare(following)
        masks = [gates.columns_of(chunk, ref) for ref in refs.masks]
        for tile in range(plan.tiles):
            _run_tile(plan, refs, masks, chunk, tile)
        rows = gates.rows_of(chunk, 0, CHUNK)
        for (first, last), columns, w in gates.with_products(plan, matrices):
            dz_rows = dz[rows, _both_gates(columns)]
            dx_sum[:, first:last] += gates.dot(plan, dz_rows, w[0], 1, 1)
        dx[0, rows, :] = dx_sum[...].astype(plan.dtype)

    gates.for_chunks(plan, run, prepare, reverse=True)
    for (first, last), columns, dw in gates.with_products(plan, d_matrices):
        dz_rows = dz[:, _both_gates(columns)]
        dw[0] += gates.dot(plan, x[0, :, first:last], dz_rows, 0, 0)
    d_state[0] = carry[...]


def _both_gates(columns):
    start, stop = columns
    return pl.ds(2 * start, 2 * (stop - start))


def _run_tile(plan, refs, masks, chunk, tile):
    """A chunk of 128 units, but for the product that gives `dx` the rest."""
    slot = gates.slot_of(plan, chunk) * plan.tiles + tile

    def common(row):
        return (
            plan.is_exact,
            gates.gates_of(plan, refs.z, chunk, row, tile),
            gates.vectors_of(refs.vectors, tile),
            *(mask[row : row + ROWS] for mask in masks),
        )

    def read(ref, row):
        return gates.numbers(plan, ref, chunk, row, tile)

    for row in range(0, CHUNK, ROWS):
        a = _conjugate_decay(*common(row))
        for k, dy in enumerate(read(refs.dy, row)):
            put_rows(refs.a[k], slot, row, a[k])
            put_rows(refs.g[k], slot, row, dy)
    # g[t] = dy[t] + conj(a[t+1]) g[t+1]
    gates.scan(
        *(plan, refs.g, refs.a, slot, tile, refs.carry),
        reverse=True,
        shifted=True,
    )
    sums = [jnp.zeros((SUBLANES, LANES), jnp.float32)] * refs.vectors.shape[1]
    for row in range(0, CHUNK, ROWS):
        g = tuple(get_rows(ref, slot, row) for ref in refs.g)
        dx, dz, d_vectors = _gradients(
            *(*common(row), read(refs.x, row), read(refs.y, row), g),
        )
        for part, lanes in zip(dx, gates.lanes_of(plan, tile), strict=True):
            refs.dx_sum[pl.ds(row, ROWS), lanes] = part
        rows = gates.rows_of(chunk, row)
        for part, columns in zip(
            dz, gates.gate_columns(plan, tile), strict=True
        ):
            refs.dz[rows, columns] = part.astype(plan.dtype)
        sums = [u + v for u, v in zip(sums, d_vectors, strict=True)]
    for k, value in enumerate(sums):
        refs.d_vectors[0, k, :, pl.ds(tile * LANES, LANES)] += value


@functools.partial(jax.jit, static_argnums=0)
def _conjugate_decay(is_exact, z, vectors, keep, pad):
    r = 1.0 + gates.tanhs(z, vectors)[0]
    modulus, _ = gates.decay(is_exact, r, vectors, keep, pad)
    return conjugate(gates.turned(modulus, r, vectors, keep))


@functools.partial(jax.jit, static_argnums=0)
def _gradients(is_exact, z, vectors, keep, pad, x, y, g):
    """From `g`, the gradient of `h`.

    Returns:
        Gradients: of `x` through `b`, as a tuple of parts; of what the two
        gates multiply to; of the vectors, summed to 8 rows.
    """
    tanh_r, tanh_i = gates.tanhs(z, vectors)
    r = 1.0 + tanh_r
    modulus, square = gates.decay(is_exact, r, vectors, keep, pad)
    m, m_inverse = gates.root(is_exact, square), gates.inverse(is_exact, square)
    i_twice = 1.0 + tanh_i
    ix = tuple(0.5 * part.astype(jnp.float32) * i_twice for part in x)
    # a[t] h[t-1] = h[t] - b[t], and d(m^2) = d(m) / (2 m).
    ah = tuple(
        part.astype(jnp.float32) - m * other
        for part, other in zip(y, ix, strict=True)
    )
    d_log = multiply(g, conjugate(ah))
    g_ix = sum(p * q for p, q in zip(g, ix, strict=True))
    d_modulus = modulus * modulus * (g_ix * m_inverse)
    r_keep = r * keep
    # By the rates of `layout.parameters`: in units of log2 and of turns.
    scaled = [math.log(2.0) * (d_log[0] - d_modulus) * r_keep]
    if len(x) == 2:
        scaled.append((2.0 * math.pi) * d_log[1] * r_keep)
    d_r = sum(
        value * rate for value, rate in zip(scaled, vectors[2:], strict=True)
    )
    dz_r = d_r * (1.0 - tanh_r)
    dz_i = (g_ix * m) * (1.0 - tanh_i)
    scale = m * (0.5 * i_twice)
    return (
        tuple(part * scale for part in g),
        (dz_r, dz_i),
        [v[:SUBLANES] + v[SUBLANES:] for v in (dz_r, dz_i, *scaled)],
    )
