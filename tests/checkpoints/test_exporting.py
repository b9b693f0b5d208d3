"""`save_to_preset`, model cards, uploads and conversions."""

import json
import types

import keras
import keras_hub
import numpy as np
import pytest

import keras_griffin
from keras_griffin.cli import conversion
from keras_griffin.cli import main as cli
from support import peers
from support.checks import to_numpy
from support.models import randomize

SHARD = 4e-5  # GB


@pytest.fixture(scope="module")
def model():
    tokenizer = keras_griffin.GriffinTokenizer(
        peers.train_tokenizer("bpe", exact=True)
    )
    backbone = keras_griffin.GriffinBackbone(
        **{**peers.GRIFFIN, "vocabulary_size": tokenizer.vocabulary_size()}
    )
    randomize(backbone)
    return keras_griffin.GriffinCausalLM(
        backbone, keras_griffin.GriffinCausalLMPreprocessor(tokenizer)
    )


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save_to_preset(str(folder))
    return folder


def check_equal(received, expected):
    for ours, theirs in zip(received.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(
            to_numpy(ours.value), to_numpy(theirs.value)
        )


@pytest.mark.parametrize("max_shard_size", [10, None, SHARD])
def test_save_to_preset(model, tmp_path, max_shard_size):
    model.save_to_preset(tmp_path / "model", max_shard_size)
    shards = sorted((tmp_path / "model").glob("model_*.weights.h5"))
    assert (len(shards) > 1) == (max_shard_size == SHARD)
    loaded = keras_griffin.GriffinCausalLM.from_preset(tmp_path / "model")
    check_equal(loaded, model)
    again = keras_griffin.GriffinBackbone.from_preset(tmp_path / "model")
    check_equal(again, model.backbone)


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
    check_equal(loaded, whole)
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
    check_equal(keras_griffin.GriffinCausalLM.from_preset(tmp_path), model)
    other.save_to_preset(tmp_path)
    assert not list(tmp_path.glob("model_*"))
    assert not (tmp_path / "model.weights.json").exists()
    check_equal(keras_griffin.GriffinCausalLM.from_preset(tmp_path), other)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.backend_independent
def test_a_save_that_fails_changes_nothing(model, tmp_path, monkeypatch):
    model.save_to_preset(tmp_path / "old")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "old").iterdir()}

    def fail(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(keras.Model, "save_weights", fail)
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

STEPS = [
    ("transformers", {}),
    ("deepmind", {"framework": "flax"}),
    ("deepmind", {"framework": "torch"}),
    ("keras", {}),
]


def test_conversions_in_a_row(saved, model, tmp_path):
    source = saved
    for i, (form, options) in enumerate(STEPS):
        report = conversion.convert(source, tmp_path / str(i), form, **options)
        assert report == {
            "parameters": model.count_params(),
            "dtype": "float32",
            "tokenizer": True,
        }
        source = tmp_path / str(i)
    loaded = keras_griffin.GriffinCausalLM.from_preset(source)
    check_equal(loaded, model)
    kept = model.backbone.get_config()
    received = loaded.backbone.get_config()
    for name in ("name", "decay_initializer"):
        kept.pop(name), received.pop(name)
    assert received == kept
    assert loaded.preprocessor.tokenizer("fox").tolist() == (
        model.preprocessor.tokenizer("fox").tolist()
    )


def test_command(saved, model, tmp_path, capsys):
    target = tmp_path / "out"
    arguments = ["convert", str(saved), str(target), "--to", "transformers"]
    assert cli.main([*arguments, "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out == (
        f"{target}: {model.count_params():,} parameters in bfloat16, with "
        "tokenizer. Loaded again, it gives the same logits.\n"
    )
    assert json.loads((target / "config.json").read_text())["dtype"] == (
        "bfloat16"
    )
    # A second time the folder is taken.
    assert cli.main(arguments) == cli.USAGE_ERROR
    assert "new or empty" in capsys.readouterr().err


@pytest.mark.backend_independent
def test_command_on_one_file(saved, tmp_path, capsys):
    middle, target = tmp_path / "torch", tmp_path / "out"
    arguments = ["--to", "deepmind", "--framework", "torch"]
    assert cli.main(["convert", str(saved), str(middle), *arguments]) == 0
    (middle / "tokenizer.model").unlink()
    file = str(middle / "model.pt")
    capsys.readouterr()
    assert cli.main(["convert", file, str(target), "--to", "keras"]) == 0
    assert "without tokenizer" in capsys.readouterr().out


@pytest.mark.backend_independent
def test_info_of_an_archive(model, tmp_path, capsys):
    folder = str(tmp_path / "torch")
    model.export_to_deepmind(folder, framework="torch")
    (tmp_path / "torch" / "keras_griffin.json").unlink()
    assert cli.main(["info", folder]) == 0
    out = capsys.readouterr().out
    assert f"Parameters: {model.count_params():,} (" in out
    assert "attention_window_size  2048" in out
    assert cli.main(["info", str(tmp_path)]) == cli.USAGE_ERROR
    assert "no checkpoint of DeepMind's" in capsys.readouterr().err
    (tmp_path / "torch" / "model.pt").write_bytes(b"")
    assert cli.main(["info", folder]) == cli.USAGE_ERROR
    assert "complete and undamaged" in capsys.readouterr().err


@pytest.mark.backend_independent
def test_a_conversion_that_changes_logits_is_dropped(
    saved, tmp_path, monkeypatch
):
    whole = conversion._logits
    calls = []

    def logits(model):
        calls.append(model)
        return whole(model) + (len(calls) - 1)

    monkeypatch.setattr(conversion, "_logits", logits)
    with pytest.raises(ValueError, match="logits of its source.*up to 1.0"):
        conversion.convert(saved, tmp_path / "out", "transformers")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.backend_independent
def test_the_check_sees_every_weight(saved, tmp_path, monkeypatch):
    from keras_griffin.checkpoints import huggingface

    write_weights = huggingface.write_weights

    def write_wrong(backbone, *arguments):
        norm = backbone.blocks[1].mlp_norm.scale
        norm.assign(norm + 0.5)
        write_weights(backbone, *arguments)

    monkeypatch.setattr(huggingface, "write_weights", write_wrong)
    with pytest.raises(ValueError, match="logits of its source"):
        conversion.convert(saved, tmp_path / "out", "transformers")


@pytest.mark.backend_independent
def test_conversions_that_cannot_be(saved, tmp_path):
    with pytest.raises(ValueError, match="keras, transformers, deepmind"):
        conversion.convert(saved, tmp_path / "out", "gguf")
    assert list(tmp_path.iterdir()) == []
    plain = keras_griffin.GriffinCausalLM(
        keras_griffin.GriffinBackbone(
            **{**peers.GRIFFIN, "scale_embeddings": False}
        )
    )
    plain.save_to_preset(tmp_path / "in")
    with pytest.raises(ValueError, match="Embeddings are always scaled"):
        conversion.convert(tmp_path / "in", tmp_path / "out", "transformers")
    assert list(tmp_path.iterdir()) == [tmp_path / "in"]
