"""Presets whose files are damaged, of two saves, or not where they seem."""

import json
import shutil

import pytest

import keras_griffin
from keras_griffin.checkpoints import keras_weights
from keras_griffin.checkpoints import preset_loading
from support import peers
from support.models import model_with_tokenizer

pytestmark = pytest.mark.backend_independent


@pytest.fixture(scope="module")
def model():
    return model_with_tokenizer()


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory):
    """The model in every form."""
    root = tmp_path_factory.mktemp("forms")
    model.save_to_preset(root / "keras")
    model.export_to_transformers(root / "transformers", max_shard_size=1e-5)
    for framework in ("flax", "torch"):
        model.export_to_deepmind(root / framework, framework)
    return root


@pytest.fixture
def copy(folders, tmp_path):
    def copy(form):
        return shutil.copytree(folders / form, tmp_path / form)

    return copy


def test_files_of_another_save(copy):
    folder = copy("keras")
    manifest = folder / "keras_griffin_files.json"
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config + " ")
    for cls in (
        keras_griffin.GriffinCausalLM,
        keras_griffin.GriffinBackbone,
        keras_griffin.GriffinTokenizer,
        keras_griffin.GriffinCausalLMPreprocessor,
    ):
        with pytest.raises(ValueError, match="config.json has .* bytes"):
            cls.from_preset(folder)
    (folder / "config.json").write_text(config.replace("0.0", "0.1"))
    with pytest.raises(ValueError, match="config.json has another content"):
        keras_griffin.GriffinCausalLM.from_preset(folder)
    (folder / "config.json").write_text(config)
    (folder / "metadata.json").unlink()
    with pytest.raises(ValueError, match="metadata.json is missing"):
        keras_griffin.GriffinCausalLM.from_preset(folder)
    for text in ("{}", '{"files": [1]}', '{"files": {"a": 1}}'):
        manifest.write_text(text)
        with pytest.raises(ValueError, match="files.json without files"):
            keras_griffin.GriffinCausalLM.from_preset(folder)


def test_a_save_during_a_load(copy, model, monkeypatch):
    folder = copy("keras")
    read = keras_weights.read

    def read_and_save(*args):
        read(*args)
        model.save_to_preset(folder, max_shard_size=4e-5)

    monkeypatch.setattr(keras_weights, "read", read_and_save)
    with pytest.raises(ValueError, match="saved to meanwhile|saved together"):
        keras_griffin.GriffinCausalLM.from_preset(folder)


def test_links_out_of_the_folder(copy, folders, tmp_path):
    """In every form."""
    for form, name in (
        ("keras", "model.weights.h5"),
        ("keras", "config.json"),
        ("keras", "assets/tokenizer/vocabulary.spm"),
        ("transformers", "tokenizer.model"),
        ("torch", "model.pt"),
        ("flax", "model/_METADATA"),
    ):
        file = copy(form) / name
        file.unlink()
        file.symlink_to(folders / form / name)
        with pytest.raises(ValueError, match="must lie in its folder"):
            keras_griffin.GriffinCausalLM.from_preset(tmp_path / form)
        shutil.rmtree(tmp_path / form)
    folder = copy("flax")
    shutil.move(folder / "model" / "d", tmp_path / "d")
    (folder / "model" / "d").symlink_to(tmp_path / "d")
    with pytest.raises(ValueError, match="folders must be no links"):
        keras_griffin.GriffinCausalLM.from_preset(folder)


def test_index_out_of_the_folder(copy, model, folders):
    for form, index in (
        ("transformers", "model.safetensors.index.json"),
        ("keras", "model.weights.json"),
    ):
        folder = copy(form)
        if form == "keras":
            model.save_to_preset(folder, max_shard_size=4e-5)
        content = json.loads((folder / index).read_text())
        for file in ("../outside", str(folders / form / "config.json")):
            name = next(iter(content["weight_map"]))
            content["weight_map"][name] = file
            (folder.parent / "outside").touch()
            (folder / index).write_text(json.dumps(content))
            with pytest.raises(ValueError, match="must lie in its folder"):
                keras_griffin.GriffinCausalLM.from_preset(folder)


def test_kerashubs_raw_errors(copy):
    folder = copy("keras")
    (folder / "keras_griffin_files.json").unlink()
    content = json.loads((folder / "task.json").read_text())
    content["config"]["preprocessor"]["config"]["sequence_length"] = {}
    del content["config"]["preprocessor"]["config"]["tokenizer"]
    (folder / "task.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="whole and fit together.*TypeError"):
        keras_griffin.GriffinCausalLM.from_preset(folder)
    peers.edit_json(folder / "config.json", config={"dtype": 3})
    source = preset_loading.PresetSource("keras", str(folder))
    with pytest.raises(ValueError, match="config.json must tell the dtype"):
        preset_loading.stored_dtype(source)


def test_a_tokenizer_that_is_none(copy, tmp_path):
    folder = copy("transformers")
    for content in (b"", b"no model", b"x" * 4096):
        (folder / "tokenizer.model").write_bytes(content)
        with pytest.raises(ValueError, match="must be a SentencePiece model"):
            keras_griffin.GriffinTokenizer.from_preset(folder)
        with pytest.raises(ValueError, match="must be a SentencePiece model"):
            keras_griffin.GriffinTokenizer(content)
    with pytest.raises(ValueError, match="no folder, pipe or device"):
        keras_griffin.GriffinTokenizer("/dev/zero")


def test_weights_of_keras(model, tmp_path):
    model.save(tmp_path / "a.keras")
    content = bytearray((tmp_path / "a.keras").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a.keras").write_bytes(content)
    with pytest.raises(ValueError, match="whole and fit together.*BadZipFile"):
        model.load_weights(tmp_path / "a.keras")
    with pytest.raises(FileNotFoundError, match="must exist to be read"):
        model.load_weights(tmp_path / "b.weights.h5")
    model.save_weights(tmp_path / "c.weights.json", max_shard_size=4e-5)
    model.load_weights(tmp_path / "c.weights.json")
    shards = sorted(tmp_path.glob("c_*.weights.h5"))
    model.save_weights(tmp_path / "c.weights.json", max_shard_size=1)
    assert sorted(tmp_path.glob("c_*.weights.h5")) == shards[:1]
    shards[0].write_bytes(b"no")
    with pytest.raises(ValueError, match="must be a whole HDF5 file"):
        model.load_weights(tmp_path / "c.weights.json")
