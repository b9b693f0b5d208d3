"""OpenAI's API: what a client may take, who may ask, and the numbers."""

import time

import pytest

from keras_griffin.serving.openai_api.guards import Limits
from support.fake_engine import FakeEngine
from support.http_servers import ask
from support.http_servers import connect
from support.http_servers import error_of
from support.http_servers import head
from support.http_servers import read_all
from support.http_servers import serving
from support.http_servers import split
from support.http_servers import wait_until
from support.http_servers import whole

pytestmark = pytest.mark.backend_independent

PROMPT = {"prompt": "To be", "max_tokens": 2}
KEY = "sk-very-secret"


def get(path, **headers):
    request = head(path, connection="close", **headers)
    return request.replace(b"POST", b"GET", 1)


def chunks(*parts):
    """A body in chunks."""
    sent = [b"%x\r\n%b\r\n" % (len(part), part) for part in parts]
    return b"".join(sent) + b"0\r\n\r\n"


def test_a_body_that_is_too_large():
    with serving(FakeEngine(), Limits(body_bytes=1000)) as port:
        request = whole({"prompt": "a" * 2000})
        status, error = error_of(ask(port, request))
        assert status == 413 and "--max-body-bytes" in error["message"]
        request = head(transfer_encoding="chunked", connection="close")
        parts = [b"x" * 400] * 4
        assert error_of(ask(port, request + chunks(*parts)))[0] == 413
        request += chunks(b'{"prompt": "a", ', b'"max_tokens": 2}')
        assert ask(port, request)[0] == 200


def test_a_body_that_is_too_slow():
    with serving(FakeEngine(), Limits(body_seconds=0.2)) as port:
        request = head(content_length=100, connection="close")
        status, error = error_of(ask(port, request + b"{"))
    assert status == 408 and "within 0.2 s" in error["message"]


def test_a_head_that_is_too_slow():
    """So that nobody takes all connections by sending nothing."""
    with serving(FakeEngine(), Limits(head_seconds=0.2)) as port:
        start = time.monotonic()
        for part in (b"", b"POST /v1/completions HTTP/1.1\r\nhost: loc"):
            assert ask_raw(port, part) == b""
        with connect(port) as connection:  # the second one on a connection
            request = whole(PROMPT, connection="keep-alive")
            connection.sendall(request)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            connection.sendall(b"POST")
            read_all(connection)
        assert time.monotonic() - start < 30
        assert ask(port, whole(PROMPT))[0] == 200


def ask_raw(port, data):
    with connect(port) as connection:
        connection.sendall(data)
        return read_all(connection)


def test_too_many_connections():
    with serving(FakeEngine(), Limits(connections=2)) as port:
        with connect(port) as first, connect(port) as second:
            for connection in (first, second):
                request = whole(PROMPT, connection="keep-alive")
                connection.sendall(request)
                assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            status, error = error_of(split(ask_raw(port, b"")))
            assert status == 503 and "2 connections" in error["message"]
        wait_until(lambda: not ask_raw(port, whole(PROMPT)).find(b"HTTP/1.1 2"))


@pytest.mark.parametrize("prompts", ["a", ["a", "b", "c"]])
def test_a_full_queue(prompts):
    """What was admitted of a list of prompts is not left behind."""
    engine = FakeEngine(max_rows=1, max_queue=2, seconds=0.02)
    with serving(engine, Limits(seconds=1)) as port:
        connections = [connect(port) for _ in range(3)]
        fields = {"prompt": "a", "max_tokens": 2000}
        for number, connection in enumerate(connections):
            connection.sendall(whole(fields))
            wait_until(lambda: len(engine.prompts) == number + 1)
            if number == 0:
                wait_until(lambda: engine.statistics()["rows_busy"])
        answer = ask_raw(port, whole({"prompt": prompts}))
        status, error = error_of(split(answer))
        assert (status, error["code"]) == (429, "queue_full")
        assert error["type"] == "rate_limit_error"
        assert b"\r\nretry-after: " in answer
        for connection in connections:
            assert split(read_all(connection))[0] == 504
            connection.close()
        wait_until(lambda: not engine.statistics()["rows_busy"])
        wait_until(lambda: not engine.statistics()["requests_waiting"])


def test_time_is_limited():
    engine = FakeEngine(seconds=0.01)
    with serving(engine, Limits(seconds=0.3)) as port:
        fields = {"prompt": "a", "max_tokens": 2000}
        status, error = error_of(ask(port, whole(fields)))
        assert (status, error["code"]) == (504, "timeout")
        status, body = ask(port, whole({**fields, "stream": True}))
        assert status == 200
        assert b"word0" in body and b'"timeout"' in body
        assert not body.endswith(b"data: [DONE]\n\n")
        wait_until(lambda: not engine.statistics()["rows_busy"])


def test_key():
    with serving(FakeEngine(), api_key=KEY) as port:
        status, error = error_of(ask(port, whole(PROMPT)))
        assert (status, error["code"]) == (401, "invalid_api_key")
        for given in (f"Bearer {KEY}x", f"Basic {KEY}", "Bearer", KEY, "ü"):
            request = whole(PROMPT, authorization=given)
            status, error = error_of(ask(port, request))
            assert status == 401 and KEY not in error["message"]
        for path in ("/metrics", "/v1/models"):
            assert ask(port, get(path))[0] == 401
            right = f"bearer {KEY}"
            assert ask(port, get(path, authorization=right))[0] == 200
        for path in ("/", "/health"):
            assert ask(port, get(path))[0] == 200
        request = whole(PROMPT, authorization=f"Bearer {KEY}")
        assert ask(port, request)[0] == 200


def test_a_key_may_have_any_characters():
    with serving(FakeEngine(), api_key="schl\u00fcssel") as port:
        given = "Bearer schl\u00fcssel".encode().decode("latin-1")
        request = get("/v1/models").decode().encode()
        line = f"authorization: {given}\r\n\r\n".encode("latin-1")
        assert ask(port, request[:-2] + line)[0] == 200


def test_hosts():
    """A page whose name points to 127.0.0.1 gets nothing."""
    with serving(FakeEngine()) as port:
        for host in ("localhost", f"127.0.0.1:{port}", f"[::1]:{port}"):
            assert ask(port, get("/health", host=host))[0] == 200
        for host in ("evil.example", f"evil.example:{port}", "[::2]"):
            status, error = error_of(ask(port, get("/", host=host)))
            assert status == 403 and "--allowed-host" in error["message"]
    with serving(FakeEngine(), hosts=None) as port:
        assert ask(port, get("/health", host="any.example"))[0] == 200


def test_metrics():
    engine = FakeEngine()
    with serving(engine) as port:
        ask(port, whole(PROMPT))
        ask(port, whole({}))
        ask(port, whole(PROMPT, "/strange"))
        status, text = ask(port, get("/metrics"))
    assert status == 200
    lines = text.decode().splitlines()
    name = "keras_griffin_http_requests_total"
    path = "/v1/completions"
    assert f'{name}{{path="{path}",status="200"}} 1.0' in lines
    assert f'{name}{{path="{path}",status="400"}} 1.0' in lines
    assert f'{name}{{path="other",status="404"}} 1.0' in lines
    assert "keras_griffin_first_token_seconds_count 1.0" in lines
    assert "keras_griffin_request_seconds_count 2.0" in lines
    assert "keras_griffin_tokens_generated_total 2.0" in lines
    assert "keras_griffin_rows_busy 0.0" in lines
