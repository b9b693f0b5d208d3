"""States as files and as rows."""

import math
import struct
import zipfile
import zlib

import keras
import numpy as np
from keras import ops

from keras_griffin.files.inside import regular_file
from keras_griffin.files.whole import whole_file

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


def repeat_rows(state, batch_size):
    """The state for `batch_size` rows: its own, or one row for all."""
    rows = state["length"].shape[0]
    if rows == batch_size:
        return state
    if rows != 1:
        raise ValueError(
            "A state must have one row for each prompt, or one for all. "
            f"Received: a state of {rows} rows for {batch_size} prompts. Read "
            "the prompts' common start as a batch of one."
        )
    return keras.tree.map_structure(
        lambda leaf: ops.repeat(leaf, batch_size, axis=0), state
    )


def save_state(model, state, path):
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

    Example:
    ```python
    ids = {"token_ids": np.array([[5, 6, 7, 8]])}
    _, state = model.prefill(ids)
    model.save_state(state, "prompt.npz")
    state = model.load_state("prompt.npz")
    model.generate(["To", "Not"], state=state, max_new_tokens=20)
    ```
    """
    arrays = {
        # NumPy's files know no bfloat16; float32 holds it exactly.
        name: ops.convert_to_numpy(_widened(leaf))
        for name, leaf in _named_leaves(state).items()
    }
    with whole_file(path) as place, open(place, "wb") as file:
        np.savez(file, **arrays)


def load_state(model, path):
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
    like = model.init_state(1, max_length=1)
    leaves = _named_leaves(like)
    regular_file(path)
    try:
        arrays = _read_arrays(path)
    except DAMAGE as error:
        raise ValueError(
            "A state must be read from a file of `save_state`. Received: "
            f"{str(path)!r} ({error}). Save it anew."
        ) from error
    expected = {name: _kind(leaf) for name, leaf in leaves.items()}
    received = {name: _kind(array) for name, array in arrays.items()}
    if received != expected:
        differing = sorted(
            name
            for name in expected.keys() | received.keys()
            if expected.get(name) != received.get(name)
        )
        raise ValueError(
            "A state goes with the architecture that made it. Received: "
            f"{str(path)!r}, in which {', '.join(differing[:3])} and "
            f"{max(len(differing) - 3, 0)} more do not fit. Load it into the "
            "model that it came from."
        )
    return keras.tree.pack_sequence_as(
        like,
        [
            ops.convert_to_tensor(arrays[name], dtype=leaf.dtype)
            for name, leaf in leaves.items()
        ],
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


def _named_leaves(state):
    """`{"blocks.0.recurrent": array}`, in the order of `tree.flatten`."""
    return {
        ".".join(str(part) for part in path): leaf
        for path, leaf in keras.tree.flatten_with_path(state)
    }


def _kind(leaf):
    """What batch and room for tokens do not change: rank and last axis."""
    return len(leaf.shape), *leaf.shape[1:][-1:]


def _widened(leaf):
    if keras.backend.standardize_dtype(leaf.dtype) == "bfloat16":
        return ops.cast(leaf, "float32")
    return leaf
