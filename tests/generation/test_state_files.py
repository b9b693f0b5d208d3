"""Files that are no state, or claim to be a large one."""

import zipfile

import numpy as np
import pytest

from support.models import tiny_model

pytestmark = pytest.mark.backend_independent


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def file(model, tmp_path):
    model.save_state(model.init_state(1), tmp_path / "state.npz")
    return tmp_path / "state.npz"


def rewrite(file, change):
    """Replaces the members of a zip file by `change(name, content)`."""
    with zipfile.ZipFile(file) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, "w") as new:
        for name, content in members.items():
            new.writestr(name, change(name, content))


def test_a_shape_without_numbers(model, file):
    """It would take all memory before it is found to be short."""

    def change(name, content):
        return content.replace(b"(1,", b"(9000000000,", 1).replace(
            b" " * len("900000000"), b"", 1
        )

    rewrite(file, change)
    with pytest.raises(ValueError, match="without as many numbers"):
        model.load_state(file)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"x" * 1000])
def test_no_archive(model, file, content):
    file.write_bytes(content)
    with pytest.raises(ValueError, match="a file of `save_state`"):
        model.load_state(file)


def test_compressed_and_pickled(model, file):
    with np.load(file) as arrays:
        np.savez_compressed(file, **arrays)
    with pytest.raises(ValueError, match="a file of `save_state`"):
        model.load_state(file)
    np.savez(file, length=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="a file of `save_state`"):
        model.load_state(file)


def test_a_path_that_is_none(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="must exist to be read"):
        model.load_state(tmp_path / "state.npz")
    with pytest.raises(ValueError, match="no folder, pipe or device"):
        model.load_state(tmp_path)
    with pytest.raises(FileNotFoundError, match="folder that exists"):
        model.save_state(model.init_state(1), tmp_path / "no" / "state.npz")
