"""The device's side of an engine: a fixed batch of rows, compiled programs."""

import numpy as np
from keras import ops

from keras_griffin.generation import row_sampling
from keras_griffin.generation.decoding import prefill_piece
from keras_griffin.generation.prompts import MIN_BUCKET
from keras_griffin.generation.prompts import to_numpy
from keras_griffin.generation.row_decoding import decode_rows
from keras_griffin.generation.state_rows import set_rows
from keras_griffin.generation.state_rows import take_rows

# Room for the stop ids of a row.
STOP_IDS = 32
# Each width of a piece of a prompt is so many times the one before it.
WIDTHS_APART = 2


class Rows:
    """A batch of rows that decode together, each with its own settings.

    Everything on the device has a shape that is fixed here: what is compiled
    by `warm_up` serves whatever comes.

    Args:
        model: a `GriffinCausalLM`.
        max_rows: int.
        prefill_chunk: int. Most tokens of a piece of a prompt.
        max_length: int, or `None`. See `GriffinCausalLM.init_state`.
    """

    def __init__(self, model, max_rows, prefill_chunk, max_length):
        self._model = model
        self.max_rows = max_rows
        self._vocabulary = model.backbone.vocabulary_size
        self._max_length = max_length
        self._widths = _widths(prefill_chunk)
        self._arrays = row_sampling.neutral_arrays(max_rows)
        self._stops = np.full((max_rows, STOP_IDS), -1, "int32")
        self.steps = np.zeros((max_rows,), "int32")
        self._places = np.zeros((max_rows,), "int32")
        self._inputs = None
        self.fresh = model.init_state(1, max_length)
        self.no_logits = ops.zeros((1, self._vocabulary), "float32")
        neutral = row_sampling.init_tables(1, self._vocabulary)
        self._neutral_tables = neutral
        self._all = {
            "logits": ops.zeros((max_rows, self._vocabulary), "float32"),
            "state": model.init_state(max_rows, max_length),
            "tables": row_sampling.init_tables(max_rows, self._vocabulary),
        }

    def warm_up(self):
        """Compiles all programs, by running each.

        Over a mesh a state that was read, one that was taken out of the batch
        and a fresh one may lie on the devices in three ways.
        """
        start = self.no_logits, self.fresh
        for _ in range(2):  # The second time from what the first one returned.
            read = start
            for width in self._widths:
                read = self._read_piece([], width, *start)
            for width in self._widths:
                self._read_piece([], width, *read)
            for logits, state in (start, read, self.end_of(0)):
                self._join(0, logits, state, self._neutral_tables)
            self.set_logits(0, to_numpy(self.logits_of(0))[0])
            self.decode(1)
            start = self.end_of(0)

    # === Prompts ===

    def read(self, token_ids, logits, state):
        """Reads at most `prefill_chunk` tokens after a state of one row.

        Returns:
            `(logits, state)` after them.
        """
        width = min(w for w in self._widths if w >= len(token_ids))
        return self._read_piece(token_ids, width, logits, state)

    def _read_piece(self, token_ids, width, logits, state):
        ids = np.zeros((1, width), "int32")
        ids[0, : len(token_ids)] = token_ids
        piece = {
            "token_ids": ops.convert_to_tensor(ids),
            "padding_mask": ops.convert_to_tensor(
                np.arange(width)[None] < len(token_ids)
            ),
        }
        return self._model._functions.run(prefill_piece, piece, logits, state)

    # === Rows ===

    def join(self, row, logits, state, prompt, settings, seed, stops, steps):
        """Lets a text begin in a free row.

        Args:
            row: int.
            logits, state: after the prompt.
            prompt: sequence of its ids.
            settings: `SamplingSettings`.
            seed: int. In place of that of the settings.
            stops: ids that end the text, `STOP_IDS` at most.
            steps: int. Most tokens that it takes.
        """
        tables = self._neutral_tables
        if row_sampling.changes_logits(settings):
            tables = {
                name: ops.convert_to_tensor(table)
                for name, table in row_sampling.row_tables(
                    settings, prompt, self._vocabulary
                ).items()
            }
        self._join(row, logits, state, tables)
        row_sampling.set_row(self._arrays, row, settings, seed)
        self._stops[row] = -1
        self._stops[row, : len(stops)] = stops
        self._places[row] = 0
        self.steps[row] = steps
        self._inputs = None

    def _join(self, row, logits, state, tables):
        new = {"logits": logits, "state": state, "tables": tables}
        index = ops.convert_to_tensor(np.array(row, "int32"))
        self._all = self._model._functions.run(_set_row, index, new, self._all)

    def leave(self, row):
        """Frees a row."""
        row_sampling.set_row(self._arrays, row)
        self.steps[row] = 0
        self._inputs = None

    def end_of(self, row):
        """The `(logits, state)` of a row, each of one row."""
        arrays = self._all["logits"], self._all["state"]
        return self._take(row, arrays)

    def logits_of(self, row):
        """`(1, vocabulary_size)`: what comes next in a row."""
        return self._take(row, self._all["logits"])

    def _take(self, row, arrays):
        index = ops.convert_to_tensor(np.array([row], "int32"))
        return self._model._functions.run(_take_row, index, arrays)

    def set_logits(self, row, logits):
        """Replaces what comes next in a row by `(vocabulary_size,)`."""
        logits = np.asarray(logits, "float32")[None]
        index = ops.convert_to_tensor(np.array(row, "int32"))
        self._all["logits"] = self._model._functions.run(
            _set_row, index, ops.convert_to_tensor(logits), self._all["logits"]
        )

    # === Decoding ===

    def decode(self, count):
        """Takes up to `count` tokens in all rows that take some.

        Returns:
            `(tokens, scores, taken)`: `(rows, DECODE_CHUNK)` ids, the
            log-probabilities of `row_sampling.log_probabilities` in the same
            two axes first, and the number of tokens taken in each row, a
            stop token included.
        """
        if self._inputs is None:
            self._inputs = {
                "stops": ops.convert_to_tensor(self._stops),
                "settings": {
                    name: ops.convert_to_tensor(array)
                    for name, array in self._arrays.items()
                },
            }
        tables = dict(self._all["tables"])
        counts = tables.pop("counts")
        inputs = {
            **self._inputs,
            "count": ops.convert_to_tensor(np.array(count, "int32")),
            "steps": ops.convert_to_tensor(self.steps),
            "places": ops.convert_to_tensor(self._places),
            "tables": tables,
        }
        outputs = self._model._functions.run(
            decode_rows,
            inputs,
            self._all["logits"],
            self._all["state"],
            counts,
            xla=True,
        )
        tokens, scores, steps, places, logits, state, counts = outputs
        self._all = {
            "logits": logits,
            "state": state,
            "tables": {**tables, "counts": counts},
        }
        steps, places = np.array(to_numpy(steps)), np.array(to_numpy(places))
        taken = places - self._places
        self.steps, self._places = steps, places
        scores = {
            name: to_numpy(score)
            for name, score in scores.items()
            if name == "chosen" or self._arrays["top_logprobs"].any()
        }
        return to_numpy(tokens), scores, taken


def _widths(prefill_chunk):
    """Widths of pieces: a short prompt's need not be padded to the whole."""
    widths = [prefill_chunk]
    while widths[0] > MIN_BUCKET:
        widths.insert(0, max(widths[0] // WIDTHS_APART, MIN_BUCKET))
    return widths


def _set_row(model, index, new, arrays):
    return set_rows(arrays, index, new)


def _take_row(model, index, arrays):
    return take_rows(arrays, index)
