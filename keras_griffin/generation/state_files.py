"""States as files and as rows."""

from __future__ import annotations

import dataclasses
import math
import os
import struct
import zipfile
import zlib
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_griffin.files.inside import regular_file
from keras_griffin.files.whole import whole_file
from keras_griffin.generation.arguments import as_state

# What `zipfile` and NumPy raise of a file that is none of theirs.
DAMAGE = (
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """What neither rows nor room for tokens change of an array of a state."""

    name: str  # "blocks.0.recurrent"
    rank: int
    width: int | None  # of the last axis; `None` where that is the batch
    dtype: str

    def fits(self, array):
        shape = getattr(array, "shape", ())
        return len(shape) == self.rank and self.width in (None, shape[-1])

    def __str__(self):
        if self.rank == 1:
            return "an array of shape (rows,)"
        return f"an array of {self.rank} axes, the last one of {self.width}"


def state_specs(model):
    """A state of `ArraySpec`s, nested as the model's own."""
    state = model.init_state(1, max_length=1)
    specs = [
        ArraySpec(
            name=".".join(str(part) for part in path),
            rank=len(array.shape),
            width=None if len(array.shape) == 1 else array.shape[-1],
            dtype=keras.backend.standardize_dtype(array.dtype),
        )
        for path, array in keras.tree.flatten_with_path(state)
    ]
    return keras.tree.pack_sequence_as(state, specs)


def save_state(
    model: Any, state: dict[str, Any], path: str | os.PathLike[str]
) -> None:
    """Writes a state to a file, to go on from it later or elsewhere.

    Its size does not depend on how many tokens were read (see
    `keras-griffin info`).

    Args:
        model: a `GriffinCausalLM`.
        state: from `prefill`, `decode_step` or `generate`.
        path: str or path. The `.npz` file. An old one is replaced when the
            new one is written.

    Raises:
        OSError: if the file cannot be written; an old one is as it was.
        ValueError: for a state of another model.

    Example:
    ```python
    ids = {"token_ids": np.array([[5, 6, 7, 8]])}
    _, state = model.prefill(ids)
    model.save_state(state, "prompt.npz")
    state = model.load_state("prompt.npz")
    model.generate(["To", "Not"], state=state, max_new_tokens=20)
    ```
    """
    arrays = keras.tree.flatten(as_state(model, state))
    specs = keras.tree.flatten(model._functions.state_specs)
    arrays = {
        # NumPy's files know no bfloat16; float32 holds it exactly.
        spec.name: ops.convert_to_numpy(_widened(array))
        for spec, array in zip(specs, arrays, strict=True)
    }
    with whole_file(path) as place, open(place, "wb") as file:
        np.savez(file, **arrays)


def load_state(model: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a state that `save_state` wrote, with the same weights.

    Args:
        model: a `GriffinCausalLM`.
        path: str or path.

    Returns:
        The state.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is not a state of this model.
    """
    specs = model._functions.state_specs
    regular_file(path)
    try:
        arrays = _read_arrays(path)
    except DAMAGE as error:
        raise ValueError(
            "A state must be read from a file of `save_state`. Received: "
            f"{str(path)!r} ({error}). Save it anew."
        ) from error
    by_name = {spec.name: spec for spec in keras.tree.flatten(specs)}
    differing = sorted(
        name
        for name in by_name.keys() | arrays.keys()
        if name not in by_name
        or name not in arrays
        or not by_name[name].fits(arrays[name])
    )
    if differing:
        raise ValueError(
            "A state goes with the architecture that made it. Received: "
            f"{str(path)!r}, in which {', '.join(differing[:3])} and "
            f"{max(len(differing) - 3, 0)} more do not fit. Load it into the "
            "model that it came from."
        )
    return keras.tree.map_structure(
        lambda spec: ops.convert_to_tensor(arrays[spec.name], dtype=spec.dtype),
        specs,
    )


def _read_arrays(path):
    """The arrays of a file, none of them larger than what is stored."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read_header = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                shape, _, dtype = read_header(file)
                stored = member.compress_size - file.tell()
            if math.prod(shape) * dtype.itemsize != stored:
                raise ValueError(
                    f"{member.filename} has a shape {shape} without as many "
                    "numbers"
                )
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _widened(leaf):
    if keras.backend.standardize_dtype(leaf.dtype) == "bfloat16":
        return ops.cast(leaf, "float32")
    return leaf
