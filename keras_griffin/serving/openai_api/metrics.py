"""What Prometheus reads: numbers of the engine and of the requests."""

import time

import prometheus_client
from prometheus_client import core
from prometheus_client import registry

PREFIX = "keras_griffin_"
# The engine's numbers: name, and what it is.
GAUGES = {
    "rows": "Texts that can be made at the same time",
    "rows_busy": "Texts that are being made",
    "requests_waiting": "Requests that wait for a row",
    "requests_reading": "Requests whose prompt is being read",
    "prefix_cache_bytes": "Memory of the states of prefixes",
    "prefix_cache_entries": "Prefixes whose state is kept",
}
COUNTERS = {
    "texts_finished": "Texts that ended by themselves",
    "texts_cancelled": "Texts that were cancelled",
    "tokens_generated": "New tokens",
    "prompt_tokens_read": "Tokens of prompts that the device has read",
    "prefix_cache_hits": "Prompts that went on from a kept prefix",
    "prefix_cache_tokens": "Tokens of prompts that it spared",
    "device_seconds": "Time that the device was busy",
}
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The numbers of one server.

    Args:
        engine: `Engine`.
    """

    content_type = prometheus_client.CONTENT_TYPE_LATEST

    def __init__(self, engine):
        self._registry = prometheus_client.CollectorRegistry()
        self._registry.register(EngineCollector(engine))
        self.requests = prometheus_client.Counter(
            PREFIX + "http_requests",
            "Answers by path and HTTP status",
            ["path", "status"],
            registry=self._registry,
        )
        self.request_seconds = self._histogram(
            "request_seconds", "From a request to the end of its answer"
        )
        self.first_token_seconds = self._histogram(
            "first_token_seconds", "From a request to its first token"
        )

    def _histogram(self, name, text):
        return prometheus_client.Histogram(
            PREFIX + name, text, buckets=SECONDS, registry=self._registry
        )

    def text(self):
        return prometheus_client.generate_latest(self._registry)


class EngineCollector(registry.Collector):
    """Asks the engine when Prometheus asks.

    Args:
        engine: `Engine`.
    """

    def __init__(self, engine):
        self._engine = engine

    def collect(self):
        numbers = self._engine.statistics()
        for names, family in (
            (GAUGES, core.GaugeMetricFamily),
            (COUNTERS, core.CounterMetricFamily),
        ):
            for name, text in names.items():
                yield family(PREFIX + name, text, value=numbers[name])


class Counted:
    """ASGI middleware that counts answers and their time.

    Args:
        app: an ASGI app.
        metrics: `Metrics`.
        paths: those that are counted by name.
    """

    def __init__(self, app, metrics, paths):
        self._app = app
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope, receive, send):
        start = time.perf_counter()
        path = scope["path"]
        path = path if path in self._paths else "other"
        status = 499  # nginx' for a client that went away

        async def noting_send(message):
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, noting_send)
        finally:
            self._metrics.requests.labels(path, str(status)).inc()
            if path.startswith("/v1/"):
                self._metrics.request_seconds.observe(
                    time.perf_counter() - start
                )
