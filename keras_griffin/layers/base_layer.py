"""What all layers of this package have in common."""

from __future__ import annotations

from typing import Any

import keras

from keras_griffin.layers.torch_module import TorchModule
from keras_griffin.near_names import arguments_of
from keras_griffin.near_names import check_arguments

# What every layer of Keras takes; the last two without naming them.
LAST_ARGUMENTS = {
    *arguments_of(keras.layers.Layer, keras.layers.Layer),
    "input_dim",
    "input_shape",
}


class BaseLayer(TorchModule, keras.layers.Layer):
    """`keras.layers.Layer` that refuses what it does not know.

    It hands Keras' masks on, and is a `torch.nn.Module` on PyTorch.
    """

    def __init__(self, **kwargs: Any) -> None:
        if not LAST_ARGUMENTS.issuperset(kwargs):
            known = arguments_of(type(self), keras.layers.Layer)
            known |= LAST_ARGUMENTS
            check_arguments(type(self).__name__, kwargs, known)
        super().__init__(**kwargs)
        self.supports_masking = True
