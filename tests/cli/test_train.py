"""`keras-griffin train`: a text in, a preset out; stopped, it goes on."""

import json

import keras
import pytest

from keras_griffin import GriffinCausalLM
from keras_griffin.checkpoints import preset_index
from keras_griffin.cli import common
from keras_griffin.cli.main import INTERRUPTED
from keras_griffin.cli.main import USAGE_ERROR
from keras_griffin.cli.main import main
from keras_griffin.training import vocabulary
from support.commands import error_line
from support.models import TINY

pytestmark = pytest.mark.backend_independent

BACKEND = keras.config.backend()
TEXT = "To be, or not to be: that is the question.\n" * 20
SMALL = ["--tokenizer", "bytes", "--batch-size", "2", "--row-length", "16"]


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.txt").write_text(TEXT)
    return "data.txt"


@pytest.mark.slow
def test_train_stop_and_go_on(text, tmp_path, monkeypatch, capsys):
    entry = {"backbone": {**TINY, "num_layers": 1}}
    monkeypatch.setattr(preset_index, "preset_entry", lambda name: entry)
    samples = []

    def generate(self, *args, **kwargs):
        if len(samples) == 1:
            samples.append("stopped")
            raise KeyboardInterrupt
        samples.append("a\nb")
        return samples[-1]

    monkeypatch.setattr(GriffinCausalLM, "generate", generate)
    call = ["train", text, *SMALL, "--steps", "6", "--report-every", "2"]
    assert main(call) == INTERRUPTED
    assert "goes on after step 2" in capsys.readouterr().err
    folder = tmp_path / "data-griffin"
    assert main([*call, "--seed", "1"]) == USAGE_ERROR
    assert "data-griffin began with 0" in error_line(capsys)

    assert main(call) == 0
    out = capsys.readouterr().out
    assert out.startswith("Going on with the training in data-griffin.")
    assert "loss.svg" in out
    # The stop came before the backup of step 4.
    assert "step 2 of 6" not in out and "step 4 of 6: loss" in out
    assert "  | a\n  | b\n" in out
    names = {file.name for file in folder.iterdir()}
    assert names >= {"config.json", "training.json", "loss.svg"}
    assert "backup" not in names
    record = json.loads((folder / "training.json").read_text())
    losses = [report["training"] for report in record["reports"]]
    assert [report["step"] for report in record["reports"]] == [2, 4, 6]
    assert losses[-1] < losses[0]
    assert main(call) == USAGE_ERROR
    assert "holds a model already" in error_line(capsys)

    monkeypatch.undo()
    model = GriffinCausalLM.from_preset(str(folder))
    assert model.preprocessor.tokenizer.vocabulary_size() == 261
    assert model.backbone.num_layers == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--size", "griffin_8b"], "Did you mean griffin_7b"),
        (["--steps", "250"], "Take 200 steps"),
        (["--output", "."], "files that are not of a training"),
        (["--output", "data.txt/x"], "Not a directory"),
        (["--row-length", "5000", *SMALL[:2]], "861 tokens for rows of 5000"),
        (["--tokenizer", "9000"], "9000 pieces for 860 characters"),
        (["nowhere.txt"], "nowhere.txt: "),
    ],
)
def test_what_cannot_be_trained(text, capsys, arguments, message):
    assert main(["train", text, *arguments]) == USAGE_ERROR
    assert message in error_line(capsys)


def test_a_record_of_something_else(text, tmp_path, capsys, monkeypatch):
    (tmp_path / "data-griffin").mkdir()
    (tmp_path / "data-griffin" / "training.json").write_text("[]")
    assert main(["train", text]) == USAGE_ERROR
    assert "not of `keras-griffin train`" in error_line(capsys)
    monkeypatch.setattr(common, "is_installed", lambda name: name == BACKEND)
    assert main(["train", text]) == USAGE_ERROR
    assert "keras-griffin[convert]" in error_line(capsys)


def test_vocabularies_lose_nothing():
    import sentencepiece

    text = "To  be\n\tor not é\n"
    for proto, size in (
        (vocabulary.of_bytes(), 261),
        (vocabulary.learn(TEXT, 280), 280),
    ):
        processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
        assert processor.vocab_size() == size
        assert processor.decode(processor.encode(text)) == text
