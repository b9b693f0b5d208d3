"""Who may ask, and how much: looked at before a request is read."""

import asyncio
import dataclasses
import hashlib
import hmac

from keras_griffin.serving.openai_api.errors import ApiError

# Names of this machine that no other can have.
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Paths that say nothing and cost nothing: they need no key.
OPEN_PATHS = ("/", "/health")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a client may take at most.

    Args:
        body_bytes: int. Size of a request's body.
        new_tokens: int. Of a text.
        seconds: float. From a request to the end of its answer.
        head_seconds: float. From the first byte of a request to the end of
            its head, or of a connection to the first request.
        body_seconds: float. To send the body.
        read_seconds: float. Without reading the answer.
        connections: int. Open at the same time.
    """

    body_bytes: int = 2**20
    new_tokens: int = 2048
    seconds: float = 600
    head_seconds: float = 10
    body_seconds: float = 30
    read_seconds: float = 30
    connections: int = 500


class Guard:
    """ASGI middleware that turns away whoever may not ask.

    Args:
        app: an ASGI app.
        api_key: str. What clients must send. `None`: nothing.
        hosts: names that the `Host` header may have; `None`: any. A web page
            that makes its own name point to this machine is kept out so.
    """

    def __init__(self, app, api_key, hosts):
        self._app = app
        self._digest = None if api_key is None else _digest(api_key.encode())
        self._hosts = hosts

    async def __call__(self, scope, receive, send):
        try:
            headers = dict(scope["headers"])
            self._check_host(headers)
            self._check_key(headers, scope["path"])
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_host(self, headers):
        host = headers.get(b"host", b"").decode("latin-1")
        name = host.rpartition("]")[0].lstrip("[") or host.partition(":")[0]
        if self._hosts is not None and name.lower() not in self._hosts:
            raise ApiError(
                403,
                "This server answers to the names "
                f"{', '.join(self._hosts)}. Received: Host: {host:.80}. Start "
                "it with --allowed-host to add one.",
            )

    def _check_key(self, headers, path):
        if self._digest is None or path in OPEN_PATHS:
            return
        given = headers.get(b"authorization", b"").decode("latin-1")
        scheme, _, key = given.partition(" ")
        is_right = hmac.compare_digest(
            self._digest, _digest(key.strip().encode("latin-1"))
        )
        if scheme.lower() != "bearer" or not is_right:
            raise ApiError(
                401,
                "This server needs its API key. Received: "
                f"{'another one' if given else 'none'}. Send the header "
                "Authorization: Bearer KEY.",
                code="invalid_api_key",
            )


async def read_body(request, limits):
    """The body of a request, within the limits.

    Args:
        request: Starlette's `Request`.
        limits: `Limits`.

    Raises:
        ApiError: for a body that is no JSON, too large or too slow.
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        # Of a page elsewhere a browser asks first before it sends this type.
        raise ApiError(
            415,
            "The body must be JSON. Received: the header Content-Type: "
            f"{kind:.80}. Send Content-Type: application/json.",
        )
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limits.body_bytes:
        raise _too_large(limits, length)
    data = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                data += part
                if len(data) > limits.body_bytes:
                    raise _too_large(limits, "more")
    except TimeoutError as error:
        raise ApiError(
            408,
            f"A body must come within {limits.body_seconds:g} s. Received: "
            f"{len(data)} bytes until then. Send it again.",
        ) from error
    return bytes(data)


def _too_large(limits, received):
    return ApiError(
        413,
        f"A body may have {limits.body_bytes} bytes. Received: {received:.20}."
        " Send less, or start the server with a larger --max-body-bytes.",
    )


def _digest(key):
    # Of one length, so that the comparison's time tells nothing of it.
    return hashlib.sha256(key).digest()
