"""One client's connection: what uvicorn leaves open it limits."""

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from keras_griffin.serving.openai_api.errors import ApiError


class Connection(H11Protocol):
    """HTTP/1.1, for clients that are slow, broken or too many.

    uvicorn waits for ever for the end of a request's head and for a client
    that does not read its answer; this does not.

    Args:
        limits: `Limits`.
        *args, **kwargs: see `H11Protocol`.
    """

    def __init__(self, limits, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._head_timer = None
        self._read_timer = None

    def connection_made(self, transport):
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self._refuse(
                503,
                f"This server has {self._limits.connections} connections, as "
                "many as it may. Try again later.",
            )
        self._watch_head()

    def data_received(self, data):
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, error):
        self._head_timer = _stopped(self._head_timer)
        self._read_timer = _stopped(self._read_timer)
        super().connection_lost(error)

    def pause_writing(self):
        super().pause_writing()
        self._read_timer = self.loop.call_later(
            self._limits.read_seconds, self.transport.abort
        )

    def resume_writing(self):
        self._read_timer = _stopped(self._read_timer)
        super().resume_writing()

    def send_400_response(self, message):
        """uvicorn's answer to what is no HTTP, in OpenAI's shape."""
        self._refuse(
            400,
            "A request must be HTTP/1.1, its head at most 16 KiB. Received: "
            "something else.",
        )

    def _watch_head(self):
        """Starts the timer where a head should come, and stops it after."""
        is_waiting = self.cycle is None or self.cycle.response_complete
        if not is_waiting:
            self._head_timer = _stopped(self._head_timer)
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(
                self._limits.head_seconds, self.transport.abort
            )

    def _refuse(self, status, message):
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # In the middle of an answer.
            return
        response = ApiError(status, message).response()
        lines = [f"HTTP/1.1 {status} Refused".encode("ascii")]
        lines += [b": ".join(pair) for pair in response.raw_headers]
        lines += [b"connection: close", b"", response.body]
        self.transport.write(b"\r\n".join(lines))
        self.transport.close()


def _stopped(timer):
    if timer is not None:
        timer.cancel()
