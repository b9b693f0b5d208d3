from __future__ import annotations

import os
from typing import Any
from typing import Self

import keras

from keras_griffin.checkpoints import exporting
from keras_griffin.checkpoints.preset_loading import find_preset
from keras_griffin.checkpoints.preset_loading import loading
from keras_griffin.models.griffin_backbone import GriffinBackbone
from keras_griffin.models.griffin_tokenizer import GriffinTokenizer
from keras_griffin.models.griffin_tokenizer import check_text
from keras_griffin.near_names import check_arguments_of


class GriffinTextPreprocessor:
    """Before a preprocessor of KerasHub that packs texts into rows."""

    backbone_cls = GriffinBackbone
    tokenizer_cls = GriffinTokenizer
    presets = GriffinBackbone.presets

    @classmethod
    def from_preset(cls, preset: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Loads the preprocessor of a preset, or its tokenizer into a new one.

        Args:
            preset: str. A name, a folder or a handle, as of
                `GriffinTokenizer.from_preset`.
            **kwargs: arguments of the constructor, `sequence_length` say.

        Returns:
            An instance of this class.

        Raises:
            ValueError: as `GriffinTokenizer.from_preset`.
        """
        check_arguments_of(cls, kwargs)
        source = find_preset(preset, load_weights=False)
        if source.kind == "keras":
            with loading(source, weights=False):
                return super().from_preset(source.path, **kwargs)
        return cls(GriffinTokenizer.from_preset(preset), **kwargs)

    def save_to_preset(self, preset_dir: str | os.PathLike[str]) -> None:
        """Saves the preprocessor as KerasHub does, whole or not at all.

        Args:
            preset_dir: str or path. A folder; other files in it stay.
        """
        exporting.save_part_of_preset(super().save_to_preset, preset_dir)

    def call(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        for segment in x if isinstance(x, tuple) else (x,):
            check_text(segment)
        packed = super().call(x, y, sample_weight)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(packed)
        token_ids = x["token_ids"]
        x = {
            "token_ids": token_ids,
            "padding_mask": token_ids != self.tokenizer.pad_token_id,
        }
        return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
