from __future__ import annotations

from typing import Any

import numpy as np

from keras_griffin.evaluation.task_batch import task_batch

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "0123456789"
NUMBER_SIGN = ":"
END_OF_LINE = "\n"
END_OF_BOOK = "\n"


class Phonebook:
    """Look up the number of a name in a phonebook, after two examples.

    ```
    KXB:4071        the book, `num_entries` lines in random order
    APW:9332
    MMC:1158
                    an empty line
    MMC:1158        worked examples: names of the book with their numbers
    KXB:4071
    APW:            the question; the answer is 9332
    ```

    Names are random letters, all different, and numbers random digits. Rows
    of ids are the same text over `characters`, so that a small model can
    learn the task from scratch; a model that was trained on text is asked by
    `texts`.

    Args:
        num_entries: int. Lines of the book.
        num_examples: int. Worked examples. Defaults to `2`.
        name_length: int. Letters of a name. Defaults to `3`.
        number_length: int. Digits of a number. Defaults to `4`.

    Attributes:
        characters: str. A token's id is its character's index in it.
        vocabulary_size: int. Their number.
        prompt_length: int. Tokens of a prompt.

    Raises:
        ValueError: for sizes below 1, a book with fewer lines than questions,
            and more lines than there are names.

    Example:
    ```python
    task = keras_griffin.evaluation.Phonebook(num_entries=20)
    x, y, sample_weight = task.sample(batch_size=8, seed=1)
    prompts, answers = task.questions(batch_size=8, seed=2)
    texts, numbers = task.texts(batch_size=8, seed=2)  # the same as strings
    ```

    Source:
        arXiv:2402.19427, section 6.2; the task is that of Jelassi et al.,
        arXiv:2402.01032. The Griffin paper does not give its prompts.
    """

    characters = END_OF_LINE + NUMBER_SIGN + DIGITS + LETTERS
    vocabulary_size = len(characters)

    def __init__(
        self,
        num_entries: int,
        num_examples: int = 2,
        name_length: int = 3,
        number_length: int = 4,
    ) -> None:
        if min(num_entries, name_length, number_length) < 1 or num_examples < 0:
            raise ValueError(
                "`num_entries`, `name_length` and `number_length` must be at "
                "least 1, `num_examples` at least 0. Received: "
                f"num_entries={num_entries}, name_length={name_length}, "
                f"number_length={number_length}, num_examples={num_examples}. "
                "Give positive integers."
            )
        if num_entries <= num_examples:
            raise ValueError(
                "Examples and question are about different lines of the book. "
                f"Received: num_entries={num_entries}, num_examples="
                f"{num_examples}. Give at least {num_examples + 1} entries."
            )
        if num_entries > len(LETTERS) ** name_length:
            raise ValueError(
                "All names of a book differ. Received: num_entries="
                f"{num_entries} with name_length={name_length}, which gives "
                f"{len(LETTERS) ** name_length} names. Give longer names."
            )
        self.num_entries = num_entries
        self.num_examples = num_examples
        self.name_length = name_length
        self.number_length = number_length
        self._line = name_length + 1 + number_length + 1
        self.prompt_length = (
            (num_entries + num_examples) * self._line + 1 + name_length + 1
        )

    def questions(
        self, batch_size: int, seed: int | tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns prompts and their answers, to be generated.

        Args:
            batch_size: int. Rows.
            seed: int or tuple of ints. The same seed gives the same rows.

        Returns:
            `(prompts, answers)`: int32 `(batch_size, prompt_length)` and
            `(batch_size, number_length)`.
        """
        rows = self._rows(batch_size, seed)
        return rows[:, : self.prompt_length], rows[:, self.prompt_length :]

    def texts(
        self, batch_size: int, seed: int | tuple[int, ...]
    ) -> tuple[list[str], ...]:
        """Returns the same prompts and answers as two lists of strings.

        Args:
            batch_size: int. Rows.
            seed: int or tuple of ints. See `questions`.

        Returns:
            `(prompts, answers)`, for `exact_match`.
        """
        characters = np.array(list(self.characters))
        return tuple(
            ["".join(row) for row in characters[ids]]
            for ids in self.questions(batch_size, seed)
        )

    def sample(
        self, batch_size: int, seed: int | tuple[int, ...]
    ) -> tuple[Any, Any, Any]:
        """Returns a batch for `fit`: all answers count, of examples too.

        Args:
            batch_size: int. Rows.
            seed: int or tuple of ints. See `questions`, whose rows these are.

        Returns:
            `(x, y, sample_weight)`, see `SelectiveCopying.sample`; each
            `(batch_size, prompt_length + number_length - 1)`.
        """
        rows = self._rows(batch_size, seed)
        column = np.arange(rows.shape[1])
        line_column = (column - 1) % self._line
        is_answer = (
            (column > self.num_entries * self._line)
            & (line_column > self.name_length)
            & (line_column < self._line - 1)
        )
        return task_batch(rows, is_answer)

    def _rows(self, batch_size, seed):
        """Ids `(batch_size, prompt_length + number_length)`."""
        rng = np.random.default_rng(seed)
        number_of_names = len(LETTERS) ** self.name_length
        names = np.stack(
            [
                rng.choice(number_of_names, self.num_entries, replace=False)
                for _ in range(batch_size)
            ]
        )
        asked = np.stack(
            [
                rng.permutation(self.num_entries)[: self.num_examples + 1]
                for _ in range(batch_size)
            ]
        )
        powers = len(LETTERS) ** np.arange(self.name_length)
        letters = names[..., None] // powers % len(LETTERS)
        digits = rng.integers(
            len(DIGITS),
            size=(batch_size, self.num_entries, self.number_length),
        )

        def column(character):
            shape = (batch_size, self.num_entries, 1)
            return np.full(shape, self.characters.index(character))

        lines = np.concatenate(
            [
                letters + self.characters.index(LETTERS[0]),
                column(NUMBER_SIGN),
                digits + self.characters.index(DIGITS[0]),
                column(END_OF_LINE),
            ],
            axis=-1,
        )
        questions = np.take_along_axis(lines, asked[..., None], axis=1)
        end = np.full((batch_size, 1), self.characters.index(END_OF_BOOK))
        rows = [lines.reshape(batch_size, -1), end]
        rows += [questions.reshape(batch_size, -1)[:, :-1]]
        return np.concatenate(rows, axis=1).astype("int32")
