"""`TokenLayout` as layers, for the functional model of a backbone."""

import keras
from keras import ops

from keras_griffin.layers.token_layout import TokenLayout
from keras_griffin.layers.token_layout import permute


@keras.saving.register_keras_serializable(
    package="keras_griffin", name="_CompactRows"
)
class CompactRows(keras.layers.Layer):
    """Moves real tokens to the front and finds their positions, once."""

    def call(self, token_ids, padding_mask):
        batch, time = ops.shape(token_ids)
        layout = TokenLayout(batch, time, padding_mask)
        place = layout.place
        if place is None:
            place = ops.broadcast_to(
                ops.arange(time, dtype="int32")[None], (batch, time)
            )
        return layout.compact(token_ids), layout.positions, place

    def compute_output_spec(self, token_ids, padding_mask):
        return tuple(
            keras.KerasTensor(token_ids.shape, dtype="int32") for _ in range(3)
        )


@keras.saving.register_keras_serializable(
    package="keras_griffin", name="_RestoreRows"
)
class RestoreRows(keras.layers.Layer):
    """Puts the outputs of compact rows back where the tokens were."""

    def call(self, x, place):
        return permute(x, place)

    def compute_output_spec(self, x, place):
        return keras.KerasTensor(x.shape, dtype=self.compute_dtype)
