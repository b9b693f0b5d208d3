"""How many pieces the loss cuts its tokens into, on JAX."""

import keras
import numpy as np
import pytest

from keras_griffin.layers import ReversibleEmbedding
from keras_griffin.training import chunked_cross_entropy
from support.models import VOCABULARY


@pytest.mark.skipif(keras.config.backend() != "jax", reason="JAX alone")
@pytest.mark.parametrize(
    "fit, learns, devices, expected",
    [
        (40, True, 1, 10),
        (8, True, 1, 4),
        (2, True, 1, 2),
        (40, False, 1, 40),
        (40, True, 2, 40),
    ],
)
def test_pieces_are_larger_where_the_head_learns(
    fit, learns, devices, expected, monkeypatch
):
    found = []
    monkeypatch.setattr(
        chunked_cross_entropy, "_data_shards", lambda *sizes: (1, 1, devices)
    )

    def map_pieces(function, head, hidden, targets):
        found.append(len(hidden))
        return function(hidden, targets)

    monkeypatch.setattr(chunked_cross_entropy, "_map_pieces", map_pieces)
    time = 80
    limit = VOCABULARY * time // fit
    monkeypatch.setattr(chunked_cross_entropy, "MAX_LOGITS", limit)
    head = ReversibleEmbedding(VOCABULARY, 4)
    head.trainable = learns
    hidden = np.zeros((1, time, 4), "float32")
    chunked_cross_entropy.map_tokens(
        lambda hidden, targets: (hidden[..., 0],), head, hidden, hidden[..., 0]
    )
    assert found == [expected]
