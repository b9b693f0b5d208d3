"""Sizes that a file asks for, held against the weights that are there.

A damaged or hostile configuration can ask for 10^9 layers. Building them would
stop the machine, so they are refused before anything is built.
"""

import os

import h5py

from keras_griffin.checkpoints import preset_index
from keras_griffin.files import inside

# What a configuration may leave out, as `GriffinBackbone` completes it.
DEFAULTS = {
    "block_types": ("recurrent", "recurrent", "local_attention"),
    "attention_window_size": 1024,
    "num_gate_blocks": 16,
    "conv_kernel_size": 4,
    "recurrence": "real",
}
COUNTS = (
    "vocabulary_size",
    "num_layers",
    "hidden_dim",
    "intermediate_dim",
    "num_query_heads",
    "head_dim",
    "recurrent_dim",
    "num_gate_blocks",
    "conv_kernel_size",
    "attention_window_size",
)
BLOCK_TYPES = ("recurrent", "local_attention", "global_attention")
# For what no weight tells: without weights, and the window, which has none.
MOST_LAYERS, MOST_PARAMETERS = 10_000, 10**12
LONGEST_WINDOW = 2**24  # tokens
# int4 kernels are stored two numbers a byte.
PARAMETERS_PER_ELEMENT = {True: 2, False: 1}
# An archive may be compressed; above this it must not be nothing but zeros.
# The numbers are those of Keras' own check of its archives.
UNCHECKED_BYTES = 2**32
MOST_COMPRESSED = 100


def check(arguments, elements, origin):
    """Raises unless a backbone's sizes can be those of the weights.

    Args:
        arguments: dict. Arguments of `GriffinBackbone`, as a file has them.
        elements: int. How many numbers the weights have; `None`: there are no
            weights.
        origin: str. The file, for the error.

    Returns:
        The arguments, with those that were left out.

    Raises:
        ValueError: for sizes that are missing or no positive integers, and for
            a model of more parameters than there are.
    """
    if not isinstance(arguments, dict):
        _refuse("A configuration must be a dict", origin, f"{arguments!r:.80}")
    complete = {**DEFAULTS, **arguments}
    if complete.get("recurrent_dim") is None:
        complete["recurrent_dim"] = complete.get("hidden_dim")
    for name in COUNTS:
        value = complete.get(name)
        if name == "head_dim" and value is None:
            value = complete["hidden_dim"] // complete["num_query_heads"] or 1
            complete[name] = value
        if type(value) is not int or value < 1:
            _refuse(f"`{name}` must be a positive integer", origin, repr(value))
    types = complete["block_types"]
    if (
        not isinstance(types, (list, tuple))
        or not types
        or not all(name in BLOCK_TYPES for name in types)
    ):
        _refuse(
            f"`block_types` must be a list of {', '.join(BLOCK_TYPES)}",
            origin,
            f"{types!r:.80}",
        )
    window = complete["attention_window_size"]
    if window > LONGEST_WINDOW:
        _refuse(
            f"`attention_window_size` must be at most {LONGEST_WINDOW:,}",
            origin,
            f"{window:,}",
        )
    parameters = preset_index.parameter_count(complete)
    if elements is None:
        layers = complete["num_layers"]
        if layers > MOST_LAYERS or parameters > MOST_PARAMETERS:
            _refuse(
                f"Without weights there may be {MOST_LAYERS:,} layers and "
                f"{MOST_PARAMETERS:,} parameters at most",
                origin,
                f"{layers:,} and {parameters:,}",
            )
        return complete
    stored = elements * PARAMETERS_PER_ELEMENT["quantization" in arguments]
    if parameters > stored:
        _refuse(
            "A configuration must be that of the weights beside it",
            origin,
            f"one of {parameters:,} parameters "
            f"(num_layers={complete['num_layers']:,}), while the weights have "
            f"{elements:,} numbers",
        )
    return complete


def check_compression(path, size):
    """Raises unless an archive holds as much as its tensors' shapes say.

    Args:
        path: path of the archive's folder.
        size: int. What the tensors take in memory [bytes].

    Raises:
        ValueError: if they would be zeros that fill the memory.
    """
    stored = sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(path)
        for name in names
    )
    if size > UNCHECKED_BYTES and size > MOST_COMPRESSED * stored:
        _refuse(
            "A checkpoint's tensors must be stored in full",
            path,
            f"shapes of {size:,} bytes in files of {stored:,}",
        )


def hdf5_elements(path):
    """Returns how many numbers an HDF5 file of weights holds.

    Nothing but names and shapes is read.

    Args:
        path: path.

    Raises:
        ValueError: if the file is damaged, or its numbers are not all in it:
            HDF5 can link to other files, and have shapes without values.
    """
    inside.regular_file(path)
    try:
        with h5py.File(path, "r") as file:
            return _elements(file, path)
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{os.path.basename(path)} must be a whole HDF5 file. Received: "
            f"{str(path)!r} of {os.path.getsize(path)} bytes ({error}). Copy "
            "or download it again."
        ) from error


def _elements(file, path):
    elements, groups, seen = 0, [file], {file["/"].id}
    while groups:
        group = groups.pop()
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                _refuse_hdf5(path, f"{group.name}/{name}, a link elsewhere")
            found = group[name]
            if found.id in seen:  # groups can hold themselves
                continue
            seen.add(found.id)
            if isinstance(found, h5py.Group):
                groups.append(found)
            elif isinstance(found, h5py.Dataset):
                if found.external or found.is_virtual:
                    _refuse_hdf5(path, f"{found.name}, kept in other files")
                if found.id.get_storage_size() < found.nbytes:
                    _refuse_hdf5(path, f"{found.name}, a shape without values")
                elements += found.size
    return elements


def _refuse_hdf5(path, received):
    raise ValueError(
        "An HDF5 file of weights must hold them itself, and in full. Received: "
        f"{str(path)!r}, with {received}. Copy or download it again; do not "
        "load it if you do not know where it is from."
    )


def _refuse(rule, origin, received):
    raise ValueError(
        f"{rule}. Received: {origin}, with {received}. Copy or download the "
        "folder again, or correct the file."
    )
