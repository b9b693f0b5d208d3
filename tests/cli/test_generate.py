"""`keras-griffin generate`, and the options of a model that generates."""

import sys

import pytest

from keras_griffin.cli.main import USAGE_ERROR
from keras_griffin.cli.main import main
from support.commands import error_line


def test_generate(folder, capsys):
    arguments = ["generate", "To be", "--preset", str(folder)]
    arguments += ["--seed", "3", "--max-new-tokens", "10"]
    assert main(arguments) == 0
    first = capsys.readouterr()
    assert first.out.startswith("To be")
    assert first.out.endswith("\n")
    assert len(first.out) > len("To be\n")
    assert first.err == ""
    assert main(arguments) == 0
    assert capsys.readouterr().out == first.out


@pytest.mark.backend_independent
def test_temperature_0_is_greedy(folder, capsys):
    arguments = ["generate", "To be", "--preset", str(folder)]
    arguments += ["--max-new-tokens", "8", "--temperature"]
    for options in (["0"], ["0", "--seed", "3"], ["1", "--top-k", "1"]):
        assert main([*arguments, *options]) == 0
    assert len(set(capsys.readouterr().out.split("To be")[1:])) == 1


@pytest.mark.backend_independent
def test_stop(folder, capsys):
    arguments = ["generate", "To be", "--preset", str(folder)]
    arguments += ["--max-new-tokens", "8", "--seed", "3"]
    assert main(arguments) == 0
    text = capsys.readouterr().out.removeprefix("To be").rstrip("\n")
    stop = text[len(text) // 2]
    assert main([*arguments, "--stop", "zzz", "--stop", stop]) == 0
    assert capsys.readouterr().out == f"To be{text.partition(stop)[0]}\n"


@pytest.mark.backend_independent
def test_options_reach_the_model(fake, capsys):
    arguments = ["generate", "To be", "--preset", "hf://a/b"]
    arguments += ["--top-p", "0.8", "--temperature", "0.5", "--seed", "7"]
    arguments += ["--top-k", "5", "--min-p", "0.1", "--stop", "x"]
    arguments += ["--repetition-penalty", "1.5", "--presence-penalty", "0.2"]
    arguments += ["--frequency-penalty", "-0.3", "--max-new-tokens", "9"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == "To be or not\n"
    assert (fake.preset, fake.prompt) == ("hf://a/b", "To be")
    assert fake.settings == {
        "max_new_tokens": 9,
        "temperature": 0.5,
        "top_k": 5,
        "top_p": 0.8,
        "min_p": 0.1,
        "repetition_penalty": 1.5,
        "presence_penalty": 0.2,
        "frequency_penalty": -0.3,
        "stop": ("x",),
        "seed": 7,
    }


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
