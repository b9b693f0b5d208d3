import contextvars

import keras
import keras_hub
from keras import ops
from keras_hub.models import CausalLM

from keras_griffin import keras_compat
from keras_griffin.checkpoints import exporting
from keras_griffin.checkpoints.preset_index import preprocessor_arguments
from keras_griffin.checkpoints.preset_loading import find_preset
from keras_griffin.distribution.griffin_parallel import GriffinParallel
from keras_griffin.distribution.layout_map import check_layout_map
from keras_griffin.generation import chat_template
from keras_griffin.generation import decoding
from keras_griffin.generation import exported_steps
from keras_griffin.generation import prompts
from keras_griffin.generation import sampling
from keras_griffin.generation import scoring
from keras_griffin.generation import search
from keras_griffin.generation.chat_session import ChatSession
from keras_griffin.generation.compiled_functions import CompiledFunctions
from keras_griffin.generation.state_files import load_state
from keras_griffin.generation.state_files import save_state
from keras_griffin.layers.input_checks import check_inputs
from keras_griffin.layers.input_checks import check_names
from keras_griffin.models.griffin_backbone import GriffinBackbone
from keras_griffin.models.griffin_causal_lm_preprocessor import (
    GriffinCausalLMPreprocessor,
)
from keras_griffin.training import chunked_cross_entropy
from keras_griffin.training import quantization

# A subclass that has one of these of its own sees logits.
_SEE_LOGITS = (
    "call",
    "compute_loss",
    "compute_metrics",
    "test_step",
    "train_step",
)
# The model whose step of training or evaluation is running: `call` returns
# its hidden states, and `compute_loss` expects them.
_in_step = contextvars.ContextVar("in_step", default=None)


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
        import transformers

        backbone = keras_griffin.GriffinBackbone(
            vocabulary_size=256,
            num_layers=3,
            hidden_dim=64,
            intermediate_dim=192,
            num_query_heads=4,
            num_gate_blocks=4,
            # What transformers' RecurrentGemma always has:
            scale_embeddings=True,
            final_logit_soft_cap=30.0,
        )
        model = keras_griffin.GriffinCausalLM(backbone)
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

    # PyTorch's `parameters()`, and what DistributedDataParallel looks at.
    def named_parameters(self, *args, **kwargs):
        # PyTorch has forgotten what came before `__init__` of `keras.Model`,
        # the backbone, and Keras does not tell it of adapters.
        known = {id(value) for _, value in super().named_parameters()}
        if known != {id(variable.value) for variable in self.variables}:
            keras_compat.track_parameters(self)
        return super().named_parameters(*args, **kwargs)

    def _logits(self, hidden):
        logits = self.backbone.token_embedding(hidden, reverse=True)
        logits = ops.cast(logits, "float32")
        cap = self.backbone.final_logit_soft_cap
        return logits if cap is None else cap * ops.tanh(logits / cap)

    def __call__(self, inputs, *args, **kwargs):
        check_inputs(inputs, self.backbone.vocabulary_size)
        return super().__call__(inputs, *args, **kwargs)

    # Keras looks for `training` by name: without it nothing would drop out.
    def call(self, inputs, training=None, mask=None):
        # On JAX, `fit` comes here without passing `__call__`.
        check_names(inputs)
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
        return self._run_step(super().train_step, *args, **kwargs)

    def test_step(self, *args, **kwargs):
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
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """The loss of a batch, as `keras.Model.compute_loss`.

        Within `fit` and `evaluate`, with the cross-entropy of token ids that
        `loss="auto"` stands for and no metrics but the accuracy, `y_pred` are
        hidden states: logits are made for some tokens at a time, in the
        gradient once more. Where other metrics, or a subclass with a step,
        loss or metrics of its own, look at logits, there are all of them.
        """
        if _in_step.get() is not self:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
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
        if self._has_metrics:
            # Two classes, of which the first is the right one.
            likeliest = ops.stack([hits, 1 - hits], axis=-1)
            super().compute_metrics(
                None, ops.zeros_like(y), likeliest, sample_weight
            )
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
            if chat_template.are_conversations(validation):
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
        if keras.config.backend() == "tensorflow":
            self._compile_for_strategy()
        distribution = keras.distribution.distribution()
        if isinstance(distribution, GriffinParallel):
            check_layout_map(distribution.layout_map, self)
        self._functions = CompiledFunctions(self)
        sampling.check_sampler(self.sampler, self.backbone.vocabulary_size)
        metrics = [
            kwargs.get("metrics") or [],
            kwargs.get("weighted_metrics", "auto") or [],
        ]
        metrics = keras.tree.flatten(metrics)
        self._has_metrics = bool(metrics)
        self._loss_in_pieces = all(
            getattr(type(self), name) is getattr(GriffinCausalLM, name)
            for name in _SEE_LOGITS
        ) and chunked_cross_entropy.needs_no_logits(
            self.loss, kwargs.get("loss_weights"), metrics
        )

    def _compile_for_strategy(self):
        from keras_griffin.distribution import tensorflow_strategies

        self._replica_call = tensorflow_strategies.function_of_replica(
            self, self._call
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
            inputs: dict of `"token_ids"` and optionally `"padding_mask"`,
                both `(batch, time)`; numbers in the mask are documents, as of
                a call of `GriffinBackbone`, and bools are not.
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
        return decoding.prefill(self, inputs, state)

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
        state = model.load_state("prompt.npz")
        model.generate(["To", "Not"], state=state, max_new_tokens=20)
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
        return decoding.decode_step(self, token_ids, state)

    # Weights that came or went since the last step need another function.

    def make_train_function(self, *args, **kwargs):
        self._functions.forget_stale()
        return super().make_train_function(*args, **kwargs)

    def make_test_function(self, *args, **kwargs):
        self._functions.forget_stale()
        return super().make_test_function(*args, **kwargs)

    def make_predict_function(self, *args, **kwargs):
        self._functions.forget_stale()
        return super().make_predict_function(*args, **kwargs)

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
        return decoding.generate(
            self,
            inputs,
            max_length,
            stop_token_ids,
            strip_prompt,
            max_new_tokens,
            sampler,
            temperature,
            seed,
            state,
            return_state,
        )

    def make_generate_function(self):
        """Returns the function of token ids that KerasHub knows."""

        def generate_function(inputs, stop_token_ids=None):
            rows = prompts.make_prompts(self, inputs, None, None, None)
            stops = sampling.find_stop_token_ids(self, stop_token_ids)
            generated, _ = decoding.generate_tokens(
                self, rows, stops, self.sampler, None
            )
            return rows.outputs(generated, stops)

        return generate_function

    def generate_step(self, inputs, stop_token_ids, sampler):
        """Prefill and search on the arrays of `Prompts.loop_inputs`.

        Args:
            inputs: dict from `Prompts.loop_inputs`.
            stop_token_ids: tuple of ids, or `None`.
            sampler: a beam or contrastive sampler.

        Returns:
            `(batch, width)` ids; the last `max(num_steps)` are new.
        """
        return search.generate_step(self, inputs, stop_token_ids, sampler)

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
            max_length: see `generate`.
            stop_token_ids: see `generate`.
            max_new_tokens: see `generate`.
            sampler: see `generate`.
            temperature: see `generate`.
            seed: see `generate`.
            state: see `generate`.
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
        for piece in model.generate_stream("ROMEO:", max_new_tokens=20):
            print(piece, end="", flush=True)
        ```
        """
        return decoding.generate_stream(
            self,
            inputs,
            max_length,
            stop_token_ids,
            max_new_tokens,
            sampler,
            temperature,
            seed,
            state,
            return_state,
        )

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
        `benchmarks/speed/exported_generation.py` generates from the files.

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
        # On PyTorch; on JAX and TensorFlow leave `format` out.
        model.export_steps("exported", format="torch", prompt_length=16)
        ```
        """
        exported_steps.export_steps(
            self, folder, format, batch_size, prompt_length, max_length
        )

    # === Scores ===

    def score(self, inputs, state=None, return_greedy=False):
        """Log-probability of every token, given those before it in its row.

        Long rows are read in pieces: memory does not grow with them.

        Args:
            inputs: str or list of str; without a preprocessor a dict of
                `"token_ids"` and optionally `"padding_mask"`,
                `(batch, time)`.
            state: state to go on from (see `prefill`); rows are read after
                it, without a start token. What it expects of a row's first
                token it does not tell: begin with the last token that it has
                not read. One row serves all. Defaults to `None`.
            return_greedy: bool. Also return where the token is the likeliest,
                as bools of the same shape. Defaults to `False`.

        Returns:
            For text a float32 array `(tokens,)`, or a list of them: the
            natural logarithm for each of the tokenizer's tokens (the first
            one's is 0 if there is no start token). For ids an array
            `(batch, time)`, 0 at pads and at each row's first token. With
            `return_greedy=True` `(scores, is_greedy)`, which is true where
            the score is 0 for these reasons.

        Raises:
            ValueError: for rows without a token, and a state of other rows.

        Example:
        ```python
        model.score("To be, or not to be").sum()
        ```
        """
        return scoring.score(self, inputs, state, return_greedy)


class _Reduction(keras.losses.Loss):
    """What a Keras loss does with the losses of single tokens."""

    def call(self, y_true, y_pred):
        return y_pred
