"""From KerasHub's padded prompts to what a decoding loop needs, and back."""

import numpy as np
from keras import ops

from keras_griffin.models.griffin_backbone import check_inputs
from keras_griffin.models.griffin_backbone import check_token_ids
from keras_griffin.models.griffin_backbone import fill_inputs

# Widths are rounded up to a power of two from here on, so that a new prompt
# length or number of new tokens seldom compiles anew.
MIN_BUCKET = 16


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

    Attributes:
        num_steps: int. Tokens that the shortest prompt still has room for.

    Raises:
        ValueError: for a row without a token, wrong shapes, or ids out of
            the vocabulary.
    """

    def __init__(self, inputs, vocabulary_size):
        inputs = fill_inputs(inputs)
        check_inputs(inputs, vocabulary_size)
        token_ids = to_numpy(inputs["token_ids"])
        mask = to_numpy(inputs["padding_mask"]).astype(bool)
        check_token_ids(token_ids, vocabulary_size)
        lengths = mask.sum(axis=1)
        if not lengths.all():
            raise ValueError(
                "A prompt needs at least one token. Received: no real token "
                f"in row {int(np.argmin(lengths))} of {len(lengths)}. Start "
                "it with the tokenizer's start token."
            )
        self._dtype = token_ids.dtype
        self._max_length = token_ids.shape[1]
        self._rows = [
            row[real].astype("int32")
            for row, real in zip(token_ids, mask, strict=True)
        ]
        self._steps = self._max_length - lengths
        self.num_steps = int(self._steps.max())

    def loop_inputs(self, keep_history):
        """Returns the arrays that `GriffinCausalLM.generate_step` takes.

        Args:
            keep_history: bool. Whether the sampler looks at the hidden states
                of the prompt, for which the buffer then has room.
        """
        batch = len(self._rows)
        prefill = max(len(row) for row in self._rows) - 1
        prefill = bucket(prefill) if prefill else 0
        token_ids = np.zeros((batch, prefill), "int32")
        mask = np.zeros((batch, prefill), bool)
        for i, row in enumerate(self._rows):
            start = prefill - (len(row) - 1)
            token_ids[i, start:] = row[:-1]
            mask[i, start:] = True
        history = 1 + (prefill if keep_history else 0)
        width = history + bucket(self.num_steps)
        return {
            "prefill_token_ids": token_ids,
            "prefill_padding_mask": mask,
            "last_token_ids": np.array([row[-1] for row in self._rows]),
            "num_steps": self._steps.astype("int32"),
            # Only its width matters.
            "buffer": np.zeros((batch, width), "int32"),
        }

    def outputs(self, generated, stop_token_ids):
        """Returns prompts and new tokens in KerasHub's format.

        Args:
            generated: `(batch, num_steps)` ids, or `None`.
            stop_token_ids: ids after which a row has ended, or `None`.
        """
        shape = (len(self._rows), self._max_length)
        token_ids = np.zeros(shape, self._dtype)
        mask = np.zeros(shape, bool)
        for i, row in enumerate(self._rows):
            if generated is not None:
                new = generated[i, : self._steps[i]]
                if stop_token_ids is not None:
                    ends = np.flatnonzero(np.isin(new, stop_token_ids))
                    new = new[: ends[0] + 1] if len(ends) else new
                row = np.concatenate([row, new])
            token_ids[i, : len(row)] = row
            mask[i, : len(row)] = True
        return {"token_ids": token_ids, "padding_mask": mask}


def bucket(size):
    """Rounds up to a power of two, and to `MIN_BUCKET` at least."""
    return max(MIN_BUCKET, 1 << (int(size) - 1).bit_length())


def to_numpy(x):
    """An array of any framework as a NumPy array."""
    return ops.convert_to_numpy(x) if ops.is_tensor(x) else np.asarray(x)
