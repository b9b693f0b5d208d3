"""Several tokens in one pass: others propose them, the model verifies.

A token is a function of its logits, its seed and its place (`row_sampling`).
So a proposal is right if it is the token that the model draws there, and what
comes of it is what the model draws by itself, token for token. A pass reads
what is right already, then the proposals; the state that it keeps is the one
before the proposals, so that nothing has to be taken back.
"""

import numpy as np
from keras import ops

from keras_griffin.generation import row_sampling
from keras_griffin.generation.arguments import as_state
from keras_griffin.generation.decoding import DECODE_CHUNK
from keras_griffin.generation.decoding import prefill_piece
from keras_griffin.generation.decoding import read
from keras_griffin.generation.prompts import bucket
from keras_griffin.generation.prompts import to_numpy
from keras_griffin.generation.row_decoding import CallRows
from keras_griffin.generation.row_decoding import decode_rows
from keras_griffin.generation.sampling_settings import PROMPT_LOOKUP

# Tokens at the end of a text that are looked for in it, the most and least.
LONGEST_NGRAM, SHORTEST_NGRAM = 3, 1


def decode(model, prompts, stop_token_ids, settings, state):
    """As `decoding.decode`, from the prompts on.

    Yields the tokens of a pass for one row, and all tokens at once for
    several, which do not keep step. The state is there at the end alone.
    """
    speculation = Speculation(model, prompts, stop_token_ids, settings, state)
    batch = len(prompts.rows)
    new = [[] for _ in range(batch)]
    while speculation.steps.any():
        for row, tokens in zip(new, speculation.next_tokens(), strict=True):
            row += tokens
        if batch == 1:
            yield np.array(new, "int32"), None
            new = [[]]
    tokens = np.zeros((batch, max(map(len, new))), "int32")
    for i, row in enumerate(new):
        tokens[i, : len(row)] = row
    yield tokens, speculation.last_state()


class Speculation:
    """A batch of rows and who proposes tokens for them.

    Args:
        model: a `GriffinCausalLM`.
        prompts: `Prompts`.
        stop_token_ids: ids that end a row.
        settings: `SamplingSettings` with a `draft`.
        state: before the prompts, or `None`.

    Attributes:
        steps: `(rows,)`, tokens that each row still takes.
        passes: int. Passes of the model so far, each of all rows.
    """

    def __init__(self, model, prompts, stop_token_ids, settings, state):
        self._model = model
        self._size = settings.draft_tokens
        self._stops = stop_token_ids
        self._rows = CallRows(model, prompts, settings)
        self.steps = prompts.steps.copy()
        self._places = np.zeros_like(self.steps)
        tables = row_sampling.to_tensors(self._rows.tables)
        self._counts = tables.pop("counts")
        self._inputs = {
            "settings": row_sampling.to_tensors(self._rows.arrays),
            "tables": tables,
        }
        # What the state has not seen yet: at first a token each.
        self._known = [row[-1:].tolist() for row in prompts.rows]
        room = bucket(int(prompts.lengths.max()) + prompts.num_steps)
        self._state = _read_prompts(model, prompts, state, room + self._size)
        self._draft = None
        if settings.draft != PROMPT_LOOKUP:
            self._draft = settings.draft
            self._draft_state = _read_prompts(
                self._draft, prompts, None, room + self._size
            )
        self.passes = 0

    def next_tokens(self):
        """One pass: a list of new tokens for each row."""
        proposals = self._propose()
        num_known = np.array([len(row) for row in self._known], "int32")
        width = 2 * self._size + 1
        token_ids = np.zeros((len(self._known), width), "int32")
        for i, known in enumerate(self._known):
            row = [*known, *proposals[i]]
            token_ids[i, : len(row)] = row
        inputs = {
            **self._inputs,
            "token_ids": ops.convert_to_tensor(token_ids),
            "proposals": ops.convert_to_tensor(proposals),
            "num_known": ops.convert_to_tensor(num_known),
            "places": ops.convert_to_tensor(self._places),
        }
        tokens, num_new, self._state, self._counts = self._model._functions.run(
            verify, inputs, self._state, self._counts, xla=True
        )
        self.passes += 1
        return self._take(to_numpy(tokens), to_numpy(num_new))

    def last_state(self):
        """The state after all tokens."""
        return read(self._model, _padded(self._known), self._state)[1]

    def _take(self, tokens, num_new):
        """Takes what is right, up to where a row ends."""
        num_new = np.minimum(num_new, self.steps)
        stops = np.isin(tokens, self._stops)
        for i in np.flatnonzero(self.steps):
            ends = np.flatnonzero(stops[i, : num_new[i]])
            if len(ends):  # A stop token is given out, and not read.
                num_new[i] = self.steps[i] = ends[0] + 1
        self._places = self._places + num_new
        self.steps = self.steps - num_new
        stopped, kept = self._rows.take(tokens, self._places)
        num_new = np.where(stopped, kept, num_new)
        self.steps = np.where(stopped, 0, self.steps)
        new = [row[:n].tolist() for row, n in zip(tokens, num_new, strict=True)]
        self._known = [[t for t in row if t not in self._stops] for row in new]
        return new

    def _propose(self):
        if self._draft is None:
            rows = [look_up(ids, self._size) for ids in self._rows.ids]
            return np.array(rows, "int32")
        functions = self._draft._functions
        known = _padded(self._known, self._size + 1)
        logits, self._draft_state = functions.run(
            prefill_piece,
            row_sampling.to_tensors(known),
            ops.zeros((len(self._known), self._draft.backbone.vocabulary_size)),
            self._draft_state,
        )
        count = min(self._size, DECODE_CHUNK)
        inputs = {
            **self._inputs,
            "count": ops.convert_to_tensor(np.array(count, "int32")),
            "stops": ops.convert_to_tensor(np.array([-1], "int32")),
            "steps": ops.convert_to_tensor(np.full_like(self.steps, count)),
            "places": ops.convert_to_tensor(self._places),
        }
        tokens, *_ = functions.run(
            decode_rows,
            inputs,
            logits,
            self._draft_state,
            self._counts,
            xla=True,
        )
        return to_numpy(tokens)[:, : self._size]


def verify(model, inputs, state, counts):
    """Draws where tokens were proposed.

    Args:
        model: a `GriffinCausalLM`.
        inputs: dict of `"token_ids"` `(rows, columns)`, in each row tokens
            that are known, then `k` proposals, then pads; `"num_known"`
            `(rows,)`; `"proposals"` `(rows, k)`; `"places"`, `"settings"`
            and `"tables"` as of `decode_rows`.
        state: before the known tokens.
        counts: see `row_sampling`.

    Returns:
        `(tokens, num_new, state, counts)`: `(rows, k + 1)` tokens, of which
        the first `num_new` `(rows,)` are the row's, and the state after the
        known ones.
    """
    proposals = inputs["proposals"]
    k = proposals.shape[1]
    known = inputs["num_known"]
    logits, state = model._functions.step(_look_ahead)(
        inputs["token_ids"], known, proposals, state
    )
    is_right = known > 0
    tokens, num_new = [], ops.zeros_like(known)
    for i in range(k + 1):
        token, new_counts = row_sampling.draw(
            logits[:, i],
            inputs["places"] + i,
            inputs["settings"],
            {**inputs["tables"], "counts": counts},
        )
        counts = ops.where(is_right[:, None], new_counts, counts)
        num_new = num_new + ops.cast(is_right, "int32")
        tokens.append(token)
        if i < k:
            is_right = ops.logical_and(is_right, token == proposals[:, i])
    return ops.stack(tokens, axis=1), num_new, state, counts


def _look_ahead(model, token_ids, known, proposals, state):
    """Logits after the last known token and each proposal.

    Returns:
        `(logits, state)`: `(rows, k + 1, vocabulary_size)`, and the state
        after the known tokens.
    """
    k = proposals.shape[1]
    columns = ops.arange(token_ids.shape[1], dtype="int32")[None]
    hidden, state = model.backbone.call_with_state(
        token_ids, state, columns < (known + k)[:, None], num_kept=known
    )
    index = known[:, None] - 1 + ops.arange(k + 1, dtype="int32")[None]
    index = ops.maximum(index, 0)[:, :, None]
    return model._logits(ops.take_along_axis(hidden, index, axis=1)), state


def look_up(ids, count):
    """What came after the last earlier place where a text ended like this.

    Args:
        ids: list of int.
        count: int. Tokens to propose; pads where there are no more.
    """
    ids = np.asarray(ids, "int32")
    for size in range(LONGEST_NGRAM, SHORTEST_NGRAM - 1, -1):
        if len(ids) <= size:
            continue
        windows = np.lib.stride_tricks.sliding_window_view(ids[:-1], size)
        found = np.flatnonzero((windows == ids[-size:]).all(axis=1))
        if len(found):
            start = found[-1] + size
            proposed = ids[start : start + count].tolist()
            return proposed + [0] * (count - len(proposed))
    return [0] * count


def _read_prompts(model, prompts, state, max_length):
    """The state before each prompt's last token."""
    batch = len(prompts.rows)
    is_start = state is None
    if is_start:
        state = model.init_state(batch, max_length=max_length)
    else:
        state = as_state(model, state, batch, repeat=True)
    if prompts.lengths.max() == 1:
        return state
    arrays = _padded([row[:-1] for row in prompts.rows])
    return read(model, arrays, state, is_start)[1]


def _padded(rows, width=None):
    """Rows of ids as arrays with the pads at the right."""
    width = width or max(1, *map(len, rows))
    token_ids = np.zeros((len(rows), width), "int32")
    mask = np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        token_ids[i, : len(row)] = row
        mask[i, : len(row)] = True
    return {"token_ids": token_ids, "padding_mask": mask}
