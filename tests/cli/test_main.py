"""The command as a process: help, wrong calls, exit codes."""

import os
import re
import subprocess
import sys

import keras
import pytest

from keras_griffin.cli.main import COMMANDS
from keras_griffin.cli.main import FAILURE
from keras_griffin.cli.main import USAGE_ERROR
from keras_griffin.cli.main import main

BACKEND = keras.config.backend()
# What TensorFlow (2.21) prints before it reads its log level, or in spite of
# it: on a machine without a GPU, of CUDA plug-ins that come twice, and which
# of its kernels it does without.
TENSORFLOW_START = re.compile(
    r"[IW]\d{4} [\d:.]+ +\d+ \S+\.cc:\d+\] "
    r"|E\d{4} [\d:.]+ +\d+ \S+\.cc:\d+\] "
    r"(Unable to register cu|failed call to cuInit|oneDNN supports)"
    r"|WARNING: All log messages before absl::InitializeLog\(\)"
    r"|To enable the following instructions: "
)


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "COMMAND"),
        (["generate", "--max-new-tokens", "0"], "must be at least 1"),
        (["generate", "--temperature", "-1"], "must be at least 0"),
        (["generate", "--temperature", "inf"], "must be at least 0"),
        (["generate", "--top-p", "1.1"], "must be in [0, 1]"),
        (["generate", "--quantize", "int2"], "choose from"),
        (["generate", "--backend", "numpy"], "choose from"),
    ],
)
def test_wrong_call(capsys, arguments, message):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == USAGE_ERROR
    assert message in capsys.readouterr().err


@pytest.mark.backend_independent
def test_help_teaches_by_examples(capsys):
    for command in ([], *([name] for name in COMMANDS)):
        with pytest.raises(SystemExit) as raised:
            main([*command, "--help"])
        assert raised.value.code == 0
        out = capsys.readouterr().out
        assert "keras-griffin " in out
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
            "import sys\n"
            "from keras_griffin.cli.main import main\n"
            f"try: main({arguments})\n"
            "except SystemExit: pass\n"
            "print(sorted({'keras', 'numpy'} & set(sys.modules)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True
        )
        assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.slow
@pytest.mark.backend_independent
def test_the_shipped_model_as_a_process():
    """No line of SentencePiece's log."""
    done = run_command("generate", "ROMEO:", "--max-new-tokens", "2")
    assert done.returncode == 0
    assert "normalizer.cc" not in done.stderr


@pytest.mark.backend_independent
@pytest.mark.slow
def test_as_a_process(folder):
    """The backend is chosen by the flag, and only text is printed."""
    done = run_command(
        *(
            "generate",
            "To be",
            "--preset",
            str(folder),
            "--max-new-tokens",
            "7",
        ),
        *("--backend", BACKEND, "--seed", "1"),
        KERAS_BACKEND="",
    )
    errors = [
        line
        for line in done.stderr.splitlines()
        if not TENSORFLOW_START.match(line)
    ]
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
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_a_full_disk_behind_the_output():
    command = f"{sys.executable} -m keras_griffin presets > /dev/full"
    done = subprocess.run(
        ["bash", "-c", command], stderr=subprocess.PIPE, text=True, timeout=60
    )
    assert done.returncode == FAILURE
    (line,) = done.stderr.splitlines()
    assert line.startswith("keras-griffin: error:") and "space" in line


@pytest.mark.backend_independent
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams(closed):
    command = f"{sys.executable} -m keras_griffin presets {closed}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert not done.stderr
    assert bool(done.stdout) is (">&-" not in closed.split())


@pytest.mark.backend_independent
def test_exit_code_of_a_process():
    done = run_command("info", "nothing_like_it")
    assert done.returncode == USAGE_ERROR
    assert done.stderr.count("\n") == 1
