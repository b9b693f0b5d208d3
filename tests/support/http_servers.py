"""A server of OpenAI's API in a thread, and clients that misbehave."""

import contextlib
import json
import socket
import threading
import time

from keras_griffin.serving.openai_api import run
from keras_griffin.serving.openai_api.app import make_app
from keras_griffin.serving.openai_api.guards import Limits

SECONDS = 60  # A busy machine is slow.
MODEL = "tiny"


@contextlib.contextmanager
def serving(engine, limits=Limits(), **options):
    """Runs a server of `engine`; its port. The engine is closed at the end."""
    app = make_app(engine, MODEL, limits, **options)
    server = run.Server(engine, app, limits, drain_seconds=SECONDS)
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(SECONDS)
        assert not thread.is_alive()
        server.close()


def connect(port):
    return socket.create_connection(("127.0.0.1", port), SECONDS)


def head(path="/v1/completions", host="127.0.0.1", **headers):
    """The head of a POST of JSON; `_` in names is `-`."""
    headers = {"host": host, "content_type": "application/json", **headers}
    lines = [f"{k.replace('_', '-')}: {v}\r\n" for k, v in headers.items()]
    return f"POST {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode()


def whole(fields, path="/v1/completions", **headers):
    """A whole request with a body of JSON."""
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    headers = {"content_length": len(body), "connection": "close", **headers}
    return head(path, **headers) + body


def read_all(connection):
    """What comes until the server closes; what a reset cut off is lost."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def ask(port, request):
    """Sends bytes; `(status, body)` of the answer."""
    with connect(port) as connection:
        connection.sendall(request)
        return split(read_all(connection))


def split(answer):
    """Status and body of an answer; the body as JSON where it is."""
    top, _, body = answer.partition(b"\r\n\r\n")
    status = int(top.split()[1])
    if b"chunked" in top:
        body = b"".join(_parts(body))
    if b"application/json" in top:
        body = json.loads(body)
    return status, body


def _parts(body):
    while body:
        size, _, body = body.partition(b"\r\n")
        yield body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]


def error_of(answer):
    """`(status, error)`, the error in OpenAI's shape."""
    status, body = answer
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in body["error"]["message"]
    return status, body["error"]


def wait_until(condition, seconds=SECONDS):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
