"""What `rg_lru` means: a loop in float64, and its gradients. Tests only."""

import numpy as np

DECAY_SCALE = 8.0
MAX_SQRT_DERIVATIVE = 1000.0


def rg_lru_reference(
    x,
    recurrence_gate_kernel,
    recurrence_gate_bias,
    input_gate_kernel,
    input_gate_bias,
    recurrence_param,
    phase_param=None,
    reset=None,
    padding_mask=None,
    initial_state=None,
):
    """`(y, final_state)` of `rg_lru`, in float64."""
    p = Pieces(
        x,
        recurrence_gate_kernel,
        recurrence_gate_bias,
        input_gate_kernel,
        input_gate_bias,
        recurrence_param,
        phase_param,
        reset,
        padding_mask,
    )
    batch, time, width = p.x.shape
    h = np.zeros((batch, width))
    if initial_state is not None:
        h = h + initial_state
    y = np.zeros(p.x.shape)
    for t in range(time):
        moved = p.a[:, t] * p.numbers(h) + p.m[:, t] * p.i[:, t] * p.numbers(
            p.x[:, t]
        )
        h = np.where(p.real[:, t, None], p.merged(moved), h)
        y[:, t] = h
    return y, h


def rg_lru_gradients(inputs, dy, d_final_state):
    """Gradients of `sum(y * dy) + sum(final_state * d_final_state)`.

    Args:
        inputs: dict of the arguments of `rg_lru_reference`.
        dy, d_final_state: arrays like the results.

    Returns:
        Dict from the names of the float arguments to their gradients.
    """
    inputs = dict(inputs)
    initial_state = inputs.pop("initial_state", None)
    y, _ = rg_lru_reference(**inputs, initial_state=initial_state)
    p = Pieces(**inputs)
    batch, time, width = p.x.shape
    h0 = np.zeros((batch, width))
    if initial_state is not None:
        h0 = h0 + initial_state
    rate = -DECAY_SCALE * _softplus(p.param)
    dx = np.zeros(p.x.shape)
    d_log, d_phase, d_i = (np.zeros(p.r.shape) for _ in range(3))
    dh = p.numbers(d_final_state)
    for t in reversed(range(time)):
        dh = dh + p.numbers(dy[:, t])
        h_before = p.numbers(y[:, t - 1] if t else h0)
        x_t = p.numbers(p.x[:, t])
        real, reset = p.real[:, t, None], p.reset[:, t, None]
        through_x = np.real(dh * np.conj(x_t))
        dx[:, t] = np.where(real, p.merged(dh * p.m[:, t] * p.i[:, t]), 0.0)
        d_i[:, t] = np.where(real, through_x * p.m[:, t], 0.0)
        # m = sqrt(u), u = 1 - |a|^2, d|a|^2 / d log|a| = 2 |a|^2
        modulus = np.exp(rate * p.r[:, t])
        u = -np.expm1(2.0 * rate * p.r[:, t])
        with np.errstate(divide="ignore"):
            d_sqrt = np.minimum(0.5 / np.sqrt(u), MAX_SQRT_DERIVATIVE)
        through_m = through_x * p.i[:, t] * d_sqrt * (-2.0 * modulus**2)
        through_a = dh * np.conj(h_before) * np.conj(p.a[:, t])
        learns = real & ~reset
        d_log[:, t] = np.where(learns, np.real(through_a) + through_m, 0.0)
        d_phase[:, t] = np.where(learns, np.imag(through_a), 0.0)
        dh = np.where(real, dh * np.conj(p.a[:, t]), dh)
    d_r = d_log * rate
    gradients = {
        "recurrence_param": np.sum(d_log * p.r, (0, 1))
        * -DECAY_SCALE
        * _sigmoid(p.param),
        "initial_state": p.merged(dh),
    }
    if p.phase is not None:
        d_r = d_r + d_phase * p.phase
        gradients["phase_param"] = np.sum(d_phase * p.r, (0, 1))
    for name, gate, d_gate in (
        ("recurrence_gate", p.r, d_r),
        ("input_gate", p.i, d_i),
    ):
        kernel = np.asarray(inputs[f"{name}_kernel"], np.float64)
        blocks, size_in, size_out = kernel.shape
        d_pre = (d_gate * gate * (1.0 - gate)).reshape(
            batch, time, blocks, size_out
        )
        x_blocks = p.x.reshape(batch, time, blocks, size_in)
        gradients[f"{name}_bias"] = d_pre.sum((0, 1))
        gradients[f"{name}_kernel"] = np.einsum(
            "btgi,btgj->gij", x_blocks, d_pre
        )
        dx += np.einsum("btgj,gij->btgi", d_pre, kernel).reshape(dx.shape)
    return {"x": dx, **gradients}


class Pieces:
    """Everything in the equations that does not depend on the state."""

    def __init__(
        self,
        x,
        recurrence_gate_kernel,
        recurrence_gate_bias,
        input_gate_kernel,
        input_gate_bias,
        recurrence_param,
        phase_param=None,
        reset=None,
        padding_mask=None,
    ):
        self.x = np.asarray(x, np.float64)
        self.param = np.asarray(recurrence_param, np.float64)
        self.phase = None
        self.r = _gate(self.x, recurrence_gate_kernel, recurrence_gate_bias)
        self.i = _gate(self.x, input_gate_kernel, input_gate_bias)
        log_a = -DECAY_SCALE * _softplus(self.param) * self.r
        m = np.sqrt(-np.expm1(2.0 * log_a))
        if phase_param is not None:
            self.phase = np.asarray(phase_param, np.float64)
            log_a = log_a + 1j * self.phase * self.r
        rows = self.x.shape[:2]
        self.reset = np.zeros(rows, bool) if reset is None else reset
        self.real = (
            np.ones(rows, bool) if padding_mask is None else padding_mask
        )
        self.a = np.where(self.reset[..., None], 0.0, np.exp(log_a))
        self.m = np.where(self.reset[..., None], 1.0, m)

    def numbers(self, merged):
        """Complex numbers from their real parts and imaginary parts."""
        if self.phase is None:
            return np.asarray(merged, np.float64)
        real, imaginary = np.split(np.asarray(merged, np.float64), 2, -1)
        return real + 1j * imaginary

    def merged(self, numbers):
        if self.phase is None:
            return numbers
        return np.concatenate([numbers.real, numbers.imag], -1)


def _gate(x, kernel, bias):
    batch, time, width = x.shape
    blocks = len(kernel)
    x = x.reshape(batch, time, blocks, width // blocks)
    kernel = np.asarray(kernel, np.float64)
    before = np.einsum("btgi,gij->btgj", x, kernel)
    return _sigmoid(before + bias).reshape(
        batch, time, blocks * kernel.shape[2]
    )


def _sigmoid(x):
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _softplus(x):
    return np.logaddexp(0.0, x)
