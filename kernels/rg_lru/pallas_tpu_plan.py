"""How the TPU kernels of `rg_lru` lay out their inputs, and run over them.

Both go over `(channels, batch, time)`, channels outermost, so that the gates'
matrices are fetched once; complex numbers over `(halves of the batch, batch,
time)`, as a gate reads other channels than it acts on. A grid step takes a
block of time through the gates' matrix products, the element-wise equations and
the scan, chunk by chunk. Where there are few channels, the products of the next
chunk are issued before the vector work of this one.
"""

import math
import typing

import jax
import jax.numpy as jnp

from keras_griffin.kernels.linear_scan.pallas_chunk import CHUNK
from keras_griffin.kernels.pallas_compat import LANES
from keras_griffin.kernels.pallas_compat import VMEM
from keras_griffin.kernels.pallas_compat import CompilerParams
from keras_griffin.kernels.pallas_compat import pl
from keras_griffin.kernels.pallas_compat import result
from keras_griffin.kernels.rg_lru.ops_rg_lru import DECAY_SCALE

# The code of a grid step is that of about so many chunks of 128 channels. More
# hides more of the first product, and compiles longer. Wider ones go through
# their chunks in a loop, in which the products of a tile hide behind another.
CODE_SIZE = 8
MAX_GROUP = 2048  # channels of a grid step; its matrices have to fit in VMEM
MAX_LOOP = 4  # chunks
MAX_LOOP_BYTES = 24 * 2**20  # of the four sequences of the backward kernel
VMEM_LIMIT = 64 * 2**20  # bytes, for groups of many channels: v5p has no more
NARROW_GROUP = 512  # channels that fit in the compiler's own limit


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

    Raises:
        NotImplementedError: if the kernels do not take the case.
    """
    batch, time, channels = x.shape
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError(
            "The TPU kernel of `rg_lru` takes float32 and bfloat16. Received: "
            f"x.dtype={x.dtype}. Use one of these, or implementation='ops'."
        )
    parts = kernel.shape[1] // kernel.shape[2]
    units, gate_blocks, gap = _make_group(parts, channels, kernel.shape)
    is_loop = parts * units > CODE_SIZE * LANES
    chunks = max(CODE_SIZE * LANES // (parts * units), 1)
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
        products=_products(units, gate_blocks, gap, channels, kernel.shape),
        dtype=x.dtype,
        gate_blocks=gate_blocks,
        gap=gap,
    )


def _make_group(parts, channels, kernel_shape):
    """Channels that a grid step takes: `(units, gate blocks, gap)` of `Plan`.

    Real numbers: the least number of gate blocks whose channels fill vregs.
    Complex numbers: all, as a gate reads other channels than it acts on.
    """
    blocks, _, columns = kernel_shape
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
        return units, units // columns, 0
    numbers = channels // parts
    units = -(-numbers // LANES) * LANES
    if units > MAX_GROUP:
        raise NotImplementedError(
            "The TPU kernel of `rg_lru` takes complex units of at most "
            f"{MAX_GROUP} numbers. Received: {numbers}. Use fewer, or "
            "implementation='ops'."
        )
    return units, blocks, units - numbers


def _products(units, gate_blocks, gap, channels, kernel_shape):
    """The rectangles of a group's matrix that are multiplied.

    It is block diagonal, and is multiplied in pieces of whole vregs: columns
    that need the same rows go together, and what lies outside the blocks is
    zero.
    """
    _, rows, columns = kernel_shape

    def place(channel):
        return channel if 2 * channel < channels else channel + gap

    products = []
    for start in range(0, units, LANES):
        stop = start + LANES
        used = blocks_of(start, stop, columns, gate_blocks)
        first = place(used[0] * rows)
        last = place((used[-1] + 1) * rows - 1) + 1
        needed = first // LANES * LANES, -(-last // LANES) * LANES
        if products and products[-1][0] == needed:
            start = products.pop()[1][0]
        products.append((needed, (start, stop)))
    return tuple(products)


def blocks_of(start, stop, columns, blocks):
    """The gate blocks that have some of the columns."""
    return range(start // columns, min(-(-stop // columns), blocks))


def call(
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
    wide, narrow, state, matrix = _block_specs(plan, reverse)
    channels = plan.groups * plan.width
    inputs = (*sequences, *matrices, *states)
    is_narrow = plan.width <= NARROW_GROUP
    return pl.pallas_call(
        kernel,
        grid=(
            plan.groups * plan.splits,
            plan.batch // plan.splits,
            plan.time // plan.block,
        ),
        in_specs=[
            *(narrow if v.shape[1] == 1 else wide for v in sequences),
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


def _block_specs(plan, reverse):
    """Of sequences, of sequences of one number, of states, of matrices."""
    blocks = plan.time // plan.block
    rows = plan.batch // plan.splits

    def at(i):
        return blocks - 1 - i if reverse else i

    def row(k, b):
        return b if plan.splits == 1 else k * rows + b

    def group(k):
        return k if plan.splits == 1 else 0

    def matrix(shape, index=group):
        rest = (0,) * (len(shape) - 1)
        return pl.BlockSpec((1, *shape[1:]), lambda k, b, i: (index(k), *rest))

    return (
        pl.BlockSpec(
            (1, plan.block, plan.width),
            lambda k, b, i: (row(k, b), at(i), group(k)),
        ),
        pl.BlockSpec((1, 1, plan.block), lambda k, b, i: (row(k, b), 0, at(i))),
        pl.BlockSpec(
            (1, 1, plan.width), lambda k, b, i: (row(k, b), 0, group(k))
        ),
        matrix,
    )


def pad_channels(value, plan):
    """As wide as the grid, each half of complex numbers by itself."""
    missing = plan.gap
    if plan.parts == 1:
        missing = plan.groups * plan.width - value.shape[-1]
    if missing == 0:
        return value
    missing = ((0, 0),) * (value.ndim - 1) + ((0, missing),)
    halves = jnp.split(value, plan.parts, axis=-1)
    return jnp.concatenate([jnp.pad(half, missing) for half in halves], -1)


def cut_channels(value, x, plan):
    """Takes away what `pad_channels` adds to the channels of `x`."""
    if plan.gap == 0:
        return value[..., : x.shape[-1]]
    halves = jnp.split(value, plan.parts, axis=-1)
    return jnp.concatenate([half[..., : -plan.gap] for half in halves], -1)


def real_x(inputs):
    """Zeros for `x` where padded, so that a NaN there reaches nothing."""
    if inputs.padding_mask is None:
        return inputs.x
    return jnp.where(inputs.padding_mask[..., None], inputs.x, 0)


def pad_sequence(value, plan):
    """As long and wide as the grid."""
    missing = plan.time - value.shape[1]
    value = jnp.pad(value.astype(plan.dtype), ((0, 0), (0, missing), (0, 0)))
    return pad_channels(value, plan)


def masks(plan, inputs):
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


def parameters(plan, inputs):
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
    for k in blocks_of(*columns, width, plan.gate_blocks):
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
