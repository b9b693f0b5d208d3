from __future__ import annotations

from typing import Any

import numpy as np


def loss_by_position(
    model: Any,
    token_ids: Any,
    length: int,
    stride: int | None = None,
    batch_size: int = 8,
) -> np.ndarray:
    """Mean loss of the tokens at each position of long rows of a text.

    What a model gains from what it has read, and whether it goes on to do so
    beyond the length that it was trained on. The text is cut into rows; each
    begins with a fresh state and is read in pieces, so that memory does not
    grow with `length` (a model with global attention has a cache that does).

    Args:
        model: a `GriffinCausalLM`.
        token_ids: `(tokens,)` int. The text.
        length: int. Tokens of a row, at least 2.
        stride: int. Tokens from the start of a row to that of the next. Below
            `length` rows overlap: more of them, and the losses of different
            positions come from more of the same text. Defaults to `None`:
            `length`.
        batch_size: int. Rows that are read at once. Defaults to `8`.

    Returns:
        float64 array `(length - 1,)`, nats: entry `i` is of the token with
        `i + 1` tokens before it in its row. A row's first token has no loss.

    Raises:
        ValueError: if `token_ids` is not of rank 1 or shorter than a row, or
            for a length below 2, or a stride or batch size below 1.

    Example:
    ```python
    losses = keras_griffin.evaluation.loss_by_position(
        model, np.arange(1000) % 50, length=128, stride=32
    )
    early, late = losses[:32].mean(), losses[-32:].mean()
    ```

    Source:
        arXiv:2402.19427, section 6.1 and figure 5.
    """
    token_ids = np.asarray(token_ids)
    stride = length if stride is None else stride
    for name, value, least in (
        ("length", length, 2),
        ("stride", stride, 1),
        ("batch_size", batch_size, 1),
    ):
        if value < least:
            raise ValueError(
                f"`{name}` must be at least {least}. Received: {name}={value}. "
                "A row needs a token to predict and one before it; rows and "
                "batches need to go on."
            )
    if token_ids.ndim != 1 or len(token_ids) < length:
        raise ValueError(
            "`token_ids` must have shape (tokens,) and at least `length` "
            f"tokens. Received: shape {token_ids.shape}, length={length}. "
            "Join the documents of a text, or take shorter rows."
        )
    starts = np.arange(0, len(token_ids) - length + 1, stride)
    total = np.zeros(length - 1)
    for first in range(0, len(starts), batch_size):
        begin = starts[first : first + batch_size, None]
        rows = token_ids[begin + np.arange(length)]
        scores = model.score({"token_ids": rows})
        total -= scores[:, 1:].sum(axis=0, dtype="float64")
    return total / len(starts)
