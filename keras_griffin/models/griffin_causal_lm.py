from __future__ import annotations

import contextvars
import os
from typing import Any
from typing import Self

import keras
import keras_hub
from keras import ops
from keras_hub.models import CausalLM

from keras_griffin import keras_compat
from keras_griffin import near_names
from keras_griffin.checkpoints import exporting
from keras_griffin.checkpoints import keras_files
from keras_griffin.checkpoints.preset_index import preprocessor_arguments
from keras_griffin.checkpoints.preset_loading import load_task
from keras_griffin.distribution.griffin_parallel import GriffinParallel
from keras_griffin.distribution.layout_map import check_layout_map
from keras_griffin.generation import chat_template
from keras_griffin.generation import decoding
from keras_griffin.generation import exported_model
from keras_griffin.generation import exported_steps
from keras_griffin.generation import sampling
from keras_griffin.generation import scoring
from keras_griffin.generation import search
from keras_griffin.generation import state_files
from keras_griffin.generation import streaming
from keras_griffin.generation.chat_session import ChatSession
from keras_griffin.generation.compiled_functions import CompiledFunctions
from keras_griffin.layers import input_checks
from keras_griffin.layers.torch_module import TorchModule
from keras_griffin.models.griffin_backbone import GriffinBackbone
from keras_griffin.models.griffin_causal_lm_preprocessor import (
    GriffinCausalLMPreprocessor,
)
from keras_griffin.training import chunked_cross_entropy
from keras_griffin.training import lora
from keras_griffin.training import quantization
from keras_griffin.training import training_checks

# A subclass that has one of these of its own sees logits.
_SEE_LOGITS = (
    "call",
    "compute_loss",
    "compute_metrics",
    "test_step",
    "train_step",
)
# What KerasHub's tasks and Keras' models take beside their own.
_LAST_ARGUMENTS = ("compile", "name", "trainable")
# The model whose step of training or evaluation is running: `call` returns
# its hidden states, and `compute_loss` expects them.
_in_step = contextvars.ContextVar("in_step", default=None)


@keras.saving.register_keras_serializable(package="keras_griffin")
class GriffinCausalLM(TorchModule, keras_compat.KeepsState, CausalLM):
    """A Griffin that predicts the next token: train it, generate with it.

    `logits = cap * tanh(h E^T / cap)`, with the backbone's hidden states `h`,
    its embeddings `E` and its `final_logit_soft_cap`; without a cap
    `h E^T`.

    It is a `keras_hub.models.CausalLM`: `fit`, `generate`, `from_preset` and
    `save_to_preset` are KerasHub's. Generation differs inside: the prompt goes
    once through a state of fixed size, and each row decodes from its own end,
    so that a ragged batch gives what each row alone would.

    Args:
        backbone: a `GriffinBackbone`.
        preprocessor: a `GriffinCausalLMPreprocessor`, or `None` to work with
            token ids. Defaults to `None`.

    Call arguments:
        inputs: as of `GriffinBackbone`.

    Returns:
        Logits `(batch, time, vocabulary_size)`, float32 in every policy.

    Example:
    ```python
    model = keras_griffin.GriffinCausalLM.from_preset("griffin_shakespeare_en")
    model.generate("ROMEO:", max_length=64)

    model.fit(["To be, or not to be: that is the question."], batch_size=1)
    model.save_to_preset("./my_griffin")
    ```

    Without a preprocessor:
    ```python
    backbone = keras_griffin.GriffinBackbone(
        vocabulary_size=256,
        num_layers=3,
        hidden_dim=64,
        intermediate_dim=192,
        num_query_heads=4,
    )
    model = keras_griffin.GriffinCausalLM(backbone)
    model.compile(sampler="greedy")
    model.generate(
        {
            "token_ids": np.array([[5, 6, 7, 0, 0, 0]]),
            "padding_mask": np.array([[1, 1, 1, 0, 0, 0]]),
        },
        stop_token_ids=None,
    )
    ```

    Source:
        arXiv:2402.19427, section 2; recurrentgemma `jax/griffin.py::Griffin`.
    """

    backbone_cls = GriffinBackbone
    preprocessor_cls = GriffinCausalLMPreprocessor
    presets = GriffinBackbone.presets

    # Until `compile`.
    _has_metrics = False
    _hits_suffice = True
    _loss_in_pieces = False

    def __init__(
        self, backbone: GriffinBackbone, preprocessor: Any = None, **kwargs: Any
    ) -> None:
        known = ("backbone", "preprocessor", *_LAST_ARGUMENTS)
        near_names.check_arguments("GriffinCausalLM", kwargs, known)

        # === Layers ===
        self.backbone = backbone
        self.preprocessor = preprocessor

        # === Functional Model ===
        self._replica_call = None
        inputs = backbone.input
        super().__init__(
            inputs=inputs, outputs=self._logits(backbone(inputs)), **kwargs
        )

    @classmethod
    def from_preset(
        cls,
        preset: str | os.PathLike[str],
        load_weights: bool = True,
        dtype: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Builds the model of a preset, with its weights and preprocessor.

        Args:
            preset: str. One of

                - a name: `"griffin_shakespeare_en"` came with the package;
                  `keras-griffin presets` lists all of them;
                - a folder written by `save_to_preset`;
                - a folder in Hugging Face's RecurrentGemma format
                  (`config.json`, safetensors, `tokenizer.model`), whose
                  files PyTorch maps: replace them, don't write into them;
                - an archive of DeepMind's: a folder with `tokenizer.model`
                  and an orbax folder or a .pt file. If it was not written
                  here, it is taken for a RecurrentGemma's;
                - a handle: `"hf://..."` or `"kaggle://..."`, of any of these
                  forms.
            load_weights: bool. `False` builds the architecture with random
                weights and, for a preset that has to be downloaded, downloads
                nothing: there is no preprocessor then. Defaults to `True`.
            dtype: dtype or policy of the model, `"bfloat16"` say. Of
                folders and files of floats also `"int8_from_bfloat16"` and
                the like: each matrix is rounded as it is read, as by
                `quantize("int8")`. Defaults to `None`: Keras' own default.
            **kwargs: further arguments of the constructor.

        Returns:
            A `GriffinCausalLM`.

        Raises:
            ValueError: for an unknown preset, an architecture without
                released weights, or a folder with missing, damaged or
                unfitting files. No half-loaded model is returned.
            PermissionError: if a licence has to be accepted, or there is no
                token; the message has the page and the variable.
            ConnectionError: if a hub cannot be reached and nothing is cached.
            FileNotFoundError: if a hub has no such model.

        Example:
        ```python
        model = keras_griffin.GriffinCausalLM.from_preset(
            "griffin_shakespeare_en", dtype="bfloat16"
        )
        ```
        """
        known = {
            *near_names.arguments_of(cls, GriffinCausalLM),
            *_LAST_ARGUMENTS,
        }
        known |= {"dtype", "load_weights"}
        near_names.check_arguments(f"{cls.__name__}.from_preset", kwargs, known)
        return load_task(
            cls,
            super().from_preset,
            preset,
            load_weights,
            dtype,
            kwargs,
            preprocessor_arguments,
        )

    def save_to_preset(
        self,
        preset_dir: str | os.PathLike[str],
        max_shard_size: float | None = 10,
    ) -> None:
        """Saves the model as KerasHub does, and a model card.

        An older preset in the folder is replaced whole or, if something goes
        wrong, not at all. A README.md that is there already stays.

        Args:
            preset_dir: str or path. The folder.
            max_shard_size: int or float. A weight file's largest size;
                `None`: one file. Defaults to `10` [GB].

        Raises:
            OSError: if the disk is full.
        """
        exporting.save_preset(
            super().save_to_preset, preset_dir, self, max_shard_size
        )

    save = keras_files.save
    save_weights = keras_files.save_weights
    load_weights = keras_files.load_weights
    export_to_transformers = exporting.export_to_transformers
    export_to_deepmind = exporting.export_to_deepmind

    def _logits(self, hidden):
        logits = self.backbone.token_embedding(hidden, reverse=True)
        logits = ops.cast(logits, "float32")
        cap = self.backbone.final_logit_soft_cap
        return logits if cap is None else cap * ops.tanh(logits / cap)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        input_checks.check_inputs(inputs, self.backbone.vocabulary_size)
        return super().__call__(input_checks.with_mask(inputs), *args, **kwargs)

    # Keras looks for `training` by name: without it nothing would drop out.
    def call(
        self, inputs: Any, training: bool | None = None, mask: Any = None
    ) -> Any:
        # On JAX, `fit` comes here without passing `__call__`.
        input_checks.check_names(inputs)
        inputs = input_checks.with_mask(inputs)
        in_step = _in_step.get() is self
        if self._replica_call is not None:
            return self._replica_call(inputs, training, in_step)
        return self._call(inputs, training, in_step, mask)

    def _call(self, inputs, training, in_step, mask=None):
        if in_step:  # `compute_loss` makes the logits
            return self.backbone(inputs, training=training)
        return super().call(inputs, training=training, mask=mask)

    # === Training ===

    state_lock = property(lambda self: self._functions.state_lock)

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._run_step(super().train_step, *args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._run_step(super().test_step, *args, **kwargs)

    def _run_step(self, step, *args, **kwargs):
        token = _in_step.set(self if self._loss_in_pieces else None)
        try:
            logs = step(*args, **kwargs)
        finally:
            _in_step.reset(token)
        if keras.config.backend() != "tensorflow":
            return logs
        from keras_griffin.distribution import tensorflow_strategies

        return tensorflow_strategies.logs_of_replica(self, logs)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The loss of a batch, as `keras.Model.compute_loss`.

        Within `fit` and `evaluate`, with `loss="auto"` and no metrics but the
        accuracy, `y_pred` are hidden states: logits are made for some tokens
        at a time, in the gradient once more. Where other metrics, or a step,
        loss or metrics of a subclass, look at logits, there are all of them.
        """
        sample_weight = training_checks.token_weights(
            self.loss, y, sample_weight, y_pred
        )
        if _in_step.get() is not self:
            rows = training_checks.as_rows(self.loss, y, y_pred, sample_weight)
            return super().compute_loss(x, *rows, training)
        y = ops.reshape(y, ops.shape(y_pred)[:2])
        loss, hits = chunked_cross_entropy.chunked_loss(
            self,
            self._logits,
            self.backbone.token_embedding,
            y_pred,
            y,
            sample_weight,
            self._has_metrics,
        )
        if not self._has_metrics:
            hits = ops.zeros_like(y)  # Keras updates an empty list, too
        # Two classes, of which the first is the right one.
        super().compute_metrics(
            None,
            ops.zeros_like(y),
            ops.stack([hits, 1 - hits], axis=-1),
            sample_weight,
        )
        return loss

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        if _in_step.get() is self:  # `compute_loss` has updated them
            return self.get_metrics_result()
        sample_weight = training_checks.token_weights(
            self.loss, y, sample_weight, y_pred
        )
        return super().compute_metrics(x, y, y_pred, sample_weight)

    # KerasHub turns all data into a pipeline for the sake of preprocessing,
    # and arrays are not shuffled then. Token ids need none of it.

    def fit(self, x: Any = None, y: Any = None, **kwargs: Any) -> Any:
        training_checks.check_no_class_weight(kwargs.get("class_weight"))
        if self._goes_through_pipeline(x):
            x = self.preprocessor.for_pipeline(x)
            validation = kwargs.get("validation_data")
            if chat_template.are_conversations(validation):
                validation = self.preprocessor.for_pipeline(validation)
                kwargs["validation_data"] = (validation,)
            return super().fit(x, y, **kwargs)
        self._check_arrays(x, y, kwargs)
        return keras.Model.fit(self, x, y, **kwargs)

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Any = None,
        **kwargs: Any,
    ) -> Any:
        training_checks.check_no_class_weight(class_weight)
        return super().train_on_batch(x, y, sample_weight, **kwargs)

    def evaluate(self, x: Any = None, y: Any = None, **kwargs: Any) -> Any:
        with keras_compat.state_put_back(self):
            if self._goes_through_pipeline(x):
                x = self.preprocessor.for_pipeline(x)
                return super().evaluate(x, y, **kwargs)
            self._check_arrays(x, y, kwargs)
            return keras.Model.evaluate(self, x, y, **kwargs)

    def predict(self, x: Any = None, **kwargs: Any) -> Any:
        with keras_compat.state_put_back(self):
            if self._goes_through_pipeline(x):
                x = self.preprocessor.for_pipeline(x)
                return super().predict(x, **kwargs)
            self._check_arrays(x)
            return keras.Model.predict(self, x, **kwargs)

    def _goes_through_pipeline(self, x):
        # A PyDataset holds batches already; KerasHub would not take it.
        is_in_batches = isinstance(x, keras.utils.PyDataset)
        return self.preprocessor is not None and not is_in_batches

    def _check_arrays(self, x, y=None, kwargs=()):
        if isinstance(x, dict):
            input_checks.check_inputs(x, self.backbone.vocabulary_size)
            training_checks.check_arrays(self, x, y, kwargs)

    def get_compile_config(self) -> Any:
        config = super().get_compile_config()
        return config and {
            **config,
            # As it was asked for: what "auto" means is the reader's choice.
            "jit_compile": self._requested_jit_compile,
            "sampler": keras_hub.samplers.serialize(self.sampler),
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Configures training and sampling. See `keras_hub.models.CausalLM`.

        On TensorFlow the loop that makes tokens is compiled by XLA unless
        `jit_compile=False`; Keras' own choice on a CPU would be not to.

        Raises:
            ValueError: for samplers that are unknown or that a recurrent state
                cannot serve, for cross-entropies of probabilities, and under
                a `GriffinParallel` for weights that its layout map forgets
                (see `keras_griffin.distribution.check_layout_map`).
        """
        sampler = sampling.get_sampler(kwargs.pop("sampler", "top_k"))
        sampling.check_sampler(sampler, self.backbone.vocabulary_size)
        if type(self).call is GriffinCausalLM.call:
            training_checks.check_take_logits(*args, **kwargs)
        super().compile(*args, sampler=sampler, **kwargs)
        self._requested_jit_compile = kwargs.get("jit_compile", "auto")
        self._replica_call = None
        if keras.config.backend() == "tensorflow":
            from keras_griffin.distribution import tensorflow_strategies

            self._replica_call = tensorflow_strategies.function_of_replica(self)
        distribution = keras.distribution.distribution()
        if isinstance(distribution, GriffinParallel):
            check_layout_map(distribution.layout_map, self)
        self._functions = CompiledFunctions(self)
        metrics = [
            kwargs.get("metrics"),
            kwargs.get("weighted_metrics", "auto"),
        ]
        if metrics != [None, None]:  # Keras keeps those of before then
            metrics = keras.tree.flatten([m or [] for m in metrics])
            self._has_metrics = bool(metrics)
            self._hits_suffice = chunked_cross_entropy.hits_suffice(metrics)
        self._loss_in_pieces = (
            self._hits_suffice
            and chunked_cross_entropy.needs_no_logits(
                self.loss, kwargs.get("loss_weights")
            )
            and all(
                getattr(type(self), name) is getattr(GriffinCausalLM, name)
                for name in _SEE_LOGITS
            )
        )

    # Weights that came or went since the last step need another function.

    def make_train_function(self, *args: Any, **kwargs: Any) -> Any:
        training_checks.check_still_compiled(self)
        self._functions.forget_stale()
        if keras.config.backend() == "tensorflow":
            chunked_cross_entropy.make_variables(
                self, self._loss_in_pieces and self._has_metrics
            )
        return super().make_train_function(*args, **kwargs)

    def make_test_function(self, *args: Any, **kwargs: Any) -> Any:
        self._functions.forget_stale()
        return super().make_test_function(*args, **kwargs)

    def make_predict_function(self, *args: Any, **kwargs: Any) -> Any:
        self._functions.forget_stale()
        return super().make_predict_function(*args, **kwargs)

    quantize = quantization.quantize
    enable_lora = lora.enable_lora
    save_lora_weights = lora.save_lora_weights
    load_lora_weights = lora.load_lora_weights
    merge_lora = lora.merge_lora

    def get_quantization_layer_structure(self, mode: str | None = None) -> Any:
        return self.backbone.get_quantization_layer_structure(mode)

    # === Generation: each is a function of the model, documented there ===

    prefill = decoding.prefill
    decode_step = decoding.decode_step
    generate = decoding.generate
    generate_stream = streaming.generate_stream
    generate_step = search.generate_step
    make_generate_function = decoding.make_generate_function
    score = scoring.score
    save_state = state_files.save_state
    load_state = state_files.load_state
    export = exported_model.export
    export_steps = exported_steps.export_steps

    def init_state(
        self, batch_size: int, max_length: int | None = None
    ) -> dict[str, Any]:
        """Returns a fresh state. See `GriffinBackbone.init_state`."""
        return self.backbone.init_state(batch_size, max_length)

    def chat(self, **options: Any) -> ChatSession:
        """Starts a conversation that keeps its state. See `ChatSession`."""
        return ChatSession(self, **options)
