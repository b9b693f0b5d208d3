"""`keras-griffin generate`, and the options of a model that generates."""

import sys

import keras_hub
import pytest

from keras_griffin.cli import common
from keras_griffin.cli.main import USAGE_ERROR
from keras_griffin.cli.main import main
from support.commands import error_line


def test_generate(folder, capsys):
    arguments = ["generate", "To be", "--preset", str(folder)]
    arguments += ["--seed", "3", "--max-length", "16"]
    assert main(arguments) == 0
    first = capsys.readouterr()
    assert first.out.startswith("To be")
    assert first.out.endswith("\n")
    assert len(first.out) > len("To be\n")
    assert first.err == ""
    assert main(arguments) == 0
    assert capsys.readouterr().out == first.out


def test_options_reach_the_model(fake, capsys):
    arguments = ["generate", "To be", "--preset", "hf://a/b"]
    arguments += ["--sampler", "top_p", "--temperature", "0.5", "--seed", "7"]
    assert main([*arguments, "--max-length", "9"]) == 0
    assert capsys.readouterr().out == "To be or not\n"
    assert (fake.preset, fake.prompt, fake.max_length) == (
        "hf://a/b",
        "To be",
        9,
    )
    config = fake.sampler.get_config()
    assert config["p"] == common.TOP_P
    assert config["temperature"] == 0.5
    assert fake.sampler.seed == 7


@pytest.mark.backend_independent
@pytest.mark.parametrize("sampler", common.SAMPLERS)
def test_sampler_has_its_name(fake, sampler):
    arguments = ["generate", "a", "--preset", "hf://a/b"]
    assert main([*arguments, "--sampler", sampler]) == 0
    expected = keras_hub.samplers.get(sampler)
    assert type(fake.sampler) is type(expected)


@pytest.mark.backend_independent
def test_prompt_from_standard_input(fake, monkeypatch, capsys):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("To be\n"))
    assert main(["generate", "--preset", "hf://a/b"]) == 0
    assert fake.prompt == "To be"


@pytest.mark.backend_independent
def test_no_prompt_at_a_terminal(fake, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert main(["generate", "--preset", "hf://a/b"]) == 0
    assert fake.prompt == ""


@pytest.mark.backend_independent
def test_interrupt_ends_cleanly(fake, capsys):
    fake.pieces = (" or", KeyboardInterrupt())
    code = main(["generate", "To be", "--preset", "hf://a/b"])
    out, err = capsys.readouterr()
    assert (code, out, err) == (130, "To be or\n", "")


@pytest.mark.backend_independent
def test_what_the_model_refuses_is_one_line(fake, capsys):
    fake.pieces = (ValueError("The prompt is too long. Received: 9."),)
    code = main(["generate", "To be", "--preset", "hf://a/b"])
    assert code == USAGE_ERROR
    assert "The prompt is too long." in error_line(capsys)
