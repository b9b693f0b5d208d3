"""OpenAI's API: clients that are broken, slow or gone; and many at once."""

import concurrent.futures
import contextlib
import json
import socket
import struct

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
ENDLESS = {"prompt": "a", "max_tokens": 2000}
BROKEN = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "no version": b"POST /\r\n\r\n",
    "a huge line": b"GET /" + b"a" * 100_000,
    "huge headers": head(cookie="a" * 300_000),
    "many headers": head(**{f"x{i}": "a" * 50 for i in range(9000)}),
    "no colon": b"POST /v1/completions HTTP/1.1\r\nhost\r\n\r\n",
    "two lengths": head(content_length="5\r\ncontent-length: 6"),
    "a length below 0": head(content_length="-5"),
    "a huge length": head(content_length="9" * 50),
    "length and chunks": head(content_length=5, transfer_encoding="gzip"),
    "a bad chunk": head(transfer_encoding="chunked") + b"zz\r\n",
    "a chunk too long": head(transfer_encoding="chunked")
    + b"3\r\n{}}}}}\r\n0\r\n\r\n",
    "an endless chunk line": head(transfer_encoding="chunked")
    + b"3;"
    + b"a" * 100_000,
}


@pytest.fixture(scope="module")
def port():
    limits = Limits(body_seconds=1, head_seconds=1)
    with serving(FakeEngine(), limits) as port:
        yield port


@pytest.mark.parametrize("data", BROKEN.values(), ids=list(BROKEN))
def test_broken_http(port, data, capfd):
    with connect(port) as connection:
        # It may close before it has read all.
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        answer = read_all(connection)
    if answer:
        status, error = error_of(split(answer))
        assert status in (400, 408, 413)
    assert ask(port, whole(PROMPT))[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_body_cut_short(port, capfd):
    for length in (0, 1, 5):
        with connect(port) as connection:
            connection.sendall(whole(PROMPT)[: -1 - length])
            connection.shutdown(socket.SHUT_WR)
            read_all(connection)
    assert ask(port, whole(PROMPT))[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def leave(connection, how):
    """Closes, resets, or stops sending as a half-closed client does."""
    if how == "reset":
        linger = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    if how == "half closed":
        connection.shutdown(socket.SHUT_WR)
    else:
        connection.close()


@pytest.mark.parametrize("how", ["closed", "reset", "half closed"])
@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("is_waiting", [False, True])
def test_a_client_that_goes_away_frees_its_row(how, is_stream, is_waiting):
    engine = FakeEngine(max_rows=1, seconds=0.01)
    with serving(engine) as port, contextlib.ExitStack() as stack:
        if is_waiting:
            other = stack.enter_context(connect(port))
            other.sendall(whole(ENDLESS))
            wait_until(lambda: engine.statistics()["rows_busy"])
        connection = stack.enter_context(connect(port))
        connection.sendall(whole({**ENDLESS, "stream": is_stream}))
        place = "requests_waiting" if is_waiting else "rows_busy"
        wait_until(lambda: engine.statistics()[place])
        leave(connection, how)
        wait_until(lambda: not engine.statistics()[place])
        wait_until(lambda: engine.statistics()["texts_cancelled"] == 1)


def test_a_client_that_does_not_read(capfd):
    """Its stream is not kept in memory for ever."""
    engine = FakeEngine(seconds=0.01, text="a" * 2**20)
    with serving(engine, Limits(read_seconds=0.3)) as port:
        with connect(port) as connection:
            connection.sendall(whole({**ENDLESS, "stream": True}))
            wait_until(lambda: engine.statistics()["texts_cancelled"])
        assert ask(port, whole(PROMPT))[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_pipelined_requests(port):
    first = whole(PROMPT, connection="keep-alive")
    with connect(port) as connection:
        connection.sendall(first + first + whole(PROMPT))
        assert read_all(connection).count(b"HTTP/1.1 200") == 3


def test_one_byte_at_a_time(port):
    with connect(port) as connection:
        for byte in whole(PROMPT):
            connection.sendall(bytes([byte]))
        assert split(read_all(connection))[0] == 200


def test_200_clients_at_once():
    engine = FakeEngine(max_rows=8, max_queue=200, seconds=0.001)

    def one(number):
        fields = {"prompt": "a", "max_tokens": 1 + number % 7}
        fields["stream"] = bool(number % 2)
        status, body = ask(port, whole(fields))
        assert status == 200
        if not number % 2:
            return body["choices"][0]["text"]
        events = body.decode().split("\n\n")[:-2]  # the last: [DONE]
        texts = [json.loads(e.removeprefix("data: ")) for e in events]
        return "".join(t["choices"][0]["text"] for t in texts)

    with serving(engine) as port:
        with concurrent.futures.ThreadPoolExecutor(200) as pool:
            texts = list(pool.map(one, range(200)))
    for number, text in enumerate(texts):
        words = [f" word{i}" for i in range(1 + number % 7)]
        assert text == "".join(words)
    assert engine.statistics()["texts_finished"] == 200


def test_a_client_that_leaves_while_its_body_is_read(port):
    for _ in range(20):
        with connect(port) as connection:
            connection.sendall(head(content_length=100) + b'{"prompt')
    assert ask(port, whole(PROMPT))[0] == 200
