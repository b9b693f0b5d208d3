"""From KerasHub's padded prompts to what a decoding loop needs, and back."""

import keras
import numpy as np
from keras import ops

from keras_griffin.generation import chat_template
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
        rows: list of lists of ids, one a prompt.
        max_length: int. Tokens of prompt and text together. `None`: those of
            the longest prompt.
        max_new_tokens: int. New tokens of each row, in place of `max_length`.
        mask: `(batch, time)` bool, where the ids stood in what was given.

    Attributes:
        rows: list of 1-D int32 arrays.
        lengths: `(batch,)` tokens of each prompt.
        steps: `(batch,)` int32, new tokens that each row may take.
        num_steps: int. The most of them.
        surplus: `(batch,)` characters at the end of each row's text that
            belong to a stop string.

    Raises:
        ValueError: for a row without a token, or longer than `max_length`.
    """

    def __init__(self, rows, max_length=None, max_new_tokens=None, mask=None):
        self.rows = [np.asarray(row, "int32") for row in rows]
        self.lengths = np.array([len(row) for row in rows], "int32")
        self._mask = mask
        if not len(rows):
            raise ValueError(
                "There must be at least one prompt. Received: none. Leave "
                "empty batches out."
            )
        if not self.lengths.all():
            raise ValueError(
                "A prompt needs at least one token. Received: no real token "
                f"in row {int(np.argmin(self.lengths))} of {len(rows)}. Start "
                "it with the tokenizer's start token."
            )
        longest = int(self.lengths.max(initial=0))
        if max_new_tokens is not None:
            self.steps = np.full_like(self.lengths, max_new_tokens)
            max_length = longest + max_new_tokens
        else:
            max_length = longest if max_length is None else max_length
            self.steps = max_length - self.lengths
        if longest > max_length:
            raise ValueError(
                "A prompt must fit into `max_length` tokens, the start token "
                f"included. Received: max_length={max_length} and a prompt of "
                f"{longest} tokens. Shorten the prompt, or give more room: "
                "`generate(..., max_length=...)`."
            )
        self._max_length = max_length
        self.num_steps = int(self.steps.max(initial=0))
        self.surplus = np.zeros_like(self.lengths)

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
        token_ids = np.zeros(shape, "int32")
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

    def with_prompts_as_given(self, texts, given, model):
        """The `texts` of `outputs`, each beginning with the prompt it had.

        A tokenizer may write a prompt otherwise than it stood: SentencePiece
        knows U+2581 as a space.
        """
        preprocessor = model.preprocessor
        if isinstance(given, dict) or not isinstance(texts, list):
            return texts
        written = preprocessor.generate_postprocess(
            self.outputs(None, (), strip_prompt=False)
        )
        return [
            prompt + text[len(old) :] if text.startswith(old) else text
            for text, old, prompt in zip(
                texts, written, chat_template.strings(given), strict=True
            )
        ]

    def without_stop_strings(self, texts):
        """The `texts` of `outputs`, each up to its stop string if any."""
        return [
            text[: len(text) - surplus]
            for text, surplus in zip(texts, self.surplus, strict=True)
        ]

    @staticmethod
    def cut(ids, stop_token_ids, keep_stop=True):
        """The ids up to the first stop id."""
        ends = np.flatnonzero(np.isin(ids, stop_token_ids))
        return ids[: ends[0] + keep_stop] if len(ends) else ids


def make_prompts(model, inputs, max_length, max_new_tokens, state):
    """The `Prompts` of a batch of texts, or of a dict of ids.

    Texts that go on from a `state` get no start token.
    """
    preprocessor = model.preprocessor
    if preprocessor is not None and not isinstance(inputs, dict):
        rows = preprocessor.prompt_rows(inputs, is_start=state is None)
        if max_new_tokens is None:
            max_length = max_length or preprocessor.sequence_length
        return Prompts(rows, max_length, max_new_tokens)
    if isinstance(inputs, dict):
        inputs = {
            name: None if value is None else to_numpy(value)
            for name, value in inputs.items()
        }
    check_inputs(inputs, model.backbone.vocabulary_size)
    token_ids, mask = inputs["token_ids"], inputs.get("padding_mask")
    mask = np.ones(token_ids.shape, bool) if mask is None else mask
    mask = _one_document(mask)
    rows = [row[real] for row, real in zip(token_ids, mask, strict=True)]
    return Prompts(rows, max_length or token_ids.shape[1], max_new_tokens, mask)


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
    stream = TextStream(tokenizer, context)
    for ids, state in pieces:
        yield stream.push(ids), state
    rest = stream.rest()
    if rest:
        yield rest, state


class TextStream:
    """Text of ids that come in pieces, each character once it is complete.

    Args:
        tokenizer: a `GriffinTokenizer`.
        context: sequence of the ids before them; how a token is written, with
            a space or without, depends on them.
    """

    def __init__(self, tokenizer, context):
        self._tokenizer = tokenizer
        # The cost of a piece must not grow with the text before it.
        self._context, self._ids = [int(id) for id in context[-CONTEXT:]], []

    def push(self, ids):
        """The text that is certain, now that `ids` came."""
        self._ids += [int(id) for id in ids]
        text = self.rest()
        # An unfinished character decodes to U+FFFD at the end.
        if text.endswith("\ufffd"):
            return ""
        self._context = (self._context + self._ids)[-CONTEXT:]
        self._ids = []
        return text

    def rest(self):
        """The text of what has not been certain yet."""
        if not self._ids:
            return ""
        return _new_text(self._tokenizer, self._context, self._ids)


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
