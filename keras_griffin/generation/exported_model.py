"""A whole model as a file that runs without this package."""

from __future__ import annotations

import contextlib
import os
import pathlib
from typing import Any

import keras
from keras import ops

from keras_griffin import keras_compat
from keras_griffin.files.whole import whole_folder
from keras_griffin.kernels import dispatch
from keras_griffin.layers.input_checks import INPUTS

# What a path ends in, and the backends that a format is written on.
FORMATS = {
    "tf_saved_model": ("", ("jax", "tensorflow")),
    "onnx": (".onnx", ("tensorflow", "torch")),
    "litert": (".tflite", ("tensorflow",)),
    "torch": (".pt2", ("torch",)),
}
# Why not on others: what a converter does to our models, with its version.
REASONS = {
    ("onnx", "jax"): "jax2onnx 0.17.1 takes no rows of open length",
    ("litert", "torch"): (
        "what litert-torch 0.10.0 makes of a recurrence computes other logits"
    ),
    ("tf_saved_model", "torch"): "Keras 3.15 needs torch_xla for it",
}
# Sizes to trace with where they are open, which no other axis has.
EXAMPLE_SIZES = {"batch": 3, "time": 37}


def export(
    self,
    filepath: str | os.PathLike[str],
    format: str = "tf_saved_model",
    verbose: bool | None = None,
    input_signature: Any = None,
    **kwargs: Any,
) -> None:
    """Writes the model as a file that runs without this package.

    It takes `"token_ids"` and `"padding_mask"`, `(batch, time)` int32 of any
    size, and gives what a call gives: documents are told apart and pads may
    stand anywhere. `export_steps` writes what generates token by token.

    Args:
        filepath: str or path. A folder for a SavedModel; otherwise a file,
            for LiteRT ending in `.tflite`, for PyTorch in `.pt2`. What is
            there already is replaced.
        format: `"tf_saved_model"` (on JAX and TensorFlow), `"onnx"` (on
            PyTorch, and on TensorFlow by tf2onnx), `"litert"` (on TensorFlow)
            or `"torch"` (on PyTorch). Defaults to `"tf_saved_model"`.
        verbose: bool. Whether to say where it is. Defaults to `None`: yes.
        input_signature: list with one dict of `keras.InputSpec`, for a model
            of fixed sizes, whose recurrences are the shorter for it: each
            has `log2(time)` rounds in ONNX, LiteRT and PyTorch's format, and
            24 where the time is open. On PyTorch attention over open times
            also takes memory that grows with their square. Defaults to
            `None`: all sizes are open.
        **kwargs: see `keras.Model.export`.

    Raises:
        ValueError: for a format that cannot be written on this backend, and
            for ONNX or LiteRT of a model that does not compute in float32.

    Example:
    ```python
    # On PyTorch; on JAX and TensorFlow leave `format` out.
    spec = keras.InputSpec(shape=(1, 16), dtype="int32")
    model.export(
        "griffin.pt2",
        format="torch",
        input_signature=[{"token_ids": spec, "padding_mask": spec}],
    )
    ```
    """
    check_format(format, self)
    signature = _signature(input_signature)
    target = pathlib.Path(filepath)
    is_folder = format == "tf_saved_model"
    folder = target if is_folder else target.parent
    with whole_folder(folder, replace=True) as place:
        path = place if is_folder else place / target.name
        write(self, path, format, signature, **kwargs)
    if verbose is not False:
        print(f"Saved artifact at '{filepath}'.")


def check_format(format, model, formats=FORMATS, reasons=REASONS):
    """Raises unless a model can be written in a format on this backend."""
    backend = keras.config.backend()
    _, backends = formats.get(format, ("", ()))
    if backend not in backends:
        known = ", ".join(
            f"{name!r} on {' or '.join(backends)}"
            for name, (_, backends) in formats.items()
        )
        reason = reasons.get((format, backend))
        raise ValueError(
            f"`format` must be {known}. Received: format={format!r} on "
            f"{backend}{f' ({reason})' if reason else ''}. Set KERAS_BACKEND "
            "to the other backend: weights saved by one are loaded by all."
        )
    dtype = model.compute_dtype
    if format in ("onnx", "litert") and dtype != "float32":
        raise ValueError(
            f"ONNX and LiteRT are written in float32 alone. Received: "
            f"format={format!r} of a model in {dtype}. Load it with "
            "dtype='float32'."
        )


def write(model, path, format, signature, **kwargs):
    """Writes a model; on PyTorch not by Keras, which takes no open sizes.

    Args:
        model: a model of one dict of arrays.
        path: path.
        format: one of `FORMATS`, for this backend.
        signature: `{name: keras.InputSpec}`.
        **kwargs: see `keras.Model.export`.
    """
    backend = keras.config.backend()
    if backend == "torch":
        return _write_by_torch(model, path, format, signature, kwargs)
    context = contextlib.nullcontext()
    if format != "tf_saved_model":  # which holds loops as they are
        context = _converting(model)
    elif backend == "jax":
        kwargs = _for_jax(signature, kwargs)
    with context:
        # Keras' own, whatever the class makes of it.
        keras.Model.export(
            model,
            str(path),
            format=format,
            verbose=False,
            input_signature=[signature],
            **kwargs,
        )


def _signature(given):
    """`{name: keras.InputSpec}`, with names, of what a user gives or not."""
    if given is None:
        shape = (None, None)
        given = {name: keras.InputSpec(shape=shape) for name in INPUTS}
    if isinstance(given, (list, tuple)) and len(given) == 1:
        given = given[0]
    if not isinstance(given, dict) or not {"token_ids"} <= {*given} <= {
        *INPUTS
    }:
        raise ValueError(
            "`input_signature` must be a list with one dict, of 'token_ids' "
            f"and 'padding_mask'. Received: {given!r}. Give each of them "
            "`keras.InputSpec(shape=(batch, time), dtype='int32')`."
        )
    return {
        name: keras.InputSpec(
            shape=tuple(spec.shape), dtype=spec.dtype or "int32", name=name
        )
        for name, spec in given.items()
    }


@contextlib.contextmanager
def _converting(model):
    """As `dispatch.converting`; int8 products are taken of floats.

    Converters know no product of integers. One of floats that hold integers is
    the same up to float32's rounding of sums above 2**24.
    """
    layers = [
        layer
        for layer in keras_compat.all_layers(model)
        if getattr(layer, "inputs_quantizer", None) is not None
    ]
    quantizers = [layer.inputs_quantizer for layer in layers]
    for layer, quantizer in zip(layers, quantizers, strict=True):
        config = {**quantizer.get_config(), "output_dtype": "float32"}
        layer.inputs_quantizer = quantizer.from_config(config)
    try:
        with dispatch.converting():
            yield
    finally:
        for layer, quantizer in zip(layers, quantizers, strict=True):
            layer.inputs_quantizer = quantizer


def _for_jax(signature, kwargs):
    """With one symbol for the time of all inputs, where Keras has several."""
    axes = tuple(EXAMPLE_SIZES)
    symbols = {
        name: "({})".format(
            ", ".join(
                axes[i] if size is None else str(size)
                for i, size in enumerate(spec.shape)
            )
        )
        for name, spec in signature.items()
    }
    options = {
        "polymorphic_shapes": [symbols],
        # A SavedModel can hold none with respect to int8 weights.
        "with_gradient": False,
        **(kwargs.get("jax2tf_kwargs") or {}),
    }
    return {**kwargs, "jax2tf_kwargs": options}


def _write_by_torch(model, path, format, signature, kwargs):
    import torch

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, inputs):
            return self.model(inputs, training=False)

    sizes = {name: torch.export.Dim(name) for name in EXAMPLE_SIZES}
    shapes, example = {}, {}
    for name, spec in signature.items():
        given = dict(zip(EXAMPLE_SIZES, spec.shape, strict=False))
        shapes[name] = {
            i: sizes[axis]
            for i, (axis, size) in enumerate(given.items())
            if size is None
        }
        shape = [
            EXAMPLE_SIZES[axis] if size is None else size
            for axis, size in given.items()
        ]
        shape = (*shape, *spec.shape[len(shape) :])
        example[name] = ops.ones(shape, spec.dtype)
    options = {"strict": False, **(kwargs if format == "torch" else {})}
    with torch.no_grad(), _converting(model):
        program = torch.export.export(
            Module(), (example,), dynamic_shapes=[shapes], **options
        )
        if format == "torch":
            return torch.export.save(program, str(path))
        options = {
            "input_names": list(signature),
            "dynamo": True,
            "verbose": False,
            **kwargs,
        }
        program = torch.onnx.export(program, **options)
    program.optimize()
    program.save(str(path))
