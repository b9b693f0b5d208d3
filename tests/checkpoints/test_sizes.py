"""Absurd sizes in every form are refused before anything is built."""

import json
import shutil

import h5py
import numpy as np
import pytest
import torch

import keras_griffin
from keras_griffin.checkpoints import deepmind_archive
from keras_griffin.checkpoints import sizes
from support import peers
from support.models import model_with_tokenizer

pytestmark = pytest.mark.backend_independent

FORMS = ("keras", "transformers", "flax", "torch")
ABSURD = (10**9, 2**31, 10**30)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("forms")
    model = model_with_tokenizer()
    model.save_to_preset(root / "keras")
    (root / "keras" / "keras_griffin_files.json").unlink()
    model.export_to_transformers(root / "transformers")
    for framework in ("flax", "torch"):
        model.export_to_deepmind(root / framework, framework)
    return root


@pytest.fixture
def copy(folders, tmp_path):
    def copy(form):
        return shutil.copytree(folders / form, tmp_path / form)

    return copy


def change(folder, form, name, value):
    """Sets an argument of the backbone, by its name in a form."""
    if form == "keras":
        for file in ("config.json", "task.json"):
            content = json.loads((folder / file).read_text())
            config = content["config"]
            config.get("backbone", content)["config"][name] = value
            (folder / file).write_text(json.dumps(content))
    elif form == "transformers":
        theirs = {
            "num_layers": "num_hidden_layers",
            "vocabulary_size": "vocab_size",
            "conv_kernel_size": "conv1d_width",
        }
        peers.edit_json(folder / "config.json", **{theirs[name]: value})
    else:
        path = folder / deepmind_archive.SETTINGS_FILE
        peers.edit_json(path, **{name: value})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name", ["num_layers", "vocabulary_size", "conv_kernel_size"]
)
def test_absurd_counts(copy, form, name):
    folder = copy(form)
    for value in ABSURD:
        change(folder, form, name, value)
        for cls in (
            keras_griffin.GriffinCausalLM,
            keras_griffin.GriffinBackbone,
        ):
            with pytest.raises(ValueError, match="must be that of the weights"):
                cls.from_preset(folder)
    if name == "num_layers":
        match = "at most|must be that of the weights"
        with pytest.raises(ValueError, match=match):
            keras_griffin.GriffinBackbone.from_preset(
                folder, load_weights=False
            )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [0, -1, 2.5, "3", None, [], True])
def test_counts_that_are_none(copy, form, value):
    folder, match = copy(form), "must be a positive integer"
    change(folder, form, "num_layers", value)
    if form == "transformers" and value is None:
        # It takes 26 layers then, as transformers does.
        match = "must be that of the weights"
    with pytest.raises(ValueError, match=match):
        keras_griffin.GriffinCausalLM.from_preset(folder)


@pytest.mark.parametrize("name", ["config.json", "task.json"])
def test_each_file_alone(copy, name):
    folder = copy("keras")
    content = json.loads((folder / name).read_text())
    config = content["config"].get("backbone", content)["config"]
    config["num_layers"] = 10**9
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"weights beside it.*{name}"):
        keras_griffin.GriffinCausalLM.from_preset(folder)
    content["config"] = 3
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{name} must hold an object's"):
        keras_griffin.GriffinCausalLM.from_preset(folder)


def test_other_arguments():
    good = {**peers.GRIFFIN, "vocabulary_size": 9}
    assert sizes.check(good, None, "x")["conv_kernel_size"] == 4
    for change, match in (
        ({"attention_window_size": 2**40}, "at most 16,777,216"),
        ({"block_types": ["a"]}, "must be a list of recurrent"),
        ({"block_types": 3}, "must be a list of recurrent"),
        ({"num_layers": 10**5}, "10,000 layers"),
        ({"vocabulary_size": 2**40}, "parameters at most"),
    ):
        with pytest.raises(ValueError, match=match):
            sizes.check({**good, **change}, None, "x")
    with pytest.raises(ValueError, match="must be a dict"):
        sizes.check(None, None, "x")


def hdf5(path, fill):
    with h5py.File(path, "w") as file:
        fill(file)
    return path


@pytest.mark.parametrize(
    "fill, received",
    [
        (lambda f: f.create_dataset("x", (2**40,)), "shape without values"),
        (
            lambda f: f.create_dataset(
                "x", (4,), external=[("other", 0, h5py.h5f.UNLIMITED)]
            ),
            "in other files",
        ),
        (
            lambda f: f.__setitem__("x", h5py.ExternalLink("o", "/x")),
            "a link elsewhere",
        ),
        (lambda f: f.__setitem__("x", h5py.SoftLink("/y")), "a link elsewhere"),
    ],
)
def test_hdf5_that_is_not_what_it_says(tmp_path, fill, received):
    path = hdf5(tmp_path / "model.weights.h5", fill)
    with pytest.raises(ValueError, match=f"hold them itself.*{received}"):
        sizes.hdf5_elements(path)


def test_elements_of_hdf5(tmp_path):
    def fill(file):
        file["a/x"] = np.zeros((2, 3))
        file["a/loop"] = file["a"]
        file["again"] = file["a/x"]

    assert sizes.hdf5_elements(hdf5(tmp_path / "x.h5", fill)) == 6


def test_torch_shapes_without_values(copy):
    folder = copy("torch")
    path = folder / deepmind_archive.TORCH_FILE
    params = torch.load(path, weights_only=True)
    name = next(iter(params))
    for value, match in (
        (torch.zeros(1).expand(2**40), "shape without values"),
        (torch.zeros(2, device="meta"), "must hold a state dict"),
        (torch.zeros(2).to_sparse(), "must hold a state dict"),
    ):
        torch.save({**params, name: value}, path)
        with pytest.raises(ValueError, match=match):
            keras_griffin.GriffinCausalLM.from_preset(folder)
    torch.save({**params, 3: torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="must hold a state dict"):
        keras_griffin.GriffinCausalLM.from_preset(folder)


def test_compression(tmp_path):
    (tmp_path / "x").write_bytes(b"0" * 100)
    sizes.check_compression(tmp_path, 2**32)
    with pytest.raises(ValueError, match="stored in full.*files of 100"):
        sizes.check_compression(tmp_path, 2**33)
