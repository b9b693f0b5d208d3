"""Generates from the files of `GriffinCausalLM.export_steps`, without Keras.

    python benchmarks/speed/exported_generation.py FOLDER --ids 5 6 7 --new 12

FOLDER holds `prefill` and `decode_step` as SavedModels (needs tensorflow
alone), as `.onnx` (onnxruntime alone), as `.tflite` (ai-edge-litert alone) or
as `.pt2` (torch alone). Prints the ids of the likeliest text.
"""

import argparse
from pathlib import Path

import numpy as np


def load(folder, name):
    """A callable from a dict of arrays to a dict of arrays, and its inputs.

    Returns:
        `(run, {name: (shape, dtype)})`.
    """
    if (folder / f"{name}.onnx").exists():
        return load_onnx(folder / f"{name}.onnx")
    if (folder / f"{name}.tflite").exists():
        return load_litert(folder / f"{name}.tflite")
    if (folder / f"{name}.pt2").exists():
        return load_torch(folder / f"{name}.pt2")
    return load_saved_model(folder / name)


def load_saved_model(path):
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures["serving_default"]
    _, inputs = function.structured_input_signature

    def run(arrays):
        tensors = {name: tf.constant(x) for name, x in arrays.items()}
        return {name: x.numpy() for name, x in function(**tensors).items()}

    run.loaded = loaded  # A signature does not keep its weights alive.
    return run, {
        name: (tuple(spec.shape), spec.dtype.as_numpy_dtype)
        for name, spec in inputs.items()
    }


def output_names(inputs):
    """Formats that know outputs by their order have them sorted by name."""
    return sorted({"logits", *inputs} - {"token_ids", "padding_mask"})


def load_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    dtypes = {"bool": bool, "int32": "int32", "float": "float32"}
    inputs = {
        x.name: (tuple(x.shape), dtypes[x.type[len("tensor(") : -1]])
        for x in session.get_inputs()
    }

    def run(arrays):
        outputs = session.run(None, arrays)
        return dict(zip(output_names(inputs), outputs, strict=True))

    return run, inputs


def load_litert(path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    runner = interpreter.get_signature_runner("serving_default")
    inputs = {
        name: (tuple(x["shape"]), x["dtype"])
        for name, x in runner.get_input_details().items()
    }
    return lambda arrays: runner(**arrays), inputs


def load_torch(path):
    import torch

    program = torch.export.load(path)
    module = program.module()
    (tensors,), _ = program.example_inputs
    inputs = {
        name: (tuple(x.shape), x.numpy().dtype) for name, x in tensors.items()
    }

    def run(arrays):
        with torch.no_grad():
            outputs = module(
                {name: torch.from_numpy(arrays[name]) for name in inputs}
            )
        return {name: x.numpy() for name, x in outputs.items()}

    return run, inputs


def generate(folder, token_ids, count):
    """The `count` likeliest tokens after `token_ids`, one at a time."""
    prefill, inputs = load(folder, "prefill")
    decode_step, _ = load(folder, "decode_step")
    batch, columns = inputs["token_ids"][0]
    state = {
        name: np.zeros(shape, dtype)
        for name, (shape, dtype) in inputs.items()
        if name not in ("token_ids", "padding_mask")
    }
    for start in range(0, len(token_ids), columns):
        piece = token_ids[start : start + columns]
        ids = np.zeros((batch, columns), "int32")
        mask = np.zeros((batch, columns), bool)
        ids[:, : len(piece)], mask[:, : len(piece)] = piece, True
        state = prefill({"token_ids": ids, "padding_mask": mask, **state})
        logits = state.pop("logits")
    new = []
    for _ in range(count):
        new.append(int(logits[0].argmax()))
        ids = np.full((batch, 1), new[-1], "int32")
        state = decode_step({"token_ids": ids, **state})
        logits = state.pop("logits")
    return new


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ids", type=int, nargs="+", required=True)
    parser.add_argument("--new", type=int, default=20)
    arguments = parser.parse_args()
    new = generate(arguments.folder, arguments.ids, arguments.new)
    print(" ".join(map(str, new)))


if __name__ == "__main__":
    main()
