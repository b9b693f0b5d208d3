from __future__ import annotations

from typing import Any

import keras
from keras import ops
from keras_hub.models import TextEmbedder

from keras_griffin.layers.row_pooling import RowPooling
from keras_griffin.models.griffin_backbone import GriffinBackbone
from keras_griffin.models.griffin_text_embedder_preprocessor import (
    GriffinTextEmbedderPreprocessor,
)
from keras_griffin.models.griffin_text_task import GriffinTextTask


@keras.saving.register_keras_serializable(package="keras_griffin")
class GriffinTextEmbedder(GriffinTextTask, TextEmbedder):
    """A Griffin that makes a vector of a text, to compare texts by.

    `pool(h) / |pool(h)|`, with the backbone's hidden states `h` and one vector
    a row: that of the last real token, or the mean of all. Pads may be
    anywhere and change nothing. Of a packed row the last document alone
    counts.

    It is a `keras_hub.models.TextEmbedder`, with `encode_text` for strings. A
    backbone that was trained to predict the next token is a start; train it
    on pairs of texts, with a loss of your own, for a good measure.

    Args:
        backbone: a `GriffinBackbone`.
        preprocessor: a `GriffinTextEmbedderPreprocessor`, or `None` to work
            with token ids. Defaults to `None`.
        pooling_mode: `"last"` or `"mean"`. Defaults to `"last"`.
        normalize: bool. Whether the vectors have length 1. Defaults to `True`.
        **kwargs: see `keras_hub.models.TextEmbedder`.

    Call arguments:
        inputs: as of `GriffinBackbone`.

    Returns:
        `(batch, hidden_dim)`, float32 also under a 16-bit policy.

    Raises:
        ValueError: for another `pooling_mode`.

    Example:
    ```python
    embedder = keras_griffin.GriffinTextEmbedder.from_preset(
        "griffin_shakespeare_en", pooling_mode="mean"
    )
    embedder.preprocessor.sequence_length = 16
    vectors = embedder.encode_text(["Good night.", "Good morrow."])
    embedder.similarity(vectors[:1], vectors)  # (1, 2), of cosines
    ```

    Source:
        `keras_hub.models.TextEmbedder`.
    """

    backbone_cls = GriffinBackbone
    preprocessor_cls = GriffinTextEmbedderPreprocessor
    presets = GriffinBackbone.presets

    def __init__(
        self,
        backbone: GriffinBackbone,
        preprocessor: Any = None,
        pooling_mode: str = "last",
        normalize: bool = True,
        **kwargs: Any,
    ) -> None:
        self._set_parts(backbone, preprocessor, kwargs)

        # === Layers ===
        dtype = keras.backend.result_type(backbone.compute_dtype, "float32")
        self.pooling = RowPooling(pooling_mode, dtype=dtype, name="pooling")

        # === Functional Model ===
        inputs = backbone.input
        outputs = self.pooling(backbone(inputs), inputs["padding_mask"])
        if normalize:
            outputs = ops.normalize(outputs, axis=-1, order=2)
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

        # === Config ===
        self.pooling_mode = pooling_mode
        self.normalize = normalize

    def similarity(
        self, query_embeddings: Any, document_embeddings: Any
    ) -> Any:
        """Returns the dot product of each query with each document.

        Args:
            query_embeddings: `(queries, hidden_dim)`.
            document_embeddings: `(documents, hidden_dim)`.

        Returns:
            `(queries, documents)`: cosines if the vectors have length 1.
        """
        return ops.matmul(
            ops.convert_to_tensor(query_embeddings),
            ops.transpose(ops.convert_to_tensor(document_embeddings)),
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "pooling_mode": self.pooling_mode,
            "normalize": self.normalize,
        }
