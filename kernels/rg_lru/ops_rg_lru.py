"""`rg_lru` in plain operations, for every backend and device.

One unit with its own gradient: what lies between `x` and the states is
computed again in the backward pass, so only inputs and states are kept.
"""

import collections

from keras import ops

from keras_griffin.kernels import dispatch
from keras_griffin.kernels.custom_gradient import custom_gradient
from keras_griffin.kernels.linear_scan.complex_arithmetic import conjugate
from keras_griffin.kernels.linear_scan.complex_arithmetic import multiply
from keras_griffin.kernels.linear_scan.ops_scan import previous
from keras_griffin.kernels.linear_scan.ops_scan import run_loop
from keras_griffin.kernels.linear_scan.ops_scan import scan_ops

DECAY_SCALE = 8.0  # "c" in arXiv:2402.19427, section 2.4
MAX_SQRT_DERIVATIVE = 1000.0  # arXiv:2404.07839, section 2
# sqrt'(u) = 1 / (2 sqrt(u)) reaches that bound here.
MIN_SQUARE = 1.0 / (2.0 * MAX_SQRT_DERIVATIVE) ** 2

Inputs = collections.namedtuple(
    "Inputs",
    "x recurrence_gate_kernel recurrence_gate_bias input_gate_kernel "
    "input_gate_bias recurrence_param phase_param reset padding_mask "
    "initial_state",
)
# r, i: the gates. modulus, a: decay. square, m: the normaliser squared, and it.
Coefficients = collections.namedtuple(
    "Coefficients", "x r i modulus a square m"
)


def make_rg_lru(forward, backward):
    """Makes the unit, with its gradient, from its two passes.

    Args:
        forward: callable from the fields of `Inputs` to `(y, final_state)`,
            `y` in the dtype of `x` and `final_state`, like `initial_state`,
            in float32.
        backward: callable `(inputs, y, dy, d_final)` to the gradients, as
            `Inputs`, with `None` for masks.

    Returns:
        A callable like `forward`. Call it once, at module level.
    """

    def residuals(inputs, outputs):
        return (*inputs, outputs[0])

    def unit_backward(kept, gradients):
        *inputs, y = kept
        return tuple(backward(Inputs(*inputs), y, *gradients))

    return custom_gradient(forward, residuals, unit_backward)


# The scans are defaults: torch 2.9's compiler takes no `functools.partial`.
def forward(*inputs, scan=run_loop):
    """`(y, final_state)` with a scan, which needs no gradient."""
    inputs = without_pads(Inputs(*inputs))
    dtype = inputs.x.dtype
    c = coefficients(inputs)
    scale = c.m * c.i
    b = tuple(scale * x for x in c.x)
    h, last = scan(b, c.a, _numbers(inputs.initial_state, inputs))
    return ops.cast(merged(h), dtype), merged(last)


def backward(inputs, y, dy, d_last, scan=scan_ops):
    """The gradients, as `Inputs`; see `make_rg_lru`.

    They can be differentiated if the scan, of `ops_scan.make_scan`, can.
    """
    inputs = without_pads(inputs)
    y, dy = (_numbers(ops.cast(z, "float32"), inputs) for z in (y, dy))
    d_last = _numbers(d_last, inputs)
    c = coefficients(inputs)

    # Through the scan: h = a h_before + b.
    db, d_initial = scan(dy, conjugate(c.a), d_last, reverse=True, shifted=True)
    h_before = previous(y, _numbers(inputs.initial_state, inputs), False)
    da = multiply(db, conjugate(h_before))

    # Through b = m i x.
    scale = c.m * c.i
    dx = merged(tuple(scale * part for part in db))
    d_scale = sum(part * x for part, x in zip(db, c.x, strict=True))
    dm = d_scale * c.i
    di = d_scale * c.m

    # Through m = sqrt(1 - |a|^2) and a = exp(log_a + j phase).
    d_square = dm / ops.sqrt(ops.maximum(c.square, MIN_SQUARE))
    d_exponent = multiply(da, conjugate(c.a))
    d_log_a = d_exponent[0] - d_square * (c.modulus * c.modulus)

    # Through log_a = rate r and phase = phase_param r.
    param = ops.cast(inputs.recurrence_param, "float32")
    dr = d_log_a * rate(inputs)
    d_rate = ops.sum(d_log_a * c.r, axis=(0, 1))
    d_param = d_rate * -DECAY_SCALE * ops.sigmoid(param)
    d_phase_param = None
    if inputs.phase_param is not None:
        d_phase = d_exponent[1]
        dr = dr + d_phase * ops.cast(inputs.phase_param, "float32")
        d_phase_param = ops.cast(
            ops.sum(d_phase * c.r, axis=(0, 1)), inputs.phase_param.dtype
        )

    dx_r, d_r_kernel, d_r_bias = _gate_backward(
        dr,
        c.r,
        inputs,
        inputs.recurrence_gate_kernel,
        inputs.recurrence_gate_bias,
    )
    dx_i, d_i_kernel, d_i_bias = _gate_backward(
        di, c.i, inputs, inputs.input_gate_kernel, inputs.input_gate_bias
    )
    return Inputs(
        x=ops.cast(dx + dx_r + dx_i, inputs.x.dtype),
        recurrence_gate_kernel=d_r_kernel,
        recurrence_gate_bias=d_r_bias,
        input_gate_kernel=d_i_kernel,
        input_gate_bias=d_i_bias,
        recurrence_param=ops.cast(d_param, inputs.recurrence_param.dtype),
        phase_param=d_phase_param,
        reset=None,
        padding_mask=None,
        initial_state=merged(d_initial),
    )


def without_pads(inputs):
    """Zeros for `x` where padded, so that a NaN there reaches nothing."""
    if inputs.padding_mask is None:
        return inputs
    real = ops.expand_dims(inputs.padding_mask, -1)
    return inputs._replace(
        x=ops.where(real, inputs.x, ops.zeros_like(inputs.x))
    )


def coefficients(inputs):
    """All that the recurrence needs, for every time step at once, float32.

    A padded position gets r = 0: so a = 1, m = 0, and no gradient passes.
    At a reset a = 0 and m = 1; both are constants, which the zero in
    `modulus` makes come out in the gradient too.
    """
    x = ops.cast(inputs.x, "float32")
    r, log_a, reset = recurrence_gate(inputs)
    i = _gate(inputs, inputs.input_gate_kernel, inputs.input_gate_bias)
    modulus = ops.exp(log_a)
    # expm1: a difference 1 - |a|^2 loses its digits where |a| is near 1.
    if dispatch.is_converting:  # LiteRT has only the tangent.
        half = ops.tanh(log_a)
        square = -2.0 * half / (1.0 - half)
    else:
        square = -ops.expm1(2.0 * log_a)
    m = ops.sqrt(square)
    if reset is not None:
        modulus = ops.where(reset, 0.0, modulus)
        m = ops.where(reset, 1.0, m)
    a = (modulus,)
    if inputs.phase_param is not None:
        phase = ops.cast(inputs.phase_param, "float32") * r
        a = (modulus * ops.cos(phase), modulus * ops.sin(phase))
    return Coefficients(_numbers(x, inputs), r, i, modulus, a, square, m)


def recurrence_gate(inputs):
    """`r`, `log |a|` where there is no reset, and the resets among tokens."""
    r = _gate(
        inputs, inputs.recurrence_gate_kernel, inputs.recurrence_gate_bias
    )
    reset = inputs.reset
    if reset is not None:
        reset = ops.expand_dims(reset, -1)
    if inputs.padding_mask is not None:
        real = ops.expand_dims(inputs.padding_mask, -1)
        r = ops.where(real, r, 0.0)
        if reset is not None:
            reset = ops.logical_and(reset, real)
    return r, rate(inputs) * r, reset


def rate(inputs):
    param = ops.cast(inputs.recurrence_param, "float32")
    return -DECAY_SCALE * ops.softplus(param)


def _numbers(merged, inputs):
    """A tuple of numbers: `(real,)` or the two halves `(real, imaginary)`."""
    if inputs.phase_param is None:
        return (merged,)
    return tuple(ops.split(merged, 2, axis=-1))


def merged(numbers):
    return numbers[0] if len(numbers) == 1 else ops.concatenate(numbers, -1)


def _rounded(kernel, inputs):
    """The kernel as the product uses it: in the dtype of `x`."""
    return ops.cast(ops.cast(kernel, inputs.x.dtype), "float32")


def _in_blocks(x, blocks):
    """`(block, batch, time, width of a block)`.

    With the block first a CPU multiplies the matrices twice as fast as with
    the block between time and width.
    """
    batch, time, width = ops.shape(x)[0], ops.shape(x)[1], x.shape[2]
    x = ops.reshape(x, (batch, time, blocks, width // blocks))
    return ops.transpose(x, (2, 0, 1, 3))


def _from_blocks(x):
    blocks, batch, time, size = ops.shape(x)
    x = ops.transpose(x, (1, 2, 0, 3))
    return ops.reshape(x, (batch, time, blocks * size))


def _gate(inputs, kernel, bias):
    """sigmoid(x W + b), W block diagonal; `kernel` holds its blocks."""
    x = _in_blocks(ops.cast(inputs.x, "float32"), kernel.shape[0])
    z = ops.einsum("gbti,gij->gbtj", x, _rounded(kernel, inputs))
    bias = ops.reshape(ops.cast(bias, "float32"), (-1,))
    return ops.sigmoid(_from_blocks(z) + bias)


def _gate_backward(d_gate, gate, inputs, kernel, bias):
    """Gradients of `x`, `kernel` and `bias`."""
    blocks = kernel.shape[0]
    dz = d_gate * (gate - gate * gate)
    d_bias = ops.reshape(ops.sum(dz, axis=(0, 1)), bias.shape)
    dz = _in_blocks(dz, blocks)
    x = _in_blocks(ops.cast(inputs.x, "float32"), blocks)
    dx = ops.einsum("gbtj,gij->gbti", dz, _rounded(kernel, inputs))
    d_kernel = ops.einsum("gbti,gbtj->gij", x, dz)
    return (
        _from_blocks(dx),
        ops.cast(d_kernel, kernel.dtype),
        ops.cast(d_bias, bias.dtype),
    )


# The scan of the forward pass lies in the unit, whose gradient stands here.
rg_lru_ops = make_rg_lru(forward, backward)
