from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import weakref
from typing import Any
from typing import Self

import keras
import numpy as np

from keras_griffin.generation import chat_template
from keras_griffin.generation.arguments import check_whole
from keras_griffin.generation.sampling import find_stop_token_ids
from keras_griffin.generation.sampling_settings import OF_A_REQUEST
from keras_griffin.generation.sampling_settings import SamplingSettings
from keras_griffin.generation.sampling_settings import check_has_text
from keras_griffin.generation.sampling_settings import check_vocabulary
from keras_griffin.layers.input_checks import check_token_ids
from keras_griffin.near_names import check_arguments
from keras_griffin.serving.prefix_cache import PrefixCache
from keras_griffin.serving.prefix_folder import PrefixFolder
from keras_griffin.serving.request import QueueFull
from keras_griffin.serving.request import Request
from keras_griffin.serving.rows import STOP_IDS
from keras_griffin.serving.rows import Rows
from keras_griffin.serving.scheduler import Scheduler

# Most new tokens of a request that does not say how many.
DEFAULT_NEW_TOKENS = 1024


class Engine:
    """Answers many requests on one model, each as if it were alone.

    A fixed batch of rows decodes together; a request joins in a free row when
    its prompt has been read, in pieces between the others' tokens, and leaves
    when its text ends. Nothing is compiled after the constructor, and what a
    request gets does not depend on its company: greedy tokens are those of
    `GriffinCausalLM.generate`, and drawn ones those that its seed gives alone.

    Args:
        model: a `GriffinCausalLM`. Without a preprocessor prompts are token
            ids, and pieces have no text.
        max_rows: int. Texts that are made at the same time. Defaults to `8`.
        prefill_chunk: int. Most tokens of a prompt that are read between two
            calls that decode. Defaults to `256`.
        prefix_cache_bytes: int. Memory for states of prompts' beginnings,
            from which other prompts go on; 0 for none. Defaults to
            `256 * 2**20`.
        max_queue: int. Requests that may wait for a row. Defaults to `None`:
            any number.
        max_length: int. Most tokens of a prompt and its text together; global
            attention needs it. Defaults to `None`: any number.
        prefix_folder: str or path. A folder to which prefixes are written
            when they are used the second time, and from which an engine goes
            on that is made later. Nothing is removed from it. Defaults to
            `None`.

    Raises:
        ValueError: for sizes that are no positive integers, and for global
            attention without `max_length`.

    Example:
    ```python
    with keras_griffin.serving.Engine(model, max_rows=2) as engine:
        first = engine.submit("ROMEO:", max_new_tokens=20, temperature=0)
        second = engine.submit("JULIET:", max_new_tokens=20, seed=1)
        for piece in first:
            print(piece.text, end="", flush=True)
        print(second.result()[0].text)
    ```
    """

    def __init__(
        self,
        model: Any,
        max_rows: int = 8,
        prefill_chunk: int = 256,
        prefix_cache_bytes: int = 256 * 2**20,
        max_queue: int | None = None,
        max_length: int | None = None,
        prefix_folder: str | os.PathLike[str] | None = None,
    ) -> None:
        check_whole("max_rows", max_rows, 1, None, "It counts texts.")
        check_whole("prefill_chunk", prefill_chunk, 1, None, "256 is usual.")
        check_whole(
            "prefix_cache_bytes", prefix_cache_bytes, 0, None, "0 keeps none."
        )
        for name, value in (
            ("max_queue", max_queue),
            ("max_length", max_length),
        ):
            if value is not None:
                check_whole(name, value, 1, None, "`None` sets no limit.")
        if max_length is None and "global_attention" in (
            model.backbone.block_types
        ):
            raise ValueError(
                "Global attention has a slot for every token, so that it needs "
                "to know how many. Received: max_length=None. Give the most "
                "tokens of a prompt and its text together."
            )
        self.model = model
        self.max_queue = max_queue
        self.max_length = max_length
        self.max_rows = max_rows
        rows = Rows(model, max_rows, prefill_chunk, max_length)
        rows.warm_up()
        folder = None
        if prefix_folder is not None:
            folder = PrefixFolder(model, prefix_folder)
        self._scheduler = Scheduler(
            model,
            rows,
            prefill_chunk,
            PrefixCache(prefix_cache_bytes, folder),
        )
        self._submitted = []
        self._changed = threading.Condition()
        self._is_closing = False
        self._is_cancelling = False
        self._error = None
        self._tokenizing = threading.Lock()
        self._thread = threading.Thread(
            target=self._run,
            args=(keras.distribution.distribution(),),
            name="keras_griffin.serving.Engine",
            daemon=True,  # Ctrl-C in the main thread ends the program.
        )
        self._thread.start()
        # What runs on the device must not be left while Python goes down.
        self._at_exit = _closing_at_exit(weakref.ref(self))

    # === Of any thread ===

    def submit(self, prompt: Any, **settings: Any) -> Request:
        """Asks for texts that continue a prompt.

        Args:
            prompt: str; a list of messages that ends with the user's, where
                the preprocessor has a `turn_format`; or a sequence of token
                ids.
            **settings: see `SamplingSettings`. Without `max_new_tokens` a
                text takes what room `max_length` leaves, or 1024 tokens.

        Returns:
            A `Request`, to iterate over.

        Raises:
            QueueFull: if `max_queue` requests wait already.
            RuntimeError: if the engine is closed.
            ValueError: for a prompt without a token or too long for
                `max_length`, for unknown settings and values out of range.
        """
        request = self._make_request(prompt, settings)
        with self._changed:
            self._check_open()
            waiting = len(self._submitted) + len(self._scheduler.waiting)
            if self.max_queue is not None and waiting >= self.max_queue:
                raise QueueFull(
                    f"At most {self.max_queue} requests may wait for a row. "
                    f"Received: one more. Submit it again later, or make the "
                    "engine with more `max_rows` or a larger `max_queue`."
                )
            self._submitted.append(request)
            self._changed.notify_all()
        return request

    def close(self, drain: bool = True) -> None:
        """Ends the engine; it takes no more requests.

        Args:
            drain: bool. Finish what was submitted; otherwise it is cancelled.
                Defaults to `True`.
        """
        with self._changed:
            self._is_closing = True
            self._is_cancelling |= not drain
            self._changed.notify_all()
        self._thread.join()
        atexit.unregister(self._at_exit)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: Any, error: Any, traceback: Any) -> None:
        self.close(drain=error is None)

    def statistics(self) -> dict[str, Any]:
        """Numbers of the engine now and so far.

        Returns:
            dict: `"rows"`, `"rows_busy"`, `"requests_waiting"`,
            `"requests_reading"`, `"prefix_cache_bytes"`,
            `"prefix_cache_entries"` now; `"texts_finished"`,
            `"texts_cancelled"`, `"tokens_generated"`, `"prompt_tokens_read"`,
            `"prefix_cache_hits"`, `"prefix_cache_tokens"`, `"device_seconds"`
            since the start.
        """
        with self._changed:
            waiting = len(self._submitted)
        return self._scheduler.statistics(waiting)

    @property
    def error(self) -> BaseException | None:
        """The exception that ended the engine, or `None`."""
        return self._error

    def _wake_up(self):
        with self._changed:
            self._changed.notify_all()

    def _check_open(self):
        if self._error is not None:
            raise RuntimeError(
                "An engine that failed takes no requests. Received: one "
                f"after {self._error!r}. Make a new one."
            ) from self._error
        if self._is_closing:
            raise RuntimeError(
                "A closed engine takes no requests. Received: one after "
                "`close`. Make a new one."
            )

    def _make_request(self, prompt, settings):
        check_arguments("Engine.submit", settings, OF_A_REQUEST)
        settings = SamplingSettings(**settings)
        check_vocabulary(settings, self.model.backbone.vocabulary_size)
        check_whole("n", settings.n, 1, self.max_rows, "Each takes a row.")
        check_has_text(self.model, settings)
        stops = find_stop_token_ids(self.model, settings.stop_token_ids)
        if len(stops) > STOP_IDS:
            raise ValueError(
                f"A request may have {STOP_IDS} stop ids. Received: "
                f"{len(stops)}. Leave some out."
            )
        ids = self._prompt_ids(prompt)
        room = self._room(ids, settings.max_new_tokens)
        return Request(self, ids, settings, stops, room)

    def _prompt_ids(self, prompt):
        preprocessor = self.model.preprocessor
        is_chat = chat_template.is_conversation(prompt)
        if isinstance(prompt, str) or is_chat:
            if preprocessor is None:
                raise ValueError(
                    "A prompt of text needs a model with a preprocessor. "
                    f"Received: {prompt!r:.80}. Give token ids."
                )
            with self._tokenizing:
                (ids,) = preprocessor.prompt_rows([prompt])
        else:
            ids = prompt
        ids = np.asarray(ids)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(
                "A prompt must be a string, a list of messages or a sequence "
                f"of token ids, one at least. Received: {prompt!r:.80}."
                " Submit each of several prompts."
            )
        check_token_ids(ids, self.model.backbone.vocabulary_size)
        return ids.astype("int32")

    def _room(self, ids, max_new_tokens):
        if self.max_length is None:
            return max_new_tokens or DEFAULT_NEW_TOKENS
        room = self.max_length - len(ids)
        if room < 1:
            raise ValueError(
                "A prompt must leave room for a token within the engine's "
                f"`max_length` of {self.max_length}. Received: {len(ids)} "
                "tokens. Shorten it, or make the engine with more."
            )
        return min(room, max_new_tokens or room)

    # === Of the device's thread ===

    def _run(self, distribution):
        scope = contextlib.nullcontext()
        if distribution is not None:  # Keras keeps it for each thread.
            scope = distribution.scope()
        try:
            with scope:
                while self._wait_for_work():
                    self._scheduler.step()
        finally:
            # Of a loop that ended well there is none.
            self._end(sys.exception())

    def _wait_for_work(self):
        """Takes in what was submitted; `False` when there is no more to do."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._submitted
                    or self._is_closing
                    or self._scheduler.has_work
                )
            )
            self._scheduler.waiting.extend(self._submitted)
            self._submitted.clear()
            if self._is_cancelling:
                for request in self._scheduler.requests():
                    request.is_cancelled = True
            return self._scheduler.has_work

    def _end(self, error):
        with self._changed:
            self._error = error
            self._scheduler.waiting.extend(self._submitted)
            self._submitted.clear()
        self._scheduler.fail(error)


def _closing_at_exit(engine):
    def close():
        if engine() is not None:
            engine().close(drain=False)

    atexit.register(close)
    return close
