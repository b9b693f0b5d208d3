"""A backbone's weights in Keras' own HDF5 files, at the speed of memory.

Keras reads and writes the same files, with the same names. It converts every
number on the way, on PyTorch through float32: six times as long for bfloat16.
Here a file's bytes are mapped, as those of a safetensors file are.
"""

import contextlib
import dataclasses
import json
import math
import pathlib

import h5py
import numpy as np

from keras_griffin.checkpoints import arrays
from keras_griffin.checkpoints import weight_map
from keras_griffin.checkpoints.weight_map import Weight
from keras_griffin.checkpoints.weight_map import WeightMap

GIB = 1024**3  # bytes; Keras' "GB" in `max_shard_size`
DTYPE = "dtype"  # Keras' attribute of a dataset that HDF5 knows as raw bytes
INDEX, SHARD = ".weights.json", "{}_{:05}.weights.h5"
FIRST = "residual_block/"
KERNEL = ("kernel",)
DENSE = ("kernel", "bias")
ADAPTER = "lora_kernel"  # how the names of its weights begin


@dataclasses.dataclass(frozen=True)
class _Stored:
    """Where a tensor is: file, shape, dtype's name, first byte or `None`."""

    path: pathlib.Path
    shape: tuple
    dtype: str
    start: int | None


def _rows(layers, ours="", theirs=""):
    """Rows of layers, each with its variables in the order of its file."""
    return tuple(
        Weight(f"{ours}{layer}.{name}", f"{theirs}{group}/vars/{index}")
        for layer, (group, names) in layers.items()
        for index, name in enumerate(names)
    )


def _block_rows(layers):
    layers = {x: (x.replace(".", "/"), names) for x, names in layers.items()}
    return _rows(layers, "blocks.{block}.", "layers/residual_block_{block}/")


_RECURRENT = {
    "temporal.linear_x": DENSE,
    "temporal.linear_y": DENSE,
    "temporal.conv": DENSE,
    "temporal.rglru": ("recurrence_param",),
    "temporal.rglru.input_gate": DENSE,
    "temporal.rglru.recurrence_gate": DENSE,
    "temporal.linear_out": DENSE,
}
KERAS = WeightMap(
    name="Keras' format",
    model=_rows(
        {
            "token_embedding": (
                "layers/reversible_embedding",
                ("embeddings",),
            ),
            "final_norm": ("layers/rms_normalization", ("scale",)),
        }
    ),
    block=_block_rows(
        {
            "temporal_norm": ("scale",),
            "mlp_norm": ("scale",),
            "mlp.gate": DENSE,
            "mlp.up": DENSE,
            "mlp.down": DENSE,
        }
    ),
    recurrent=_block_rows(_RECURRENT),
    attention=_block_rows(
        {
            "temporal.query": KERNEL,
            "temporal.key": KERNEL,
            "temporal.value": KERNEL,
            "temporal.output_dense": DENSE,
        }
    ),
    phase=(
        Weight(
            "blocks.{block}.temporal.rglru.phase_param",
            "layers/residual_block_{block}/temporal/rglru/vars/1",
        ),
    ),
)


def can_read(model):
    """Whether a model is a backbone of floats without adapters."""
    return hasattr(model, "block_types") and (
        len(_table(model)) == len(model.weights)
    )


def can_write(model):
    """Whether a model is a backbone of floats; adapters are merged."""
    if not hasattr(model, "block_types"):
        return False
    names = [weight.name for weight in model.weights]
    merged = [name for name in names if not name.startswith(ADAPTER)]
    return len(_table(model)) == len(merged)


def read(backbone, files):
    """Loads what `write`, or Keras, has written.

    Args:
        backbone: `GriffinBackbone`, see `can_read`.
        files: paths of one file, or of all shards.

    Raises:
        ValueError: if a tensor is missing, unknown, of another shape, or not
            finite.
    """
    tensors = {}
    for path in files:
        tensors |= _stored(path)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    weight_map.load(
        _table(backbone),
        backbone,
        shapes,
        lambda name: _read(tensors[name], name),
        f"{str(files[0])!r}",
    )


def write(backbone, path, max_shard_size=None):
    """Writes a file that Keras reads, or shards and their index.

    Args:
        backbone: `GriffinBackbone`, see `can_write`.
        path: path, ending in `.weights.h5`, or with a `max_shard_size` in
            `.weights.json`.
        max_shard_size: int or float [GB of 2^30 bytes]. Defaults to `None`:
            one file.

    Raises:
        ValueError: if a weight is larger than a shard may be.
    """
    table = _table(backbone)
    path = pathlib.Path(path)
    files = dict.fromkeys([row.tensor for row in table], path.name)
    if max_shard_size is not None:
        files = _shards(path, _bytes(table, backbone), max_shard_size * GIB)
        _write_index(path, files, sum(_bytes(table, backbone).values()))
    with contextlib.ExitStack() as stack:
        opened = {
            file: stack.enter_context(h5py.File(path.with_name(file), "w"))
            for file in dict.fromkeys(files.values())
        }
        for name, value in weight_map.export(table, backbone):
            dataset = opened[files[name]].create_dataset(name, data=value)
            # As Keras does: HDF5 has no bfloat16 and keeps its bytes.
            if dataset.dtype.kind == "V":
                dataset.attrs[DTYPE] = value.dtype.name


def _table(backbone):
    """The rows of `KERAS`: Keras does not count its first block."""
    return [
        dataclasses.replace(
            row, tensor=row.tensor.replace("residual_block_0/", FIRST)
        )
        for row in weight_map.rows(KERAS, backbone)
    ]


def _stored(path):
    """Returns `{name: _Stored}` of the layers' datasets of one file."""
    found = {}

    def look(name, item):
        if isinstance(item, h5py.Dataset) and name.startswith("layers/"):
            dtype = item.attrs.get(DTYPE, item.dtype.name)
            start = item.id.get_offset()
            found[name] = _Stored(path, item.shape, dtype, start)

    with h5py.File(path, "r") as file:
        file.visititems(look)
    return found


def _read(tensor, name):
    """One tensor; HDF5's own reading is for what is not in one piece."""
    dtype = arrays.np_dtype(tensor.dtype)
    if tensor.start is None:
        with h5py.File(tensor.path, "r") as file:
            return file[name][()].view(dtype)
    mapped = np.memmap(
        tensor.path, dtype, "c", offset=tensor.start, shape=tensor.shape
    )
    return mapped.view(np.ndarray)


def _bytes(table, backbone):
    """Returns `{name: bytes}` of a backbone's weights."""
    dtypes = weight_map.tensor_dtypes(table, backbone)
    return {
        name: math.prod(shape) * arrays.np_dtype(dtypes[name]).itemsize
        for name, shape in weight_map.tensor_shapes(table, backbone).items()
    }


def _shards(path, sizes, limit):
    """Returns `{name: file name}`, each file filled up to `limit` bytes."""
    stem = path.name.removesuffix(INDEX)
    files, index, used = {}, 0, 0
    for name, size in sizes.items():
        if size > limit:
            raise ValueError(
                "A shard must be able to hold the largest weight. Received: "
                f"max_shard_size={limit / GIB:.2f} GB, and {name} of "
                f"{size / GIB:.2f} GB. Allow larger shards."
            )
        if used + size > limit:
            index, used = index + 1, 0
        files[name], used = SHARD.format(stem, index), used + size
    return files


def _write_index(path, files, total):
    """Writes Keras' index: of each layer's group its file, or files."""
    groups = {}
    for name, file in files.items():
        groups.setdefault("/" + name.rpartition("/")[0], {})[file] = None
    weight_map_ = {
        group: list(names) if len(names) > 1 else next(iter(names))
        for group, names in groups.items()
    }
    index = {"metadata": {"total_size": total}, "weight_map": weight_map_}
    path.write_text(json.dumps(index, indent=4), encoding="utf-8")
