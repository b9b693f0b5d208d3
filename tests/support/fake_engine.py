"""An engine without a model: quick, and as slow as a test wants it."""

import threading
import time
import types

from keras_griffin.generation.arguments import check_whole
from keras_griffin.generation.sampling_settings import SamplingSettings
from keras_griffin.serving.request import Piece
from keras_griffin.serving.request import QueueFull
from keras_griffin.serving.request import Request

MANY = 64  # tokens of a text that does not say how many


class FakeTokenizer:
    def id_to_token(self, id):
        return f"\u2581word{id}"


class FakeEngine:
    """`Engine`'s interface; a text is " word0 word1 ..." .

    Args:
        max_rows: int. Texts at the same time.
        max_queue: int. Requests that may wait.
        seconds: float. Time of a token.
        text: str. In place of each word, if given.
    """

    def __init__(self, max_rows=4, max_queue=8, seconds=0.0, text=None):
        preprocessor = types.SimpleNamespace(
            turn_format=None, tokenizer=FakeTokenizer()
        )
        self.model = types.SimpleNamespace(preprocessor=preprocessor)
        self.error = None
        self.prompts = []
        self._max_rows, self._max_queue = max_rows, max_queue
        self._seconds, self._text = seconds, text
        self._waiting, self._texts = [], []
        self._counts = dict.fromkeys(("finished", "cancelled", "tokens"), 0)
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, prompt, **settings):
        settings = SamplingSettings(**settings)
        check_whole("n", settings.n, 1, self._max_rows, "Each takes a row.")
        if len(prompt) > 1000:
            raise ValueError("A prompt must fit. Received: a long one.")
        room = settings.max_new_tokens or MANY
        request = Request(self, list(prompt), settings, (), room)
        with self._changed:
            if self._is_closed:
                raise RuntimeError("A closed engine takes no requests.")
            if len(self._waiting) >= self._max_queue:
                raise QueueFull("Too many requests wait.")
            self.prompts.append(prompt)
            self._waiting.append(request)
            self._changed.notify_all()
        return request

    def statistics(self):
        numbers = dict.fromkeys(
            ("prompt_tokens_read", "prefix_cache_hits", "prefix_cache_tokens")
            + ("prefix_cache_bytes", "prefix_cache_entries", "device_seconds"),
            0,
        )
        return {
            **numbers,
            "rows": self._max_rows,
            "rows_busy": len(self._texts),
            "requests_waiting": len(self._waiting),
            "requests_reading": 0,
            "texts_finished": self._counts["finished"],
            "texts_cancelled": self._counts["cancelled"],
            "tokens_generated": self._counts["tokens"],
        }

    def fail(self, error):
        """Ends all requests, as a defect of the device does."""
        with self._changed:
            self.error = error
            self._is_closed = True
            for request in {text[0] for text in self._texts}:
                request._fail(RuntimeError(f"The engine failed: {error!r}"))
            self._texts.clear()

    def close(self, drain=True):
        with self._changed:
            self._is_closed = True
            if not drain:
                for request in self._waiting + [t[0] for t in self._texts]:
                    request.is_cancelled = True
            self._changed.notify_all()
        self._thread.join()

    def _wake_up(self):
        with self._changed:
            self._changed.notify_all()

    def _run(self):
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._waiting or self._texts or self._is_closed
                )
                if not (self._waiting or self._texts):
                    return
                self._step()
            time.sleep(self._seconds)

    def _step(self):
        """One token for each text; `self._texts` is (request, index, done)."""
        while self._waiting:
            request = self._waiting[0]
            if len(self._texts) + request.settings.n > self._max_rows:
                break
            self._waiting.pop(0)
            self._texts += [(request, i, 0) for i in range(request.settings.n)]
        for request in [r for r in self._waiting if r.is_cancelled]:
            self._waiting.remove(request)
            self._texts += [(request, i, 0) for i in range(request.settings.n)]
        self._texts = [text for text in self._texts if self._goes_on(*text)]
        self._texts = [(r, i, done + 1) for r, i, done in self._texts]

    def _goes_on(self, request, index, done):
        if request.is_cancelled:
            self._counts["cancelled"] += 1
            request._put(Piece(index, "", finish_reason="cancelled"))
            return False
        is_last = done + 1 == request.max_new_tokens
        self._counts["finished"] += is_last
        self._counts["tokens"] += 1
        piece = Piece(
            index,
            f" word{done}" if self._text is None else self._text,
            (done,),
            (-0.5,),
            ({done: -0.5},),
            "length" if is_last else None,
        )
        request._put(piece)
        return not is_last
