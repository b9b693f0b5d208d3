"""Runs the app until a signal ends it, and lets what runs finish."""

import functools
import signal
import threading

import uvicorn

from keras_griffin.serving.openai_api.connection import Connection

# After `drain_seconds` all texts are cancelled; their answers need some more.
LAST_SECONDS = 5


def run(server, socket):
    """Serves until SIGTERM or Ctrl-C, then closes the engine.

    New connections are refused from then on; requests that are there get
    their answers.

    Args:
        server: `Server`.
        socket: bound to the server's address.
    """
    # uvicorn sends itself the signal once more when all is done. Without a
    # handler this would end the process before the engine is closed.
    previous = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        server.run([socket])
    finally:
        signal.signal(signal.SIGTERM, previous)
        server.close()


class Server(uvicorn.Server):
    """uvicorn's server; what lasts too long after a signal is cancelled.

    Args:
        engine: `Engine`.
        app: what `make_app` returns.
        limits: `Limits`.
        drain_seconds: float. How long the requests that are there when a
            signal comes may take.
        greeting: str. Printed when it listens. Defaults to `None`: nothing.
        log_requests: bool. A line for each request: who, path and status,
            never its text. Defaults to `False`.
    """

    def __init__(
        self,
        engine,
        app,
        limits,
        drain_seconds,
        greeting=None,
        log_requests=False,
    ):
        config = uvicorn.Config(
            app,
            http=functools.partial(Connection, limits),
            ws="none",
            loop="asyncio",
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            # What clients do wrong, they are told.
            log_level="info" if log_requests else "error",
            access_log=log_requests,
            timeout_graceful_shutdown=int(drain_seconds) + LAST_SECONDS,
        )
        super().__init__(config)
        self._engine = engine
        self._greeting = greeting
        self._timer = threading.Timer(drain_seconds, self._cancel_texts)
        self._timer.daemon = True

    async def startup(self, sockets=None):
        await super().startup(sockets)
        if self._greeting is not None:
            print(self._greeting, flush=True)

    async def shutdown(self, sockets=None):
        self._timer.start()
        await super().shutdown(sockets)

    def close(self):
        self._timer.cancel()
        self._cancel_texts()

    def _cancel_texts(self):
        self._engine.close(drain=False)
