"""The forward pass of `rg_lru` as a Pallas TPU kernel."""

import functools

import jax
import jax.numpy as jnp

from keras_griffin.kernels.linear_scan.pallas_chunk import CHUNK
from keras_griffin.kernels.linear_scan.pallas_chunk import ROWS
from keras_griffin.kernels.linear_scan.pallas_chunk import chunk_scratch
from keras_griffin.kernels.linear_scan.pallas_chunk import get_rows
from keras_griffin.kernels.linear_scan.pallas_chunk import put_rows
from keras_griffin.kernels.pallas_compat import VMEM
from keras_griffin.kernels.pallas_compat import pl
from keras_griffin.kernels.rg_lru import pallas_tpu_gates as gates
from keras_griffin.kernels.rg_lru import pallas_tpu_plan as layout
from keras_griffin.kernels.rg_lru.ops_rg_lru import Inputs


@jax.jit
def forward(*inputs):
    """`(y, final_state)`; see `ops_rg_lru.make_rg_lru`."""
    inputs = Inputs(*inputs)
    x = inputs.x
    plan = layout.make_plan(x, inputs.recurrence_gate_kernel)
    matrices, vectors = layout.parameters(plan, inputs)
    sequence = layout.pad_sequence(layout.real_x(inputs), plan)
    y, last = layout.call(
        functools.partial(_kernel, plan),
        plan,
        (sequence, *layout.masks(plan, inputs)),
        (*(m.astype(plan.dtype) for m in matrices), vectors),
        (layout.pad_channels(inputs.initial_state[:, None], plan),),
        out_sequences=1,
        out_matrices=(),
        scratch=(
            VMEM((plan.slots, CHUNK, 2 * plan.units), jnp.float32),
            *[chunk_scratch(plan.slots * plan.tiles)] * (2 * plan.parts),
        ),
    )
    y = layout.cut_channels(y[:, : x.shape[1]], x, plan)
    return y, layout.cut_channels(last[:, 0], x, plan)


def _kernel(plan, x, keep, pad, *refs):
    count, parts = len(plan.products), plan.parts
    matrices, refs = refs[:count], refs[count:]
    vectors, state, y, last, z, *refs, carry = refs
    b, a = refs[:parts], refs[parts:]

    @pl.when(pl.program_id(2) == 0)
    def _():
        carry[...] = state[0]

    def prepare(chunk):
        gates.multiply_gates(plan, chunk, x, matrices, z)

    def run(chunk, following):
        if following is not None:
            prepare(following)
        masks = [gates.columns_of(chunk, ref) for ref in (keep, pad)]
        for tile in range(plan.tiles):
            slot = gates.slot_of(plan, chunk) * plan.tiles + tile
            for row in range(0, CHUNK, ROWS):
                b_t, a_t = _rows(
                    plan.is_exact,
                    gates.gates_of(plan, z, chunk, row, tile),
                    gates.vectors_of(vectors, tile),
                    *(mask[row : row + ROWS] for mask in masks),
                    gates.numbers(plan, x, chunk, row, tile),
                )
                for k in range(parts):
                    put_rows(b[k], slot, row, b_t[k])
                    put_rows(a[k], slot, row, a_t[k])
            gates.scan(plan, b, a, slot, tile, carry)
            for row in range(0, CHUNK, ROWS):
                rows = gates.rows_of(chunk, row)
                for ref, lanes in zip(
                    b, gates.lanes_of(plan, tile), strict=True
                ):
                    y[0, rows, lanes] = get_rows(ref, slot, row).astype(y.dtype)

    gates.for_chunks(plan, run, prepare)
    last[0] = carry[...]


@functools.partial(jax.jit, static_argnums=0)
def _rows(is_exact, z, vectors, keep, pad, x):
    """`b` and `a` of `h[t] = a[t] h[t-1] + b[t]`."""
    tanh_r, tanh_i = gates.tanhs(z, vectors)
    r = 1.0 + tanh_r
    modulus, square = gates.decay(is_exact, r, vectors, keep, pad)
    scale = gates.root(is_exact, square) * (0.5 * tanh_i + 0.5)
    b = tuple(scale * part.astype(jnp.float32) for part in x)
    return b, gates.turned(modulus, r, vectors, keep)
