"""`save_to_preset`, exports, model cards and uploads."""

import types

import keras
import keras_hub
import pytest

import keras_griffin
from keras_griffin.checkpoints import keras_weights
from support.models import assert_same_weights
from support.models import model_with_tokenizer
from support.models import randomize

pytestmark = pytest.mark.slow

SHARD = 4e-5  # GB


@pytest.fixture(scope="module")
def model():
    return model_with_tokenizer()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save_to_preset(str(folder))
    return folder


@pytest.mark.backend_independent
@pytest.mark.parametrize("max_shard_size", [10, None, SHARD])
def test_save_to_preset(model, tmp_path, max_shard_size):
    model.save_to_preset(tmp_path / "model", max_shard_size)
    shards = sorted((tmp_path / "model").glob("model_*.weights.h5"))
    assert (len(shards) > 1) == (max_shard_size == SHARD)
    loaded = keras_griffin.GriffinCausalLM.from_preset(tmp_path / "model")
    assert_same_weights(loaded, model)
    again = keras_griffin.GriffinBackbone.from_preset(tmp_path / "model")
    assert_same_weights(again, model.backbone)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keras_files(model, tmp_path, dtype):
    config = {**model.backbone.get_config(), "dtype": dtype}
    backbone = keras_griffin.GriffinBackbone.from_config(config)
    randomize(backbone)
    whole = keras_griffin.GriffinCausalLM(backbone, model.preprocessor)
    # As `fit` does; Keras warns of an optimizer that has seen no variables.
    whole.optimizer.build(whole.trainable_variables)
    whole.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_same_weights(loaded, whole)
    assert {v.dtype for v in loaded.weights} == {dtype}
    assert loaded.preprocessor.tokenizer("fox").tolist() == (
        model.preprocessor.tokenizer("fox").tolist()
    )


@pytest.mark.backend_independent
def test_saving_again_leaves_no_old_weights(model, tmp_path):
    """KerasHub reads one old file rather than the new shards."""
    backbone = keras_griffin.GriffinBackbone.from_config(
        model.backbone.get_config()
    )
    other = keras_griffin.GriffinCausalLM(backbone, model.preprocessor)
    other.save_to_preset(tmp_path)
    assert (tmp_path / "model.weights.h5").exists()
    (tmp_path / "notes.txt").write_text("mine")
    model.save_to_preset(tmp_path, SHARD)
    assert not (tmp_path / "model.weights.h5").exists()
    assert_same_weights(
        keras_griffin.GriffinCausalLM.from_preset(tmp_path), model
    )
    other.save_to_preset(tmp_path)
    assert not list(tmp_path.glob("model_*"))
    assert not (tmp_path / "model.weights.json").exists()
    assert_same_weights(
        keras_griffin.GriffinCausalLM.from_preset(tmp_path), other
    )
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.backend_independent
def test_a_save_that_fails_changes_nothing(model, tmp_path, monkeypatch):
    model.save_to_preset(tmp_path / "old")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "old").iterdir()}

    def fail(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(keras_weights, "write", fail)
    for name in ("old", "new"):
        with pytest.raises(OSError, match="No space left"):
            model.save_to_preset(tmp_path / name)
    assert list(tmp_path.iterdir()) == [tmp_path / "old"]
    assert before == {
        p: p.stat().st_mtime_ns for p in (tmp_path / "old").iterdir()
    }


@pytest.mark.backend_independent
def test_model_card(saved, model, tmp_path):
    card = (saved / "README.md").read_text(encoding="utf-8")
    head, _, text = card.removeprefix("---\n").partition("---\n")
    assert "library_name: keras-hub" in head
    assert "pipeline_tag: text-generation" in head
    assert f"{model.backbone.count_params():,} parameters in float32" in text
    assert "3 blocks (2 recurrent, 1 local_attention)" in text
    assert "| attention_window_size | 5 |" in text
    assert "To be completed by the author" in text
    code = text.split("```python\n")[1].split("```")[0]
    names = {}
    exec(code.replace("<this folder>", str(saved)), names)
    assert isinstance(names["model"], keras_griffin.GriffinCausalLM)


@pytest.mark.backend_independent
def test_a_card_of_the_user_stays(model, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    model.save_to_preset(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.backend_independent
def test_upload_to_hugging_face(saved, tmp_path, monkeypatch):
    import shutil

    import huggingface_hub

    folder = shutil.copytree(saved, tmp_path / "model")
    card = (folder / "README.md").read_text()
    uploaded = []

    def upload_folder(repo_id, folder_path):
        files = sorted(p.name for p in folder.iterdir())
        text = (folder / "README.md").read_text()
        uploaded.append((repo_id, folder_path, files, text))

    def create_repo(repo_id, exist_ok):
        return types.SimpleNamespace(repo_id=repo_id)

    has_card = True
    monkeypatch.setattr(huggingface_hub, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)
    monkeypatch.setattr(
        huggingface_hub, "file_exists", lambda repo_id, filename: has_card
    )
    keras_hub.upload_preset("hf://someone/griffin", str(folder))
    ((repository, path, files, text),) = uploaded
    assert (repository, path, text) == ("someone/griffin", str(folder), card)
    assert {
        "README.md",
        "config.json",
        "model.weights.h5",
        "preprocessor.json",
        "task.json",
        "tokenizer.json",
    } <= set(files)
    # KerasHub 0.32 writes a card of its own, and removes README.md, where the
    # repository has none yet.
    has_card = False
    keras_hub.upload_preset("hf://someone/griffin", str(folder))
    assert "`Griffin` model" in uploaded[1][3]
    assert not (folder / "README.md").exists()


@pytest.mark.backend_independent
def test_upload_to_kaggle(saved, monkeypatch, model, tmp_path):
    import kagglehub

    calls = []
    monkeypatch.setattr(
        kagglehub, "model_upload", lambda *call: calls.append(call)
    )
    uri = "kaggle://someone/griffin/keras/small"
    keras_hub.upload_preset(uri, str(saved))
    assert calls == [("someone/griffin/keras/small", str(saved))]
    model.save_to_preset(tmp_path, SHARD)  # shards are weights, too
    keras_hub.upload_preset(uri, str(tmp_path))
    assert len(calls) == 2


# --- Conversions ---
