from keras import ops

from keras_griffin.kernels.custom_gradient import custom_gradient
from keras_griffin.kernels.linear_scan import ops_scan

DECAY_SCALE = 8.0  # "c" in arXiv:2402.19427, section 2.4
MAX_SQRT_DERIVATIVE = 1000.0  # arXiv:2404.07839, section 2
MIN_SQUARE = 1.0 / (4.0 * MAX_SQRT_DERIVATIVE**2)


def block_diagonal(x, kernel):
    b, t, g = ops.shape(x)[0], ops.shape(x)[1], kernel.shape[0]
    x = ops.reshape(x, (b, t, g, kernel.shape[1]))
    out = ops.einsum("btgi,gij->btgj", x, kernel)
    return ops.reshape(out, (b, t, g * kernel.shape[2]))


def split(x, parts):
    return tuple(ops.split(x, parts, axis=-1)) if parts == 2 else (x,)


def gates(x, kernel_r, bias_r, kernel_i, bias_i):
    """The two gates in float32, of inputs rounded to the dtype of `x`."""
    x32 = ops.cast(x, "float32")

    def gate(kernel, bias):
        kernel = ops.cast(ops.cast(kernel, x.dtype), "float32")
        bias = ops.reshape(ops.cast(bias, "float32"), (-1,))
        return ops.sigmoid(block_diagonal(x32, kernel) + bias)

    return gate(kernel_r, bias_r), gate(kernel_i, bias_i)


def decay(r, recurrence_param, phase_param):
    """`|a|`, `a` and the normaliser's square `1 - |a|^2`."""
    speed = -DECAY_SCALE * ops.softplus(ops.cast(recurrence_param, "float32"))
    log_a = speed * r
    modulus = ops.exp(log_a)
    square = -ops.expm1(2.0 * log_a)
    if phase_param is None:
        return modulus, (modulus,), square
    phase = ops.cast(phase_param, "float32") * r
    return (
        modulus,
        (modulus * ops.cos(phase), modulus * ops.sin(phase)),
        square,
    )


def masks(reset, padding_mask):
    reset = None if reset is None else reset[..., None]
    real = None if padding_mask is None else padding_mask[..., None]
    return reset, real


def forward(
    x,
    kernel_r,
    bias_r,
    kernel_i,
    bias_i,
    recurrence_param,
    phase_param,
    reset,
    padding_mask,
    initial_state,
):
    parts = 1 if phase_param is None else 2
    r, i = gates(x, kernel_r, bias_r, kernel_i, bias_i)
    _, a, square = decay(r, recurrence_param, phase_param)
    m = ops.sqrt(square)
    reset, real = masks(reset, padding_mask)
    if reset is not None:
        a = tuple(ops.where(reset, 0.0, t) for t in a)
        m = ops.where(reset, 1.0, m)
    b = tuple(
        m * i * t for t in split(ops.cast(x, "float32"), parts)
    )
    if real is not None:
        a = tuple(
            ops.where(real, t, neutral)
            for t, neutral in zip(a, (1.0, 0.0), strict=False)
        )
        b = tuple(ops.where(real, t, 0.0) for t in b)
    y, final = ops_scan.scan_float32(b, a, split(initial_state, parts))
    if parts == 1:
        return y[0], final[0]
    return ops.concatenate(y, -1), ops.concatenate(final, -1)


def residuals(inputs, outputs):
    return (*inputs, outputs[0])


def backward(saved, gradients):
    (
        x,
        kernel_r,
        bias_r,
        kernel_i,
        bias_i,
        recurrence_param,
        phase_param,
        reset,
        padding_mask,
        initial_state,
        h,
    ) = saved
    parts = 1 if phase_param is None else 2
    dy, d_final = (split(t, parts) for t in gradients)
    r, i = gates(x, kernel_r, bias_r, kernel_i, bias_i)
    modulus, a, square = decay(r, recurrence_param, phase_param)
    m = ops.sqrt(square)
    reset, real = masks(reset, padding_mask)
    a_scan = a
    if reset is not None:
        a_scan = tuple(ops.where(reset, 0.0, t) for t in a_scan)
        m = ops.where(reset, 1.0, m)
    if real is not None:
        a_scan = tuple(
            ops.where(real, t, neutral)
            for t, neutral in zip(a_scan, (1.0, 0.0), strict=False)
        )
    state = split(initial_state, parts)
    h_prev = ops_scan.previous(split(h, parts), state, False)
    db, d_initial = ops_scan.scan_float32(
        dy, ops_scan.conjugate(a_scan), d_final, True, True
    )
    if real is not None:
        db_in = tuple(ops.where(real, t, 0.0) for t in db)
    else:
        db_in = db
    xs = split(ops.cast(x, "float32"), parts)
    dot = sum(p * q for p, q in zip(db_in, xs, strict=True))
    d_i = m * dot
    d_m = i * dot
    dx = tuple(m * i * t for t in db_in)
    # a conj(da) = a conj(h_prev) db: its real part moves log|a|, ...
    da = ops_scan.multiply(db_in, ops_scan.conjugate(h_prev))
    turned = ops_scan.multiply(da, ops_scan.conjugate(a))
    d_log = turned[0] - d_m * modulus**2 / ops.sqrt(
        ops.maximum(square, MIN_SQUARE)
    )
    d_phase = turned[1] if parts == 2 else None
    if reset is not None:
        d_log = ops.where(reset, 0.0, d_log)
        if parts == 2:
            d_phase = ops.where(reset, 0.0, d_phase)
    param = ops.cast(recurrence_param, "float32")
    d_r = d_log * (-DECAY_SCALE * ops.softplus(param))
    d_param = (
        ops.sum(d_log * r, axis=(0, 1)) * -DECAY_SCALE * ops.sigmoid(param)
    )
    d_phase_param = None
    if parts == 2:
        d_r = d_r + d_phase * ops.cast(phase_param, "float32")
        d_phase_param = ops.cast(
            ops.sum(d_phase * r, axis=(0, 1)), phase_param.dtype
        )
    x32 = ops.cast(x, "float32")
    dx = ops.concatenate(dx, -1) if parts == 2 else dx[0]
    outs = []
    for d_gate, gate, kernel, bias in (
        (d_r, r, kernel_r, bias_r),
        (d_i, i, kernel_i, bias_i),
    ):
        d_gate = d_gate * gate * (1.0 - gate)
        rounded = ops.cast(ops.cast(kernel, x.dtype), "float32")
        dx = dx + block_diagonal(d_gate, ops.transpose(rounded, (0, 2, 1)))
        g, d_in, d_out = kernel.shape
        lead = (ops.shape(x)[0], ops.shape(x)[1], g)
        d_kernel = ops.einsum(
            "btgi,btgj->gij",
            ops.reshape(x32, (*lead, d_in)),
            ops.reshape(d_gate, (*lead, d_out)),
        )
        outs.append(ops.cast(d_kernel, kernel.dtype))
        outs.append(
            ops.cast(
                ops.reshape(ops.sum(d_gate, axis=(0, 1)), bias.shape),
                bias.dtype,
            )
        )
    d_initial = (
        ops.concatenate(d_initial, -1) if parts == 2 else d_initial[0]
    )
    return (
        ops.cast(dx, x.dtype),
        *outs,
        ops.cast(d_param, recurrence_param.dtype),
        d_phase_param,
        None,
        None,
        d_initial,
    )


rg_lru = custom_gradient(forward, residuals, backward)
