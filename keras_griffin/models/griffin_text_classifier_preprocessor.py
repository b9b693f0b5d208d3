from __future__ import annotations

from typing import Any

import keras
from keras_hub.models import TextClassifierPreprocessor

from keras_griffin.models.griffin_text_preprocessor import (
    GriffinTextPreprocessor,
)
from keras_griffin.near_names import check_arguments_of


@keras.saving.register_keras_serializable(package="keras_griffin")
class GriffinTextClassifierPreprocessor(
    GriffinTextPreprocessor, TextClassifierPreprocessor
):
    """Text to what `GriffinTextClassifier` takes.

    A row is the text between a start and an end token, or several texts with
    an end token after each: cut off or padded to `sequence_length`.

    Args:
        tokenizer: a `GriffinTokenizer`.
        sequence_length: int. Length of the rows. Defaults to `512` [tokens].
        truncate: `"round_robin"` or `"waterfall"`: which of several texts is
            cut off. See `keras_hub.layers.MultiSegmentPacker`. Defaults to
            `"round_robin"`.
        **kwargs: see `keras_hub.models.TextClassifierPreprocessor`.

    Call arguments:
        x: str, list of str, or array or `tf.Tensor` of strings; or a tuple of
            these, whose texts are read one after the other. Give `y` with a
            tuple: alone it would be `(x, y)`, as in a `tf.data` pipeline.
        y: labels, or `None`. Handed on as they are.
        sample_weight: likewise.

    Returns:
        `x`, `(x, y)` or `(x, y, sample_weight)`, with `x` the dict of
        `"token_ids"` and `"padding_mask"`, `(batch, sequence_length)` each.

    Raises:
        ValueError: for inputs that are not text.

    Example:
    ```python
    preprocessor = keras_griffin.GriffinTextClassifierPreprocessor.from_preset(
        "griffin_shakespeare_en", sequence_length=16
    )
    x, y = preprocessor(["To be, or not to be", "Good night."], [0, 1])
    x["token_ids"]  # (2, 16)
    ```

    Source:
        `keras_hub.models.TextClassifierPreprocessor`.
    """

    def __init__(
        self,
        tokenizer: Any,
        sequence_length: int = 512,
        truncate: str = "round_robin",
        **kwargs: Any,
    ) -> None:
        check_arguments_of(type(self), kwargs)
        super().__init__(
            tokenizer,
            sequence_length=sequence_length,
            truncate=truncate,
            **kwargs,
        )
