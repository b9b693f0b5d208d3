"""The time loop on PyTorch: chunks of time side by side.

Each step is one operation on a tensor, so the number of steps is what costs.
Time is cut into n chunks of C steps; first every chunk runs at once without
its initial state (C steps), then the states pass from chunk to chunk (n
steps), then every chunk runs at once with its state (C steps). Time that does
not fill a chunk runs step by step.
"""

import math

import torch

# PyTorch runs an operation on more elements than this in several CPU threads
# (at::internal::GRAIN_SIZE). For work as small as a step of a scan, waiting for
# those threads costs more than they bring, and far more on a busy machine.
CPU_GRAIN_SIZE = 32768


def loop(x, a, carry, reverse, shifted):
    """See `ops_scan.make_scan`. Tuples of float32 tensors."""
    is_complex = len(x) == 2
    if is_complex:
        x, a, carry = (torch.complex(*z) for z in (x, a, carry))
    else:
        x, a, carry = x[0], a[0], carry[0]
    # As one opaque operation, a compiled graph does not grow with time. An
    # exported one has to do without this package; Keras' exports are traced
    # without Dynamo. (`is_exporting()` would be true in `torch.compile` as well
    # before torch 2.12: pytorch/pytorch#176347.)
    is_opaque = torch.compiler.is_dynamo_compiling()
    scan = _scan_op if is_opaque else _scan
    y, last = scan(x, a, carry, reverse, shifted)
    if is_complex:
        return tuple(
            (z.real.contiguous(), z.imag.contiguous()) for z in (y, last)
        )
    return (y,), (last,)


def _scan(
    x: torch.Tensor,
    a: torch.Tensor,
    carry: torch.Tensor,
    reverse: bool,
    shifted: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    first, last = (-1, 0) if reverse else (0, -1)
    if not shifted:
        _run(x, a, carry, y, reverse)
        return y, y[:, last].clone()
    # y[0] = x[0] + carry, and then a scan with the decays one step late.
    later, earlier = slice(1, None), slice(None, -1)
    if reverse:
        later, earlier = earlier, later
    torch.add(x[:, first], carry, out=y[:, first])
    _run(x[:, later], a[:, earlier], y[:, first], y[:, later], reverse)
    return y, a[:, last] * y[:, last]


_scan_op = torch.library.custom_op(
    "keras_griffin::linear_scan", _scan, mutates_args=()
)


@_scan_op.register_fake
def _(x, a, carry, reverse, shifted):
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return y, torch.empty_like(carry)


def _run(x, a, h, y, reverse):
    """Writes `y[t] = a[t] y[t-1] + x[t]` into `y`, starting from `h`."""
    batch, time, width = x.shape
    chunks = _number_of_chunks(batch, time, width, x.device)
    if chunks == 1:
        _run_steps(x, a, h, y, reverse)
        return
    size = time // chunks
    rest = time - size * chunks
    if rest:
        cut = (rest, time - rest) if not reverse else (time - rest, rest)
        parts = [z.split(cut, 1) for z in (x, a, y)]
        start, main = zip(*parts, strict=True)
        if reverse:
            start, main = main, start
        _run_steps(start[0], start[1], h, start[2], reverse)
        h = start[2][:, 0 if reverse else -1]
        x, a, y = main
    _run_chunks(x, a, h, y, reverse, chunks)


def _number_of_chunks(batch, time, width, device):
    # The n that minimises the 2 C + n steps, where C = time / n.
    chunks = int(math.sqrt(2 * time))
    if device.type == "cpu":
        chunks = min(chunks, CPU_GRAIN_SIZE // max(1, batch * width))
    # Two passes over few chunks are slower than one pass.
    return chunks if chunks > 3 else 1


def _steps(z, axis, reverse):
    steps = z.unbind(axis)
    return steps[::-1] if reverse else steps


def _run_steps(x, a, h, y, reverse, axis=1):
    for x_t, a_t, y_t in zip(
        *(_steps(z, axis, reverse) for z in (x, a, y)), strict=True
    ):
        torch.addcmul(x_t, a_t, h, out=y_t)
        h = y_t


def _run_chunks(x, a, h, y, reverse, chunks):
    x, a, y = (z.unflatten(1, (chunks, -1)) for z in (x, a, y))
    # What a chunk does to the state before it: multiply by decay, add end.
    decay, end = None, None
    for x_t, a_t in zip(*(_steps(z, 2, reverse) for z in (x, a)), strict=True):
        if decay is None:
            decay, end = a_t.clone(), x_t.clone()
        else:
            decay *= a_t
            torch.addcmul(x_t, a_t, end, out=end)
    before = torch.empty_like(end)
    for decay_n, end_n, before_n in zip(
        *(_steps(z, 1, reverse) for z in (decay, end, before)), strict=True
    ):
        before_n.copy_(h)
        h = torch.addcmul(end_n, decay_n, h)
    _run_steps(x, a, before, y, reverse, axis=2)
