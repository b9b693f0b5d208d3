"""From KerasHub's padded prompts to what a decoding loop needs, and back."""

import keras
import numpy as np
from keras import ops

from keras_griffin.layers.input_checks import check_inputs

# Widths are rounded up to a power of two from here on, so that a new prompt
# length or number of new tokens seldom compiles anew.
MIN_BUCKET = 16

# Ids of the past with which new ones are turned into text.
CONTEXT = 16


class Prompts:
    """A ragged batch of prompts, aligned where generation starts.

    KerasHub hands over rows that are padded on the right to `max_length` and
    would start all of them at the shortest prompt's end. A recurrent state
    forgives neither pads nor a token read twice, so here every row's prompt
    but its last token goes through one prefill, and all rows then decode
    together, each from its own end.

    Args:
        inputs: dict of `"token_ids"` and `"padding_mask"`, both
            `(batch, max_length)`. Real tokens may stand anywhere in a row.
        vocabulary_size: int. Bound of the token ids.
        max_new_tokens: int. New tokens of each row. `None`: up to the width
            of the inputs.
        skip: int. Tokens to leave out at the start of each row.

    Attributes:
        rows: list of 1-D arrays, the ids of each prompt.
        lengths: `(batch,)` tokens of each prompt.
        steps: `(batch,)` int32, new tokens that each row may take.
        num_steps: int. The most of them.

    Raises:
        ValueError: for a row without a token, wrong shapes, or ids out of
            the vocabulary.
    """

    def __init__(self, inputs, vocabulary_size, max_new_tokens=None, skip=0):
        if isinstance(inputs, dict):
            inputs = {
                name: None if value is None else to_numpy(value)
                for name, value in inputs.items()
            }
        check_inputs(inputs, vocabulary_size)
        token_ids = inputs["token_ids"]
        mask = inputs.get("padding_mask")
        mask = np.ones(token_ids.shape, bool) if mask is None else mask
        mask = _one_document(mask)
        if skip:
            mask &= np.cumsum(mask, axis=1) > skip
        lengths = mask.sum(axis=1)
        if not lengths.all():
            raise ValueError(
                "A prompt needs at least one token. Received: no real token "
                f"in row {int(np.argmin(lengths))} of {len(lengths)}. Start "
                "it with the tokenizer's start token."
            )
        self._dtype = token_ids.dtype
        self._mask = mask
        self.rows = [
            row[real].astype("int32")
            for row, real in zip(token_ids, mask, strict=True)
        ]
        self.lengths = lengths
        if max_new_tokens is None:
            self._max_length = token_ids.shape[1]
            self.steps = (self._max_length - lengths).astype("int32")
        else:
            self._max_length = int(lengths.max()) + max_new_tokens
            self.steps = np.full(lengths.shape, max_new_tokens, "int32")
        self.num_steps = int(self.steps.max())

    def arrays(self):
        """Returns the prompts as NumPy arrays with the pads at the right."""
        shape = (len(self.rows), int(self.lengths.max()))
        token_ids, mask = np.zeros(shape, "int32"), np.zeros(shape, bool)
        for i, row in enumerate(self.rows):
            token_ids[i, : len(row)] = row
            mask[i, : len(row)] = True
        return {"token_ids": token_ids, "padding_mask": mask}

    def scatter(self, values, fill_value=0):
        """Puts `values` of `arrays` back to where the tokens stood."""
        scattered = np.full(self._mask.shape, fill_value, values.dtype)
        for i, length in enumerate(self.lengths):
            scattered[i, self._mask[i]] = values[i, :length]
        return scattered

    def loop_inputs(self, keep_history):
        """Returns the arrays that `GriffinCausalLM.generate_step` takes.

        Args:
            keep_history: bool. Whether the sampler looks at the hidden states
                of the prompt, for which the buffer then has room.
        """
        batch = len(self.rows)
        prefill = max(len(row) for row in self.rows) - 1
        prefill = bucket(prefill) if prefill else 0
        token_ids = np.zeros((batch, prefill), "int32")
        mask = np.zeros((batch, prefill), bool)
        for i, row in enumerate(self.rows):
            start = prefill - (len(row) - 1)
            token_ids[i, start:] = row[:-1]
            mask[i, start:] = True
        history = 1 + (prefill if keep_history else 0)
        width = history + bucket(self.num_steps)
        return {
            "prefill_token_ids": token_ids,
            "prefill_padding_mask": mask,
            "last_token_ids": np.array([row[-1] for row in self.rows]),
            "num_steps": self.steps,
            # Only its width matters.
            "buffer": np.zeros((batch, width), "int32"),
        }

    def outputs(
        self, generated, stop_token_ids, strip_prompt=False, keep_stop=True
    ):
        """Returns prompts and new tokens in KerasHub's format.

        Args:
            generated: `(batch, num_steps)` ids, or `None`.
            stop_token_ids: ids after which a row has ended.
            strip_prompt: bool. Leave the prompts out.
            keep_stop: bool. Whether the stop id is an output too.
        """
        shape = (len(self.rows), self._max_length)
        token_ids = np.zeros(shape, self._dtype)
        mask = np.zeros(shape, bool)
        for i, row in enumerate(self.rows):
            row = row[:0] if strip_prompt else row
            if generated is not None:
                new = generated[i, : self.steps[i]]
                row = np.concatenate(
                    [row, self.cut(new, stop_token_ids, keep_stop)]
                )
            token_ids[i, : len(row)] = row
            mask[i, : len(row)] = True
        return {"token_ids": token_ids, "padding_mask": mask}

    @staticmethod
    def cut(ids, stop_token_ids, keep_stop=True):
        """The ids up to the first stop id."""
        ends = np.flatnonzero(np.isin(ids, stop_token_ids))
        return ids[: ends[0] + keep_stop] if len(ends) else ids


def _one_document(mask):
    """Where real tokens are, a new array; a prompt is one document."""
    for i, row in enumerate(mask):
        numbers = row[:0] if mask.dtype == bool else np.unique(row[row != 0])
        if len(numbers) > 1:
            raise ValueError(
                "A prompt must be one document: one number in `padding_mask`, "
                f"and 0 at pads. Received: {numbers} in row {i} of "
                f"{len(mask)}. Give each document a row of its own."
            )
    return mask.astype(bool)


def prompt_pieces(arrays, size):
    """Yields the columns of `arrays` in tensors of at most `size` columns.

    Where functions are compiled a piece's width is rounded up to a bucket.
    """
    batch, time = arrays["token_ids"].shape
    for start in range(0, time, size):
        piece = {
            name: array[:, start : start + size]
            for name, array in arrays.items()
            if array is not None
        }
        width = piece["token_ids"].shape[1]
        pads = min(bucket(width), size) - width
        if pads and keras.config.backend() != "torch":
            piece.setdefault("padding_mask", np.ones((batch, width), bool))
            piece = {
                name: np.pad(array, ((0, 0), (0, pads)))
                for name, array in piece.items()
            }
        yield {
            # A mask of bools stays one: it numbers no documents.
            name: ops.convert_to_tensor(
                array.astype("bool" if array.dtype == bool else "int32")
            )
            for name, array in piece.items()
        }


def stream_text(tokenizer, context, pieces):
    """Yields `(text, state)` after each piece; text once it is certain.

    Args:
        tokenizer: a `GriffinTokenizer`.
        context: array of the ids before them; how a token is written, with
            a space or without, depends on them.
        pieces: iterable of `(ids, state)`.
    """
    # The cost of a piece must not grow with the text before it.
    context, ids = context[-CONTEXT:].tolist(), []
    for new, state in pieces:
        ids += new.tolist()
        text = _new_text(tokenizer, context, ids)
        # An unfinished character decodes to U+FFFD at the end.
        if text.endswith("\ufffd"):
            yield "", state
            continue
        yield text, state
        context, ids = (context + ids)[-CONTEXT:], []
    if ids:
        yield _new_text(tokenizer, context, ids), state


def _new_text(tokenizer, context, ids):
    before = _text(tokenizer, context)
    return _text(tokenizer, context + ids)[len(before) :]


def _text(tokenizer, ids):
    return tokenizer.detokenize(ids) if ids else ""


def bucket(size):
    """Rounds up to a power of two, and to `MIN_BUCKET` at least."""
    return max(MIN_BUCKET, 1 << (int(size) - 1).bit_length())


def to_numpy(x):
    """An array of any framework as a NumPy array."""
    return ops.convert_to_numpy(x) if ops.is_tensor(x) else np.asarray(x)
