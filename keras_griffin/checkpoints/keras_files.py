"""Keras' own files of a model, `.keras` and weights: whole or not at all.

Keras writes them in place and reads them trustingly. The functions here are
methods of the models; `keras.saving.save_model` and `load_model` are not
theirs and do as Keras does.
"""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
import zipfile
from typing import Any

import keras

from keras_griffin.checkpoints import arrays
from keras_griffin.checkpoints import keras_weights
from keras_griffin.checkpoints import sizes
from keras_griffin.files import inside
from keras_griffin.files.whole import check_room
from keras_griffin.files.whole import finish
from keras_griffin.files.whole import is_partial
from keras_griffin.files.whole import whole_file
from keras_griffin.files.whole import whole_folder

# Beside the numbers: HDF5's own, a model card, a tokenizer [bytes].
ROOM_FOR_ALL_ELSE, ROOM_FOR_A_WEIGHT = 2**24, 2**12
FILE, SHARDS = ".weights.h5", ".weights.json"
# What Keras and HDF5 raise when a file is not what it should be.
DAMAGE = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    zipfile.BadZipFile,
)


def save(
    self,
    filepath: str | os.PathLike[str],
    overwrite: bool = True,
    zipped: bool | None = None,
    **kwargs: Any,
) -> None:
    """Saves the model as a `.keras` file. See `keras.Model.save`.

    An old file is replaced when the new one is written.

    Args:
        filepath: str or path.
        overwrite: bool. Whether an old file is replaced without a question.
            Defaults to `True`.
        zipped: bool. `False` writes a folder. Defaults to `None`: a file.

    Raises:
        OSError: if the disk is full.
    """
    with _written(self, filepath, overwrite and zipped is not False) as file:
        keras.Model.save(self, file, overwrite, zipped, **kwargs)


def save_weights(
    self,
    filepath: str | os.PathLike[str],
    overwrite: bool = True,
    max_shard_size: float | None = None,
) -> None:
    """Saves all weights. See `keras.Model.save_weights`.

    Old files are replaced when the new ones are written.

    Args:
        filepath: str or path, ending in `.weights.h5`, or with a
            `max_shard_size` in `.weights.json`.
        overwrite: bool. Whether an old file is replaced without a question.
            Defaults to `True`.
        max_shard_size: int or float [GB]. Defaults to `None`: one file.

    Raises:
        OSError: if the disk is full.
    """
    with _written(self, filepath, overwrite) as file:
        if _is_new(file, max_shard_size) and keras_weights.can_write(self):
            keras_weights.write(self, file, max_shard_size)
        else:
            keras.Model.save_weights(self, file, overwrite, max_shard_size)


def load_weights(
    self,
    filepath: str | os.PathLike[str],
    skip_mismatch: bool = False,
    **kwargs: Any,
) -> None:
    """Loads weights that were saved. See `keras.Model.load_weights`.

    Args:
        filepath: str or path. A file of `save_weights` or `save`.
        skip_mismatch: bool. Whether to leave layers alone that do not fit.
            Defaults to `False`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a damaged file, or one of another model.
    """
    files = [] if _is_remote(filepath) else _checked(pathlib.Path(filepath))
    with explained(filepath):
        if files and not skip_mismatch and keras_weights.can_read(self):
            keras_weights.read(self, files)
        else:
            keras.Model.load_weights(self, filepath, skip_mismatch, **kwargs)


def _checked(path):
    """The HDF5 files that `path` is, or names; each is a whole one."""
    finish(path.parent)
    inside.regular_file(path)
    files = []
    if path.name.endswith(".h5"):
        files = [path]
    elif path.name.endswith(SHARDS):
        files = inside.indexed_files(path.parent, path.name)
    for file in files:
        sizes.hdf5_elements(file)
    return files


@contextlib.contextmanager
def explained(origin):
    """Says of what Keras and HDF5 raise that a file is damaged.

    Args:
        origin: str or path. What is loaded.

    Raises:
        ValueError: for one of `DAMAGE`.
    """
    try:
        yield
    except DAMAGE as error:
        # Of the backends' errors, no memory say, none is just one of these.
        if type(error) not in DAMAGE:
            raise
        raise ValueError(
            "Saved files must be whole and fit together. Received: "
            f"{str(origin)!r} ({type(error).__name__}: {error}). Copy or "
            "download them again; if you gave arguments, check them."
        ) from error


def save_lora_weights(save, backbone, filepath):
    """Runs KerasHub's `save_lora_weights`, whole or not at all."""
    with _written(backbone, filepath, True) as file:
        save(file)


def hdf5_bytes(model):
    """How much room a model's weights take in an HDF5 file, at most [bytes]."""
    variables = [*model.variables]
    if getattr(model, "optimizer", None) is not None:
        variables += model.optimizer.variables
    return ROOM_FOR_ALL_ELSE + sum(
        math.prod(v.shape) * arrays.np_dtype(v.dtype).itemsize
        + ROOM_FOR_A_WEIGHT
        for v in variables
    )


@contextlib.contextmanager
def _written(model, path, replace):
    """Gives the path that Keras writes to, to become `path`."""
    asks = not replace and os.path.exists(path)
    if asks or _is_remote(path) or is_partial(path):
        yield path
        return
    check_room(path, hdf5_bytes(model))
    path = pathlib.Path(path)
    if not path.name.endswith(SHARDS):
        with whole_file(path) as file:
            yield file
        return
    stale = (path.name.replace(SHARDS, "_*.weights.h5"),)
    with whole_folder(path.parent, replace=True, stale=stale) as folder:
        yield folder / path.name


def _is_new(path, max_shard_size):
    """Whether `path` is a new local file of the right name.

    Keras refuses a wrong name, and asks before it replaces a file.
    """
    ending = FILE if max_shard_size is None else SHARDS
    return (
        str(path).endswith(ending)
        and not _is_remote(path)
        and not os.path.exists(path)
    )


def _is_remote(path):
    return "://" in str(path)
