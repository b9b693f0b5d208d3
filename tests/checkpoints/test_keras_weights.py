"""Keras and this package read and write the same HDF5 files."""

import h5py
import keras
import numpy as np
import pytest

import keras_griffin
from keras_griffin.checkpoints import keras_weights
from support import peers
from support.checks import to_numpy
from support.models import assert_same_weights
from support.models import randomize
from support.once import once

SHARD = 4e-5  # GB


def make(**changes):
    backbone = keras_griffin.GriffinBackbone(**{**peers.GRIFFIN, **changes})
    randomize(backbone)
    return backbone


def datasets(file):
    found = []
    file.visititems(lambda _, item: found.append(item))
    return [item for item in found if isinstance(item, h5py.Dataset)]


@pytest.fixture(params=[None, SHARD], ids=["one file", "shards"])
def file(request, tmp_path):
    ending = "h5" if request.param is None else "json"
    return tmp_path / f"model.weights.{ending}", request.param


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "bfloat16"},
        *once({"recurrence": "complex"}, {"dtype": "float16"}),
    ],
    ids=str,
)
def test_keras_reads_it(changes, file):
    path, max_shard_size = file
    written, read = make(**changes), make(**changes)
    written.save_weights(path, max_shard_size=max_shard_size)
    keras.Model.load_weights(read, path)
    assert_same_weights(read, written)
    shards = sorted(path.parent.glob("model_*.weights.h5"))
    assert (len(shards) > 1) == (max_shard_size is not None)
    for shard in shards:
        with h5py.File(shard) as opened:
            size = sum(x.nbytes for x in datasets(opened))
            assert 0 < size <= SHARD * keras_weights.GIB


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "bfloat16"},
        *once({"recurrence": "complex"}, {"dtype": "float16"}),
    ],
    ids=str,
)
def test_what_keras_wrote(changes, file, monkeypatch):
    path, max_shard_size = file
    written, read = make(**changes), make(**changes)
    keras.Model.save_weights(written, path, max_shard_size=max_shard_size)
    monkeypatch.setattr(keras.Model, "load_weights", None)  # is not called
    read.load_weights(path)
    assert_same_weights(read, written)


@pytest.mark.backend_independent
def test_names_of_keras(tmp_path):
    ours, theirs = tmp_path / "a.weights.h5", tmp_path / "b.weights.h5"
    backbone = make(recurrence="complex", dropout=0.1)
    backbone.save_weights(ours)
    keras.Model.save_weights(backbone, theirs)
    names = []
    for path in (ours, theirs):
        with h5py.File(path) as file:
            names.append({(x.name, x.shape, x.dtype) for x in datasets(file)})
    assert names[0] == names[1]


@pytest.mark.backend_independent
def test_another_dtype(tmp_path):
    path = tmp_path / "model.weights.h5"
    written, read = make(dtype="float32"), make(dtype="bfloat16")
    written.save_weights(path)
    read.load_weights(path)
    for ours, theirs in zip(read.weights, written.weights, strict=True):
        expected = to_numpy(keras.ops.cast(theirs.value, "bfloat16"))
        np.testing.assert_array_equal(to_numpy(ours.value), expected)


@pytest.mark.backend_independent
def test_a_file_in_pieces(tmp_path):
    path = tmp_path / "model.weights.h5"
    written, read = make(dtype="bfloat16"), make(dtype="bfloat16")
    written.save_weights(path)
    name = "layers/residual_block_1/mlp/down/vars/0"
    with h5py.File(path, "a") as file:
        value, attributes = file[name][()], dict(file[name].attrs)
        del file[name]
        pieces = file.create_dataset(name, data=value, chunks=(8, 8))
        pieces.attrs.update(attributes)
    read.load_weights(path)
    assert_same_weights(read, written)


@pytest.mark.backend_independent
def test_adapters_are_merged(tmp_path):
    path = tmp_path / "model.weights.h5"
    written = make()
    written.enable_lora(2)
    randomize(written)
    written.save_weights(path)
    read = make()
    read.load_weights(path)
    kernels = [m.blocks[0].temporal.linear_x.kernel for m in (read, written)]
    np.testing.assert_allclose(*map(to_numpy, kernels), rtol=1e-6, atol=1e-6)
    # A model with adapters reads by Keras, which leaves them alone.
    written.load_weights(path)


@pytest.mark.backend_independent
def test_a_weight_that_is_missing(tmp_path):
    path = tmp_path / "model.weights.h5"
    make().save_weights(path)
    with h5py.File(path, "a") as file:
        del file["layers/residual_block/mlp/down"]
    with pytest.raises(ValueError, match="without layers/residual_block/mlp"):
        make().load_weights(path)


@pytest.mark.backend_independent
def test_shards_that_are_too_small(tmp_path):
    with pytest.raises(ValueError, match="Allow larger shards"):
        make().save_weights(tmp_path / "model.weights.json", True, 1e-9)
    assert not list(tmp_path.iterdir())
