"""The routes of OpenAI's API, as an ASGI app."""

import asyncio
import contextlib
import json
import time

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.responses import Response
from starlette.responses import StreamingResponse
from starlette.routing import Route

from keras_griffin.near_names import did_you_mean
from keras_griffin.serving.openai_api import answers
from keras_griffin.serving.openai_api import bodies
from keras_griffin.serving.openai_api import errors
from keras_griffin.serving.openai_api.chat_page import chat_page
from keras_griffin.serving.openai_api.errors import ApiError
from keras_griffin.serving.openai_api.guards import LOOPBACK
from keras_griffin.serving.openai_api.guards import Guard
from keras_griffin.serving.openai_api.guards import Limits
from keras_griffin.serving.openai_api.guards import read_body
from keras_griffin.serving.openai_api.metrics import Counted
from keras_griffin.serving.openai_api.metrics import Metrics
from keras_griffin.serving.request import QueueFull


def make_app(engine, model_name, limits=Limits(), api_key=None, hosts=LOOPBACK):
    """OpenAI's HTTP API over an engine.

    Args:
        engine: `Engine`, of a model with a preprocessor.
        model_name: str. What the API calls the model.
        limits: `Limits`. Defaults to `Limits()`.
        api_key: str. What clients must send as a bearer token. Defaults to
            `None`: nothing.
        hosts: names that requests may have in their `Host` header; `None`
            for any. Defaults to those of this machine.

    Returns:
        An ASGI app.
    """
    api = Api(engine, model_name, limits)
    routes = [
        Route("/", chat_page),
        Route("/health", api.health),
        Route("/metrics", api.show_metrics),
        Route("/v1/models", api.models),
        Route("/v1/models/{name:path}", api.model),
        Route("/v1/completions", api.complete, methods=["POST"]),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            ApiError: errors.answer_api_error,
            HTTPException: errors.answer_http_error,
            Exception: errors.answer_failure,
        },
    )
    guarded = Guard(app, api_key, hosts)
    return Counted(guarded, api.metrics, {route.path for route in routes})


class Api:
    """Answers requests with the texts of an engine.

    Args:
        engine: `Engine`.
        model_name: str.
        limits: `Limits`.
    """

    def __init__(self, engine, model_name, limits):
        self._engine = engine
        self._model_name = model_name
        self._limits = limits
        self._created = int(time.time())
        self.metrics = Metrics(engine)

    # === What costs nothing ===

    async def health(self, request):
        if self._engine.error is not None:
            raise ApiError(
                503, "The engine has failed; its log says why. Start it anew."
            )
        return JSONResponse({"status": "ok"})

    async def show_metrics(self, request):
        return Response(
            self.metrics.text(), media_type=self.metrics.content_type
        )

    async def models(self, request):
        return JSONResponse({"object": "list", "data": [self._model_card()]})

    async def model(self, request):
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model_card())

    def _model_card(self):
        return {
            "id": self._model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "keras_griffin",
        }

    def _check_model(self, name):
        if name not in (None, self._model_name):
            raise ApiError(
                404,
                f"This server has the model {self._model_name}. Received: "
                f"{name!r:.80}. {did_you_mean(name, [self._model_name])}GET "
                "/v1/models lists it.",
                param="model",
                code="model_not_found",
            )

    # === Texts ===

    async def complete(self, request):
        body = await self._body(request, bodies.CompletionBody)
        return await self._answer(request, body, body.prompts(), answers.Answer)

    async def chat(self, request):
        body = await self._body(request, bodies.ChatBody)
        turn_format = self._engine.model.preprocessor.turn_format
        return await self._answer(
            request, body, [body.prompt(turn_format)], answers.ChatAnswer
        )

    async def _body(self, request, body_class):
        try:
            data = await read_body(request, self._limits)
        except ClientDisconnect:
            raise ApiError(499, "The client went away.") from None
        body = bodies.parse(body_class, data)
        self._check_model(body.model)
        return body

    async def _answer(self, request, body, prompts, answer_class):
        start = asyncio.get_running_loop().time()
        settings = body.settings(self._limits.new_tokens)
        answer = answer_class(
            self._model_name,
            self._engine.model.preprocessor.tokenizer,
            body.wanted_logprobs() is not None,
        )
        with contextlib.ExitStack() as stack:
            requests = await self._submit(prompts, settings, stack)
            pieces = self._pieces(requests, start)
            if body.stream:
                options = body.stream_options
                events = _events(
                    pieces, requests, answer, options.include_usage
                )
                # From here on the response cancels what is left.
                return EventStream(events, stack.pop_all())
            whole = await _unless_gone(request, _collect(pieces))
            if whole is None:
                raise ApiError(499, "The client went away.")
            completions = [c for r in requests for c in r.result()]
            usage = answers.usage(requests, whole)
            return JSONResponse(answer.whole(completions, usage))

    async def _submit(self, prompts, settings, stack):
        """Gives the prompts to the engine; `stack` cancels them."""
        requests = []

        def submit():
            # Text becomes ids here: in a thread, for others go on.
            for prompt in prompts:
                request = self._engine.submit(prompt, **settings)
                requests.append(request)
                stack.callback(request.cancel)

        try:
            await anyio.to_thread.run_sync(submit)
        except QueueFull as error:
            raise ApiError(429, str(error), code="queue_full") from error
        except ValueError as error:
            raise ApiError(
                400, str(error), param=_param(str(error), settings)
            ) from error
        except RuntimeError as error:
            raise ApiError(503, str(error)) from error
        return requests

    async def _pieces(self, requests, start):
        """Yields `(choice, piece)` of all requests, in time."""
        clock = asyncio.get_running_loop().time
        deadline = start + self._limits.seconds
        is_first = True
        for place, request in enumerate(requests):
            pieces = aiter(request)
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        piece = await anext(pieces, None)
                except TimeoutError as error:
                    raise ApiError(
                        504,
                        f"An answer may take {self._limits.seconds:g} s here. "
                        "Received: a request that takes longer. Ask for fewer "
                        "tokens, or start the server with a larger "
                        "--max-seconds.",
                        code="timeout",
                    ) from error
                except RuntimeError as error:
                    raise ApiError(
                        500, "The engine failed; its log says why."
                    ) from error
                if piece is None:
                    break
                if piece.finish_reason == "cancelled":
                    raise ApiError(503, "The server is shutting down.")
                if is_first:
                    is_first = False
                    self.metrics.first_token_seconds.observe(clock() - start)
                yield place * request.settings.n + piece.index, piece


class EventStream(StreamingResponse):
    """Server-sent events; when they end, however they do, `stack` closes.

    Args:
        events: async iterator of str.
        stack: `ExitStack`.
    """

    media_type = "text/event-stream"

    def __init__(self, events, stack):
        # Proxies must hand on each event as it comes.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, headers=headers)
        self._stack = stack

    async def __call__(self, scope, receive, send):
        with self._stack:
            await super().__call__(scope, receive, send)


async def _events(pieces, requests, answer, include_usage):
    new_tokens = 0
    try:
        async for index, piece in pieces:
            new_tokens += len(piece.token_ids)
            chunk = answer.chunk(index, piece)
            if include_usage:
                chunk["usage"] = None
            yield _event(chunk)
    except ApiError as error:
        yield _event(error.body())
        return
    if include_usage:
        usage = answers.usage(requests, new_tokens)
        yield _event(answer.last_chunk(usage))
    yield "data: [DONE]\n\n"


def _event(content):
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def _collect(pieces):
    """Waits for all pieces; the number of their tokens."""
    count = 0
    async for _, piece in pieces:
        count += len(piece.token_ids)
    return count


async def _unless_gone(request, work):
    """What `work` returns, or `None` if the client goes away first."""
    work = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        work.cancel()
        gone.cancel()


async def _until_gone(request):
    while (await request.receive())["type"] != "http.disconnect":
        continue


def _param(message, settings):
    """The field that an error of the engine is about, if it is of one."""
    for name in settings:
        if message.startswith(f"`{name}`"):
            return name
    return None
