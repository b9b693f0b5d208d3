from __future__ import annotations

from typing import Any

import keras
from keras_hub.models import TextEmbedderPreprocessor

from keras_griffin.models.griffin_text_preprocessor import (
    GriffinTextPreprocessor,
)
from keras_griffin.near_names import check_arguments_of


@keras.saving.register_keras_serializable(package="keras_griffin")
class GriffinTextEmbedderPreprocessor(
    GriffinTextPreprocessor, TextEmbedderPreprocessor
):
    """Text to what `GriffinTextEmbedder` takes.

    A row is the text between a start and an end token, or several texts with
    an end token after each: cut off or padded to `sequence_length`.

    Args:
        tokenizer: a `GriffinTokenizer`.
        sequence_length: int. Length of the rows. Defaults to `256` [tokens].
        truncate: `"round_robin"` or `"waterfall"`: which of several texts is
            cut off. See `keras_hub.layers.MultiSegmentPacker`. Defaults to
            `"round_robin"`.
        **kwargs: see `keras_hub.models.TextEmbedderPreprocessor`.

    Call arguments:
        x, y, sample_weight: as of `GriffinTextClassifierPreprocessor`.

    Returns:
        As `GriffinTextClassifierPreprocessor`.

    Raises:
        ValueError: for inputs that are not text.

    Example:
    ```python
    preprocessor = keras_griffin.GriffinTextEmbedderPreprocessor.from_preset(
        "griffin_shakespeare_en", sequence_length=16
    )
    preprocessor(["Good night."])["padding_mask"]  # (1, 16)
    ```

    Source:
        `keras_hub.models.TextEmbedderPreprocessor`.
    """

    def __init__(
        self,
        tokenizer: Any,
        sequence_length: int = 256,
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
