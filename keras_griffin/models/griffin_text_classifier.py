from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import keras
from keras_hub.models import TextClassifier

from keras_griffin import keras_compat
from keras_griffin.layers.row_pooling import RowPooling
from keras_griffin.models.griffin_backbone import GriffinBackbone
from keras_griffin.models.griffin_text_classifier_preprocessor import (
    GriffinTextClassifierPreprocessor,
)
from keras_griffin.models.griffin_text_task import GriffinTextTask


@keras.saving.register_keras_serializable(package="keras_griffin")
class GriffinTextClassifier(GriffinTextTask, TextClassifier):
    """A Griffin that tells to which class a text belongs.

    `logits = W pool(h) + b`, with the backbone's hidden states `h` and one
    vector a row: that of the last real token, or the mean of all. `W` begins at
    zero. Pads may be anywhere and change nothing. Of a packed row the last
    document alone counts.

    It is a `keras_hub.models.TextClassifier`: with a preprocessor `fit`,
    `evaluate` and `predict` take strings, without one token ids.

    Args:
        backbone: a `GriffinBackbone`.
        num_classes: int. Number of classes.
        preprocessor: a `GriffinTextClassifierPreprocessor`, or `None` to work
            with token ids. Defaults to `None`.
        pooling_mode: `"last"` or `"mean"`. Defaults to `"last"`.
        activation: str or callable, of the outputs. `"softmax"` gives
            probabilities. Defaults to `None`: logits.
        dropout: float in [0, 1). On the pooled vector. Defaults to `0.0`.
        **kwargs: see `keras_hub.models.TextClassifier`.

    Call arguments:
        inputs: as of `GriffinBackbone`.

    Returns:
        `(batch, num_classes)`, float32 also under a 16-bit policy.

    Raises:
        ValueError: without `num_classes`, and for another `pooling_mode`.

    Example:
    ```python
    classifier = keras_griffin.GriffinTextClassifier.from_preset(
        "griffin_shakespeare_en", num_classes=2
    )
    classifier.preprocessor.sequence_length = 16
    texts = ["O Romeo, Romeo!", "My lord, the queen.", "Good Juliet."]
    classifier.fit(texts, np.array([1, 0, 1]), batch_size=3)
    classifier.predict(["Where is Romeo?"])  # (1, 2)
    ```

    Source:
        `keras_hub.models.TextClassifier`.
    """

    backbone_cls = GriffinBackbone
    preprocessor_cls = GriffinTextClassifierPreprocessor
    presets = GriffinBackbone.presets

    def __init__(
        self,
        backbone: GriffinBackbone,
        num_classes: int | None = None,
        preprocessor: Any = None,
        pooling_mode: str = "last",
        activation: str | Callable[..., Any] | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(
                "`num_classes` must be an integer of at least 1. Received: "
                f"{num_classes!r}. Give it to the constructor, or to "
                "`from_preset` of a preset that is no classifier's."
            )
        self._set_parts(backbone, preprocessor, kwargs)

        # === Layers ===
        dtype = keras.backend.result_type(backbone.compute_dtype, "float32")
        self.pooling = RowPooling(pooling_mode, dtype=dtype, name="pooling")
        self.pooled_dropout = keras.layers.Dropout(
            dropout, dtype=dtype, name="pooled_dropout"
        )
        # Zeros: hidden states may be large, as those of presets with scaled
        # embeddings are, and the loss begins at log(num_classes) all the same.
        self.output_dense = keras.layers.Dense(
            num_classes,
            activation=activation,
            kernel_initializer="zeros",
            dtype=dtype,
            name="logits",
        )

        # === Config ===
        # KerasHub's default loss looks at the activation.
        self.num_classes = num_classes
        self.pooling_mode = pooling_mode
        self.activation = keras.activations.get(activation)
        self.dropout = dropout

        # === Functional Model ===
        inputs = backbone.input
        x = self.pooling(backbone(inputs), inputs["padding_mask"])
        outputs = self.output_dense(self.pooled_dropout(x))
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

    # KerasHub's would write the optimizer's variables too, and warn when a
    # model without them reads the file.

    def save_task_weights(self, filepath: str | os.PathLike[str]) -> None:
        """Saves the head alone, to a file that ends in `.weights.h5`."""
        keras.saving.save_weights(
            self, filepath, objects_to_skip=self._all_but_the_head()
        )

    def load_task_weights(self, filepath: str | os.PathLike[str]) -> None:
        """Loads what `save_task_weights` wrote."""
        keras.saving.load_weights(
            self, filepath, objects_to_skip=self._all_but_the_head()
        )

    def _all_but_the_head(self):
        return [*keras_compat.all_layers(self.backbone), self.optimizer]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "pooling_mode": self.pooling_mode,
            "activation": keras.activations.serialize(self.activation),
            "dropout": self.dropout,
        }
