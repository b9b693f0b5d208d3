from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_griffin.kernels import dispatch
from keras_griffin.kernels.linear_scan.api import shapes_agree
from keras_griffin.kernels.linear_scan.api import zero_state
from keras_griffin.kernels.rg_lru.ops_rg_lru import Inputs
from keras_griffin.kernels.rg_lru.ops_rg_lru import rg_lru_ops


def rg_lru(
    x: Any,
    recurrence_gate_kernel: Any,
    recurrence_gate_bias: Any,
    input_gate_kernel: Any,
    input_gate_bias: Any,
    recurrence_param: Any,
    phase_param: Any = None,
    reset: Any = None,
    padding_mask: Any = None,
    initial_state: Any = None,
    implementation: str = "auto",
) -> tuple[Any, Any]:
    """Real-gated linear recurrent unit (RG-LRU), or its complex form (CG-LRU).

        r[t] = sigmoid(x[t] W_r + b_r)
        i[t] = sigmoid(x[t] W_i + b_i)
        a[t] = exp(-8 softplus(recurrence_param) r[t] + j phase_param r[t])
        h[t] = a[t] h[t-1] + sqrt(1 - |a[t]|^2) i[t] x[t],    y = h

    Without `phase_param` all numbers are real. With it they are complex and
    "merged": the first half of the last axis of `x`, `y` and the states holds
    real parts, the second half imaginary parts; the gates read the merged `x`.

    It is one operation with one gradient. The backward pass computes gates
    and decays again, so between the passes only the arguments and the states
    are kept.

    Args:
        x: float tensor `(batch, time, width)`.
        recurrence_gate_kernel: float tensor
            `(blocks, width / blocks, units / blocks)`: the diagonal blocks of
            `W_r`. `units` is `width`, or `width / 2` with `phase_param`.
        recurrence_gate_bias: float tensor `(blocks, units / blocks)`.
        input_gate_kernel: like `recurrence_gate_kernel`, for `W_i`.
        input_gate_bias: like `recurrence_gate_bias`.
        recurrence_param: float tensor `(units,)`.
        phase_param: float tensor `(units,)`, in radians. Defaults to `None`:
            real numbers.
        reset: bool tensor `(batch, time)`. Where true a sequence begins:
            `h[t] = i[t] x[t]`. Defaults to `None`: nowhere.
        padding_mask: bool tensor `(batch, time)`. Where false the position is
            skipped: `h[t] = h[t-1]`, and neither `x` nor `reset` matters.
            Defaults to `None`: nowhere.
        initial_state: float tensor `(batch, width)`, the state before the
            first time step. Defaults to `None`: zeros.
        implementation: string. `"ops"`: plain operations, on every backend
            and device. `"pallas_tpu"`, `"pallas_gpu"`: kernels for TPUs and
            for CUDA, on the JAX backend. `"triton_gpu"`: kernels for CUDA, by
            this name alone. `"auto"`: the kernel of the
            platform that the program runs on, where it covers the case, else
            `"ops"`; see `dispatch.set_implementation`. Defaults to `"auto"`.

    Returns:
        y: `(batch, time, width)` in the dtype of `x`.
        final_state: `(batch, width)` in float32; the `initial_state` to go on
            with.

    Raises:
        ValueError: if `implementation` is unknown, or if shapes or dtypes are
            not as above.
        NotImplementedError: if a kernel was asked for by name and does not
            cover the case.

    Numerics:
        Gate products take kernels rounded to the dtype of `x` and accumulate
        in float32; all else is float32. The derivative of the square root is
        at most 1000 (arXiv:2404.07839, section 2). `1 - |a|^2` comes from
        `expm1`, so it keeps its digits where `|a|` is near 1; the original
        code's `1 - exp(2 log |a|)` does not. `"pallas_tpu"` does so for
        float32, where it also has float32 matrix products in full (a TPU's
        default is bfloat16); for bfloat16 it takes the plain difference. The
        backward pass has `y` in its dtype.

    Example:

    >>> import numpy as np
    >>> from keras_griffin.kernels.rg_lru import rg_lru
    >>> x = np.ones((1, 3, 4), "float32")
    >>> kernel = np.zeros((2, 2, 2), "float32")
    >>> bias = np.zeros((2, 2), "float32")
    >>> param = np.full(4, -4.0, "float32")
    >>> y, final_state = rg_lru(x, kernel, bias, kernel, bias, param)
    >>> tuple(y.shape), tuple(final_state.shape)
    ((1, 3, 4), (1, 4))

    Source:
        Griffin, arXiv:2402.19427, equations 1 to 6 and appendix B. Sign,
        resets and phase as in google-deepmind/recurrentgemma 1.0.1,
        `jax/layers.py::RGLRU`, to which it is equal.
    """

    def tensor(value, dtype=None):
        return None if value is None else ops.convert_to_tensor(value, dtype)

    x = tensor(x)
    if len(x.shape) != 3:
        raise ValueError(
            "`x` must have the shape (batch, time, width). Received: "
            f"x.shape={tuple(x.shape)}"
        )
    if initial_state is None:
        initial_state = zero_state(x)
    inputs = Inputs(
        x,
        tensor(recurrence_gate_kernel),
        tensor(recurrence_gate_bias),
        tensor(input_gate_kernel),
        tensor(input_gate_bias),
        tensor(recurrence_param),
        tensor(phase_param),
        tensor(reset, "bool"),
        tensor(padding_mask, "bool"),
        tensor(initial_state),
    )
    _check_inputs(inputs)
    inputs = inputs._replace(
        initial_state=ops.cast(inputs.initial_state, "float32")
    )
    implementation = dispatch.resolve(implementation)
    if keras.config.backend() == "jax":
        from keras_griffin.kernels.rg_lru.rg_lru_jax import rg_lru_over_mesh

        return rg_lru_over_mesh(implementation, inputs)
    if implementation != "triton_gpu":
        return rg_lru_ops(*inputs)
    if keras.config.backend() == "torch":
        from keras_griffin.kernels.rg_lru import rg_lru_torch

        return rg_lru_torch.rg_lru_triton(inputs)
    from keras_griffin.kernels.rg_lru import rg_lru_tensorflow

    return rg_lru_tensorflow.rg_lru_triton(inputs)


def _check_inputs(inputs):
    batch, time, width = inputs.x.shape
    units = width
    if inputs.phase_param is not None:
        if width % 2:
            raise ValueError(
                "The width of `x` must be even with `phase_param`: real "
                "parts, then imaginary parts. Received: x.shape="
                f"{(batch, time, width)}"
            )
        units = width // 2
    blocks = inputs.recurrence_gate_kernel.shape[0]
    if width % blocks or units % blocks:
        raise ValueError(
            "The width and the units must be divisible by the number of gate "
            f"blocks. Received: width={width}, units={units}, blocks={blocks}"
        )
    kernel = (blocks, width // blocks, units // blocks)
    expected = {
        "recurrence_gate_kernel": kernel,
        "recurrence_gate_bias": (blocks, units // blocks),
        "input_gate_kernel": kernel,
        "input_gate_bias": (blocks, units // blocks),
        "recurrence_param": (units,),
        "phase_param": (units,),
        "reset": (batch, time),
        "padding_mask": (batch, time),
        "initial_state": (batch, width),
    }
    for name, value in inputs._asdict().items():
        if value is None:
            continue
        if name in expected and not shapes_agree(value.shape, expected[name]):
            raise ValueError(
                f"`{name}` must have the shape {expected[name]} with x.shape="
                f"{(batch, time, width)}. Received: {name}.shape="
                f"{tuple(value.shape)}"
            )
        is_float = keras.backend.is_float_dtype(value.dtype)
        if name not in ("reset", "padding_mask") and not is_float:
            raise ValueError(
                f"`{name}` must have a float dtype. Received: {name}.dtype="
                f"{keras.backend.standardize_dtype(value.dtype)}"
            )
