"""What was asked of an engine, and what comes of it."""

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any


class QueueFull(RuntimeError):
    """The engine has as many waiting requests as it may; try again later.

    Example:
    ```python
    with keras_griffin.serving.Engine(model, max_queue=9) as engine:
        try:
            request = engine.submit("ROMEO:", max_new_tokens=8)
        except keras_griffin.serving.QueueFull:
            print("Come back in a minute.")
    ```
    """


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some new tokens of one text.

    Args:
        index: int. Which of the request's `n` texts it belongs to.
        text: str. New text; a character whose bytes are not all there yet,
            and what could be the beginning of a stop string, come later.
        token_ids: tuple of int. New ids, without one that ended the text.
        logprobs: tuple of float. The log-probability of each, before any
            setting changes it [nats].
        top_logprobs: tuple with a dict for each id: the likeliest ids and
            their log-probabilities. Empty dicts unless they were asked for.
        finish_reason: `None`, or on the last piece of a text `"stop"`,
            `"length"` or `"cancelled"`.

    Example:
    ```python
    with keras_griffin.serving.Engine(model, max_rows=2) as engine:
        for piece in engine.submit("ROMEO:", max_new_tokens=8):
            print(piece.text, end="")
    ```
    """

    index: int
    text: str
    token_ids: tuple = ()
    logprobs: tuple = ()
    top_logprobs: tuple = ()
    finish_reason: str | None = None


@dataclasses.dataclass(frozen=True)
class Completion:
    """A whole text: all pieces of one index, joined.

    Args:
        index: int. Which of the request's `n` texts it is.
        text: str.
        token_ids: tuple of int. See `Piece`, as the rest.
        logprobs: tuple of float.
        top_logprobs: tuple of dicts.
        finish_reason: str.

    Example:
    ```python
    with keras_griffin.serving.Engine(model, max_rows=2) as engine:
        (completion,) = engine.submit("ROMEO:", max_new_tokens=8).result()
    completion.finish_reason  # "length"
    ```
    """

    index: int
    text: str
    token_ids: tuple
    logprobs: tuple
    top_logprobs: tuple
    finish_reason: str


class Request:
    """A prompt that an engine answers; `Engine.submit` makes it.

    Iterate over it, with `for` or `async for`, for its pieces as they come;
    each iteration begins with the first one. Where an error ended the
    request, the iteration raises it after the pieces that came before: what
    its own logits processor raised, or a `RuntimeError` if the engine failed.

    Attributes:
        prompt_tokens: int. Tokens of the prompt.
        cached_tokens: int. How many of them a cached prefix has spared.
            Known when the first piece comes.
        error: the exception that ended it, or `None`.

    Example:
    ```python
    with keras_griffin.serving.Engine(model, max_rows=2) as engine:
        request = engine.submit("ROMEO:", max_new_tokens=100)
        for piece in request:
            if "\\n" in piece.text:
                request.cancel()
    ```
    """

    def __init__(
        self,
        engine: Any,
        token_ids: Sequence[int],
        settings: Any,
        stops: Any,
        max_new_tokens: int,
    ) -> None:
        self.token_ids = token_ids
        self.settings = settings
        self.stops = stops
        self.max_new_tokens = max_new_tokens
        self.cached_tokens = 0
        self.error = None
        self.is_cancelled = False
        self._engine = engine
        self._pieces = []
        self._unfinished = settings.n
        self._changed = threading.Condition()
        self._waiters = []  # (event loop, its future)

    @property
    def prompt_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def is_finished(self) -> bool:
        """Whether the last piece of each text is there."""
        return not self._unfinished

    def cancel(self) -> None:
        """Ends it, at any time and from any thread, and frees its rows."""
        self.is_cancelled = True
        self._engine._wake_up()

    def result(self, timeout: float | None = None) -> list[Completion]:
        """Waits for all of it.

        Args:
            timeout: float. Longest to wait [s]. Defaults to `None`: as long
                as it takes.

        Returns:
            list of `n` `Completion`s.

        Raises:
            TimeoutError: if it takes longer.
            RuntimeError: if the engine failed; the cause is attached.
            Exception: what the request's own logits processor raised.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.is_finished, timeout):
                raise TimeoutError(
                    "A request must be finished within the timeout. "
                    f"Received: timeout={timeout}, and "
                    f"{self._unfinished} of {self.settings.n} texts are not. "
                    "Wait longer, or call `cancel`."
                )
        self._check_error()
        return [self._completion(index) for index in range(self.settings.n)]

    def _completion(self, index):
        pieces = [p for p in self._pieces if p.index == index]
        return Completion(
            index=index,
            text="".join(p.text for p in pieces),
            token_ids=sum((p.token_ids for p in pieces), ()),
            logprobs=sum((p.logprobs for p in pieces), ()),
            top_logprobs=sum((p.top_logprobs for p in pieces), ()),
            finish_reason=pieces[-1].finish_reason,
        )

    def _put(self, piece):
        """Hands a piece to all who wait; of the device's thread."""
        with self._changed:
            self._pieces.append(piece)
            if piece.finish_reason is not None:
                self._unfinished -= 1
        self._wake_all()

    def _fail(self, error):
        """Ends all its texts with an error; of the device's thread."""
        with self._changed:
            self.error = error
            self._unfinished = 0
        self._wake_all()

    def _wake_all(self):
        with self._changed:
            self._changed.notify_all()
            waiters, self._waiters = self._waiters, []
        for loop, future in waiters:
            try:
                loop.call_soon_threadsafe(_wake, future)
            except RuntimeError:  # The loop was closed: nobody waits.
                continue

    def _check_error(self):
        if self.error is not None:
            raise self.error

    def __iter__(self) -> Iterator[Piece]:
        place = 0
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: len(self._pieces) > place or self.is_finished
                )
                if len(self._pieces) == place:
                    self._check_error()
                    return
                piece = self._pieces[place]
            place += 1
            yield piece

    async def __aiter__(self) -> AsyncIterator[Piece]:
        loop = asyncio.get_running_loop()
        place = 0
        while True:
            with self._changed:
                new = self._pieces[place:]
                if not new and self.is_finished:
                    self._check_error()
                    return
                if not new:
                    future = loop.create_future()
                    self._waiters.append((loop, future))
            if not new:
                await future
            for piece in new:
                place += 1
                yield piece


def _wake(future):
    if not future.done():
        future.set_result(None)
