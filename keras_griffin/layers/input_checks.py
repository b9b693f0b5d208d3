"""What a user gives a model or a layer, looked at before it is used."""

import numpy as np
from keras import ops

INPUTS = ("token_ids", "padding_mask")


def with_mask(inputs):
    """The inputs of a model; without a mask all tokens are real."""
    if isinstance(inputs, dict) and inputs.get("padding_mask") is None:
        # Keras takes no arrays beside tensors.
        is_array = isinstance(inputs["token_ids"], np.ndarray)
        ones_like = np.ones_like if is_array else ops.ones_like
        mask = ones_like(inputs["token_ids"], dtype="bool")
        return {**inputs, "padding_mask": mask}
    return inputs


def check_names(inputs):
    """Raises for a dict of inputs with those of earlier versions.

    Keras would read a third array as one of the other two.
    """
    if isinstance(inputs, dict) and "segment_ids" in inputs:
        raise ValueError(
            "`padding_mask` numbers the documents of a row: 0 at pads, and "
            "another number than before where a document starts. Received: "
            "`segment_ids`, which earlier versions took beside it. Give "
            "`padding_mask = np.where(padding_mask, segment_ids - "
            "segment_ids.min() + 1, 0)` in place of both."
        )


def check_inputs(inputs, vocabulary_size):
    """Raises for inputs that no model could take; looks at NumPy arrays only.

    On an accelerator an id out of range reads another token's embedding
    without a word, and looking at a device array would wait for the device.
    """
    if not isinstance(inputs, dict) or "token_ids" not in inputs:
        raise ValueError(
            "Inputs must be a dict with 'token_ids' and 'padding_mask'. "
            f"Received: {type(inputs).__name__}"
            + (f" with {sorted(inputs)}" if isinstance(inputs, dict) else "")
            + ". Text is tokenized by a GriffinCausalLMPreprocessor."
        )
    check_names(inputs)
    unknown = sorted(map(str, inputs.keys() - INPUTS))
    if unknown:
        raise ValueError(
            f"Inputs must be a dict with {INPUTS[0]!r} and {INPUTS[1]!r} "
            f"alone. Received: {', '.join(map(repr, unknown))} too. Leave it "
            "out."
        )
    token_ids = inputs["token_ids"]
    for name, value in inputs.items():
        if name == "padding_mask" and value is None:
            continue
        if not hasattr(value, "shape"):
            raise ValueError(
                f"`{name}` must be an array or a tensor. Received: "
                f"{type(value).__name__}. Make it one: `np.array({name})`."
            )
    if len(token_ids.shape) != 2:
        raise ValueError(
            "`token_ids` must have shape (batch, time). Received: shape "
            f"{tuple(token_ids.shape)}. Add the missing axis."
        )
    if inputs.get("padding_mask") is not None:
        check_padding_mask(inputs["padding_mask"], token_ids)
    if isinstance(token_ids, np.ndarray):
        check_token_ids(token_ids, vocabulary_size)


def check_token_ids(token_ids, vocabulary_size):
    """Raises unless a NumPy array holds ids of the vocabulary."""
    if not np.issubdtype(token_ids.dtype, np.integer):
        raise ValueError(
            "`token_ids` must be integers. Received: dtype "
            f"{token_ids.dtype}. Text is tokenized by a "
            "GriffinCausalLMPreprocessor."
        )
    if token_ids.size == 0:
        return
    low, high = int(token_ids.min()), int(token_ids.max())
    if low < 0 or high >= vocabulary_size:
        raise ValueError(
            f"`token_ids` must lie in [0, {vocabulary_size - 1}]. Received: "
            f"ids from {low} to {high}. Is the tokenizer this model's own?"
        )


def check_padding_mask(padding_mask, token_ids):
    """Raises unless it has a bool or a whole number for each token."""
    check_row_shape("padding_mask", padding_mask, token_ids)
    if not isinstance(padding_mask, np.ndarray):
        return
    is_number = padding_mask.dtype.kind in "biuf"
    if not is_number or np.any(padding_mask != np.trunc(padding_mask)):
        raise ValueError(
            "`padding_mask` must hold bools or whole numbers: 0 at pads, the "
            f"number of the document at tokens. Received: dtype "
            f"{padding_mask.dtype} with {padding_mask.ravel()[:3]}. Compare "
            "with a number to get bools."
        )


def check_row_shape(name, value, x):
    """Raises unless `value` is (batch, time) like the first axes of `x`."""
    # What is no array, a list of bools say, has none.
    expected, shape = tuple(x.shape[:2]), tuple(getattr(value, "shape", ()))
    matches = len(shape) == 2 and all(
        a is None or b is None or a == b
        for a, b in zip(expected, shape, strict=True)
    )
    if not matches:
        raise ValueError(
            f"`{name}` must have shape (batch, time), one entry a token. "
            f"Received: {name}.shape={shape} for tokens of shape {expected}. "
            "Give one value for every token of every row."
        )
