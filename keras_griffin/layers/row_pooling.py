import keras
from keras import ops

POOLING_MODES = ("last", "mean")


@keras.saving.register_keras_serializable(
    package="keras_griffin", name="_RowPooling"
)
class RowPooling(keras.layers.Layer):
    """One vector a row: that of its last document.

    Pads count nowhere. Of a packed row the last document alone counts, so
    that its vector is what the document by itself would give. A row without
    a real token gives zeros.

    Args:
        mode: `"last"`, the document's last token, or `"mean"`, the mean of
            its tokens.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        x: `(batch, time, width)`.
        padding_mask: `(batch, time)`, as of `GriffinBackbone`.

    Returns:
        `(batch, width)`.

    Raises:
        ValueError: for another mode.
    """

    def __init__(self, mode, **kwargs):
        super().__init__(**kwargs)
        if mode not in POOLING_MODES:
            raise ValueError(
                f"`pooling_mode` must be one of {POOLING_MODES}. Received: "
                f"{mode!r}. 'last' suits a model that reads from left to right."
            )
        self.mode = mode

    def call(self, x, padding_mask):
        numbers = ops.cast(padding_mask, "int32")
        is_real = ops.not_equal(numbers, 0)
        columns = ops.arange(ops.shape(x)[1], dtype="int32")[None]
        last = _last(is_real, columns)
        counted = ops.equal(columns, last)
        if self.mode == "mean":
            number = ops.sum(
                ops.where(counted, numbers, 0), axis=1, keepdims=True
            )
            is_other = is_real & ops.not_equal(numbers, number)
            counted = is_real & (columns > _last(is_other, columns))
        total = ops.sum(ops.where(counted[..., None], x, 0), axis=1)
        count = ops.sum(ops.cast(counted, x.dtype), axis=1, keepdims=True)
        return total / ops.maximum(count, 1)

    def compute_output_spec(self, x, padding_mask):
        return keras.KerasTensor(
            (x.shape[0], x.shape[2]), dtype=self.compute_dtype
        )

    def get_config(self):
        return {**super().get_config(), "mode": self.mode}


def _last(mask, columns):
    """The last column in which a row's mask is true, or -1: `(batch, 1)`."""
    return ops.max(ops.where(mask, columns, -1), axis=1, keepdims=True)
