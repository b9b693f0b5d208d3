"""`keras-griffin info`."""

import json

import keras
import pytest

from keras_griffin.checkpoints import preset_index
from keras_griffin.cli import info
from keras_griffin.cli.main import USAGE_ERROR
from keras_griffin.cli.main import main
from support.commands import error_line
from support.models import model_with_tokenizer


@pytest.mark.backend_independent
def test_info_of_a_name(capsys):
    assert main(["info", "recurrent_gemma_2b_en"]) == 0
    out = capsys.readouterr().out
    assert "2,682,862,080 (2,027,502,080 without the embedding)" in out
    assert "26 (18 recurrent, 8 local_attention)" in out
    assert "hf://google/recurrentgemma-2b or kaggle://google/" in out
    (weights,) = [x for x in out.splitlines() if x.startswith("  weights")]
    assert weights.split() == ["weights", "10.0", "GiB", "5.0", "GiB"]
    assert "attention_window_size  2048" in out


@pytest.mark.backend_independent
def test_lines_fit_a_terminal(capsys):
    for name in preset_index.preset_names():
        assert main(["info", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= info.COLUMNS


@pytest.mark.backend_independent
def test_info_of_global_attention_counts_tokens(capsys):
    assert main(["info", "mqa_1b"]) == 0
    out = capsys.readouterr().out
    # 24 blocks, a key and a value of 128 numbers each.
    assert "each of its tokens" in out
    assert "24.0 KiB" in out and "12.0 KiB" in out


@pytest.mark.backend_independent
def test_state_estimate_is_the_state_of_a_model(folder):
    import keras_griffin

    backbone = keras_griffin.GriffinBackbone.from_preset(str(folder))
    config = info.folder_config(folder)
    estimate = info.state_bytes(
        config,
        preset_index.block_counts(config),
        info.ITEM_BYTES["float32"],
    )
    blocks = backbone.init_state(1)["blocks"]
    arrays = [array for block in blocks for array in block.values()]
    assert estimate == sum(4 * keras.ops.size(array) for array in arrays)


def test_info_of_a_keras_folder(folder, capsys):
    assert main(["info", str(folder)]) == 0
    out = capsys.readouterr().out
    config = json.loads((folder / "config.json").read_text())["config"]
    count = preset_index.parameter_count(config)
    assert f"Parameters: {count:,} (" in out


@pytest.mark.backend_independent
def test_info_of_a_hugging_face_folder(tmp_path, capsys):
    config = {"model_type": "recurrent_gemma", "num_key_value_heads": 1}
    config["intermediate_size"] = 15360  # both branches of the 2B model
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["info", str(tmp_path)]) == 0
    assert "Parameters: 2,682,862,080 (" in capsys.readouterr().out


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "text, message",
    [
        (None, "There is no config.json"),
        ("{", "must be JSON"),
        ("[]", "must hold a JSON object"),
        ('{"model_type": "llama"}', "describes no model of this package"),
        ('{"model_type": "recurrent_gemma"}', "`num_key_value_heads`"),
    ],
)
def test_info_of_a_wrong_folder(tmp_path, capsys, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert main(["info", str(tmp_path)]) == USAGE_ERROR
    assert message in error_line(capsys)


@pytest.mark.backend_independent
def test_info_of_an_archive(tmp_path, capsys):
    model = model_with_tokenizer()
    folder = str(tmp_path / "torch")
    model.export_to_deepmind(folder, framework="torch")
    (tmp_path / "torch" / "keras_griffin.json").unlink()
    assert main(["info", folder]) == 0
    out = capsys.readouterr().out
    assert f"Parameters: {model.count_params():,} (" in out
    assert "attention_window_size  2048" in out
    assert main(["info", str(tmp_path)]) == USAGE_ERROR
    assert "no checkpoint of DeepMind's" in capsys.readouterr().err
    (tmp_path / "torch" / "model.pt").write_bytes(b"")
    assert main(["info", folder]) == USAGE_ERROR
    assert "complete and undamaged" in capsys.readouterr().err


HUB_CONFIG = {
    "architectures": ["RecurrentGemmaForCausalLM"],
    "model_type": "recurrent_gemma",
    "num_hidden_layers": 3,
    "hidden_size": 16,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 40,
    "block_types": ["recurrent", "recurrent", "attention"],
}


@pytest.mark.backend_independent
def test_info_of_a_hub_loads_its_config_alone(monkeypatch, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(HUB_CONFIG))
    asked = []

    def download(name, path):
        asked.append((name, path))
        return str(tmp_path / path)

    monkeypatch.setattr("kagglehub.model_download", download)
    assert main(["info", "kaggle://owner/model/transformers/tiny"]) == 0
    assert asked == [("owner/model/transformers/tiny", "config.json")]
    assert "3 (2 recurrent, 1 local_attention)" in capsys.readouterr().out


@pytest.mark.backend_independent
def test_info_of_a_hub_without_a_network_or_a_config(monkeypatch, capsys):
    from keras_griffin.checkpoints import preset_download

    monkeypatch.setattr(preset_download, "config_file", lambda handle: None)
    assert main(["info", "hf://owner/name"]) == USAGE_ERROR
    assert "hf://owner/name has no config.json" in error_line(capsys)

    def offline(handle):
        raise ConnectionError("no network")

    monkeypatch.setattr(preset_download, "config_file", offline)
    assert main(["info", "hf://owner/name"]) == 1
    assert "no network" in error_line(capsys)


@pytest.mark.backend_independent
def test_a_config_of_no_hub():
    from keras_griffin.checkpoints import preset_download

    with pytest.raises(ValueError, match="must begin with hf:// or kaggle"):
        preset_download.config_file("s3://bucket")
