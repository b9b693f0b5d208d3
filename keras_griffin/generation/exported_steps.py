from __future__ import annotations

import os
from typing import Any

import keras
from keras import ops

from keras_griffin.files.whole import whole_folder
from keras_griffin.generation import decoding
from keras_griffin.generation.exported_model import FORMATS
from keras_griffin.generation.exported_model import REASONS
from keras_griffin.generation.exported_model import check_format
from keras_griffin.generation.exported_model import write

STEP_FORMATS = {**FORMATS, "onnx": (".onnx", ("torch",))}
STEP_REASONS = {
    **REASONS,
    ("onnx", "tensorflow"): "tf2onnx 1.17.0 loses inputs of a step",
}


class ExportedStep(keras.Model):
    """A step of generation as a model of flat, named arrays, to be exported.

    Args:
        model: a `GriffinCausalLM`.
        batch_size: int. Rows.
        time: int. Tokens that a call reads; with more than one there is a
            padding mask, and the prompt can be read in several calls.
        max_length: int. See `GriffinCausalLM.init_state`.

    Call arguments:
        inputs: dict of `"token_ids"` `(batch, time)`, `"padding_mask"` of the
            same shape, with the pads last, where `time` is above 1, and the
            arrays of the state, named `"position"` or `"block_0_recurrent"`,
            zeros at first.

    Returns:
        dict of `"logits"` `(batch, vocabulary_size)` of the token after each
        row's last real one, and of the arrays of the state, sorted by name.
    """

    def __init__(self, model, batch_size, time, max_length=None, **kwargs):
        super().__init__(**kwargs)
        self.causal_lm = model
        self._structure = model.init_state(batch_size, max_length)
        self._state = {
            name: (
                tuple(leaf.shape),
                keras.backend.standardize_dtype(leaf.dtype),
            )
            for name, leaf in _flat(self._structure).items()
        }
        self._ids_shape = batch_size, time

    def signature(self):
        """`{name: keras.InputSpec}` of the inputs."""
        kinds = {"token_ids": (self._ids_shape, "int32")}
        if self._ids_shape[1] > 1:
            kinds["padding_mask"] = self._ids_shape, "bool"
        return {
            name: keras.InputSpec(shape=shape, dtype=dtype, name=name)
            for name, (shape, dtype) in {**kinds, **self._state}.items()
        }

    def call(self, inputs):
        state = keras.tree.pack_sequence_as(
            self._structure, [inputs[name] for name in self._state]
        )
        if self._ids_shape[1] == 1:
            logits, state = decoding.decode_token(
                self.causal_lm, inputs["token_ids"][:, 0], state
            )
        else:
            columns = ops.arange(self._ids_shape[1], dtype="int32")
            logits, state = decoding.prefill_piece(
                self.causal_lm,
                {
                    "token_ids": inputs["token_ids"],
                    "padding_mask": inputs["padding_mask"],
                    # Known where pads come last: ONNX has no stable sort.
                    "positions": state["position"][:, None] + columns,
                },
                ops.zeros((), "float32"),
                state,
            )
        outputs = {"logits": logits, **_flat(state)}
        # Formats that know outputs by their order have them so.
        return dict(sorted(outputs.items()))


def _flat(state):
    """`{"block_0_recurrent": array}`, in the order of `tree.flatten`."""
    return {
        "_".join(map(str, path)).replace("blocks", "block"): leaf
        for path, leaf in keras.tree.flatten_with_path(state)
    }


def export_steps(
    model: Any,
    folder: str | os.PathLike[str],
    format: str = "tf_saved_model",
    batch_size: int = 1,
    prompt_length: int = 64,
    max_length: int | None = None,
) -> None:
    """Writes a prefill and a decode step that run without this package.

    Both take and give a dict of arrays. `"token_ids"`
    `(batch_size, prompt_length)` or `(batch_size, 1)`; for the prefill
    `"padding_mask"` of the same shape, bool, with the pads last; and the
    state, every array of which is zeros at first: what one call gives,
    the next one takes.
    `"logits"` `(batch_size, vocabulary_size)` are of the token after each
    row's last real one. A long prompt is read in several calls. ONNX
    knows outputs by their order: sorted by name.
    `benchmarks/speed/exported_generation.py` generates from the files.

    Args:
        model: a `GriffinCausalLM`.
        folder: str or path. Gets `prefill` and `decode_step`, with the
            ending `.onnx`, `.tflite` or `.pt2` in these formats, when both
            are written; other files in it stay.
        format: `"tf_saved_model"` (on JAX and TensorFlow), `"litert"` (on
            TensorFlow), `"onnx"` or `"torch"` (on PyTorch); see `export`.
            Defaults to `"tf_saved_model"`.
        batch_size: int. Rows of every call. Defaults to `1`.
        prompt_length: int. Columns of the prefill. Defaults to `64`.
        max_length: int. Tokens that a row may have, where there is global
            attention. Defaults to `None`.

    Raises:
        ValueError: for a format that cannot be written on this backend, or
            not in the model's dtype.

    Example:
    ```python
    # On PyTorch; on JAX and TensorFlow leave `format` out.
    model.export_steps("exported", format="torch", prompt_length=16)
    ```
    """
    check_format(format, model, STEP_FORMATS, STEP_REASONS)
    ending, _ = STEP_FORMATS[format]
    steps = {"prefill": prompt_length, "decode_step": 1}
    files = [f"{name}{ending}" for name in steps]
    with whole_folder(folder, replace=True) as place:
        for file, time in zip(files, steps.values(), strict=True):
            _export(
                ExportedStep(model, batch_size, time, max_length),
                place / file,
                format,
            )


def _export(step, path, format):
    signature = step.signature()
    step(
        {
            key: ops.zeros(spec.shape, spec.dtype)
            for key, spec in signature.items()
        }
    )
    write(step, path, format, signature)
