"""Folders of safetensors: one file, or an index and its shards.

Read one tensor at a time and written one tensor at a time, so that neither
takes more memory than the largest tensor.
"""

import dataclasses
import json
import pathlib

import numpy as np

from keras_griffin.files import inside

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FILE_PATTERN = "model{suffix}.safetensors"  # of one file, or of shards
# Names of the format's dtypes that weights may have.
FLOAT_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
}
GIB = 1024**3  # bytes; KerasHub's "GB" in `max_shard_size`
ALIGNMENT = 8  # bytes, of the header's end


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """What a file's header says of one tensor.

    Args:
        path: path of the file.
        shape: tuple of ints.
        dtype: str. A key of `FLOAT_DTYPES`, or another name of the format.
    """

    path: pathlib.Path
    shape: tuple
    dtype: str


def stored_tensors(folder):
    """Returns `{name: StoredTensor}` of a folder; only headers are read.

    Args:
        folder: str or path.

    Raises:
        ImportError: if safetensors is not installed.
        ValueError: if there are no weights, a shard is missing or damaged, or
            a tensor is in two of them.
    """
    folder = pathlib.Path(folder)
    tensors = {}
    for path in _weight_files(folder):
        with _opened(path) as file:
            for name in file.keys():
                if name in tensors:
                    raise ValueError(
                        "A tensor must be in one shard only. Received: "
                        f"{folder}, with {name} in {path.name} and another "
                        "file. Remove shards that belong to another "
                        "checkpoint."
                    )
                piece = file.get_slice(name)
                tensors[name] = StoredTensor(
                    path, tuple(piece.get_shape()), piece.get_dtype()
                )
    return tensors


def read(tensors, name):
    """Returns one tensor of `stored_tensors` as a NumPy array.

    The file is mapped for this tensor alone: pages of a file that stays mapped
    count as memory of the process until it is closed.
    """
    with _opened(tensors[name].path) as file:
        return file.get_tensor(name)


def read_rows(tensors, name, rows):
    """Returns a slice of a tensor's first axis as a NumPy array."""
    with _opened(tensors[name].path) as file:
        return file.get_slice(name)[rows]


def write(folder, specs, arrays, max_shard_size):
    """Writes tensors into one file, or shards and an index.

    Args:
        folder: str or path. Exists.
        specs: dict of tensor name to `(shape, dtype name)`, in the order of
            `arrays`.
        arrays: iterable of `(name, NumPy array)`, taken one by one.
        max_shard_size: int or float. A file's largest size [GB of 2^30 bytes].
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    folder = pathlib.Path(folder)
    shards = split_state_dict_into_shards_factory(
        specs,
        get_storage_size=lambda spec: _bytes(*spec),
        filename_pattern=FILE_PATTERN,
        max_shard_size=int(max_shard_size * GIB),
    )
    if shards.is_sharded:
        index = {
            "metadata": shards.metadata,
            "weight_map": shards.tensor_to_filename,
        }
        text = json.dumps(index, indent=2)
        (folder / INDEX_FILE).write_text(text, encoding="utf-8")
    for file, names in shards.filename_to_tensors.items():
        header = _header({name: specs[name] for name in names})
        (folder / file).write_bytes(header)
    # A file has its tensors in the order in which they come.
    for name, array in arrays:
        with open(folder / shards.tensor_to_filename[name], "ab") as file:
            file.write(np.ascontiguousarray(array).reshape(-1).view("uint8"))


def _header(specs):
    """The start of a file, in bytes; then come the tensors.

    `safetensors.numpy.save_file` would want all tensors at once. The format:
    8 bytes with the header's length, the header in JSON, the data.
    """
    names = {ours: theirs for theirs, ours in FLOAT_DTYPES.items()}
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, dtype) in specs.items():
        end = offset + _bytes(shape, dtype)
        header[name] = {
            "dtype": names[dtype],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes(shape, dtype):
    size = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}[dtype]
    return size * int(np.prod(shape))


def _weight_files(folder):
    if inside.has_file(folder, WEIGHTS_FILE):
        return [inside.file_inside(folder, WEIGHTS_FILE)]
    if not inside.has_file(folder, INDEX_FILE):
        raise ValueError(
            f"Weights are read from {WEIGHTS_FILE}, or from {INDEX_FILE} and "
            f"its shards. Received: {folder}, without either. Save the model "
            "with `save_pretrained(folder)` of transformers 5, which writes "
            "safetensors."
        )
    return inside.indexed_files(folder, INDEX_FILE)


def _opened(path):
    try:
        import safetensors
    except ImportError as error:
        raise ImportError(
            "Reading Hugging Face's weights needs safetensors. Received: "
            f"{path}. Install it with `pip install keras-griffin[convert]`."
        ) from error
    try:
        return safetensors.safe_open(path, framework="np")
    except safetensors.SafetensorError as error:
        raise ValueError(
            "A safetensors file must be complete and undamaged. Received: "
            f"{path} ({error}). Download it again."
        ) from error
