from __future__ import annotations

from typing import Any

from keras import ops

from keras_griffin.kernels.rg_lru.ops_rg_lru import Inputs
from keras_griffin.kernels.rg_lru.ops_rg_lru import coefficients
from keras_griffin.kernels.rg_lru.ops_rg_lru import merged
from keras_griffin.kernels.rg_lru.ops_rg_lru import without_pads


def gates_and_decay(
    x: Any,
    recurrence_gate_kernel: Any,
    recurrence_gate_bias: Any,
    input_gate_kernel: Any,
    input_gate_bias: Any,
    recurrence_param: Any,
    phase_param: Any = None,
    reset: Any = None,
    padding_mask: Any = None,
) -> tuple[Any, Any, Any]:
    """What `rg_lru` computes on the way, for whoever wants to look at it.

    `rg_lru` itself keeps none of this; here it is computed once more, in
    plain operations. Arguments are tensors, as of `rg_lru`.

    Returns:
        r: `(batch, time, units)`, the recurrence gate; 0 where padded.
        i: `(batch, time, units)`, the input gate; 0 where padded.
        a: `(batch, time, width)`, the decay, complex numbers merged; 0 at a
            reset, 1 where padded.

        All float32.
    """
    inputs = without_pads(
        Inputs(
            x,
            recurrence_gate_kernel,
            recurrence_gate_bias,
            input_gate_kernel,
            input_gate_bias,
            recurrence_param,
            phase_param,
            reset,
            padding_mask,
            initial_state=None,
        )
    )
    c = coefficients(inputs)
    i = c.i
    if padding_mask is not None:
        i = ops.where(padding_mask[..., None], i, 0.0)
    return c.r, i, merged(c.a)
