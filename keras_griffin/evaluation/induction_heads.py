from __future__ import annotations

from typing import Any

import numpy as np

from keras_griffin.evaluation.task_batch import task_batch

SPECIAL = 0


class InductionHeads:
    """Recall the token that came after the special one.

    ```
    ids    4 9 2 0 7 5 11 3 2 6 0 | 7
           0 is special: twice in the row, the second time at its end
    ```

    All other tokens are uniform and independent. The first special token may
    stand at each place from which its answer comes before the second one.

    Args:
        length: int. Tokens that a model reads, both special ones included.
            Defaults to `256`.
        vocabulary_size: int. Ids, with the special one. Defaults to `16`.

    Raises:
        ValueError: if there is nothing to recall, or a row has no room.

    Example:
    ```python
    task = keras_griffin.evaluation.InductionHeads(length=64)
    x, y, sample_weight = task.sample(batch_size=8, seed=1)
    prompts, answers = task.questions(batch_size=8, seed=2)
    ```

    Source:
        arXiv:2402.19427, section 6.2 and figure 6; the task is that of Mamba,
        arXiv:2312.00752, section 4.1.2.
    """

    def __init__(self, length: int = 256, vocabulary_size: int = 16) -> None:
        if vocabulary_size < 3:
            raise ValueError(
                "`vocabulary_size` counts the special token and at least two "
                f"others. Received: {vocabulary_size}. Give 3 or more."
            )
        if length < 3:
            raise ValueError(
                "`length` must have room for the special token, what comes "
                f"after it and the special token again. Received: {length}. "
                "Give 3 or more."
            )
        self.length = length
        self.vocabulary_size = vocabulary_size

    def questions(
        self, batch_size: int, seed: int | tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns prompts and their answers, to be generated.

        Args:
            batch_size: int. Rows.
            seed: int or tuple of ints. The same seed gives the same rows.

        Returns:
            `(prompts, answers)`: int32 `(batch_size, length)` and
            `(batch_size, 1)`.
        """
        rng = np.random.default_rng(seed)
        prompts = rng.integers(
            SPECIAL + 1,
            self.vocabulary_size,
            (batch_size, self.length),
            dtype="int32",
        )
        place = rng.integers(self.length - 2, size=(batch_size, 1))
        np.put_along_axis(prompts, place, SPECIAL, axis=1)
        prompts[:, -1] = SPECIAL
        return prompts, np.take_along_axis(prompts, place + 1, axis=1)

    def sample(
        self, batch_size: int, seed: int | tuple[int, ...]
    ) -> tuple[Any, Any, Any]:
        """Returns a batch for `fit`, whose loss is that of the answer alone.

        Args:
            batch_size: int. Rows.
            seed: int or tuple of ints. See `questions`, whose rows these are.

        Returns:
            `(x, y, sample_weight)`, see `SelectiveCopying.sample`.
        """
        rows = np.concatenate(self.questions(batch_size, seed), axis=1)
        return task_batch(rows, np.arange(self.length + 1) == self.length)
