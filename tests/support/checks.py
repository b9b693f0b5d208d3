"""Comparing results, and getting values and gradients on any backend."""

import keras
import numpy as np
from keras import ops

from support.tolerances import TOLERANCES


def to_numpy(value):
    """A NumPy array of any backend's tensor; 16-bit floats become float32."""
    # Not `ops.convert_to_numpy`: with NumPy 2 it warns (keras 3.15).
    if hasattr(value, "detach"):  # PyTorch
        value = value.detach().cpu()
        value = value.float() if value.element_size() == 2 else value
    array = value.numpy() if hasattr(value, "numpy") else np.asarray(value)
    return array.astype("float32") if array.dtype.itemsize == 2 else array


def assert_close(actual, expected, dtype="float32", kind="values", name=""):
    """Compares by the one table of tolerances.

    Args:
        actual: tensor or array.
        expected: array of the same shape, in float64 or float32.
        dtype: string. The precision that `actual` was computed in.
        kind: `"values"` or `"gradients"`.
        name: string. What is compared, for the message.
    """
    actual, expected = to_numpy(actual), np.asarray(to_numpy(expected))
    assert actual.shape == expected.shape, (
        f"{name}: shape {actual.shape}, expected {expected.shape}"
    )
    if not expected.size:
        return
    assert np.all(np.isfinite(actual)), f"{name}: not finite"
    allowed = getattr(TOLERANCES[dtype], kind)
    error = np.max(np.abs(actual.astype("float64") - expected))
    scale = np.max(np.abs(expected))
    assert error <= allowed * scale, (
        f"{name}: largest error {error:.3g}, allowed {allowed:.1g} times the "
        f"largest value {scale:.3g} ({kind}, {dtype})"
    )


def value_and_grad(function, *arrays, cotangents=None, compiled=False):
    """Values and gradients of a function on the current backend.

    Args:
        function: callable from tensors to a structure of float tensors.
        *arrays: NumPy arrays, its arguments. All must be floats; close over
            everything else.
        cotangents: list of arrays, one for each output in the order of
            `keras.tree.flatten`. The gradients are those of
            `sum(output * cotangent)`. Defaults to `None`: ones.
        compiled: bool. Whether to compile: `jax.jit`,
            `tf.function(jit_compile=True)`, `torch.compile` as one graph.

    Returns:
        `(outputs, gradients)`: lists of NumPy arrays. An argument that does
        not matter has a gradient of zeros.
    """

    def flat_function(*tensors):
        return keras.tree.flatten(function(*tensors))

    def loss(outputs):
        weights = cotangents
        if weights is None:
            weights = [np.ones(output.shape, "float32") for output in outputs]
        return sum(
            ops.sum(
                ops.multiply(
                    ops.cast(output, "float32"),
                    ops.convert_to_tensor(weight, "float32"),
                )
            )
            for output, weight in zip(outputs, weights, strict=True)
        )

    run = {"jax": _run_jax, "tensorflow": _run_tensorflow, "torch": _run_torch}
    outputs, gradients = run[keras.config.backend()](
        flat_function, loss, arrays, compiled
    )
    gradients = [
        np.zeros(array.shape, "float32") if gradient is None else gradient
        for array, gradient in zip(arrays, gradients, strict=True)
    ]
    return [to_numpy(z) for z in outputs], [to_numpy(z) for z in gradients]


def _run_jax(function, loss, arrays, compiled):
    import jax

    def loss_and_outputs(*tensors):
        outputs = function(*tensors)
        return loss(outputs), outputs

    tensors = [ops.convert_to_tensor(array) for array in arrays]
    gradient = jax.grad(
        loss_and_outputs, argnums=tuple(range(len(tensors))), has_aux=True
    )
    gradients, outputs = (jax.jit(gradient) if compiled else gradient)(*tensors)
    return outputs, gradients


def _run_tensorflow(function, loss, arrays, compiled):
    import tensorflow as tf

    def gradient(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs = function(*tensors)
            total = loss(outputs)
        return outputs, tape.gradient(total, tensors)

    tensors = [ops.convert_to_tensor(array) for array in arrays]
    if compiled:
        gradient = tf.function(gradient, jit_compile=True, autograph=False)
    return gradient(*tensors)


def _run_torch(function, loss, arrays, compiled):
    import torch

    tensors = [
        ops.convert_to_tensor(array).detach().clone().requires_grad_()
        for array in arrays
    ]
    if compiled:
        # "aot_eager": all of torch.compile but code generation, which needs
        # a C++ compiler.
        function = torch.compile(function, fullgraph=True, backend="aot_eager")
    outputs = function(*tensors)
    loss(outputs).backward()
    return outputs, [tensor.grad for tensor in tensors]
