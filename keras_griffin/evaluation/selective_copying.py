from __future__ import annotations

from typing import Any

import numpy as np

from keras_griffin.evaluation.task_batch import task_batch

NOISE = 0
MARKER = 1
FIRST_DATA_ID = 2


class SelectiveCopying:
    """Copy the data tokens of a row, in order, and leave out the noise.

    ```
    ids    0 0 7 0 0 3 0 12 0 0 1 | 7 3 12
           data among noise (0), a marker (1) | answer
    ```

    The data tokens are uniform and independent, their places a uniform choice
    of those before the marker. The paper says how many tokens a row has and
    how many of them are data; it does not say whether noise and marker count
    in the vocabulary (here they do) or how the answer is read (here one token
    after the other, as text is generated).

    Args:
        length: int. Tokens that a model reads in training: noise, data,
            marker, and the answer but its last token. Defaults to `1024`.
        num_data_tokens: int. Tokens to copy. Defaults to `16`.
        vocabulary_size: int. Ids, with noise and marker. Defaults to `16`.

    Raises:
        ValueError: if the vocabulary has no data token, or a row no room.

    Example:
    ```python
    task = keras_griffin.evaluation.SelectiveCopying(length=64)
    x, y, sample_weight = task.sample(batch_size=8, seed=1)
    prompts, answers = task.questions(batch_size=8, seed=2)
    ```

    Source:
        arXiv:2402.19427, section 6.2 and figure 6; the task is that of Mamba,
        arXiv:2312.00752, section 4.1.1.
    """

    def __init__(
        self,
        length: int = 1024,
        num_data_tokens: int = 16,
        vocabulary_size: int = 16,
    ) -> None:
        if vocabulary_size <= FIRST_DATA_ID:
            raise ValueError(
                "`vocabulary_size` counts noise, the marker and at least one "
                f"data token. Received: {vocabulary_size}. Give 3 or more."
            )
        if num_data_tokens < 1 or length < 2 * num_data_tokens:
            raise ValueError(
                "`length` must have room for the data tokens twice, in the "
                f"row and in the answer. Received: length={length}, "
                f"num_data_tokens={num_data_tokens}. Give a longer row."
            )
        self.length = length
        self.num_data_tokens = num_data_tokens
        self.vocabulary_size = vocabulary_size

    def questions(
        self, batch_size: int, seed: int | tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns prompts and their answers, to be generated.

        Args:
            batch_size: int. Rows.
            seed: int or tuple of ints. The same seed gives the same rows.

        Returns:
            `(prompts, answers)`: int32 `(batch_size, length -
            num_data_tokens + 1)` and `(batch_size, num_data_tokens)`.
        """
        rng = np.random.default_rng(seed)
        answers = rng.integers(
            FIRST_DATA_ID,
            self.vocabulary_size,
            (batch_size, self.num_data_tokens),
            dtype="int32",
        )
        width = self.length - self.num_data_tokens + 1
        prompts = np.full((batch_size, width), NOISE, "int32")
        prompts[:, -1] = MARKER
        places = rng.random((batch_size, width - 1)).argsort(axis=1)
        places = np.sort(places[:, : self.num_data_tokens], axis=1)
        np.put_along_axis(prompts, places, answers, axis=1)
        return prompts, answers

    def sample(
        self, batch_size: int, seed: int | tuple[int, ...]
    ) -> tuple[Any, Any, Any]:
        """Returns a batch for `fit`, whose loss is that of the answers alone.

        Args:
            batch_size: int. Rows.
            seed: int or tuple of ints. See `questions`, whose rows these are.

        Returns:
            `(x, y, sample_weight)`: `x` a dict of `"token_ids"` and
            `"padding_mask"`, `y` the next tokens, `sample_weight` 1 where one
            is part of the answer and 0 elsewhere, all `(batch_size, length)`.
        """
        rows = np.concatenate(self.questions(batch_size, seed), axis=1)
        columns = np.arange(rows.shape[1])
        return task_batch(rows, columns > self.length - self.num_data_tokens)
