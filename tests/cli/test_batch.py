"""`keras-griffin generate --input`: a file of prompts, and going on."""

import json

import pytest

import keras_griffin
from keras_griffin.cli import loading
from keras_griffin.cli.main import INTERRUPTED
from keras_griffin.cli.main import USAGE_ERROR
from keras_griffin.cli.main import main
from keras_griffin.serving import request
from support.commands import error_line

PROMPTS = ["To be", {"prompt": "or not", "id": 7}, {"prompt": ""}]
PROMPTS += [{"prompt": f"that {i}"} for i in range(9)]


def write(file, lines):
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture
def call(folder, tmp_path):
    """The command's arguments, and its two files."""
    source = write(tmp_path / "in.jsonl", PROMPTS)
    target = tmp_path / "out.jsonl"
    arguments = ["generate", "--input", str(source), "--output", str(target)]
    arguments += ["--preset", str(folder), "--max-new-tokens", "6"]
    arguments += ["--seed", "3", "--max-rows", "2"]
    return arguments, source, target


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.backend_independent
def test_each_line_gets_what_it_gets_alone(call, folder, capsys):
    arguments, _, target = call
    assert main([*arguments, "--temperature", "0"]) == 0
    assert capsys.readouterr().out == f"{target}: {len(PROMPTS)} lines\n"
    model = keras_griffin.GriffinCausalLM.from_preset(str(folder))
    lines = lines_of(target)
    assert len(lines) == len(PROMPTS)
    assert lines[1]["id"] == 7
    for line in lines:
        pieces = model.generate_stream(
            line["prompt"], max_new_tokens=6, top_k=1
        )
        assert line["text"] == "".join(pieces)
        assert line["finish_reason"] in ("stop", "length")


@pytest.mark.backend_independent
def test_it_continues_where_it_stopped(call, monkeypatch, capsys):
    """With the same draws, wherever the output was cut off."""
    arguments, _, target = call
    assert main(arguments) == 0
    whole = target.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in (0, 3, ends[0], ends[4] - 1, ends[4] + 9, ends[-2]):
        target.write_bytes(whole[:size])
        assert main(arguments) == 0
        assert target.read_bytes() == whole
    # All is there: nothing is loaded.
    monkeypatch.setattr(loading, "load_model", None)
    assert main(arguments) == 0
    assert target.read_bytes() == whole


@pytest.mark.backend_independent
def test_ctrl_c_keeps_what_is_made(call, monkeypatch, capsys):
    arguments, _, target = call
    assert main(arguments) == 0
    whole = target.read_text()
    target.unlink()
    result, asked = request.Request.result, []

    def interrupted(self):
        asked.append(self)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return result(self)

    with monkeypatch.context() as patch:
        patch.setattr(request.Request, "result", interrupted)
        assert main(arguments) == INTERRUPTED
    assert target.read_text() == "".join(whole.splitlines(keepends=True)[:3])
    assert main(arguments) == 0
    assert target.read_text() == whole


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "line 2"),
        ("5", "must be a string"),
        ("{}", "must be a string"),
        ('{"prompt": 5}', "must be a string"),
        ('{"prompt": "a", "messages": []}', "must be a string"),
        ('{"prompt": "a", "text": "b"}', "'text'"),
    ],
)
def test_a_bad_line_is_told_at_the_start(call, fake, capsys, text, message):
    arguments, source, target = call
    source.write_text(f'"a"\n{text}\n')
    assert main(arguments) == USAGE_ERROR
    assert message in error_line(capsys)
    assert not target.exists() and not hasattr(fake, "preset")


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "made",
    [
        {"prompt": "another", "text": ""},
        "no object",
    ],
)
def test_the_output_of_another_input(call, fake, capsys, made):
    arguments, _, target = call
    write(target, [made])
    assert main(arguments) == USAGE_ERROR
    assert "line 1, is not of this input" in error_line(capsys)
    target.write_text("no JSON\n")
    assert main(arguments) == USAGE_ERROR
    assert "is not of this input" in error_line(capsys)


@pytest.mark.backend_independent
def test_wrong_calls(call, fake, tmp_path, capsys):
    arguments, source, target = call
    assert main(["generate", "--input", str(source)]) == USAGE_ERROR
    assert "go together" in error_line(capsys)
    assert main(["generate", "--output", str(target)]) == USAGE_ERROR
    assert "go together" in error_line(capsys)
    assert main([*arguments, "To be"]) == USAGE_ERROR
    assert "not both" in error_line(capsys)
    source.unlink()
    assert main(arguments) == USAGE_ERROR
    assert "No such file" in error_line(capsys)
    write(source, ["a"])
    arguments[4] = str(tmp_path)
    assert main(arguments) == USAGE_ERROR
    assert "folder" in error_line(capsys)


@pytest.mark.backend_independent
def test_what_the_engine_refuses_names_the_prompt(call, capsys):
    arguments, source, _ = call
    write(source, ["a", {"messages": [{"role": "user", "content": "b"}]}])
    assert main(arguments) == USAGE_ERROR
    assert "in.jsonl, prompt 2: " in error_line(capsys)


@pytest.mark.backend_independent
def test_a_draft_is_refused(call, capsys):
    arguments, *_ = call
    assert main([*arguments, "--draft", "prompt_lookup"]) == USAGE_ERROR
    assert "--draft is for one prompt" in error_line(capsys)
