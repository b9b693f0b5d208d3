"""What the device does next: whose prompt is read, which rows decode."""

import collections
import time

import numpy as np

from keras_griffin.generation import row_sampling
from keras_griffin.generation.prompts import to_numpy
from keras_griffin.serving.prefix import Prefix
from keras_griffin.serving.prefix import common
from keras_griffin.serving.request import Piece
from keras_griffin.serving.text import Text

# New tokens of one call of the device: while no prompt is read, while one is,
# and while more rows wait for theirs, which then decode nothing.
DECODE_STEPS = (8, 4, 2)
# The states of a prompt are kept after so many pieces,
PIECES_BETWEEN_PREFIXES = 4
# and where it goes apart from another prompt, if that spares so many tokens.
MIN_SHARED = 32


class Reading:
    """A prompt that is being read, for rows that are reserved.

    Args:
        request: `Request`.
        rows: list of int. One a text.
        logits, state: before the prompt.
    """

    def __init__(self, request, rows, logits, state):
        self.request = request
        self.rows = rows
        self.logits, self.state = logits, state
        self.done = 0  # tokens

    @property
    def rest(self):
        return len(self.request.token_ids) - self.done


class _Kept:
    """Keeps what a user's function raises, for the one who asked for it."""

    error = None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self.error = error
        return isinstance(error, Exception)


class Scheduler:
    """Runs requests on rows; used by one thread.

    Args:
        model: a `GriffinCausalLM`.
        rows: `Rows`.
        prefill_chunk: int. Most tokens of a prompt between two decodings.
        prefix_cache: `PrefixCache`.

    Attributes:
        waiting: deque of `Request`s that have no row yet.
    """

    def __init__(self, model, rows, prefill_chunk, prefix_cache):
        self._rows = rows
        self._prefill_chunk = prefill_chunk
        self._prefixes = prefix_cache
        self._tokenizer = None
        if model.preprocessor is not None:
            self._tokenizer = model.preprocessor.tokenizer
        self.waiting = collections.deque()
        self._reading = []
        self._texts = {}  # by row
        self._free = list(range(rows.max_rows))
        self._counts = collections.Counter()
        self._takes_shortest = False

    @property
    def has_work(self):
        return bool(self.waiting or self._reading or self._texts)

    def requests(self):
        """All that are not finished."""
        return [
            *self.waiting,
            *(reading.request for reading in self._reading),
            *(text.request for text in self._texts.values()),
        ]

    def statistics(self, waiting):
        counts = self._counts
        return {
            "rows": self._rows.max_rows,
            "rows_busy": len(self._texts),
            "requests_waiting": waiting + len(self.waiting),
            "requests_reading": len(self._reading),
            "texts_finished": counts["finished"],
            "texts_cancelled": counts["cancelled"],
            "tokens_generated": counts["tokens"],
            "prompt_tokens_read": counts["read"],
            "prefix_cache_hits": counts["hits"],
            "prefix_cache_tokens": counts["spared"],
            "prefix_cache_bytes": self._prefixes.bytes,
            "prefix_cache_entries": len(self._prefixes),
            "device_seconds": counts["seconds"],
        }

    def step(self):
        """A piece of a prompt, and some tokens for each row."""
        start = time.perf_counter()
        self._drop_cancelled()
        self._admit()
        self._read_piece()
        self._decode()
        self._counts["seconds"] += time.perf_counter() - start

    def fail(self, error):
        """Ends all requests, because the engine has failed."""
        for request in dict.fromkeys(self.requests()):
            failure = RuntimeError(
                "The engine could not finish this request: an earlier error "
                f"ended it. Received: {error!r}. Make a new engine."
            )
            failure.__cause__ = error
            request._fail(failure)
        self.waiting.clear()
        self._reading, self._texts = [], {}

    # === Coming and going ===

    def _drop_cancelled(self):
        for request in [r for r in self.waiting if r.is_cancelled]:
            self.waiting.remove(request)
            self._cancel_unread(request)
        for reading in [r for r in self._reading if r.request.is_cancelled]:
            self._reading.remove(reading)
            self._free += reading.rows
            self._cancel_unread(reading.request)
        for row, text in list(self._texts.items()):
            if text.request.is_cancelled:
                self._counts["cancelled"] += 1
                self._leave(row)
                text.request._put(text.end("cancelled"))

    def _cancel_unread(self, request):
        self._counts["cancelled"] += request.settings.n
        for index in range(request.settings.n):
            request._put(Piece(index, "", finish_reason="cancelled"))

    def _admit(self):
        """Reserves rows, first come first served."""
        while self.waiting and len(self._free) >= self.waiting[0].settings.n:
            request = self.waiting.popleft()
            rows = [self._free.pop() for _ in range(request.settings.n)]
            self._reading.append(
                Reading(request, rows, self._rows.no_logits, self._rows.fresh)
            )

    def _leave(self, row):
        del self._texts[row]
        self._rows.leave(row)
        self._free.append(row)

    # === Prompts ===

    def _read_piece(self):
        if not self._reading:
            return
        reading = self._next_reading()
        self._skip_what_is_known(reading)
        ids = reading.request.token_ids
        if reading.rest:
            end = self._end_of_piece(reading)
            reading.logits, reading.state = self._rows.read(
                ids[reading.done : end], reading.logits, reading.state
            )
            self._counts["read"] += end - reading.done
            reading.done = end
            if self._is_worth_keeping(reading):
                self._prefixes.keep(
                    Prefix(ids[:end], reading.logits, reading.state)
                )
        if not reading.rest:
            self._reading.remove(reading)
            self._begin_texts(reading)

    def _next_reading(self):
        """In turns the first that came and the one with the least left.

        A short prompt does not wait for a long one, nor the long one for
        ever.
        """
        self._takes_shortest = not self._takes_shortest
        if self._takes_shortest:
            return min(self._reading, key=lambda reading: reading.rest)
        return self._reading[0]

    def _skip_what_is_known(self, reading):
        prefix = self._prefixes.longest(reading.request.token_ids, reading.done)
        if prefix is None:
            return
        spared = len(prefix.token_ids) - reading.done
        reading.done = len(prefix.token_ids)
        reading.logits, reading.state = prefix.logits, prefix.state
        reading.request.cached_tokens += spared
        self._counts["hits"] += 1
        self._counts["spared"] += spared

    def _end_of_piece(self, reading):
        end = reading.done + min(self._prefill_chunk, reading.rest)
        shared = self._shared(reading)
        if not reading.done < shared < end:
            return end
        kept = self._prefixes.size_of_longest(
            reading.request.token_ids[:shared]
        )
        return shared if shared - kept >= MIN_SHARED else end

    def _shared(self, reading):
        """Tokens that the prompt shares with another one.

        Where they end a third one will want to go on.
        """
        ids = reading.request.token_ids
        others = [
            common(ids, other.request.token_ids)
            for other in self._reading
            if other is not reading
        ]
        return max([self._prefixes.longest_common(ids), *others])

    def _is_worth_keeping(self, reading):
        every = PIECES_BETWEEN_PREFIXES * self._prefill_chunk
        return (
            not reading.rest
            or reading.done % every == 0
            or reading.done == self._shared(reading)
        )

    def _begin_texts(self, reading):
        request = reading.request
        seeds = request.settings.seeds(request.settings.n)
        for index, (row, seed) in enumerate(
            zip(reading.rows, seeds, strict=True)
        ):
            self._rows.join(
                row,
                reading.logits,
                reading.state,
                request.token_ids,
                request.settings,
                seed,
                request.stops,
                request.max_new_tokens,
            )
            self._texts[row] = Text(request, index, self._tokenizer)

    # === Tokens ===

    def _decode(self):
        count = DECODE_STEPS[min(len(self._reading), 2)]
        if self._process_logits():
            count = 1
        if not self._texts:
            return
        tokens, scores, taken = self._rows.decode(count)
        for row, text in list(self._texts.items()):
            self._take_tokens(row, text, tokens, scores, int(taken[row]))

    def _process_logits(self):
        """Runs users' own functions; whether there are any."""
        found = False
        for row, text in list(self._texts.items()):
            request = text.request
            process = request.settings.logits_processor
            if process is None or request.is_finished:
                continue
            found = True
            logits = np.array(to_numpy(self._rows.logits_of(row))[0])
            ids = [*request.token_ids, *text.token_ids]
            with _Kept() as kept:
                logits = row_sampling.process(process, ids, logits)
            if kept.error is None:
                self._rows.set_logits(row, logits)
            else:
                self._end_with(request, kept.error)
        return found

    def _end_with(self, request, error):
        """Ends one request, of which all rows are decoding, with an error."""
        for row, text in list(self._texts.items()):
            if text.request is request:
                self._leave(row)
        request._fail(error)

    def _take_tokens(self, row, text, tokens, scores, taken):
        ids = tokens[row, :taken].tolist()
        ends = not self._rows.steps[row]
        reason = "length" if ends else None
        if ends and ids and ids[-1] in text.request.stops:
            ids, reason = ids[:-1], "stop"
        piece = text.take(
            ids,
            scores["chosen"][row, : len(ids)].tolist(),
            self._top_logprobs(text, scores, row, len(ids)),
            reason,
        )
        self._counts["tokens"] += taken
        if text.is_finished:
            self._counts["finished"] += 1
            self._keep_end(row, text)
            self._leave(row)
        # Last: who gets it may look whether the row is free.
        if piece is not None:
            text.request._put(piece)

    def _top_logprobs(self, text, scores, row, size):
        wanted = text.request.settings.top_logprobs
        if not wanted:
            return [{} for _ in range(size)]
        return [
            dict(zip(ids, values, strict=True))
            for ids, values in zip(
                scores["ids"][row, :size, :wanted].tolist(),
                scores["values"][row, :size, :wanted].tolist(),
                strict=True,
            )
        ]

    def _keep_end(self, row, text):
        """The next turn of a conversation goes on from here."""
        if text.request.settings.logits_processor is None:
            ids = [*text.request.token_ids, *text.token_ids]
            ids = np.array(ids, "int32")
            self._prefixes.keep(Prefix(ids, *self._rows.end_of(row)))
