"""What a command loads: dtypes, quantization, and what it can't."""

import os

import keras
import pytest

import keras_griffin
from keras_griffin.checkpoints import preset_loading
from keras_griffin.cli import loading
from keras_griffin.cli.main import FAILURE
from keras_griffin.cli.main import USAGE_ERROR
from keras_griffin.cli.main import _parser
from keras_griffin.cli.main import main
from support.commands import error_line
from support.models import model_with_tokenizer
from support.once import once


def load(*options):
    return loading.load_model(_parser().parse_args(["generate", *options]))


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """A model in bfloat16: as a preset, and in Hugging Face's form."""
    there = tmp_path_factory.mktemp("forms")
    model_with_tokenizer().save_to_preset(str(there / "float32"))
    model = keras_griffin.GriffinCausalLM.from_preset(
        str(there / "float32"), dtype="bfloat16"
    )
    model.save_to_preset(str(there / "keras"))
    model.export_to_transformers(there / "transformers")
    return there


@pytest.mark.backend_independent
@pytest.mark.parametrize("form", ["keras", "transformers"])
def test_the_dtype_is_the_checkpoint_s_own(forms, form):
    preset = ["--preset", str(forms / form)]
    assert load(*preset).backbone.variable_dtype == "bfloat16"
    model = load(*preset, "--dtype", "float32")
    assert model.backbone.variable_dtype == "float32"


@pytest.mark.parametrize("form", ["transformers", *once("keras")])
def test_quantize(forms, form):
    model = load("--preset", str(forms / form), "--quantize", "int8")
    dense = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.Dense)
    ]
    assert dense and all(d.kernel.dtype == "int8" for d in dense)
    assert model.generate("To be", max_new_tokens=2, top_k=1)


@pytest.mark.backend_independent
def test_a_quantized_preset_stays_as_it_is(forms, tmp_path):
    model = load("--preset", str(forms / "keras"), "--quantize", "int8")
    model.save_to_preset(str(tmp_path / "int8"))
    again = load("--preset", str(tmp_path / "int8"))
    for ours, theirs in zip(again.weights, model.weights, strict=True):
        assert ours.dtype == theirs.dtype


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "kind, options, dtype, mode",
    [
        ("keras", [], "bfloat16", None),
        ("keras", ["--quantize", "int8"], "bfloat16", "int8"),
        ("huggingface", [], "bfloat16", None),
        ("huggingface", ["--dtype", "float32"], "float32", None),
        ("huggingface", ["--quantize", "int8"], "int8_from_bfloat16", None),
        ("deepmind", ["--quantize", "int4"], "bfloat16", "int4"),
    ],
)
def test_what_is_asked_of_the_library(fake, kind, options, dtype, mode):
    fake.kind = kind
    assert main(["generate", "a", "--preset", "hf://a/b", *options]) == 0
    assert (fake.dtype, fake.mode) == (dtype, mode)


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "error, code",
    [
        (ValueError, USAGE_ERROR),
        (PermissionError, USAGE_ERROR),
        (ImportError, USAGE_ERROR),
        (ConnectionError, FAILURE),
    ],
)
def test_what_cannot_be_loaded_is_one_line(
    fake, monkeypatch, capsys, error, code
):
    def find_preset(preset):
        raise error("Access is gated.")

    monkeypatch.setattr(preset_loading, "find_preset", find_preset)
    assert main(["generate", "a", "--preset", "hf://a/b"]) == code
    assert "hf://a/b: Access is gated." in error_line(capsys)


@pytest.mark.backend_independent
def test_only_one_line_of_the_errors_is_left_out(capfd):
    """What else is written comes through, bars without a newline, too."""
    with loading.without_tokenizer_line():
        os.write(2, b"a bar 50%\rnormalizer.cc(51) LOG(INFO) x\n")
        os.write(2, b"norm")
        os.write(2, b"al text\nnormalizer")
        os.write(2, b".cc(51) y\na warning\nno newline at the end")
    os.write(2, b".")
    assert capfd.readouterr().err == (
        "a bar 50%\rnormal text\na warning\nno newline at the end."
    )
    with pytest.raises(ValueError), loading.without_tokenizer_line():
        raise ValueError
    os.write(2, b"here")
    assert capfd.readouterr().err == "here"
