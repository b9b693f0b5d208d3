import keras
import keras_hub
import numpy as np
from keras import ops
from keras_hub.models import CausalLM
from keras_hub.samplers import BeamSampler
from keras_hub.samplers import ContrastiveSampler
from keras_hub.samplers import SpeculativeSampler

from keras_griffin.models.griffin_backbone import GriffinBackbone
from keras_griffin.models.griffin_backbone import check_inputs
from keras_griffin.models.griffin_backbone import check_token_ids
from keras_griffin.models.griffin_backbone import fill_inputs
from keras_griffin.models.griffin_causal_lm_preprocessor import (
    GriffinCausalLMPreprocessor,
)
from keras_griffin.models.preset_loading import find_preset
from keras_griffin.models.prompts import Prompts
from keras_griffin.models.prompts import to_numpy

# Logit of tokens that a row that has ended can no longer take.
IMPOSSIBLE = -1e30


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

    def __init__(self, backbone, preprocessor=None, **kwargs):
        # === Layers ===
        self.backbone = backbone
        self.preprocessor = preprocessor

        # === Functional Model ===
        inputs = backbone.input
        super().__init__(
            inputs=inputs, outputs=self._logits(backbone(inputs)), **kwargs
        )
        self._state_functions = {}

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
                - a handle: `"hf://..."` or `"kaggle://..."`.
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
                unfitting files.

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
                preset, load_weights, dtype=dtype
            )
        if "preprocessor" not in kwargs and source.kind == "huggingface":
            kwargs["preprocessor"] = GriffinCausalLMPreprocessor.from_preset(
                source.path
            )
        return cls(**kwargs)

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
        return super().call(fill_inputs(inputs), training=training, mask=mask)

    # KerasHub turns all data into a pipeline for the sake of preprocessing,
    # and arrays are not shuffled then. Token ids need none of it.

    def fit(self, x=None, y=None, **kwargs):
        if self.preprocessor is not None:
            return super().fit(x, y, **kwargs)
        self._check_arrays(x)
        return keras.Model.fit(self, x, y, **kwargs)

    def evaluate(self, x=None, y=None, **kwargs):
        if self.preprocessor is not None:
            return super().evaluate(x, y, **kwargs)
        self._check_arrays(x)
        return keras.Model.evaluate(self, x, y, **kwargs)

    def predict(self, x=None, **kwargs):
        if self.preprocessor is not None:
            return super().predict(x, **kwargs)
        self._check_arrays(x)
        return keras.Model.predict(self, x, **kwargs)

    def _check_arrays(self, x):
        if isinstance(x, dict):
            check_inputs(x, self.backbone.vocabulary_size)

    def get_compile_config(self):
        config = super().get_compile_config()
        return config and {
            **config,
            "sampler": keras_hub.samplers.serialize(self.sampler),
        }

    def compile_from_config(self, config):
        config = keras.saving.deserialize_keras_object(config)
        self.compile(**config)
        self.optimizer.build(self.trainable_variables)

    def compile(self, *args, **kwargs):
        """Configures training and sampling. See `keras_hub.models.CausalLM`.

        Raises:
            ValueError: for samplers that a recurrent state cannot serve.
        """
        super().compile(*args, **kwargs)
        self._state_functions = {}
        if isinstance(self.sampler, SpeculativeSampler):
            raise ValueError(
                "A sampler must not take tokens back: a recurrent state "
                f"cannot. Received: {type(self.sampler).__name__}. Compile "
                "with 'greedy', 'top_k', 'top_p', 'random', 'beam' or "
                "'contrastive'."
            )
        if getattr(self.sampler, "return_all_beams", False):
            raise ValueError(
                "`generate` returns one text for each prompt. Received: a "
                "BeamSampler with return_all_beams=True. Set it to False."
            )

    def _post_quantize(self, mode, **kwargs):
        super()._post_quantize(mode, **kwargs)
        self._state_functions = {}

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
            ids = to_numpy(inputs["token_ids"])
            check_token_ids(ids, self.backbone.vocabulary_size)
            inputs = {"padding_mask": None, **inputs, "token_ids": ids}
        check_inputs(inputs, self.backbone.vocabulary_size)
        if state is None:
            state = self.init_state(inputs["token_ids"].shape[0])
        arrays = {
            name: ops.convert_to_tensor(inputs[name])
            for name in ("token_ids", "padding_mask", "segment_ids")
            if inputs[name] is not None
        }
        return self._run("prefill", self._prefill, arrays, state)

    def _prefill(self, inputs, state):
        hidden, state = self.backbone.call_with_state(state=state, **inputs)
        hidden = _last_real(hidden, inputs.get("padding_mask"))
        return self._logits(hidden), state

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
        return self._run("decode", self._decode_step, token_ids, state)

    def _decode_step(self, token_ids, state):
        hidden, state = self.backbone.call_with_state(token_ids[:, None], state)
        return self._logits(hidden[:, 0]), state

    def _run(self, name, function, *args):
        """Runs a function of the model's weights, compiled once a shape."""
        if name not in self._state_functions:
            self._state_functions[name] = self._compile_function(function)
        return self._state_functions[name](*args)

    def _compile_function(self, function):
        backend = keras.config.backend()
        if backend == "torch":
            import torch

            return torch.no_grad()(function)
        if self.run_eagerly:
            return function
        if backend == "tensorflow":
            import tensorflow as tf

            return tf.function(function, jit_compile=self.jit_compile)

        import jax

        @jax.jit
        def stateless(weights, *args):
            mapping = zip(self.variables, weights, strict=True)
            with keras.StatelessScope(state_mapping=mapping):
                return function(*args)

        def compiled(*args):
            return stateless([v.value for v in self.variables], *args)

        return compiled

    # === Generation ===

    def generate(
        self,
        inputs,
        max_length=None,
        stop_token_ids="auto",
        strip_prompt=False,
    ):
        if self.preprocessor is None and stop_token_ids != "auto":
            # KerasHub's `strip_prompt` expects prompts at the left.
            inputs = Prompts(inputs, self.backbone.vocabulary_size).outputs(
                None, None
            )
        return super().generate(
            inputs, max_length, stop_token_ids, strip_prompt
        )

    def make_generate_function(self):
        if self.generate_function is not None:
            return self.generate_function
        loop = super().make_generate_function()

        def generate_function(inputs, stop_token_ids=None):
            prompts = Prompts(inputs, self.backbone.vocabulary_size)
            if stop_token_ids is not None:
                stop_token_ids = tuple(int(id) for id in stop_token_ids)
            generated = None
            if prompts.num_steps:
                keep_history = isinstance(self.sampler, ContrastiveSampler)
                arrays = prompts.loop_inputs(keep_history)
                tensors = {
                    name: ops.convert_to_tensor(array)
                    for name, array in arrays.items()
                }
                tokens = to_numpy(loop(tensors, stop_token_ids=stop_token_ids))
                generated = tokens[:, tokens.shape[1] - prompts.num_steps :]
            return prompts.outputs(generated, stop_token_ids)

        self.generate_function = generate_function
        return generate_function

    def generate_step(self, inputs, stop_token_ids=None):
        """Prefill and decoding loop on the arrays of `Prompts`.

        Args:
            inputs: dict from `Prompts.loop_inputs`.
            stop_token_ids: tuple of ids, or `None`.

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
        if isinstance(self.sampler, ContrastiveSampler):
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

        return self.sampler(
            next=next,
            prompt=tokens,
            cache=cache,
            index=start,
            mask=ops.broadcast_to(columns < start, (batch, width)),
            stop_token_ids=stop_token_ids,
            hidden_states=history,
            model=self,
        )

    def generate_stream(self, inputs, max_length=None, stop_token_ids="auto"):
        """Generates text for one prompt, and yields it as it is made.

        Args:
            inputs: str. The prompt.
            max_length: int. Tokens of prompt and text together. Defaults to
                the preprocessor's `sequence_length`.
            stop_token_ids: `"auto"` (the tokenizer's end token), a sequence
                of ids, or `None`. Defaults to `"auto"`.

        Yields:
            str: pieces of text; a character whose bytes are not all there yet
            waits for them.

        Raises:
            ValueError: without a preprocessor, for a prompt that is not a
                string, and for samplers that choose among whole texts.

        Example:
        ```python
        for piece in model.generate_stream("ROMEO:", max_length=64):
            print(piece, end="", flush=True)
        ```
        """
        if self.preprocessor is None or not isinstance(inputs, str):
            raise ValueError(
                "`generate_stream` takes one prompt as a string, with a "
                f"preprocessor. Received: {type(inputs).__name__}, "
                f"preprocessor={self.preprocessor}. Use `generate`."
            )
        if isinstance(self.sampler, (BeamSampler, ContrastiveSampler)):
            raise ValueError(
                "Streaming needs a sampler that takes one token after the "
                f"other. Received: {type(self.sampler).__name__}. Compile with "
                "'greedy', 'top_k', 'top_p' or 'random'."
            )
        tokenizer = self.preprocessor.tokenizer
        if stop_token_ids == "auto":
            stop_token_ids = [tokenizer.end_token_id]
        prompt = self.preprocessor.generate_preprocess(
            [inputs], sequence_length=max_length
        )
        mask = to_numpy(prompt["padding_mask"]).astype(bool)
        ids = to_numpy(prompt["token_ids"])[mask][None]
        num_steps = mask.size - ids.size
        state = self.init_state(1, max_length=mask.size)
        logits, state = self.prefill({"token_ids": ids}, state)
        return self._stream(
            logits, state, num_steps, set(stop_token_ids or ()), tokenizer
        )

    def _stream(self, logits, state, num_steps, stop_token_ids, tokenizer):
        ids, shown = [], ""
        for _ in range(num_steps):
            probabilities = self.sampler.compute_probabilities(logits)
            token = self.sampler.get_next_token(probabilities)
            ids.append(int(to_numpy(token)[0]))
            if ids[-1] in stop_token_ids:
                ids.pop()
                break
            text = tokenizer.detokenize(ids)
            # An unfinished character decodes to U+FFFD at the end.
            if not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text
            logits, state = self.decode_step(np.array(ids[-1:], "int32"), state)
        text = tokenizer.detokenize(ids) if ids else ""
        if text != shown:
            yield text[len(shown) :]


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
