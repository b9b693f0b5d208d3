import json
import os
import subprocess
import sys

import keras
import keras_hub
import pytest

from keras_griffin.checkpoints import preset_index
from keras_griffin.cli import main as cli

BACKEND = keras.config.backend()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of a few thousand parameters, saved as a preset."""
    import sentencepiece

    import keras_griffin

    folder = tmp_path_factory.mktemp("cli")
    text = "To be, or not to be: that is the question.\n" * 8
    (folder / "text.txt").write_text(text)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "vocabulary"),
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        minloglevel=2,
    )
    tokenizer = keras_griffin.GriffinTokenizer(
        (folder / "vocabulary.model").read_bytes()
    )
    backbone = keras_griffin.GriffinBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=3,
        hidden_dim=16,
        intermediate_dim=16,
        num_query_heads=2,
        num_gate_blocks=2,
        attention_window_size=8,
    )
    model = keras_griffin.GriffinCausalLM(
        backbone, keras_griffin.GriffinCausalLMPreprocessor(tokenizer)
    )
    model.save_to_preset(str(folder / "model"))
    return folder / "model"


def error_of(capsys):
    """The one line on standard error."""
    out, err = capsys.readouterr()
    assert err.startswith("keras-griffin: error: ")
    assert err.count("\n") == 1
    return err


def test_generate(folder, capsys):
    arguments = ["generate", "To be", "--preset", str(folder)]
    arguments += ["--seed", "3", "--max-length", "16"]
    assert cli.main(arguments) == 0
    first = capsys.readouterr()
    assert first.out.startswith("To be")
    assert first.out.endswith("\n")
    assert len(first.out) > len("To be\n")
    assert first.err == ""
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == first.out


def test_chat(folder, capsys, monkeypatch, tmp_path):
    lines = iter(["To be", "", "or not"])

    def answer(prompt):
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", answer)
    file = tmp_path / "talk.npz"
    arguments = ["chat", "--preset", str(folder), "--session", str(file)]
    assert cli.main([*arguments, "--max-new-tokens", "5"]) == 0
    size = file.stat().st_size
    lines = iter(["that is"])
    assert cli.main([*arguments, "--max-new-tokens", "5"]) == 0
    assert file.stat().st_size == size
    file.write_text("no state")
    assert cli.main(arguments) == cli.USAGE_ERROR
    assert "file of `save_state`" in capsys.readouterr().err


@pytest.mark.backend_independent
def test_interrupt_stops_a_reply_and_not_the_chat(monkeypatch, capsys):
    lines = iter(["first", "second"])
    seen = []

    class Session:
        def send(self, message):
            seen.append(message)
            yield "reply"
            raise KeyboardInterrupt

    def answer(prompt):
        line = next(lines, None)
        if line is None:
            raise KeyboardInterrupt
        return line

    monkeypatch.setattr("builtins.input", answer)
    cli._converse(Session())
    assert seen == ["first", "second"]
    assert capsys.readouterr().out == "reply\nreply\n\n"


class FakeModel:
    """Notes what the command asks of a model."""

    def __init__(self, pieces=(" or", " not")):
        self.pieces = pieces

    def compile(self, sampler):
        self.sampler = sampler

    def generate_stream(self, prompt, max_length):
        self.prompt, self.max_length = prompt, max_length
        for piece in self.pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield piece


@pytest.fixture
def fake(monkeypatch):
    from keras_griffin.models.griffin_causal_lm import GriffinCausalLM

    model = FakeModel()

    def from_preset(preset, dtype):
        assert dtype is None
        model.preset = preset
        return model

    monkeypatch.setattr(GriffinCausalLM, "from_preset", from_preset)
    return model


def test_options_reach_the_model(fake, capsys):
    arguments = ["generate", "To be", "--preset", "hf://a/b"]
    arguments += ["--sampler", "top_p", "--temperature", "0.5", "--seed", "7"]
    assert cli.main([*arguments, "--max-length", "9"]) == 0
    assert capsys.readouterr().out == "To be or not\n"
    assert (fake.preset, fake.prompt, fake.max_length) == (
        "hf://a/b",
        "To be",
        9,
    )
    config = fake.sampler.get_config()
    assert config["p"] == cli.TOP_P
    assert config["temperature"] == 0.5
    assert fake.sampler.seed == 7


@pytest.mark.backend_independent
@pytest.mark.parametrize("sampler", cli.SAMPLERS)
def test_sampler_has_its_name(fake, sampler):
    arguments = ["generate", "a", "--preset", "hf://a/b"]
    assert cli.main([*arguments, "--sampler", sampler]) == 0
    expected = keras_hub.samplers.get(sampler)
    assert type(fake.sampler) is type(expected)


def test_backend_of_this_process_may_be_named(fake):
    arguments = ["generate", "a", "--preset", "hf://a/b"]
    assert cli.main([*arguments, "--backend", BACKEND]) == 0


def test_other_backend_needs_a_new_process(fake, capsys, monkeypatch):
    other = "torch" if BACKEND != "torch" else "jax"
    monkeypatch.setenv("KERAS_BACKEND", BACKEND)  # restored afterwards
    monkeypatch.setattr(cli.start_up, "is_installed", lambda name: True)
    arguments = ["generate", "a", "--preset", "hf://a/b", "--backend", other]
    assert cli.main(arguments) == cli.USAGE_ERROR
    assert f"Keras already runs on {BACKEND}" in error_of(capsys)


@pytest.mark.backend_independent
def test_prompt_from_standard_input(fake, monkeypatch, capsys):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("To be\n"))
    assert cli.main(["generate", "--preset", "hf://a/b"]) == 0
    assert fake.prompt == "To be"


@pytest.mark.backend_independent
def test_no_prompt_at_a_terminal(fake, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert cli.main(["generate", "--preset", "hf://a/b"]) == 0
    assert fake.prompt == ""


@pytest.mark.backend_independent
def test_interrupt_ends_cleanly(fake, capsys):
    fake.pieces = (" or", KeyboardInterrupt())
    code = cli.main(["generate", "To be", "--preset", "hf://a/b"])
    out, err = capsys.readouterr()
    assert (code, out, err) == (130, "To be or\n", "")


@pytest.mark.backend_independent
def test_what_the_model_refuses_is_one_line(fake, capsys):
    fake.pieces = (ValueError("The prompt is too long. Received: 9."),)
    code = cli.main(["generate", "To be", "--preset", "hf://a/b"])
    assert code == cli.USAGE_ERROR
    assert "The prompt is too long." in error_of(capsys)


@pytest.mark.backend_independent
@pytest.mark.parametrize("error", [ValueError, OSError, ImportError])
def test_what_cannot_be_loaded_is_one_line(monkeypatch, capsys, error):
    from keras_griffin.models.griffin_causal_lm import GriffinCausalLM

    def from_preset(preset, dtype):
        raise error("Access is gated.")

    monkeypatch.setattr(GriffinCausalLM, "from_preset", from_preset)
    code = cli.main(["generate", "a", "--preset", "hf://a/b"])
    assert code == cli.USAGE_ERROR
    assert "hf://a/b: Access is gated." in error_of(capsys)


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["info", "grifin_7b"], "Did you mean griffin_7b"),
        (["info", "./nowhere"], "There is no folder ./nowhere"),
        (["generate", "a", "--preset", "hawk_1"], "Did you mean hawk_1b"),
        (["generate", "a", "--preset", "no/where"], "There is no folder"),
        (["generate", "a", "--preset", "hawk_1b"], "load_weights=False"),
    ],
)
def test_wrong_preset(capsys, arguments, message):
    assert cli.main(arguments) == cli.USAGE_ERROR
    assert message in error_of(capsys)


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "COMMAND"),
        (["generate", "--max-length", "0"], "must be at least 1"),
        (["generate", "--temperature", "0"], "must be above 0"),
        (["generate", "--temperature", "inf"], "must be above 0"),
        (["generate", "--sampler", "beam"], "choose from"),
        (["generate", "--backend", "numpy"], "choose from"),
    ],
)
def test_wrong_call(capsys, arguments, message):
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    assert raised.value.code == cli.USAGE_ERROR
    assert message in capsys.readouterr().err


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "installed, variable, expected",
    [
        (("jax", "torch", "tensorflow"), "", "jax"),
        (("torch", "tensorflow"), "", "torch"),
        (("tensorflow",), "", "tensorflow"),
        (("jax", "tensorflow"), "tensorflow", "tensorflow"),
    ],
)
def test_choice_of_the_backend(monkeypatch, installed, variable, expected):
    monkeypatch.setenv("KERAS_BACKEND", variable)
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setattr(
        cli.start_up, "is_installed", lambda name: name in installed
    )
    cli._choose_backend(None)
    assert os.environ["KERAS_BACKEND"] == expected


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "installed, variable, requested, message",
    [
        ((), "", None, "No backend is installed"),
        (("jax",), "mxnet", None, "KERAS_BACKEND must be one of"),
        (("jax",), "", "torch", "or --backend jax"),
        ((), "torch", None, "pip install 'keras-griffin[torch]'"),
    ],
)
def test_missing_backend(
    monkeypatch, capsys, installed, variable, requested, message
):
    monkeypatch.setenv("KERAS_BACKEND", variable)
    monkeypatch.setattr(
        cli.start_up, "is_installed", lambda name: name in installed
    )
    arguments = ["generate", "a", "--preset", "hf://a/b"]
    if requested is not None:
        arguments += ["--backend", requested]
    assert cli.main(arguments) == cli.USAGE_ERROR
    assert message in error_of(capsys)


@pytest.mark.backend_independent
def test_presets_are_listed_once_each(capsys):
    assert cli.main(["presets"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAME", "PARAMETERS", "WEIGHTS", "DESCRIPTION"]
    names = [line.split()[0] for line in lines]
    assert sorted(names) == preset_index.preset_names()
    (line,) = [x for x in lines if x.startswith("recurrent_gemma_9b_en ")]
    assert "8.58B  hf, kaggle  RecurrentGemma 9B" in line


@pytest.mark.backend_independent
def test_lines_fit_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "70")
    assert cli.main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) == 70
    assert any(line.endswith("...") for line in lines)


@pytest.mark.backend_independent
def test_info_of_a_name(capsys):
    assert cli.main(["info", "recurrent_gemma_2b_en"]) == 0
    out = capsys.readouterr().out
    assert "2,682,862,080 (2,027,502,080 without the embedding)" in out
    assert "26 (18 recurrent, 8 local_attention)" in out
    assert "hf://google/recurrentgemma-2b or kaggle://google/" in out
    (weights,) = [x for x in out.splitlines() if x.startswith("  weights")]
    assert weights.split() == ["weights", "10.0", "GiB", "5.0", "GiB"]
    assert "attention_window_size  2048" in out


@pytest.mark.backend_independent
def test_info_of_global_attention_counts_tokens(capsys):
    assert cli.main(["info", "mqa_1b"]) == 0
    out = capsys.readouterr().out
    # 24 blocks, a key and a value of 128 numbers each.
    assert "each of its tokens" in out
    assert "24.0 KiB" in out and "12.0 KiB" in out


@pytest.mark.backend_independent
def test_state_estimate_is_the_state_of_a_model(folder):
    import keras_griffin

    backbone = keras_griffin.GriffinBackbone.from_preset(str(folder))
    config = cli._folder_config(folder)
    types = preset_index.block_sequence(config)
    estimate = cli._state_bytes(
        config, cli.collections.Counter(types), cli.DTYPES["float32"]
    )
    blocks = backbone.init_state(1)["blocks"]
    arrays = [array for block in blocks for array in block.values()]
    assert estimate == sum(4 * keras.ops.size(array) for array in arrays)


def test_info_of_a_keras_folder(folder, capsys):
    assert cli.main(["info", str(folder)]) == 0
    out = capsys.readouterr().out
    config = json.loads((folder / "config.json").read_text())["config"]
    count = preset_index.parameter_count(config)
    assert f"Parameters: {count:,} (" in out


@pytest.mark.backend_independent
def test_info_of_a_hugging_face_folder(tmp_path, capsys):
    config = {"model_type": "recurrent_gemma", "num_key_value_heads": 1}
    config["intermediate_size"] = 15360  # both branches of the 2B model
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert cli.main(["info", str(tmp_path)]) == 0
    assert "Parameters: 2,682,862,080 (" in capsys.readouterr().out


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "text, message",
    [
        (None, "There is no config.json"),
        ("{", "is not JSON"),
        ("[]", "describes no model of this package"),
        ('{"model_type": "llama"}', "describes no model of this package"),
        ('{"model_type": "recurrent_gemma"}', "`num_key_value_heads`"),
    ],
)
def test_info_of_a_wrong_folder(tmp_path, capsys, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert cli.main(["info", str(tmp_path)]) == cli.USAGE_ERROR
    assert message in error_of(capsys)


@pytest.mark.backend_independent
def test_help_teaches_by_examples(capsys):
    for command in ([], ["generate"], ["info"]):
        with pytest.raises(SystemExit) as raised:
            cli.main([*command, "--help"])
        assert raised.value.code == 0
        out = capsys.readouterr().out
        assert "\n  keras-griffin " in out
        assert max(len(line) for line in out.splitlines()) <= 80


def run_command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "keras_griffin", *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.backend_independent
def test_light_commands_do_not_import_keras():
    for command in ("--help", "presets", "info"):
        arguments = [command] + ["griffin_1b"] * (command == "info")
        code = (
            "import sys; sys.argv = ['keras-griffin']\n"
            "from keras_griffin.cli import main as cli\n"
            "try: cli.main(sys.argv[1:] + "
            f"{arguments})\n"
            "except SystemExit: pass\n"
            "print(sorted({'keras', 'numpy'} & set(sys.modules)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True
        )
        assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_as_a_process(folder):
    """The backend is chosen by the flag, and only text is printed."""
    done = run_command(
        *("generate", "To be", "--preset", str(folder), "--max-length", "12"),
        *("--backend", BACKEND, "--seed", "1"),
        KERAS_BACKEND="",
    )
    errors = done.stderr.splitlines()
    if BACKEND == "tensorflow":
        # At run time, on a CPU: which of its kernels TensorFlow does without.
        errors = [x for x in errors if "oneDNN supports" not in x]
    assert (done.returncode, errors) == (0, [])
    assert done.stdout.startswith("To be")


@pytest.mark.backend_independent
def test_a_closed_pipe_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "keras_griffin", "presets"],
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.backend_independent
def test_exit_code_of_a_process():
    done = run_command("info", "nothing_like_it")
    assert done.returncode == cli.USAGE_ERROR
    assert done.stderr.count("\n") == 1
