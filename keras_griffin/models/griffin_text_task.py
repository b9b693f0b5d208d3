from __future__ import annotations

import os
import threading
from typing import Any
from typing import Self

import keras

from keras_griffin import keras_compat
from keras_griffin.checkpoints import exporting
from keras_griffin.checkpoints import keras_files
from keras_griffin.checkpoints.preset_loading import load_task
from keras_griffin.layers.input_checks import check_inputs
from keras_griffin.layers.input_checks import check_names
from keras_griffin.layers.torch_module import TorchModule
from keras_griffin.near_names import arguments_of
from keras_griffin.near_names import check_arguments
from keras_griffin.training import lora
from keras_griffin.training import quantization
from keras_griffin.training import training_checks

# What KerasHub's tasks and Keras' models take beside their own.
LAST_ARGUMENTS = ("compile", "name", "trainable")


class GriffinTextTask(TorchModule, keras_compat.KeepsState):
    """Before a task of KerasHub that makes one vector of each text."""

    # Those of the compiled functions.
    _compiled_weights = None

    @classmethod
    def from_preset(
        cls,
        preset: str | os.PathLike[str],
        load_weights: bool = True,
        dtype: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Builds the task of a preset, or of a causal model's preset.

        Args:
            preset: str. As of `GriffinCausalLM.from_preset`. Of a preset that
                this class saved everything is loaded, of any other one the
                backbone and the tokenizer.
            load_weights: bool. Defaults to `True`.
            dtype: dtype or policy of the backbone. Defaults to `None`: Keras'
                own default.
            **kwargs: further arguments of the constructor.

        Returns:
            An instance of this class.

        Raises:
            ValueError: as `GriffinCausalLM.from_preset`.
        """
        known = {*arguments_of(cls, _task_class(cls)), *LAST_ARGUMENTS}
        known |= {"dtype", "load_weights"}
        check_arguments(f"{cls.__name__}.from_preset", kwargs, known)
        return load_task(
            cls, super().from_preset, preset, load_weights, dtype, kwargs
        )

    def save_to_preset(
        self,
        preset_dir: str | os.PathLike[str],
        max_shard_size: float | None = 10,
    ) -> None:
        """Saves the task. See `GriffinCausalLM.save_to_preset`."""
        exporting.save_preset(
            super().save_to_preset, preset_dir, self, max_shard_size
        )

    save = keras_files.save
    save_weights = keras_files.save_weights
    load_weights = keras_files.load_weights

    quantize = quantization.quantize
    enable_lora = lora.enable_lora
    save_lora_weights = lora.save_lora_weights
    load_lora_weights = lora.load_lora_weights
    merge_lora = lora.merge_lora

    def get_quantization_layer_structure(
        self, mode: str | None = None
    ) -> dict[str, Any] | None:
        return self.backbone.get_quantization_layer_structure(mode)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        check_inputs(inputs, self.backbone.vocabulary_size)
        return super().__call__(inputs, *args, **kwargs)

    # Keras looks for `training` by name: without it nothing would drop out.
    def call(
        self, inputs: Any, training: bool | None = None, mask: Any = None
    ) -> Any:
        # On JAX, `fit` comes here without passing `__call__`.
        check_names(inputs)
        return super().call(inputs, training=training, mask=mask)

    # KerasHub turns all data into a pipeline for the sake of preprocessing,
    # and arrays are not shuffled then. Token ids need none of it.

    def fit(self, x: Any = None, y: Any = None, **kwargs: Any) -> Any:
        return self._run_on(x, "fit", x, y, **kwargs)

    def evaluate(self, x: Any = None, y: Any = None, **kwargs: Any) -> Any:
        with keras_compat.state_put_back(self):
            return self._run_on(x, "evaluate", x, y, **kwargs)

    def predict(self, x: Any = None, **kwargs: Any) -> Any:
        with keras_compat.state_put_back(self):
            return self._run_on(x, "predict", x, **kwargs)

    def _run_on(self, x, name, *args, **kwargs):
        if self.preprocessor is not None:
            return getattr(super(), name)(*args, **kwargs)
        if isinstance(x, dict):
            check_inputs(x, self.backbone.vocabulary_size)
        return getattr(keras.Model, name)(self, *args, **kwargs)

    # Weights that came or went since the last step need another function.

    def make_train_function(self, *args: Any, **kwargs: Any) -> Any:
        training_checks.check_still_compiled(self)
        self._forget_stale()
        if not self.optimizer.built:  # Else TensorFlow traces the step twice.
            self.optimizer.build(self.trainable_variables)
        return super().make_train_function(*args, **kwargs)

    def make_test_function(self, *args: Any, **kwargs: Any) -> Any:
        self._forget_stale()
        return super().make_test_function(*args, **kwargs)

    def make_predict_function(self, *args: Any, **kwargs: Any) -> Any:
        self._forget_stale()
        return super().make_predict_function(*args, **kwargs)

    def _forget_stale(self):
        weights = tuple(id(v) for v in self.variables)
        if weights != self._compiled_weights:
            self.train_function = None
            self.test_function = None
            self.predict_function = None
            self._compiled_weights = weights

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def _set_parts(self, backbone, preprocessor, kwargs):
        """What comes before KerasHub's constructor."""
        task = _task_class(type(self))
        known = {*arguments_of(task, task), *LAST_ARGUMENTS}
        check_arguments(task.__name__, kwargs, known)
        # See `KeepsState`.
        self.state_lock = threading.RLock()
        self.backbone = backbone
        self.preprocessor = preprocessor


def _task_class(cls):
    """The class of this package that a class is or derives from."""
    return cls.__mro__[cls.__mro__.index(GriffinTextTask) - 1]
