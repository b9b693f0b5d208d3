"""Decodes rows that each have settings of their own, as data.

`generate` with settings and the serving engine run the same loop.
"""

import numpy as np
from keras import ops

from keras_griffin.generation import row_sampling
from keras_griffin.generation.decoding import DECODE_CHUNK
from keras_griffin.generation.decoding import advance_rows
from keras_griffin.generation.decoding import pad_stop_token_ids
from keras_griffin.generation.decoding import read
from keras_griffin.generation.prompts import TextStream
from keras_griffin.generation.prompts import to_numpy
from keras_griffin.generation.state_rows import choose_rows
from keras_griffin.generation.stop_strings import StopStrings


def decode_rows(model, inputs, logits, state, counts):
    """Takes up to `count` tokens in each row that still takes some.

    Args:
        model: a `GriffinCausalLM`.
        inputs: dict of `"count"`; `"stops"` `(rows, ids)`; `"steps"`
            `(rows,)`, the tokens that each row still takes; `"places"`
            `(rows,)`, those that it has; `"settings"` and `"tables"`, see
            `row_sampling`, the latter without the counts.
        logits, state: of the next token, and before it.
        counts: `(rows, vocabulary_size)`, see `row_sampling`.

    Returns:
        `(tokens, scores, steps, places, logits, state, counts)`: `tokens`
        `(rows, DECODE_CHUNK)`, and a dict of log-probabilities with the same
        two axes first. A row has new tokens as its place went on; the last
        of them is a stop token where `steps` became 0 early.
    """
    rows = logits.shape[0]
    room = row_sampling.top_room(logits.shape[-1])
    tokens = ops.zeros((rows, DECODE_CHUNK), "int32")
    scores = {
        "chosen": ops.zeros((rows, DECODE_CHUNK), "float32"),
        "ids": ops.zeros((rows, DECODE_CHUNK, room), "int32"),
        "values": ops.zeros((rows, DECODE_CHUNK, room), "float32"),
    }
    settings, tables = inputs["settings"], inputs["tables"]
    advance = model._functions.step(advance_rows)

    def going_on(index, tokens, scores, steps, *rest):
        return ops.logical_and(index < inputs["count"], ops.any(steps > 0))

    def body(index, tokens, scores, steps, places, logits, state, counts):
        token, counts = row_sampling.draw(
            logits, places, settings, {**tables, "counts": counts}
        )
        found = row_sampling.log_probabilities(logits, token, settings)
        places = places + ops.cast(steps > 0, "int32")
        token, steps, logits, state = advance(
            token, inputs["stops"], steps, state
        )
        tokens = _put(tokens, index, token)
        scores = {
            name: _put(scores[name], index, found[name]) for name in scores
        }
        return index + 1, tokens, scores, steps, places, logits, state, counts

    _, tokens, scores, steps, places, logits, state, counts = ops.while_loop(
        going_on,
        body,
        (
            ops.convert_to_tensor(0, dtype="int32"),
            tokens,
            scores,
            inputs["steps"],
            inputs["places"],
            logits,
            state,
            counts,
        ),
        maximum_iterations=DECODE_CHUNK,
    )
    return tokens, scores, steps, places, logits, state, counts


def decode_read(model, prompts, stop_token_ids, settings, logits, state, chunk):
    """As `decoding.decode` after the prompts, by settings.

    A row that comes to a stop string takes no more steps: its `prompts.steps`
    are then those that it took.
    """
    rows = CallRows(model, prompts, settings)
    stops = pad_stop_token_ids(stop_token_ids)
    inputs = {
        "stops": ops.convert_to_tensor(stops),
        "settings": row_sampling.to_tensors(rows.arrays),
        "tables": row_sampling.to_tensors(rows.tables),
    }
    counts = inputs["tables"].pop("counts")
    steps, places = prompts.steps, np.zeros_like(prompts.steps)
    while steps.max(initial=0) > 0:
        count = min(chunk, int(steps.max()))
        if settings.logits_processor is not None:
            count, logits = 1, rows.process(logits, steps)
        before = state
        call = {
            **inputs,
            "count": ops.convert_to_tensor(np.array(count, "int32")),
            "steps": ops.convert_to_tensor(steps),
            "places": ops.convert_to_tensor(places),
        }
        tokens, _, steps, places, logits, state, counts = model._functions.run(
            decode_rows, call, logits, state, counts, xla=True
        )
        tokens = to_numpy(tokens)[:, :count]
        steps, places = np.array(to_numpy(steps)), to_numpy(places)
        stopped, kept = rows.take(tokens, places)
        if stopped.any():
            steps = np.where(stopped, 0, steps)
            state = _read_back(model, tokens, stopped, kept, before, state)
            if len(kept) == 1:
                tokens = tokens[:, : kept[0]]
        yield tokens, state


def _read_back(model, tokens, stopped, kept, before, after):
    """The state in which stopped rows have read their kept tokens alone.

    Args:
        tokens: `(rows, count)`, what was read between the two states.
        stopped: `(rows,)` bool.
        kept: `(rows,)`, how many tokens of a row count.
    """
    is_kept = np.arange(tokens.shape[1]) < kept[:, None]
    arrays = {"token_ids": tokens, "padding_mask": is_kept & stopped[:, None]}
    _, state = read(model, arrays, before)
    return choose_rows(stopped, state, after)


class CallRows:
    """The rows of a call: their settings, and their texts while they grow."""

    def __init__(self, model, prompts, settings):
        batch = len(prompts.rows)
        self._prompts = prompts
        self._settings = settings
        self.ids = [row.tolist() for row in prompts.rows]
        self._streams = []
        if settings.stop:
            tokenizer = model.preprocessor.tokenizer
            self._streams = [
                (TextStream(tokenizer, row), StopStrings(settings.stop))
                for row in self.ids
            ]
        self.arrays = row_sampling.neutral_arrays(batch)
        for i, seed in enumerate(settings.seeds(batch)):
            row_sampling.set_row(self.arrays, i, settings, seed)
        tables = [
            row_sampling.row_tables(
                settings, row, model.backbone.vocabulary_size
            )
            for row in self.ids
        ]
        self.tables = {
            name: np.concatenate([table[name] for table in tables])
            for name in tables[0]
        }

    def process(self, logits, steps):
        """Runs the user's function on rows that go on."""
        logits = np.array(to_numpy(logits))
        for i in np.flatnonzero(steps):
            logits[i] = row_sampling.process(
                self._settings.logits_processor, self.ids[i], logits[i]
            )
        return ops.convert_to_tensor(logits)

    def take(self, tokens, places):
        """Takes new tokens in, up to stop strings.

        Args:
            tokens: `(rows, count)`.
            places: `(rows,)`, new tokens of each row with these.

        Returns:
            `(stopped, kept)`, both `(rows,)`: whether a row came to a stop
            string, and its tokens up to there.
        """
        batch, count = tokens.shape
        stopped = np.zeros((batch,), bool)
        kept = np.full((batch,), count)
        for i, ids in enumerate(self.ids):
            had = len(ids) - len(self._prompts.rows[i])
            new = tokens[i, : places[i] - had].tolist()
            ids += new
            if not self._streams:
                continue
            stream, stop = self._streams[i]
            for n, id in enumerate(new):
                stop.push(stream.push([id]))
                if stop.is_stopped:
                    stopped[i], kept[i] = True, n + 1
                    self._prompts.steps[i] = had + n + 1
                    self._prompts.surplus[i] = stop.surplus
                    break
        return stopped, kept


def _put(x, index, column):
    """Writes a column of `x` `(rows, columns, ...)`."""
    start = [0, index] + [0] * (len(x.shape) - 2)
    return ops.slice_update(x, start, column[:, None])
