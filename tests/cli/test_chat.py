"""`keras-griffin chat`, also in a terminal of its own with a person's keys."""

import os
import re
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


@pytest.mark.backend_independent
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
        state = None

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
    chat.Chat(Session()).converse()
    assert seen == ["first", "second"]
    assert capsys.readouterr().out == "reply\nreply\n\n"


class FakeSession:
    """`ChatSession`'s interface: it answers what it is told."""

    def __init__(self):
        self.state, self.turns, self.said = None, [], []
        self.max_new_tokens, self.temperature = 9, 1.0
        self.settings = {"top_k": None, "top_p": 0.9, "stop": ()}

    def send(self, message):
        self.turns.append(message)
        return self.regenerate()

    def regenerate(self):
        if not self.turns:
            raise ValueError("A message must have been sent.")
        self.state = "state"
        self.said.append(self.turns[-1])
        yield f"<{self.turns[-1]}>"

    def save(self, file):
        if self.state is None:
            raise ValueError("A chat must have begun.")
        with open(file, "w") as opened:
            opened.write(repr(self.turns))


def talk(monkeypatch, *lines, **options):
    """A chat of these lines; its session."""
    lines = iter(lines)

    def answer(prompt):
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", answer)
    session = FakeSession()
    chat.Chat(session, **options).converse()
    return session


@pytest.mark.backend_independent
def test_commands(monkeypatch, capsys, tmp_path):
    file = tmp_path / "talk.npz"
    session = talk(
        monkeypatch,
        *("one", "/retry", f"/save {file}", "/clear", "two", "//three"),
        *("/help", "/quit", "not read"),
    )
    assert session.said == ["one", "one", "two", "/three"]
    assert session.turns == ["two", "/three"]
    assert file.read_text() == "['one']"
    assert "/retry " in capsys.readouterr().out


@pytest.mark.backend_independent
def test_commands_that_fail_do_not_end_the_chat(monkeypatch, capsys, tmp_path):
    session = talk(
        monkeypatch,
        *("/retyr", "/retry", "/save", "/save x.npz", "/set heat 1", "/set"),
        *("/set temperature hot", "/set temperature -1", "/set top-p 3", "one"),
        f"/save {tmp_path}",
    )
    out, err = capsys.readouterr()
    for message in (
        "There is no /retyr. Did you mean /retry",
        "A message must have been sent",
        "/save talk.npz",
        "A chat must have begun",
        "There is no setting heat.",
        "could not convert",
        "`temperature` must be a number",
        "`top_p` must be a number",
        "Is a directory",
    ):
        assert message in err
    assert "temperature           1.0" in out
    assert (session.temperature, session.settings["top_p"]) == (1.0, 0.9)
    assert session.said == ["one"]


@pytest.mark.backend_independent
def test_settings(monkeypatch):
    session = talk(
        monkeypatch,
        *("/set temperature 0", "/set top-k 5", "/set max_new_tokens 7"),
        *("/set stop END", "/set top_p 0.5"),
    )
    assert (session.temperature, session.max_new_tokens) == (0.0, 7)
    assert session.settings == {"top_k": 5, "top_p": 0.5, "stop": ("END",)}
    session = talk(monkeypatch, "/set top_k 5", "/set top_k none", "/set stop")
    assert session.settings["top_k"] is None
    assert session.settings["stop"] == ()


@pytest.mark.backend_independent
def test_messages_of_several_lines_and_the_system(monkeypatch):
    lines = ('"""one', "two", 'three"""', '"""', "", "/x", '"""', '"""a"""')
    session = talk(monkeypatch, *lines, system="Be brief.")
    assert session.said == ["Be brief.\n\none\ntwo\nthree", "\n\n/x\n", "a"]
    session = talk(monkeypatch, "one", "/clear", "two", system="S")
    assert session.said == ["S\n\none", "S\n\ntwo"]


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
    chat.Chat(Session(), "talk.npz").converse()
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
    banner = terminal.wait_for(lambda text: text.endswith("> "))
    assert "griffin_shakespeare_en\r\n/help for commands" in banner
    assert "normalizer.cc" not in banner
    for message in ("ROMEO:", "JULIET:"):
        terminal.type(f"{message}\n")
        # The line as it was typed, and some of a reply that would not end.
        terminal.wait_for(lambda text: len(text) > 60)
        # No session leader has this terminal, whose keys would do it.
        terminal.process.send_signal(signal.SIGINT)
        end = terminal.wait_for(lambda text: text.endswith("\n> "))
        assert re.search(r"\(\d+ tokens, [\d.]+ a second\)\r\n> $", end)
    terminal.type("\x1b[A")  # the arrow up: the history
    terminal.wait_for(lambda text: "JULIET:" in text)
    terminal.type("\x15")  # the whole line goes
    terminal.type("\x04")
    assert terminal.process.wait(SECONDS) == 0
    assert file.stat().st_size > 1000
