"""`keras-griffin chat`, also in a terminal of its own with a person's keys."""

import os
import select
import signal
import subprocess
import sys
import time

import pytest

from keras_griffin.cli import chat
from keras_griffin.cli.main import USAGE_ERROR
from keras_griffin.cli.main import main

SECONDS = 300  # A busy machine may need long to start.


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
    assert main([*arguments, "--max-new-tokens", "5"]) == 0
    size = file.stat().st_size
    lines = iter(["that is"])
    assert main([*arguments, "--max-new-tokens", "5"]) == 0
    assert file.stat().st_size == size
    lines = iter(["one", "two"])

    def kill_at_the_end(prompt):
        line = next(lines, None)
        if line is None:
            raise SystemExit  # what was said is in the file already
        return line

    file.unlink()
    monkeypatch.setattr("builtins.input", kill_at_the_end)
    with pytest.raises(SystemExit):
        main([*arguments, "--max-new-tokens", "5"])
    assert file.stat().st_size == size
    file.write_text("no state")
    assert main(arguments) == USAGE_ERROR
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
    chat.converse(Session())
    assert seen == ["first", "second"]
    assert capsys.readouterr().out == "reply\nreply\n\n"


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "name, match", [(".", "which is a folder"), ("no/x.npz", "that exists")]
)
def test_a_bad_session_is_told_before_a_word_is_said(
    tmp_path, monkeypatch, capsys, name, match
):
    monkeypatch.setattr("builtins.input", lambda prompt: pytest.fail("asked"))
    path = tmp_path / name
    assert main(["chat", "--session", str(path)]) == USAGE_ERROR
    assert match in capsys.readouterr().err


@pytest.mark.backend_independent
def test_a_full_disk_does_not_end_a_chat(monkeypatch, capsys):
    lines = iter(["first", "second"])

    class Session:
        state = "state"

        def send(self, message):
            yield message

        def save(self, file):
            raise OSError("no room")

    def answer(prompt):
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", answer)
    chat.converse(Session(), "talk.npz")
    captured = capsys.readouterr()
    assert captured.out == "first\nsecond\n\n"
    assert captured.err.count("not saved: no room") == 2


class Terminal:
    """A process in a pseudo-terminal."""

    def __init__(self, command):
        import pty

        self.master, terminal = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        self.text = ""

    def type(self, keys):
        os.write(self.master, keys.encode())

    def wait_for(self, condition):
        """Reads until `condition(text since the last wait)`."""
        start, end = len(self.text), time.monotonic() + SECONDS
        while not condition(self.text[start:]):
            assert time.monotonic() < end, self.text
            if select.select([self.master], [], [], 1.0)[0]:
                self.text += os.read(self.master, 4096).decode()
            assert self.process.poll() is None, self.text
        return self.text[start:]


@pytest.mark.backend_independent
@pytest.mark.skipif(
    sys.platform == "win32", reason="terminals are POSIX's here"
)
def test_ctrl_c_stops_a_reply_and_the_chat_goes_on(tmp_path):
    file = tmp_path / "talk.npz"
    terminal = Terminal(
        [sys.executable, "-m", "keras_griffin", "chat", "--seed", "1"]
        + ["--max-new-tokens", "100000", "--session", str(file)]
    )
    terminal.wait_for(lambda text: text.endswith("> "))
    for message in ("ROMEO:", "JULIET:"):
        terminal.type(f"{message}\n")
        # The line as it was typed, and some of a reply that would not end.
        terminal.wait_for(lambda text: len(text) > 60)
        # No session leader has this terminal, whose keys would do it.
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for(lambda text: text.endswith("\n> "))
    terminal.type("\x04")
    assert terminal.process.wait(SECONDS) == 0
    assert file.stat().st_size > 1000
