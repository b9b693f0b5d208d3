from __future__ import annotations

import functools
from typing import Any

import keras
from keras import ops

from keras_griffin.kernels import dispatch


def linear_scan(
    x: Any,
    a: Any,
    initial_state: Any = None,
    reverse: bool = False,
    implementation: str = "auto",
) -> tuple[Any, Any]:
    """Runs a linear recurrence, element by element, over time.

        y[t] = a[t] * y[t-1] + x[t],        y[-1] = initial_state

    With `reverse=True` time runs backwards: `y[t] = a[t] * y[t+1] + x[t]`.

    Gradients reach `x`, `a` and `initial_state` from both results. They are
    computed by a scan in the other direction, so a backward pass costs about
    as much as a forward pass and keeps `a` and `y` only.

    Complex numbers are pairs `(real, imaginary)` of real tensors. Then `x`,
    `a`, `initial_state` and both results are such pairs.

    Args:
        x: float tensor `(batch, time, width)`, or a pair of them. Any time
            and width; on TensorFlow batch and time may be unknown.
        a: float tensor with the shape of `x`, or a pair of them.
        initial_state: float tensor `(batch, width)`, or a pair of them.
            Defaults to `None`: zeros.
        reverse: bool. Whether to run from the last time step to the first.
            Defaults to `False`.
        implementation: string. `"ops"`: plain operations, on every backend
            and device. `"pallas_tpu"`, `"pallas_gpu"`: kernels for TPUs and
            for CUDA, on the JAX backend. `"triton_gpu"`: kernels for CUDA, by
            this name alone. `"auto"`: the kernel of the
            platform that the program runs on, where it covers the case, else
            `"ops"`; see `dispatch.set_implementation`. Defaults to `"auto"`.

    Returns:
        y: like `x`, in the dtype of `x`.
        final_state: float32 tensor `(batch, width)`, or a pair of them: `y`
            at the last time step (the first with `reverse=True`). Hand it on
            as `initial_state` to continue. `initial_state` itself if there
            are no time steps.

    Raises:
        ValueError: if `implementation` is unknown, if some arguments are
            pairs and others are not, or if shapes or dtypes are not as above.
        NotImplementedError: if a kernel was asked for by name and does not
            cover the case.

    Numerics:
        float32 inside whatever the dtype of `x` and `a`. The order of the
        additions differs between implementations, so results agree to
        rounding. `y` is kept in its dtype for the backward pass.

    Example:

    >>> import numpy as np
    >>> from keras_griffin.kernels.linear_scan import linear_scan
    >>> x = np.ones((1, 3, 1), "float32")
    >>> y, final_state = linear_scan(x, 0.5 * x)
    >>> np.asarray(y)[0, :, 0].tolist()
    [1.0, 1.5, 1.75]

    Source:
        The recurrence of Griffin, arXiv:2402.19427, equation 4.
    """
    is_pair = isinstance(x, (tuple, list))
    x = _as_numbers("x", x, is_pair)
    a = _as_numbers("a", a, is_pair)
    for part in x:
        _check_float("x", part)
        if len(part.shape) != 3:
            raise ValueError(
                "`x` must have the shape (batch, time, width). Received: "
                f"x.shape={tuple(part.shape)}"
            )
    for name, part in (("x", x[-1]), *(("a", part) for part in a)):
        _check_float(name, part)
        if not shapes_agree(part.shape, x[0].shape):
            raise ValueError(
                "All parts of `x` and `a` must have the same shape. "
                f"Received: {tuple(x[0].shape)} and, in `{name}`, "
                f"{tuple(part.shape)}"
            )
    batch, _, width = x[0].shape
    if initial_state is None:
        state = tuple(zero_state(part) for part in x)
    else:
        state = _as_numbers("initial_state", initial_state, is_pair)
    for part in state:
        _check_float("initial_state", part)
        if not shapes_agree(part.shape, (batch, width)):
            raise ValueError(
                "`initial_state` must have the shape (batch, width) of `x`. "
                f"Received: initial_state.shape={tuple(part.shape)}, "
                f"x.shape={tuple(x[0].shape)}"
            )
    state = tuple(ops.cast(part, "float32") for part in state)
    implementation = dispatch.resolve(implementation)
    scan: Any
    if keras.config.backend() == "jax":
        from keras_griffin.kernels.linear_scan.scan_jax import scan_over_mesh

        scan = functools.partial(scan_over_mesh, implementation)
    elif implementation == "triton_gpu":
        scan = _triton_scan()
    else:
        from keras_griffin.kernels.linear_scan.ops_scan import scan_ops

        scan = scan_ops
    y, final_state = scan(x, a, state, reverse)
    if is_pair:
        return y, final_state
    return y[0], final_state[0]


def zero_state(x):
    """Zeros `(batch, width)`, placed and sharded like `x`.

    Constants: else PyTorch adds a whole `x` of zeros to its gradient.
    """
    return ops.sum(ops.stop_gradient(x)[:, :0], axis=1)


def shapes_agree(shape, expected):
    """Whether two shapes are equal as far as they are known."""
    return len(shape) == len(expected) and all(
        size is None or other is None or size == other
        for size, other in zip(shape, expected, strict=True)
    )


def _triton_scan() -> Any:
    if keras.config.backend() == "torch":
        from keras_griffin.kernels.linear_scan import scan_torch

        return scan_torch.scan_triton
    from keras_griffin.kernels.linear_scan import scan_tensorflow

    return scan_tensorflow.scan_triton


def _as_numbers(name, value, is_pair):
    if isinstance(value, (tuple, list)) != is_pair or (
        is_pair and len(value) != 2
    ):
        raise ValueError(
            "`x`, `a` and `initial_state` must all be tensors, or all be "
            f"pairs (real, imaginary) of tensors. Received: x as "
            f"{'a pair' if is_pair else 'a tensor'}, {name} as "
            f"{_describe(value)}"
        )
    parts = value if is_pair else (value,)
    return tuple(ops.convert_to_tensor(part) for part in parts)


def _check_float(name, tensor):
    if not keras.backend.is_float_dtype(tensor.dtype):
        raise ValueError(
            f"`{name}` must have a float dtype. Received: "
            f"{name}.dtype={keras.backend.standardize_dtype(tensor.dtype)}"
        )


def _describe(value):
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return "a tensor"
