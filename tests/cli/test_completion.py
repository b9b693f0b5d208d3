"""`keras-griffin completion`, in the shells themselves."""

import shutil
import subprocess

import pytest

from keras_griffin.cli.main import COMMANDS
from keras_griffin.cli.main import main

pytestmark = pytest.mark.backend_independent


def complete(script, *words):
    """What bash offers for the last word."""
    line = " ".join(f"'{word}'" for word in ("keras-griffin", *words))
    done = subprocess.run(
        ["bash", "--norc", "-c"]
        + [
            f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words)}\n"
            'COMPREPLY=(); _keras_griffin; echo "${COMPREPLY[@]}"'
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize(
    "words, expected",
    [
        (["gen"], ["generate"]),
        ([""], list(COMMANDS)),
        (["generate", "--backend", "t"], ["torch", "tensorflow"]),
        (["generate", "--preset", "hawk_1b"], ["hawk_1b"]),
        (["generate", "--max-n"], ["--max-new-tokens"]),
        (["generate", "--input", ""], []),  # files: the shell's own
        (["info", "griffin_14"], ["griffin_14b"]),
        (["convert", "a", "b", "--to", "tr"], ["transformers"]),
        (["completion", ""], ["--help", "bash", "zsh"]),
        (["info", "--js"], ["--json"]),
    ],
)
def test_bash(capsys, words, expected):
    assert main(["completion", "bash"]) == 0
    assert complete(capsys.readouterr().out, *words) == expected


def test_zsh(capsys):
    assert main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("autoload -Uz bashcompinit && bashcompinit\n")
    if shutil.which("zsh") is None:
        assert complete(script.partition("\n")[2], "gen") == ["generate"]
        return
    line = f"autoload -Uz compinit && compinit -u\n{script}"
    done = subprocess.run(
        ["zsh", "-f", "-c", f"{line}\nprint $_comps[keras-griffin]"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "_keras_griffin" in done.stdout
