"""A loss that is not a number stops training and says when."""

import keras
import numpy as np
import pytest

from keras_griffin.training import StopOnNaN
from support.models import tiny_model
from support.models import tokens

BAD_ROW = 4


def loss_with_a_nan(y_true, y_pred):
    """NaN where a label is -2 or less."""
    label = keras.ops.cast(y_true, "float32")
    return keras.ops.log(label + 1.5) + 0.0 * keras.ops.sum(y_pred, axis=-1)


def test_the_step_is_named():
    model = tiny_model(num_layers=1, block_types=("recurrent",))
    model.compile(optimizer="sgd", loss=loss_with_a_nan)
    x = tokens(6, 3)
    x = {"token_ids": x, "padding_mask": np.ones_like(x)}
    y = np.ones((6, 3), "int32")

    def fit(y, **kwargs):
        return model.fit(
            x,
            y,
            batch_size=2,
            shuffle=False,
            verbose=0,
            callbacks=[StopOnNaN()],
            **kwargs,
        )

    fit(y, epochs=2)  # 6 steps
    y[BAD_ROW, 1] = -2
    with pytest.raises(
        FloatingPointError, match="nan at step 9, which is batch 3 of epoch 1"
    ):
        fit(y)
