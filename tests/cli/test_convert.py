"""`keras-griffin convert`: every form into every other."""

import json

import pytest

import keras_griffin
from keras_griffin.cli import convert
from keras_griffin.cli.main import USAGE_ERROR
from keras_griffin.cli.main import main
from support import peers
from support.models import assert_same_weights
from support.models import model_with_tokenizer


@pytest.fixture(scope="module")
def model():
    return model_with_tokenizer()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save_to_preset(str(folder))
    return folder


STEPS = [
    ("transformers", {}),
    ("deepmind", {"framework": "flax"}),
    ("deepmind", {"framework": "torch"}),
    ("keras", {}),
]


@pytest.mark.backend_independent
def test_conversions_in_a_row(saved, model, tmp_path):
    source = saved
    for i, (form, options) in enumerate(STEPS):
        report = convert.convert(source, tmp_path / str(i), form, **options)
        assert report == {
            "parameters": model.count_params(),
            "dtype": "float32",
            "tokenizer": True,
        }
        source = tmp_path / str(i)
    loaded = keras_griffin.GriffinCausalLM.from_preset(source)
    assert_same_weights(loaded, model)
    kept = model.backbone.get_config()
    received = loaded.backbone.get_config()
    for name in ("name", "decay_initializer"):
        kept.pop(name), received.pop(name)
    assert received == kept
    assert loaded.preprocessor.tokenizer("fox").tolist() == (
        model.preprocessor.tokenizer("fox").tolist()
    )


@pytest.mark.backend_independent
def test_command(saved, model, tmp_path, capsys):
    target = tmp_path / "out"
    arguments = ["convert", str(saved), str(target), "--to", "transformers"]
    assert main([*arguments, "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out == (
        f"{target}: {model.count_params():,} parameters in bfloat16, with "
        "tokenizer. Loaded again, it gives the same logits.\n"
    )
    assert json.loads((target / "config.json").read_text())["dtype"] == (
        "bfloat16"
    )
    # A second time the folder is taken.
    assert main(arguments) == USAGE_ERROR
    assert "new or empty" in capsys.readouterr().err


@pytest.mark.backend_independent
def test_command_on_one_file(saved, tmp_path, capsys):
    middle, target = tmp_path / "torch", tmp_path / "out"
    arguments = ["--to", "deepmind", "--framework", "torch"]
    assert main(["convert", str(saved), str(middle), *arguments]) == 0
    (middle / "tokenizer.model").unlink()
    file = str(middle / "model.pt")
    capsys.readouterr()
    assert main(["convert", file, str(target), "--to", "keras"]) == 0
    assert "without tokenizer" in capsys.readouterr().out


@pytest.mark.backend_independent
def test_a_conversion_that_changes_logits_is_dropped(
    saved, tmp_path, monkeypatch
):
    whole = convert._logits
    calls = []

    def logits(model):
        calls.append(model)
        return whole(model) + (len(calls) - 1)

    monkeypatch.setattr(convert, "_logits", logits)
    with pytest.raises(ValueError, match="logits of its source.*up to 1.0"):
        convert.convert(saved, tmp_path / "out", "transformers")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.backend_independent
def test_the_check_sees_every_weight(saved, tmp_path, monkeypatch):
    from keras_griffin.checkpoints import huggingface_weights

    write_weights = huggingface_weights.write_weights

    def write_wrong(backbone, *arguments):
        norm = backbone.blocks[1].mlp_norm.scale
        norm.assign(norm + 0.5)
        write_weights(backbone, *arguments)

    monkeypatch.setattr(huggingface_weights, "write_weights", write_wrong)
    with pytest.raises(ValueError, match="logits of its source"):
        convert.convert(saved, tmp_path / "out", "transformers")


@pytest.mark.backend_independent
def test_conversions_that_cannot_be(saved, tmp_path):
    with pytest.raises(ValueError, match="keras, transformers, deepmind"):
        convert.convert(saved, tmp_path / "out", "gguf")
    assert list(tmp_path.iterdir()) == []
    plain = keras_griffin.GriffinCausalLM(
        keras_griffin.GriffinBackbone(
            **{**peers.GRIFFIN, "scale_embeddings": False}
        )
    )
    plain.save_to_preset(tmp_path / "in")
    with pytest.raises(ValueError, match="Embeddings are always scaled"):
        convert.convert(tmp_path / "in", tmp_path / "out", "transformers")
    assert list(tmp_path.iterdir()) == [tmp_path / "in"]
