"""Folders of safetensors: one file, or an index and its shards.

Read one tensor at a time and written one tensor at a time, so that neither
takes more memory than the largest tensor.
"""

import dataclasses
import json
import pathlib

import ml_dtypes
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
LENGTH = 8  # bytes, of the number at the start


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """What a file's header says of one tensor.

    Args:
        path: path of the file.
        shape: tuple of ints.
        dtype: str. A key of `FLOAT_DTYPES`, or another name of the format.
        start: int. Where its numbers begin in the file [bytes].
    """

    path: pathlib.Path
    shape: tuple
    dtype: str
    start: int


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
        _check_file(path)
        for name, (shape, dtype, start) in _read_header(path).items():
            if name in tensors:
                raise ValueError(
                    "A tensor must be in one shard only. Received: "
                    f"{folder}, with {name} in {path.name} and another "
                    "file. Remove shards that belong to another "
                    "checkpoint."
                )
            tensors[name] = StoredTensor(path, shape, dtype, start)
    return tensors


def read(tensors, name):
    """Returns one tensor of `stored_tensors` as a NumPy array.

    It is the file's own memory, mapped: nothing is copied until somebody
    writes to it, and the file itself stays as it is.
    """
    tensor = tensors[name]
    dtype = FLOAT_DTYPES[tensor.dtype]
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    mapped = np.memmap(
        tensor.path, dtype, "c", offset=tensor.start, shape=tensor.shape
    )
    return mapped.view(np.ndarray)


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
    return len(text).to_bytes(LENGTH, "little") + text


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


def _check_file(path):
    """Has safetensors check a file's header, sizes and offsets included."""
    try:
        import safetensors
    except ImportError as error:
        raise ImportError(
            "Reading Hugging Face's weights needs safetensors. Received: "
            f"{path}. Install it with `pip install keras-griffin[convert]`."
        ) from error
    try:
        with safetensors.safe_open(path, framework="np"):
            pass
    except safetensors.SafetensorError as error:
        raise ValueError(
            "A safetensors file must be complete and undamaged. Received: "
            f"{path} ({error}). Download it again."
        ) from error


def _read_header(path):
    """Returns `{name: (shape, dtype, start)}` of a file that was checked.

    safetensors gives copies only, which take as long again as the file's
    pages.
    """
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(LENGTH), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {
        name: (
            tuple(tensor["shape"]),
            tensor["dtype"],
            LENGTH + size + tensor["data_offsets"][0],
        )
        for name, tensor in header.items()
    }
