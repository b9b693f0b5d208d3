import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from keras_griffin.checkpoints import safetensors_folder

pytestmark = pytest.mark.backend_independent

TENSORS = {
    "a": np.arange(6, dtype="float32").reshape(2, 3).T,  # not contiguous
    "b": np.arange(5).astype(ml_dtypes.bfloat16),
    "c": np.ones((2, 2, 2), "float16"),
    "d": np.zeros((3,), "float64"),
}


def write(folder, max_shard_size):
    specs = {name: (x.shape, x.dtype.name) for name, x in TENSORS.items()}
    safetensors_folder.write(folder, specs, TENSORS.items(), max_shard_size)


def test_one_file_is_what_safetensors_reads(tmp_path):
    write(tmp_path, 1)
    loaded = load_file(tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == [tmp_path / "model.safetensors"]
    assert set(loaded) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        np.testing.assert_array_equal(loaded[name], tensor)


def test_shards_are_below_the_limit_or_one_tensor(tmp_path):
    write(tmp_path, 26 / safetensors_folder.GIB)  # bytes: 24 | 10 + 16 | 24
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 2, 3)]
    assert index == {
        "metadata": {"total_size": 74},
        "weight_map": dict(zip("abcd", names, strict=True)),
    }
    stored = safetensors_folder.stored_tensors(tmp_path)
    assert {name: x.path.name for name, x in stored.items()} == (
        index["weight_map"]
    )


# Bytes: one file; two tensors in one; files in another order than tensors.
@pytest.mark.parametrize("limit", [80, 26, 23])
def test_read_back(tmp_path, limit):
    write(tmp_path, limit / safetensors_folder.GIB)
    stored = safetensors_folder.stored_tensors(tmp_path)
    for name, tensor in TENSORS.items():
        assert stored[name].shape == tensor.shape
        loaded = safetensors_folder.read(stored, name)
        assert loaded.dtype == tensor.dtype
        np.testing.assert_array_equal(loaded, tensor)


def test_what_is_read_can_be_written_to_and_the_file_stays(tmp_path):
    write(tmp_path, 1)
    stored = safetensors_folder.stored_tensors(tmp_path)
    safetensors_folder.read(stored, "a")[:] = 0
    again = safetensors_folder.read(stored, "a")
    np.testing.assert_array_equal(again, TENSORS["a"])
