"""`keras-griffin serve`: its options, and the process with its signals."""

import json
import os
import signal
import socket
import subprocess
import sys

import keras
import pytest

from keras_griffin.cli import common
from keras_griffin.cli.main import USAGE_ERROR
from keras_griffin.cli.main import main
from support.commands import error_line
from support.http_servers import ask
from support.http_servers import connect
from support.http_servers import read_all
from support.http_servers import split
from support.http_servers import wait_until
from support.http_servers import whole
from support.processes import free_port

SECONDS = 300  # A busy machine may need long to start.


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--port", "65536"], "in [0, 65535]"),
        (["--max-rows", "0"], "at least 1"),
        (["--prefix-cache-mib", "-1"], "at least 0"),
        (["--max-seconds", "0"], "above 0"),
    ],
)
def test_wrong_call(capsys, arguments, message):
    with pytest.raises(SystemExit) as raised:
        main(["serve", *arguments])
    assert raised.value.code == USAGE_ERROR
    assert message in capsys.readouterr().err


@pytest.mark.backend_independent
def test_an_address_in_use_is_told_before_the_model_is_loaded(fake, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == USAGE_ERROR
    assert f"127.0.0.1:{port}: Address already" in error_line(capsys)
    assert not hasattr(fake, "preset")


@pytest.mark.backend_independent
def test_a_host_that_is_not_there(capsys):
    assert main(["serve", "--host", "no such host"]) == USAGE_ERROR
    assert "no such host:8000: " in error_line(capsys)


@pytest.mark.backend_independent
def test_key_files(tmp_path, capsys):
    file = tmp_path / "key"
    arguments = ["serve", "--api-key-file", str(file)]
    for content, message in (
        (None, "No such file"),
        (b" \n", "is empty"),
        (b"\xff", "decode"),
    ):
        if content is not None:
            file.write_bytes(content)
        assert main(arguments) == USAGE_ERROR
        assert message in error_line(capsys)


@pytest.mark.backend_independent
def test_packages_that_are_missing(monkeypatch, capsys):
    monkeypatch.setattr(common, "is_installed", lambda name: name != "uvicorn")
    assert main(["serve"]) == USAGE_ERROR
    assert "pip install 'keras-griffin[serve]'" in error_line(capsys)


@pytest.mark.backend_independent
def test_a_model_without_a_tokenizer(fake, capsys):
    fake.preprocessor = None
    assert main(["serve", "--port", "0"]) == USAGE_ERROR
    assert "has no tokenizer" in error_line(capsys)


class Served:
    """The command as a process."""

    def __init__(self, folder, log, *arguments, **environment):
        self.port = free_port()
        self.log = log
        with open(log, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "keras_griffin", "serve", str(folder)]
                + ["--port", str(self.port), "--max-rows", "2", *arguments],
                env={
                    **os.environ,
                    "KERAS_BACKEND": keras.config.backend(),
                    **environment,
                },
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        try:
            wait_until(self._is_ready, SECONDS)
        except AssertionError:
            self.process.kill()
            raise

    def _is_ready(self):
        assert self.process.poll() is None, self.log.read_text()
        return "Serving " in self.log.read_text()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()

    def stream(self, tokens):
        """A connection on which a stream has begun."""
        fields = {"prompt": "To be", "max_tokens": tokens, "stream": True}
        fields["stop_token_ids"] = []
        connection = connect(self.port)
        connection.sendall(whole(fields))
        begun = b""
        while b"data: " not in begun:
            begun += connection.recv(4096)
        return connection, begun


@pytest.mark.backend_independent
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_runs_finish(folder, tmp_path, number):
    """And refuses what comes; the process ends well."""
    with Served(folder, tmp_path / "log") as served:
        connection, begun = served.stream(300)
        with connection:
            served.process.send_signal(number)
            wait_until(lambda: _is_refused(served.port))
            status, body = split(begun + read_all(connection))
        assert body.endswith(b"data: [DONE]\n\n")
        events = [e for e in body.decode().split("\n\n") if e][:-1]
        last = json.loads(events[-1].removeprefix("data: "))
        assert last["choices"][0]["finish_reason"] == "length"
        code = 0 if number == signal.SIGTERM else 130
        assert served.process.wait(SECONDS) == code
        log = served.log.read_text()
        assert "Traceback" not in log


def _is_refused(port):
    try:
        connect(port).close()
    except ConnectionError:
        return True
    return False


@pytest.mark.backend_independent
@pytest.mark.slow
def test_what_lasts_too_long_is_cancelled(folder, tmp_path):
    options = ["--drain-seconds", "0.5", "--max-new-tokens", "1000000"]
    options += ["--max-length", "2000000"]
    with Served(folder, tmp_path / "log", *options) as served:
        connection, begun = served.stream(1_000_000)
        with connection:
            served.process.send_signal(signal.SIGTERM)
            _, body = split(begun + read_all(connection))
        assert b"shutting down" in body
        assert served.process.wait(SECONDS) == 0
        assert "Traceback" not in served.log.read_text()


@pytest.mark.backend_independent
@pytest.mark.slow
def test_options_reach_the_server(folder, tmp_path):
    options = ["--model-name", "bard", "--log-requests", "--max-length", "64"]
    options += ["--allowed-host", "bard.example"]
    served = Served(
        folder, tmp_path / "log", *options, KERAS_GRIFFIN_API_KEY="sk-secret"
    )
    with served:
        fields = {"prompt": "To be", "max_tokens": 2}
        given = {"host": "bard.example", "authorization": "Bearer sk-secret"}
        assert ask(served.port, whole(fields))[0] == 403
        assert ask(served.port, whole(fields, host="bard.example"))[0] == 401
        status, body = ask(served.port, whole(fields, **given))
        assert (status, body["model"]) == (200, "bard")
        long = whole({"prompt": "To be " * 100}, **given)
        assert ask(served.port, long)[0] == 400
        log = served.log.read_text()
        assert '"POST /v1/completions HTTP/1.1" 200' in log
        assert "To be" not in log and "sk-secret" not in log


@pytest.mark.backend_independent
@pytest.mark.slow
def test_an_open_address_without_a_key_is_warned_of(folder, tmp_path):
    with Served(folder, tmp_path / "log", "--host", "0.0.0.0") as served:
        assert "whoever reaches 0.0.0.0" in served.log.read_text()
        request = whole({"prompt": "To be", "max_tokens": 2}, host="any.name")
        assert ask(served.port, request)[0] == 200
