import contextlib
import contextvars
import threading
from pathlib import Path

import keras
import keras_hub
import numpy as np
from keras import ops
from keras_hub.models import CausalLM
from keras_hub.samplers import ContrastiveSampler
from keras_hub.samplers import SpeculativeSampler

from keras_griffin.distribution.griffin_parallel import GriffinParallel
from keras_griffin.distribution.layout_map import check_layout_map
from keras_griffin.models import exporting
from keras_griffin.models import quantization
from keras_griffin.models import turns
from keras_griffin.models.chat_session import ChatSession
from keras_griffin.models.exported_step import ExportedStep
from keras_griffin.models.griffin_backbone import GriffinBackbone
from keras_griffin.models.griffin_backbone import check_inputs
from keras_griffin.models.griffin_backbone import check_token_ids
from keras_griffin.models.griffin_backbone import fill_inputs
from keras_griffin.models.griffin_causal_lm_preprocessor import (
    GriffinCausalLMPreprocessor,
)
from keras_griffin.models.preset_index import preprocessor_arguments
from keras_griffin.models.preset_loading import find_preset
from keras_griffin.models.prompts import Prompts
from keras_griffin.models.prompts import bucket
from keras_griffin.models.prompts import prompt_pieces
from keras_griffin.models.prompts import stream_text
from keras_griffin.models.prompts import to_numpy
from keras_griffin.models.samplers import copy_sampler
from keras_griffin.models.samplers import is_search
from keras_griffin.models.samplers import kind_of_sampler
from keras_griffin.models.samplers import pad_stop_token_ids
from keras_griffin.models.samplers import settings_of
from keras_griffin.models.samplers import with_settings
from keras_griffin.models.states import load_state
from keras_griffin.models.states import repeat_rows
from keras_griffin.models.states import save_state
from keras_griffin.models.token_losses import token_losses

# Logit of tokens that a row that has ended can no longer take.
IMPOSSIBLE = -1e30

# Tokens. Longer prompts are read in pieces of this size, in bounded memory.
PREFILL_CHUNK = 2048
# Logits of so many tokens are held at once.
SCORE_CHUNK = 256
# New tokens of one call of the device, and the same where somebody reads along.
DECODE_CHUNK = 32
STREAM_CHUNK = 4

# The model whose step of training or evaluation is running: `call` returns
# its hidden states, and `compute_loss` expects them.
_in_step = contextvars.ContextVar("in_step", default=None)


# Format of `export_steps`: what file names end in, and the backends that Keras
# writes it on.
EXPORT_ENDINGS = {
    "tf_saved_model": ("", ("jax", "tensorflow")),
    "onnx": (".onnx", ("torch",)),
    "torch": (".pt2", ("torch",)),
}


@keras.saving.register_keras_serializable(package="keras_griffin")
class GriffinCausalLM(CausalLM):
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

    _loss_in_pieces = False  # until `compile`

    def __init__(self, backbone, preprocessor=None, **kwargs):
        # === Layers ===
        self.backbone = backbone
        self.preprocessor = preprocessor

        # === Functional Model ===
        self._replica_call = None
        inputs = backbone.input
        super().__init__(
            inputs=inputs, outputs=self._logits(backbone(inputs)), **kwargs
        )
        self._state_functions = {}
        self._structure = None
        if keras.config.backend() == "torch":
            # Else `parameters()` is empty, as what came before `__init__` of
            # `keras.Model` is forgotten by PyTorch, and DDP finds nothing.
            self._track_variables()

    @classmethod
    def from_preset(cls, preset, load_weights=True, dtype=None, **kwargs):
        """Builds the model of a preset, with its weights and preprocessor.

        Args:
            preset: str. One of
                - a name: `"griffin_shakespeare_en"` came with the package;
                  `keras-griffin presets` lists all of them;
                - a folder written by `save_to_preset`;
                - a folder in Hugging Face's RecurrentGemma format
                  (`config.json`, safetensors, `tokenizer.model`);
                - an archive of DeepMind's: a folder with `tokenizer.model`
                  and an orbax folder or a .pt file. If it was not written
                  here, it is taken for a RecurrentGemma's;
                - a handle: `"hf://..."` or `"kaggle://..."`, of any of these
                  forms.
            load_weights: bool. `False` builds the architecture with random
                weights and, for a preset that has to be downloaded, downloads
                nothing: there is no preprocessor then. Defaults to `True`.
            dtype: dtype or policy of the model, `"bfloat16"` say. Defaults to
                `None`: Keras' own default.
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
        source = find_preset(preset, load_weights)
        if source.kind == "keras":
            return super().from_preset(
                source.path, load_weights, dtype=dtype, **kwargs
            )
        if "backbone" not in kwargs:
            kwargs["backbone"] = GriffinBackbone.from_preset(
                source.path, load_weights, dtype=dtype
            )
        if "preprocessor" not in kwargs and source.kind != "architecture":
            kwargs["preprocessor"] = GriffinCausalLMPreprocessor.from_preset(
                source.path, **preprocessor_arguments(preset)
            )
        return cls(**kwargs)

    def save_to_preset(self, preset_dir, max_shard_size=10):
        """Saves the model as KerasHub does, and a model card.

        A file of the folder is replaced when all are written; a README.md that
        is there already stays.

        Args:
            preset_dir: str or path. The folder.
            max_shard_size: int or float. A weight file's largest size;
                `None`: one file. Defaults to `10` [GB].
        """
        exporting.save_preset(
            super().save_to_preset, preset_dir, self.backbone, max_shard_size
        )

    def export_to_transformers(self, path, max_shard_size=5):
        """Writes a folder that transformers loads as RecurrentGemma.

        config.json, safetensors in the weights' own dtype and, with a
        preprocessor, the tokenizer. `from_preset` reads it back bit for bit.
        transformers counts a token itself into its window, so that config.json
        has `attention_window_size + 1`: then its logits are this model's.

        Args:
            path: str or path. A new or empty folder. It appears when all is
                written, or not at all.
            max_shard_size: int or float. A weight file's largest size.
                Defaults to `5` [GB].

        Raises:
            ImportError: if safetensors is not installed.
            ValueError: if transformers cannot express the model (the message
                says what), a weight is quantized, or the folder holds files.

        Example:
        ```python
        model.export_to_transformers("./my_recurrent_gemma")
        transformers.AutoModelForCausalLM.from_pretrained(
            "./my_recurrent_gemma"
        )
        ```
        """
        exporting.export_to_transformers(
            path, self.backbone, self.preprocessor, max_shard_size
        )

    def export_to_deepmind(self, path, framework="flax"):
        """Writes an archive as Google's on Kaggle, for DeepMind's own code.

        `model/` by orbax or `model.pt`, in the weights' own dtype, and with a
        preprocessor `tokenizer.model`. `keras_griffin.json` keeps what such an
        archive does not tell; the model card has DeepMind's `GriffinConfig`.
        Takes as much memory again as the weights.

        Args:
            path: str or path. A new or empty folder. It appears when all is
                written, or not at all.
            framework: `"flax"` or `"torch"`. Defaults to `"flax"`.

        Raises:
            ImportError: if orbax-checkpoint or torch is not installed.
            ValueError: if DeepMind's code cannot express the model (the
                message says what), a weight is quantized, or the folder holds
                files.

        Example:
        ```python
        model.export_to_deepmind("./my_archive", framework="torch")
        ```
        """
        tokenizer = self.preprocessor and self.preprocessor.tokenizer
        exporting.export_to_deepmind(path, self.backbone, tokenizer, framework)

    def _logits(self, hidden):
        logits = self.backbone.token_embedding(hidden, reverse=True)
        logits = ops.cast(logits, "float32")
        cap = self.backbone.final_logit_soft_cap
        return logits if cap is None else cap * ops.tanh(logits / cap)

    def __call__(self, inputs, *args, **kwargs):
        inputs = fill_inputs(inputs)
        check_inputs(inputs, self.backbone.vocabulary_size)
        return super().__call__(inputs, *args, **kwargs)

    # Keras looks for `training` by name: without it nothing would drop out.
    def call(self, inputs, training=None, mask=None):
        # On JAX, `fit` comes here without passing `__call__`.
        inputs = fill_inputs(inputs)
        in_step = _in_step.get() is self
        if self._replica_call is not None:
            return self._replica_call(inputs, training, in_step)
        return self._call(inputs, training, in_step, mask)

    def _call(self, inputs, training, in_step, mask=None):
        if in_step:  # `compute_loss` makes the logits
            return self.backbone(inputs, training=training)
        return super().call(inputs, training=training, mask=mask)

    # === Training ===

    def train_step(self, *args, **kwargs):
        with self._step():
            logs = super().train_step(*args, **kwargs)
        return self._for_all_workers(logs)

    def test_step(self, *args, **kwargs):
        with self._step():
            logs = super().test_step(*args, **kwargs)
        return self._for_all_workers(logs)

    @contextlib.contextmanager
    def _step(self):
        token = _in_step.set(self if self._loss_in_pieces else None)
        try:
            yield
        finally:
            _in_step.reset(token)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """The loss of a batch, as `keras.Model.compute_loss`.

        Within `fit` and `evaluate`, with the cross-entropy of token ids that
        `loss="auto"` stands for, `y_pred` are hidden states: logits are made
        for some tokens at a time, in the gradient once more. They update the
        metrics at the same time, which see these pieces as batches.
        """
        if _in_step.get() is not self:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        shape = ops.shape(y_pred)[:2]
        y = ops.reshape(y, shape)
        weights = sample_weight
        if weights is not None:
            weights = ops.broadcast_to(weights, shape)

        def score(hidden, targets):
            logits = self._logits(hidden)
            return self.loss.call(
                targets, ops.cast(logits, self.loss.dtype)
            ), logits

        def update(targets, logits, weights):
            # A token a row: Keras' means count rows, whatever their length.
            targets, logits, weights = (
                None if a is None else ops.reshape(a, (-1, 1, *a.shape[2:]))
                for a in (targets, logits, weights)
            )
            super(GriffinCausalLM, self).compute_metrics(
                None, targets, logits, weights
            )

        losses = token_losses(
            score,
            update,
            hidden=y_pred,
            targets=y,
            weights=weights,
            head=self.backbone.token_embedding,
            metrics=self.metrics_variables,
        )
        reduction = _Reduction(
            self.loss.name, self.loss.reduction, self.loss.dtype
        )
        loss = reduction(y, losses, sample_weight)
        for additional in self.losses:
            loss = loss + ops.sum(additional)
        return loss

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if _in_step.get() is self:  # `compute_loss` has updated them
            return self.get_metrics_result()
        return super().compute_metrics(x, y, y_pred, sample_weight)

    # KerasHub turns all data into a pipeline for the sake of preprocessing,
    # and arrays are not shuffled then. Token ids need none of it.

    def fit(self, x=None, y=None, **kwargs):
        if self._goes_through_pipeline(x):
            x = self.preprocessor.for_pipeline(x)
            validation = kwargs.get("validation_data")
            if turns.are_conversations(validation):
                validation = self.preprocessor.for_pipeline(validation)
                kwargs["validation_data"] = (validation,)
            return super().fit(x, y, **kwargs)
        self._check_arrays(x)
        return keras.Model.fit(self, x, y, **kwargs)

    def evaluate(self, x=None, y=None, **kwargs):
        if self._goes_through_pipeline(x):
            x = self.preprocessor.for_pipeline(x)
            return super().evaluate(x, y, **kwargs)
        self._check_arrays(x)
        return keras.Model.evaluate(self, x, y, **kwargs)

    def predict(self, x=None, **kwargs):
        if self._goes_through_pipeline(x):
            x = self.preprocessor.for_pipeline(x)
            return super().predict(x, **kwargs)
        self._check_arrays(x)
        return keras.Model.predict(self, x, **kwargs)

    def _goes_through_pipeline(self, x):
        # A PyDataset holds batches already; KerasHub would not take it.
        return self.preprocessor is not None and not isinstance(
            x, keras.utils.PyDataset
        )

    def _check_arrays(self, x):
        if isinstance(x, dict):
            check_inputs(x, self.backbone.vocabulary_size)

    def get_compile_config(self):
        config = super().get_compile_config()
        return config and {
            **config,
            # As it was asked for: what "auto" means is the reader's choice.
            "jit_compile": self._requested_jit_compile,
            "sampler": keras_hub.samplers.serialize(self.sampler),
        }

    def compile_from_config(self, config):
        config = keras.saving.deserialize_keras_object(config)
        self.compile(**config)
        self.optimizer.build(self.trainable_variables)

    def compile(self, *args, **kwargs):
        """Configures training and sampling. See `keras_hub.models.CausalLM`.

        On TensorFlow the loop that makes tokens is compiled by XLA unless
        `jit_compile=False`; Keras' own choice on a CPU would be not to.

        Raises:
            ValueError: for samplers that a recurrent state cannot serve, and
                under a `GriffinParallel` for weights that its layout map
                forgets (see `keras_griffin.distribution.check_layout_map`).
        """
        super().compile(*args, **kwargs)
        self._requested_jit_compile = kwargs.get("jit_compile", "auto")
        self._replica_call = None
        if keras.config.backend() == "tensorflow" and self.jit_compile:
            self._compile_for_strategy()
        distribution = keras.distribution.distribution()
        if isinstance(distribution, GriffinParallel):
            check_layout_map(distribution.layout_map, self)
        self._state_functions = {}
        _check_sampler(self.sampler)
        self._loss_in_pieces = (
            type(self.loss) is keras.losses.SparseCategoricalCrossentropy
            and self.loss.from_logits
            and self.loss.ignore_class is None
            and kwargs.get("loss_weights") is None
        )

    def _compile_for_strategy(self):
        """Compiles the model for each replica of a `tf.distribute.Strategy`.

        Keras would compile one program for all replicas, which XLA refuses
        where they have devices of their own:
        https://github.com/keras-team/keras/issues/19005
        """
        import tensorflow as tf

        if self.distribute_strategy.num_replicas_in_sync == 1:
            return
        self.jit_compile = False
        self._replica_call = tf.function(
            self._call, jit_compile=True, reduce_retracing=True
        )

    # Keras 3.15 stumbles over tf.distribute: it adds up the inputs of all
    # replicas, which masks cannot be, nor several inputs of workers; and it
    # averages scalar logs of workers over axis 0. On the other backends the
    # methods below are Keras' own.

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if iterator is not None and self._has_replicas():
            batches = next(next(iter(iterator))[-1])
            local = self.distribute_strategy.experimental_local_results
            data_batch = keras.tree.map_structure(
                lambda batch: local(batch)[0], batches
            )
            iterator = None
        super()._maybe_symbolic_build(iterator, data_batch)

    def _has_replicas(self):
        if keras.config.backend() != "tensorflow":
            return False
        return self.distribute_strategy.num_replicas_in_sync > 1

    def _for_all_workers(self, logs):
        if not self._has_workers():
            return logs
        return {name: ops.reshape(value, (1,)) for name, value in logs.items()}

    def _has_workers(self):
        if keras.config.backend() != "tensorflow":
            return False
        import tensorflow as tf

        return isinstance(
            self.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy
        )

    def quantize(self, mode=None, config=None, filters=None, **kwargs):
        """Quantizes the dense layers and, to int8 and int4, the embedding.

        The convolutions, the gates and decays of the RG-LRUs and the norms
        stay as they are. It can't be undone.

        Args:
            mode: `"int8"` (weights and activations), `"int4"` (weights),
                `"float8"` (for training: the weights stay float beside their
                scales), `"gptq"` or `"awq"` (4 bits, from texts). Defaults to
                `None`: the mode of `config`.
            config: a `keras.quantizers.QuantizationConfig`; needed for GPTQ
                and AWQ, which take their texts from it.
            filters: a regular expression for layers' names, a list of them,
                or a function of a layer. Defaults to `None`: all.

        Raises:
            ValueError: for filters that match nothing, for float8, GPTQ and
                AWQ of a model with LoRA, and as `keras.Model.quantize`.

        Example:
        ```python
        model = keras_griffin.GriffinCausalLM.from_preset(
            "griffin_shakespeare_en"
        )
        model.quantize("int8")
        model.generate("ROMEO:", max_new_tokens=20)
        model.save_to_preset("./my_int8_griffin")
        ```
        """
        filters = quantization.choose_layers(self, mode, filters)
        super().quantize(mode, config=config, filters=filters, **kwargs)
        quantization.save_zero_points(self)

    def get_quantization_layer_structure(self, mode=None):
        return self.backbone.get_quantization_layer_structure(mode)

    # === State ===

    def init_state(self, batch_size, max_length=None):
        """Returns a fresh state. See `GriffinBackbone.init_state`."""
        return self.backbone.init_state(batch_size, max_length)

    def prefill(self, inputs, state=None):
        """Reads tokens and returns what comes next, with the state after them.

        Two calls over the parts of a text equal one over the whole, so that a
        prompt of any length can be read in pieces.

        Args:
            inputs: dict of `"token_ids"` `(batch, time)` and optionally
                `"padding_mask"` and `"segment_ids"`, both `(batch, time)`.
            state: from an earlier call. `None`: a fresh state (which global
                attention can't have: use `init_state`). Defaults to `None`.

        Returns:
            `(logits, state)`: `(batch, vocabulary_size)` float32 logits of
            the token after each row's last real one, and the state. A row of
            pads alone keeps its state, and its logits have no meaning.

        Raises:
            ValueError: for inputs of a wrong shape or ids out of the
                vocabulary.

        Example:
        ```python
        ids = np.array([[5, 6, 7, 8]])
        logits, state = model.prefill({"token_ids": ids})
        logits, state = model.decode_step(np.array([9]), state)
        ```
        """
        inputs = fill_inputs(inputs)
        if isinstance(inputs, dict) and "token_ids" in inputs:
            inputs = {
                name: None if inputs.get(name) is None else to_numpy(value)
                for name, value in {"padding_mask": None, **inputs}.items()
            }
            check_token_ids(inputs["token_ids"], self.backbone.vocabulary_size)
        check_inputs(inputs, self.backbone.vocabulary_size)
        batch, time = inputs["token_ids"].shape
        if time == 0:
            raise ValueError(
                "`prefill` needs at least one column of tokens. Received: "
                f"token_ids of shape {(batch, time)}. The state before any "
                "token is `init_state(batch_size)`."
            )
        if state is None:
            state = self.init_state(batch)
        logits = ops.zeros((batch, self.backbone.vocabulary_size), "float32")
        for piece in prompt_pieces(inputs, PREFILL_CHUNK):
            logits, state = self._run(
                "prefill", self._prefill, piece, logits, state
            )
        return logits, state

    def _prefill(self, inputs, logits, state):
        hidden, state = self.backbone.call_with_state(state=state, **inputs)
        mask = inputs.get("padding_mask")
        new_logits = self._logits(_last_real(hidden, mask))
        if mask is not None:
            # Rows that ended in an earlier piece keep what came next there.
            reads = ops.any(mask, axis=1, keepdims=True)
            new_logits = ops.where(reads, new_logits, logits)
        return new_logits, state

    def save_state(self, state, path):
        """Writes a state to a file, to go on from it later or elsewhere.

        Its size does not depend on how many tokens were read (see
        `keras-griffin info`).

        Args:
            state: from `prefill`, `decode_step` or `generate`.
            path: str or path. The `.npz` file.

        Example:
        ```python
        ids = {"token_ids": np.array([[5, 6, 7, 8]])}
        _, state = model.prefill(ids)
        model.save_state(state, "prompt.npz")
        model.generate(["To", "Not"], state=model.load_state("prompt.npz"))
        ```
        """
        save_state(state, path)

    def load_state(self, path):
        """Reads a state that `save_state` wrote, with the same weights.

        Args:
            path: str or path.

        Returns:
            The state.

        Raises:
            ValueError: for a file that is not a state of this model.
        """
        return load_state(path, self.init_state(1, max_length=1))

    def decode_step(self, token_ids, state):
        """Reads one token a row: logits of the next one, and the new state.

        Args:
            token_ids: `(batch,)` int.
            state: from `prefill`, `init_state` or an earlier step.

        Returns:
            `(logits, state)`: `(batch, vocabulary_size)` float32, and the
            state. The given state stays valid.

        Raises:
            ValueError: if `token_ids` is not of rank 1.
        """
        token_ids = ops.convert_to_tensor(token_ids, dtype="int32")
        if len(token_ids.shape) != 1:
            raise ValueError(
                "`token_ids` must have shape (batch,), one token a row. "
                f"Received: shape {tuple(token_ids.shape)}. Longer pieces go "
                "through `prefill`."
            )
        if keras.config.backend() == "torch":
            return self._step_function("step", self._decode_step)(
                token_ids, state
            )
        return self._run("step", self._decode_step, token_ids, state, xla=True)

    def _decode_step(self, token_ids, state):
        hidden, state = self.backbone.call_with_state(token_ids[:, None], state)
        return self._logits(hidden[:, 0]), state

    def _step_function(self, name, function):
        """A function of one token, for the weights as they are now.

        Where functions are compiled it becomes part of what calls it.
        """
        if keras.config.backend() != "torch" or self.run_eagerly:
            return function
        from keras_griffin.models.recorded_torch import RecordedStep

        self._forget_stale_functions()
        if name not in self._state_functions:
            self._state_functions[name] = RecordedStep(function)
        return self._state_functions[name].start()

    def _run(self, name, function, *args, xla=False):
        """Runs a function of the model's weights, compiled once a shape."""
        self._forget_stale_functions()
        if name not in self._state_functions:
            self._state_functions[name] = self._compile_function(
                function, xla=xla
            )
        return self._state_functions[name](*args)

    def _forget_stale_functions(self):
        """Drops compiled functions of weights that are no longer there.

        LoRA, merging and quantization of the backbone change its weights
        without telling this model, and a `tf.function` would not notice.
        """
        structure = [(v.path, v.dtype, v.shape) for v in self.variables]
        if self._structure is None:
            self._structure = structure
        elif structure != self._structure:
            self._structure = structure
            self._state_functions = {}
            self.train_function = None
            self.test_function = None
            self.predict_function = None

    def make_train_function(self, *args, **kwargs):
        self._forget_stale_functions()
        return super().make_train_function(*args, **kwargs)

    def make_test_function(self, *args, **kwargs):
        self._forget_stale_functions()
        return super().make_test_function(*args, **kwargs)

    def make_predict_function(self, *args, **kwargs):
        self._forget_stale_functions()
        return super().make_predict_function(*args, **kwargs)

    def _compile_function(self, function, variables=(), xla=False):
        """Compiles a function of the weights that may change `variables`.

        Args:
            function: callable.
            variables: those that it may change.
            xla: bool. Whether TensorFlow should take XLA unless the model
                was told otherwise.
        """
        backend = keras.config.backend()
        if backend == "torch":
            import torch

            return torch.no_grad()(function)
        if self.run_eagerly:
            return function
        if backend == "tensorflow":
            import tensorflow as tf

            if self._requested_jit_compile != "auto" or not xla:
                xla = self.jit_compile
            return tf.function(function, jit_compile=xla)

        import jax

        @jax.jit
        def stateless(weights, values, *args):
            mapping = zip(
                [*self.variables, *variables], weights + values, strict=True
            )
            with keras.StatelessScope(state_mapping=mapping) as scope:
                outputs = function(*args)
            return outputs, [scope.get_current_value(v) for v in variables]

        def compiled(*args):
            outputs, values = stateless(
                [v.value for v in self.variables],
                [v.value for v in variables],
                *args,
            )
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
            return outputs

        return compiled

    # === Generation ===

    def generate(
        self,
        inputs,
        max_length=None,
        stop_token_ids="auto",
        strip_prompt=False,
        max_new_tokens=None,
        sampler=None,
        temperature=None,
        seed=None,
        state=None,
        return_state=False,
    ):
        """Generates text, or token ids without a preprocessor.

        Other lengths, stop ids and settings of a sampler run what is compiled
        already; another kind of sampler compiles once.

        Args:
            inputs: str, list of str or a `tf.data.Dataset` of them; or, where
                the preprocessor has a `turn_format`, a list of messages that
                ends with the user's, or a list of such lists. Without a
                preprocessor a dict of `"token_ids"` and `"padding_mask"`
                `(batch, max_length)`, the room included.
            max_length: int. Tokens of prompt and text together. Defaults to
                the preprocessor's `sequence_length`.
            stop_token_ids: `"auto"` (the tokenizer's end token, and
                `<end_of_turn>` where there is a `turn_format`), a sequence of
                ids any of which ends a row, or `None`. Defaults to `"auto"`.
            strip_prompt: bool. Return the new tokens alone. Defaults to
                `False`.
            max_new_tokens: int. New tokens of every row, in place of
                `max_length`. Defaults to `None`.
            sampler: a name or a `keras_hub.samplers.Sampler` for this call.
                Defaults to `None`: the one of `compile`.
            temperature: float. Of the sampler in this call. Defaults to
                `None`: the sampler's own.
            seed: int. Makes this call's draws repeatable. Defaults to `None`.
            state: state to go on from (see `prefill` and `load_state`); the
                prompts are read after it, without a start token. One row
                serves all prompts. Defaults to `None`.
            return_state: bool. Also return the state after the last token of
                each row, a stop token not included. Defaults to `False`.

        Returns:
            What went in, continued: a string, a list, or a dict of
            `"token_ids"` and `"padding_mask"`. For messages the reply alone,
            without the token that stopped it. With `return_state=True`
            `(outputs, state)`.

        Raises:
            ValueError: for empty prompts, both lengths, a temperature that
                is not above 0, and states together with samplers that choose
                among whole texts, or with a `tf.data.Dataset`.

        Example:
        ```python
        model.generate("ROMEO:", max_new_tokens=20, temperature=0.8, seed=1)
        ```
        """
        sampler = self._call_sampler(sampler, temperature, seed)
        stop_token_ids = self._stop_token_ids(stop_token_ids)
        _check_lengths(max_length, max_new_tokens)
        is_chat = turns.is_conversation(inputs) or turns.are_conversations(
            inputs
        )
        if is_chat and self.preprocessor is not None:
            inputs = self.preprocessor.render_prompts(inputs)
        if (state is not None or return_state) and is_search(sampler):
            raise ValueError(
                "A state goes with a sampler that takes one token after the "
                f"other. Received: {type(sampler).__name__}. Take 'greedy', "
                "'top_k', 'top_p' or 'random'."
            )
        batches, is_scalar = self._normalize_generate_inputs(inputs)
        if (state is not None or return_state) and not isinstance(
            batches, list
        ):
            raise ValueError(
                "A state belongs to one batch. Received: a tf.data.Dataset "
                "with `state` or `return_state`. Call `generate` for each "
                "batch."
            )
        outputs = []
        for batch in batches:
            prompts = self._prompts(batch, max_length, max_new_tokens, state)
            generated, last_state = self._generate_tokens(
                prompts, stop_token_ids, sampler, state
            )
            output = prompts.outputs(
                generated,
                stop_token_ids,
                strip_prompt=strip_prompt or is_chat,
                keep_stop=not is_chat,
            )
            if self.preprocessor is not None:
                output = self.preprocessor.generate_postprocess(output)
            outputs.append(output)
        outputs = self._normalize_generate_outputs(outputs, is_scalar)
        return (outputs, last_state) if return_state else outputs

    def make_generate_function(self):
        """Returns the function of token ids that KerasHub knows."""

        def generate_function(inputs, stop_token_ids=None):
            prompts = self._prompts(inputs, None, None, None)
            stop_token_ids = self._stop_token_ids(stop_token_ids)
            generated, _ = self._generate_tokens(
                prompts, stop_token_ids, self.sampler, None
            )
            return prompts.outputs(generated, stop_token_ids)

        return generate_function

    def _call_sampler(self, sampler, temperature, seed):
        """The sampler of one call."""
        sampler = (
            self.sampler if sampler is None else keras_hub.samplers.get(sampler)
        )
        _check_sampler(sampler)
        if temperature is None and seed is None:
            return sampler
        config = sampler.get_config()
        if temperature is not None:
            if temperature <= 0:
                raise ValueError(
                    "`temperature` must be above 0. Received: "
                    f"{temperature}. For the likeliest token take "
                    "sampler='greedy'."
                )
            config["temperature"] = temperature
        if "seed" in config:  # of a sampler that draws
            config["seed"] = seed
        return type(sampler).from_config(config)

    def _stop_token_ids(self, stop_token_ids):
        if stop_token_ids is None:
            return ()
        if not isinstance(stop_token_ids, str):
            return tuple(int(id) for id in stop_token_ids)
        if self.preprocessor is None:
            raise ValueError(
                "A `preprocessor` must be there for stop_token_ids='auto'. "
                "Received: preprocessor=None. Give a tuple of ids, or None "
                "to stop at the length alone."
            )
        return self.preprocessor.stop_token_ids

    def _prompts(self, inputs, max_length, max_new_tokens, state):
        preprocessor = self.preprocessor
        skip = 0
        if preprocessor is not None and not isinstance(inputs, dict):
            if max_new_tokens is not None:
                max_length = preprocessor.longest_prompt(inputs)
            inputs = preprocessor.generate_preprocess(
                inputs, sequence_length=max_length
            )
            skip = int(state is not None and preprocessor.add_start_token)
        return Prompts(
            inputs, self.backbone.vocabulary_size, max_new_tokens, skip
        )

    def _generate_tokens(self, prompts, stop_token_ids, sampler, state):
        """New tokens `(batch, steps)` or `None`, and the state after them."""
        if is_search(sampler):
            return self._search(prompts, stop_token_ids, sampler), None
        logits, state = self._read_prompts(prompts, state)
        pieces = []
        for tokens, state in self._decode(
            logits, state, prompts.steps, stop_token_ids, sampler, DECODE_CHUNK
        ):
            pieces.append(tokens)
        return (np.concatenate(pieces, axis=1) if pieces else None), state

    def _read_prompts(self, prompts, state):
        arrays = prompts.arrays()
        batch, time = arrays["token_ids"].shape
        if state is None:
            length = bucket(time + prompts.num_steps)
            state = self.init_state(batch, max_length=length)
        else:
            state = repeat_rows(state, batch)
        return self.prefill(arrays, state)

    def _decode(self, logits, state, steps, stop_token_ids, sampler, chunk):
        """Yields new tokens `(batch, <= chunk)` and the state after them."""
        loop = self._sampler_function(
            sampler, "decode", self._decode_chunk, xla=True
        )
        stops = ops.convert_to_tensor(
            pad_stop_token_ids(stop_token_ids).astype("int32")
        )
        steps = np.asarray(steps, "int32")
        while steps.max(initial=0) > 0:
            count = min(chunk, int(steps.max()))
            tokens, logits, state, steps = loop(
                {
                    "count": ops.convert_to_tensor(np.array(count, "int32")),
                    "stops": stops,
                    "steps": ops.convert_to_tensor(steps),
                },
                logits,
                state,
            )
            steps = to_numpy(steps)
            yield to_numpy(tokens)[:, :count], state

    def _decode_chunk(self, sampler, inputs, logits, state):
        """Takes up to `count` tokens; rows stand still once they have ended.

        Args:
            sampler: chooses tokens.
            inputs: dict of `"count"`, `"stops"`, and `"steps"` `(batch,)`,
                the tokens that each row still takes.
            logits, state: of the next token, and before it.
        """
        steps = inputs["steps"]
        tokens = ops.zeros((steps.shape[0], DECODE_CHUNK), dtype="int32")
        advance = self._step_function("advance", self._advance)

        def going_on(index, tokens, steps, logits, state):
            return ops.logical_and(index < inputs["count"], ops.any(steps > 0))

        def body(index, tokens, steps, logits, state):
            token = sampler.get_next_token(
                sampler.compute_probabilities(logits)
            )
            token, steps, logits, state = advance(
                ops.cast(token, "int32"), inputs["stops"], steps, state
            )
            tokens = ops.slice_update(tokens, [0, index], token[:, None])
            return index + 1, tokens, steps, logits, state

        _, tokens, steps, logits, state = sampler.run_loop(
            going_on,
            body,
            loop_vars=(
                ops.convert_to_tensor(0, dtype="int32"),
                tokens,
                steps,
                logits,
                state,
            ),
            maximum_iterations=DECODE_CHUNK,
            model=self,
        )
        return tokens, logits, state, steps

    def _advance(self, token, stops, steps, state):
        """Reads a token in the rows that go on.

        Returns:
            `(token, steps, logits, state)`: 0 as the token of rows that have
            ended, and what each row still takes.
        """
        active = steps > 0
        token = ops.where(active, token, 0)
        # A stop token ends a row before it is read.
        stopped = ops.any(token[:, None] == stops, axis=1)
        active = ops.logical_and(active, ops.logical_not(stopped))
        hidden, state = self.backbone.call_with_state(
            token[:, None], state, active[:, None]
        )
        steps = ops.where(active, steps - 1, 0)
        return token, steps, self._logits(hidden[:, 0]), state

    def _sampler_function(self, sampler, name, function, xla=False):
        """A compiled `function(sampler, ...)`, one for each kind of sampler.

        The numbers of `SETTINGS` and the seed go in as data.
        """
        self._forget_stale_functions()
        key = (name, *kind_of_sampler(sampler))
        if key not in self._state_functions:
            own = copy_sampler(sampler)

            def run(settings, *args):
                return function(with_settings(own, settings), *args)

            self._state_functions[key] = (
                own,
                self._compile_function(run, own.variables, xla),
                threading.Lock(),
            )
        own, compiled, lock = self._state_functions[key]

        def run_with(*args):
            # Between the assignments the random state is this call's.
            with lock:
                for inside, outside in zip(
                    own.variables, sampler.variables, strict=True
                ):
                    inside.assign(outside)
                outputs = compiled(settings_of(sampler), *args)
                for inside, outside in zip(
                    own.variables, sampler.variables, strict=True
                ):
                    outside.assign(inside)
            return outputs

        return run_with

    def _search(self, prompts, stop_token_ids, sampler):
        """Samplers that choose among whole texts, in one loop on the device."""
        if not prompts.num_steps:
            return None
        keep_history = isinstance(sampler, ContrastiveSampler)
        tensors = {
            name: ops.convert_to_tensor(array)
            for name, array in prompts.loop_inputs(keep_history).items()
        }

        def search(sampler, inputs):
            return self.generate_step(inputs, stop_token_ids or None, sampler)

        loop = self._sampler_function(
            sampler, ("search", stop_token_ids), search
        )
        tokens = to_numpy(loop(tensors))
        return tokens[:, tokens.shape[1] - prompts.num_steps :]

    def generate_step(self, inputs, stop_token_ids, sampler):
        """Prefill and search on the arrays of `Prompts.loop_inputs`.

        Args:
            inputs: dict from `Prompts.loop_inputs`.
            stop_token_ids: tuple of ids, or `None`.
            sampler: a beam or contrastive sampler.

        Returns:
            `(batch, width)` ids; the last `max(num_steps)` are new.
        """
        buffer = inputs["buffer"]
        batch, width = ops.shape(buffer)
        limit = inputs["num_steps"]
        start = width - ops.max(limit)
        columns = ops.arange(width, dtype="int32")[None, :]
        last = inputs["last_token_ids"][:, None]
        tokens = ops.where(columns == start - 1, last, buffer)

        prefill_ids = inputs["prefill_token_ids"]
        prefill = prefill_ids.shape[1]
        state = self.backbone.init_state(batch, max_length=prefill + width)
        history = None
        if prefill:
            mask = inputs["prefill_padding_mask"]
            hidden, state = self.backbone.call_with_state(
                prefill_ids, state, mask
            )
        if isinstance(sampler, ContrastiveSampler):
            last_hidden, _ = self.backbone.call_with_state(last, state)
            if prefill:
                last_hidden = ops.concatenate([hidden, last_hidden], axis=1)
            history = _align_history(
                last_hidden, inputs["prefill_padding_mask"], start, columns
            )

        # Rows that have ended go on with pads of probability 1: that changes
        # neither their beams' scores nor anything in other rows.
        cache = {
            "state": state,
            "end": start + limit,
            "done": ops.zeros_like(limit, dtype="bool"),
        }

        def next(prompt, cache, index):
            index = ops.cast(index, "int32")
            token = ops.take(prompt, index - 1, axis=1)
            hidden, state = self.backbone.call_with_state(
                token[:, None], cache["state"]
            )
            done = ops.logical_or(cache["done"], index >= cache["end"])
            if stop_token_ids is not None:
                stopped = ops.zeros_like(done)
                for id in stop_token_ids:
                    stopped = ops.logical_or(stopped, token == id)
                # The prompt's own last token ends nothing.
                stopped = ops.logical_and(stopped, index > start)
                done = ops.logical_or(done, stopped)
            logits = self._logits(hidden[:, 0])
            pad_only = ops.where(
                ops.arange(logits.shape[-1], dtype="int32") == 0,
                0.0,
                IMPOSSIBLE,
            )
            logits = ops.where(done[:, None], pad_only[None], logits)
            cache = {"state": state, "end": cache["end"], "done": done}
            return logits, hidden[:, 0], cache

        return sampler(
            next=next,
            prompt=tokens,
            cache=cache,
            index=start,
            mask=ops.broadcast_to(columns < start, (batch, width)),
            stop_token_ids=stop_token_ids,
            hidden_states=history,
            model=self,
        )

    def generate_stream(
        self,
        inputs,
        max_length=None,
        stop_token_ids="auto",
        max_new_tokens=None,
        sampler=None,
        temperature=None,
        seed=None,
        state=None,
        return_state=False,
    ):
        """Generates text for one prompt, and yields it as it is made.

        Args:
            inputs: str, or messages that end with the user's. The prompt.
            max_length, stop_token_ids, max_new_tokens, sampler, temperature,
                seed, state: see `generate`.
            return_state: bool. Also yield the state after all tokens so far,
                with an empty text where no character is complete. Defaults
                to `False`.

        Yields:
            str: pieces of text, of some tokens each; a character whose bytes
            are not all there yet waits for them. With `return_state=True`
            `(text, state)`.

        Raises:
            ValueError: without a preprocessor, for a prompt that is not a
                string, and for samplers that choose among whole texts.

        Example:
        ```python
        for piece in model.generate_stream("ROMEO:", max_new_tokens=64):
            print(piece, end="", flush=True)
        ```
        """
        if self.preprocessor is not None and turns.is_conversation(inputs):
            inputs = self.preprocessor.render_prompts(inputs)
        if self.preprocessor is None or not isinstance(inputs, str):
            raise ValueError(
                "`generate_stream` takes one prompt as a string, with a "
                f"preprocessor. Received: {type(inputs).__name__}, "
                f"preprocessor={self.preprocessor}. Use `generate`."
            )
        sampler = self._call_sampler(sampler, temperature, seed)
        if is_search(sampler):
            raise ValueError(
                "Streaming needs a sampler that takes one token after the "
                f"other. Received: {type(sampler).__name__}. Take 'greedy', "
                "'top_k', 'top_p' or 'random'."
            )
        _check_lengths(max_length, max_new_tokens)
        prompts = self._prompts([inputs], max_length, max_new_tokens, state)
        stop_token_ids = self._stop_token_ids(stop_token_ids)
        logits, state = self._read_prompts(prompts, state)
        pieces = self._decode(
            logits, state, prompts.steps, stop_token_ids, sampler, STREAM_CHUNK
        )
        pieces = (
            (prompts.cut(tokens[0], stop_token_ids, keep_stop=False), state)
            for tokens, state in pieces
        )
        texts = stream_text(
            self.preprocessor.tokenizer, prompts.rows[0], pieces
        )
        if return_state:
            return texts
        return (text for text, _ in texts if text)

    def chat(self, **options):
        """Starts a conversation that keeps its state. See `ChatSession`."""
        return ChatSession(self, **options)

    # === Export ===

    def export_steps(
        self,
        folder,
        format="tf_saved_model",
        batch_size=1,
        prompt_length=64,
        max_length=None,
    ):
        """Writes a prefill and a decode step that run without this package.

        Both take and give a dict of arrays. `"token_ids"`
        `(batch_size, prompt_length)` or `(batch_size, 1)`; for the prefill
        `"padding_mask"` of the same shape, bool, with the pads last; and the
        state, every array of which is zeros at first: what one call gives,
        the next one takes.
        `"logits"` `(batch_size, vocabulary_size)` are of the token after each
        row's last real one. A long prompt is read in several calls. ONNX
        knows outputs by their order: sorted by name.
        `benchmarks/exported_generation.py` generates from the files.

        Args:
            folder: str or path. Gets `prefill` and `decode_step`, with the
                ending `.onnx` or `.pt2` in these formats.
            format: `"tf_saved_model"` (on JAX and TensorFlow), `"onnx"` or
                `"torch"` (on PyTorch); see `keras.Model.export`. Defaults to
                `"tf_saved_model"`.
            batch_size: int. Rows of every call. Defaults to `1`.
            prompt_length: int. Columns of the prefill. Defaults to `64`.
            max_length: int. Tokens that a row may have, where there is global
                attention. Defaults to `None`.

        Raises:
            ValueError: for a format that Keras cannot write on this backend,
                or not in the model's dtype.

        Example:
        ```python
        model.export_steps("exported", batch_size=1, prompt_length=16)
        ```
        """
        backend = keras.config.backend()
        ending, backends = EXPORT_ENDINGS.get(format, ("", ()))
        if backend not in backends:
            known = ", ".join(
                f"{name!r} on {' or '.join(backends)}"
                for name, (_, backends) in EXPORT_ENDINGS.items()
            )
            raise ValueError(
                f"`format` must be {known}. Received: format={format!r} on "
                f"{backend}. Set KERAS_BACKEND to the other backend: weights "
                "saved by one are loaded by all."
            )
        if format == "onnx" and self.backbone.compute_dtype != "float32":
            raise ValueError(
                "Keras writes ONNX in float32 alone. Received: a model in "
                f"{self.backbone.compute_dtype}. Load it with dtype='float32'."
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, time in (("prefill", prompt_length), ("decode_step", 1)):
            step = ExportedStep(self, batch_size, time, max_length)
            signature = step.signature()
            step(
                {
                    key: ops.zeros(spec.shape, spec.dtype)
                    for key, spec in signature.items()
                }
            )
            step.export(
                str(folder / f"{name}{ending}"),
                format=format,
                verbose=False,
                input_signature=[signature],
            )

    # === Scores ===

    def score(self, inputs):
        """Log-probability of every token, given those before it in its row.

        Long rows are read in pieces: memory does not grow with them.

        Args:
            inputs: str or list of str; without a preprocessor a dict of
                `"token_ids"` and optionally `"padding_mask"`,
                `(batch, time)`.

        Returns:
            For text a float32 array `(tokens,)`, or a list of them: the
            natural logarithm for each of the tokenizer's tokens (the first
            one's is 0 if there is no start token). For ids an array
            `(batch, time)`, 0 at pads and at each row's first token.

        Raises:
            ValueError: for rows without a token.

        Example:
        ```python
        model.score("To be, or not to be").sum()
        ```
        """
        if self.preprocessor is None or isinstance(inputs, dict):
            prompts = Prompts(inputs, self.backbone.vocabulary_size)
            scores = self._score_rows(prompts.arrays())
            return prompts.scatter(scores)
        texts = [inputs] if isinstance(inputs, str) else inputs
        prompts = self._prompts(texts, None, 0, None)
        scores = self._score_rows(prompts.arrays())
        first = int(self.preprocessor.add_start_token)
        scores = [row[first:n] for row, n in zip(scores, prompts.lengths)]
        return scores[0] if isinstance(inputs, str) else scores

    def _score_rows(self, arrays):
        ids = arrays["token_ids"]
        batch, time = ids.shape
        state = self.init_state(batch, max_length=bucket(time))
        scores = [np.zeros((batch, 1), "float32")]
        arrays["targets"] = np.pad(ids[:, 1:], ((0, 0), (0, 1)))
        for piece in prompt_pieces(arrays, SCORE_CHUNK):
            score, state = self._run("score", self._score_piece, piece, state)
            scores.append(to_numpy(score))
        scores = np.concatenate(scores, axis=1)[:, :time]
        return np.where(arrays["padding_mask"], scores, 0.0)

    def _score_piece(self, inputs, state):
        targets = inputs["targets"][..., None]
        inputs = {k: v for k, v in inputs.items() if k != "targets"}
        hidden, state = self.backbone.call_with_state(state=state, **inputs)
        logits = self._logits(hidden)
        chosen = ops.take_along_axis(logits, targets, axis=-1)[..., 0]
        return chosen - ops.logsumexp(logits, axis=-1), state


class _Reduction(keras.losses.Loss):
    """What a Keras loss does with the losses of single tokens."""

    def call(self, y_true, y_pred):
        return y_pred


def _check_lengths(max_length, max_new_tokens):
    if max_length is not None and max_new_tokens is not None:
        raise ValueError(
            "`max_length` counts the prompt too, `max_new_tokens` does not: "
            f"one of them decides. Received: max_length={max_length}, "
            f"max_new_tokens={max_new_tokens}. Leave one out."
        )
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ValueError(
            "`max_new_tokens` must be at least 1. Received: "
            f"{max_new_tokens}. To read a prompt only, use `prefill`."
        )


def _check_sampler(sampler):
    if isinstance(sampler, SpeculativeSampler):
        raise ValueError(
            "A sampler must not take tokens back: a recurrent state "
            f"cannot. Received: {type(sampler).__name__}. Take 'greedy', "
            "'top_k', 'top_p', 'random', 'beam' or 'contrastive'."
        )
    if getattr(sampler, "return_all_beams", False):
        raise ValueError(
            "`generate` returns one text for each prompt. Received: a "
            "BeamSampler with return_all_beams=True. Set it to False."
        )


def _last_real(x, padding_mask):
    """The last real column of `x` `(batch, time, width)`."""
    if padding_mask is None:
        return x[:, -1]
    columns = ops.arange(ops.shape(x)[1], dtype="int32")[None, :]
    index = ops.max(
        ops.where(ops.cast(padding_mask, "bool"), columns, 0),
        axis=1,
        keepdims=True,
    )
    return ops.take_along_axis(x, index[:, :, None], axis=1)[:, 0]


def _align_history(hidden, prefill_mask, start, columns):
    """Hidden states of the prompt, ending at column `start - 1`.

    The contrastive sampler compares new tokens with every column before them.
    Columns without a token repeat the prompt's first one, which changes no
    maximum.
    """
    batch, width = ops.shape(columns)
    prompt = hidden.shape[1]
    num_real = ops.sum(ops.cast(prefill_mask, "int32"), axis=1) + 1
    first = (prompt - num_real)[:, None]
    index = ops.maximum(columns - start + prompt, first)
    index = ops.minimum(index, prompt - 1)[:, :, None]
    history = ops.take_along_axis(hidden, index, axis=1)
    return ops.where((columns < start)[..., None], history, 0.0)
