from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import Any
from typing import Self

import keras
import ml_dtypes
from keras import ops
from keras_hub.models import Backbone

from keras_griffin.checkpoints import exporting
from keras_griffin.checkpoints import keras_files
from keras_griffin.checkpoints.preset_index import preset_summaries
from keras_griffin.checkpoints.preset_loading import build_backbone
from keras_griffin.checkpoints.preset_loading import find_preset
from keras_griffin.checkpoints.preset_loading import is_mapped
from keras_griffin.checkpoints.preset_loading import loading
from keras_griffin.checkpoints.weight_map import build_for_weights
from keras_griffin.distribution.layout_map import layout_map
from keras_griffin.generation import exported_model
from keras_griffin.layers.apply_dense import order_kernels
from keras_griffin.layers.compact_rows import CompactRows
from keras_griffin.layers.compact_rows import RestoreRows
from keras_griffin.layers.input_checks import check_inputs
from keras_griffin.layers.input_checks import check_names
from keras_griffin.layers.input_checks import with_mask
from keras_griffin.layers.recurrent_block import RecurrentBlock
from keras_griffin.layers.replica_dropout import ReplicaDropout
from keras_griffin.layers.residual_block import keep_rows
from keras_griffin.layers.reversible_embedding import ReversibleEmbedding
from keras_griffin.layers.rms_normalization import RMSNormalization
from keras_griffin.layers.token_layout import ROW_KEYS
from keras_griffin.layers.token_layout import TokenLayout
from keras_griffin.layers.token_layout import init_rows
from keras_griffin.layers.torch_module import TorchModule
from keras_griffin.models.griffin_blocks import complete_arguments
from keras_griffin.models.griffin_blocks import make_blocks
from keras_griffin.near_names import arguments_of
from keras_griffin.near_names import check_arguments
from keras_griffin.training import lora
from keras_griffin.training import quantization

# What Keras' models take beside their own.
_LAST_ARGUMENTS = ("dtype", "name", "trainable")


@keras.saving.register_keras_serializable(package="keras_griffin")
class GriffinBackbone(TorchModule, Backbone):
    """The Griffin family without a head: embedding, residual blocks, norm.

    Griffin (two recurrent blocks, one of local attention, repeated), Hawk
    (all recurrent), the MQA Transformer (all global attention) and
    RecurrentGemma differ only in these arguments. For text generation see
    `GriffinCausalLM`.

    Args:
        vocabulary_size: int. Number of token ids.
        num_layers: int. Number of residual blocks.
        hidden_dim: int. Width of the residual stream, `D` in the paper.
        intermediate_dim: int. Width of each branch of the MLP; the paper uses
            `3 * hidden_dim`.
        num_query_heads: int. Query heads of attention; one key/value head.
        head_dim: int. Width of a head. Defaults to
            `hidden_dim // num_query_heads`.
        recurrent_dim: int. Width of the recurrent branches, `D_RNN` in the
            paper (about 4/3 of `hidden_dim` there). Defaults to `hidden_dim`.
        block_types: sequence of `"recurrent"`, `"local_attention"` and
            `"global_attention"`. A pattern shorter than `num_layers` repeats
            from its start. Defaults to
            `("recurrent", "recurrent", "local_attention")`.
        attention_window_size: int. `W`: a token sees itself and the `W`
            tokens before it. Defaults to `1024` [tokens].
        num_gate_blocks: int. Blocks of the RG-LRU's gates: 16 in the paper,
            the number of heads in RecurrentGemma. Defaults to `16`.
        conv_kernel_size: int. Defaults to `4` [tokens].
        recurrence: `"real"` (RG-LRU) or `"complex"` (CG-LRU). Defaults to
            `"real"`.
        scale_embeddings: bool. Multiply embeddings by `sqrt(hidden_dim)`,
            rounded to bfloat16 as RecurrentGemma does. Defaults to `False`.
        final_logit_soft_cap: float. `GriffinCausalLM` bounds logits to it by
            a tanh. `None`: no bound. Defaults to `None`.
        rope_max_wavelength: float. See `LocalMQA`. Defaults to `10_000.0`.
        rope_fraction: float. See `LocalMQA`. Defaults to `0.5`.
        layer_norm_epsilon: float. Defaults to `1e-6`.
        dropout: float in [0, 1). On the embeddings and on the output of each
            branch. Defaults to `0.0`.
        implementation: which kernel computes the recurrence. See `RGLRU`.
            Defaults to `"auto"`.
        decay_initializer: `"paper"` or `"reference"`. See
            `DecayInitializer`. Defaults to `"reference"`.
        dtype: dtype or policy of the computations and weights. Defaults to
            `None`: Keras' own default.

    Call arguments:
        inputs: dict of `"token_ids"` `(batch, time)` int and `"padding_mask"`
            `(batch, time)`, 0 at pads and otherwise the number of the token's
            document: a new one starts wherever it differs from the previous
            real token's. A mask of ones is one document, and so is a dict
            without it.

    Returns:
        `(batch, time, hidden_dim)`. Outputs at pads have no meaning.

    Raises:
        ValueError: for sizes that do not divide, unknown block types, and
            NumPy inputs of a wrong shape or with ids out of the vocabulary.

    Example:
    ```python
    backbone = keras_griffin.GriffinBackbone(
        vocabulary_size=256,
        num_layers=3,
        hidden_dim=64,
        intermediate_dim=192,
        num_query_heads=4,
        attention_window_size=32,
    )
    hidden = backbone({
        "token_ids": np.ones((2, 100), "int32"),
        "padding_mask": np.ones((2, 100), "int32"),
    })  # (2, 100, 64)
    ```

    Source:
        arXiv:2402.19427, section 2; arXiv:2404.07839; recurrentgemma
        `jax/griffin.py::Griffin`.
    """

    # As KerasHub has them: what can be given to `from_preset` by name.
    presets = preset_summaries()

    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int,
        hidden_dim: int,
        intermediate_dim: int,
        num_query_heads: int,
        head_dim: int | None = None,
        recurrent_dim: int | None = None,
        block_types: Sequence[str] = (
            "recurrent",
            "recurrent",
            "local_attention",
        ),
        attention_window_size: int = 1024,
        num_gate_blocks: int = 16,
        conv_kernel_size: int = 4,
        recurrence: str = "real",
        scale_embeddings: bool = False,
        final_logit_soft_cap: float | None = None,
        rope_max_wavelength: float = 10_000.0,
        rope_fraction: float = 0.5,
        layer_norm_epsilon: float = 1e-6,
        dropout: float = 0.0,
        implementation: str = "auto",
        decay_initializer: Any = "reference",
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        given = locals()
        quantization.check_dtype(dtype)
        check_arguments("GriffinBackbone", kwargs, _KNOWN)
        arguments = complete_arguments({n: given[n] for n in ARGUMENTS})

        # === Layers ===
        self._compact_rows = CompactRows(dtype=dtype, name="compact_rows")
        self._restore_rows = RestoreRows(dtype=dtype, name="restore_rows")
        self.token_embedding = _embedding(vocabulary_size, hidden_dim, dtype)
        self.embedding_dropout = ReplicaDropout(
            dropout, dtype=dtype, name="embedding_dropout"
        )
        self.blocks = make_blocks(arguments, dtype)
        self.final_norm = RMSNormalization(
            epsilon=layer_norm_epsilon, dtype=dtype, name="final_norm"
        )

        # === Functional Model ===
        self.embedding_scale = 1.0
        if scale_embeddings:
            self.embedding_scale = float(ml_dtypes.bfloat16(hidden_dim**0.5))
        inputs, x = self._functional_model()
        super().__init__(inputs=inputs, outputs=x, dtype=dtype, **kwargs)

        # === Config ===
        for name, value in arguments.items():
            setattr(self, name, value)

    def _functional_model(self):
        inputs = {
            name: keras.Input((None,), dtype="int32", name=name)
            for name in ("token_ids", "padding_mask")
        }
        token_ids, positions, place = self._compact_rows(**inputs)
        x = self._embed(token_ids)
        for block in self.blocks:
            x = block(x, positions=positions)
            order_kernels(block)
        x = self._restore_rows(self.final_norm(x), place)
        return inputs, x

    @classmethod
    def from_preset(
        cls,
        preset: str | os.PathLike[str],
        load_weights: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Builds the backbone of a preset. See `GriffinCausalLM.from_preset`.

        Args:
            preset: str. A name, a folder or a handle.
            load_weights: bool. Defaults to `True`.
            **kwargs: arguments of the constructor to override, `dtype` say.

        Returns:
            A `GriffinBackbone`.

        Raises:
            ValueError: as `GriffinCausalLM.from_preset`.
        """
        known = {*arguments_of(cls, GriffinBackbone), *_LAST_ARGUMENTS}
        check_arguments(f"{cls.__name__}.from_preset", kwargs, known)
        source = find_preset(preset, load_weights)
        is_keras = source.kind == "keras"
        if is_keras and not is_mapped(
            source, load_weights, kwargs.get("dtype")
        ):
            with loading(source, load_weights):
                return super().from_preset(source.path, load_weights, **kwargs)
        return build_backbone(cls, source, load_weights, kwargs)

    def save_to_preset(
        self,
        preset_dir: str | os.PathLike[str],
        max_shard_size: float | None = 10,
    ) -> None:
        """Saves the backbone. See `GriffinCausalLM.save_to_preset`."""
        exporting.save_preset(
            super().save_to_preset, preset_dir, self, max_shard_size
        )

    save = keras_files.save
    save_weights = keras_files.save_weights
    load_weights = keras_files.load_weights
    export = exported_model.export
    export_to_transformers = exporting.export_to_transformers
    export_to_deepmind = exporting.export_to_deepmind

    @staticmethod
    def get_layout_map(device_mesh: Any, fully_sharded: bool = True) -> Any:
        """Returns the layout map of the weights for a mesh.

        Args:
            device_mesh: a `keras.distribution.DeviceMesh`, axes `"batch"`,
                `"model"`, `"sequence"`.
            fully_sharded: bool. See `keras_griffin.distribution.layout_map`,
                which this is. Defaults to `True`.

        Returns:
            A `keras.distribution.LayoutMap`.
        """
        return layout_map(device_mesh, fully_sharded)

    def _embed(self, token_ids):
        x = self.token_embedding(token_ids)
        if self.embedding_scale != 1.0:
            x = x * self.embedding_scale
        x = keep_rows(x)
        return self.embedding_dropout(x) if self.embedding_dropout.rate else x

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        check_inputs(inputs, self.vocabulary_size)
        return super().__call__(with_mask(inputs), *args, **kwargs)

    # Keras looks for `training` by name: without it nothing would drop out.
    def call(
        self, inputs: Any, training: bool | None = None, mask: Any = None
    ) -> Any:
        # On JAX, `fit` comes here without passing `__call__`.
        check_names(inputs)
        inputs = with_mask(inputs)
        return super().call(inputs, training=training, mask=mask)

    def init_state(
        self, batch_size: int, max_length: int | None = None
    ) -> dict[str, Any]:
        """Returns the state of `batch_size` rows that have seen no token.

        Args:
            batch_size: int. Number of rows.
            max_length: int. Tokens that a row may have in all. Only global
                attention needs it. Defaults to `None`.

        Returns:
            dict: `"position"` `(batch,)` int32 of the next token in its
            document, `"segment_id"` `(batch,)`, that document's number,
            `"length"` `(batch,)` tokens seen, and `"blocks"`, a list with one
            dict a block (`"inputs"` and `"recurrent"`, or `"keys"` and
            `"values"`). Axis 0 of every array is the batch.

        Raises:
            ValueError: if there is global attention and no `max_length`.
        """
        return {
            **init_rows(batch_size),
            "blocks": [
                block.init_mixer_state(batch_size, max_length)
                for block in self.blocks
            ],
        }

    def call_with_state(
        self,
        token_ids: Any,
        state: Any,
        padding_mask: Any = None,
        *,
        positions: Any = None,
        is_start: bool = False,
        num_kept: Any = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Goes on from `state`: hidden states of new tokens, and their state.

        One call over `T1 + T2` tokens equals two over `T1` and `T2` with the
        state handed on. Differentiable in the state's float arrays.

        Args:
            token_ids: `(batch, time)` int.
            state: from `init_state` or from an earlier call.
            padding_mask: `(batch, time)`, 0 at pads and otherwise numbers of
                documents, as of a call. In a mask of bools, and for `None`,
                where all tokens are real, every row goes on with the document
                that it is in.
            positions: `(batch, time)` int. Position of each token in its
                document, if the caller has them; pads then have to come last
                in each row. `None`: they are found from the rest.
            is_start: bool. Whether `state` is that of `init_state`: nothing
                is looked for before the tokens then. Defaults to `False`.
            num_kept: `(batch,)` int32. The returned state is that after so
                many of a row's real tokens, at least two columns given; the
                hidden states are of all. Defaults to `None`: after all.

        Returns:
            `(hidden, state)`: `(batch, time, hidden_dim)` and the state after
            each row's last real token.
        """
        batch, time = ops.shape(token_ids)
        rows = {key: state[key] for key in ROW_KEYS}
        layout = TokenLayout(
            batch, time, padding_mask, rows, positions, is_start, num_kept
        )
        x = self._embed(layout.compact(token_ids))
        blocks = []
        for block, own in zip(self.blocks, state["blocks"], strict=True):
            x = ops.cast(x, block.compute_dtype)
            x, own = block.mix(x, layout, {**rows, **own})
            blocks.append(own)
        x = layout.restore(self.final_norm(x))
        return x, {**layout.next_rows(batch), "blocks": blocks}

    def intermediates(self, inputs: Any) -> dict[str, dict[str, Any]]:
        """Returns gates, decays and states of the recurrent blocks.

        A channel remembers about `1 / (1 - a[t])` tokens. `call` neither
        computes nor keeps any of this.

        Args:
            inputs: as of a call, also inside of a compiled function.

        Returns:
            dict of `"block_0"` and so on, one entry a recurrent block, of
            dicts of arrays `(batch, time, recurrent_dim)` in the order of the
            tokens: `"recurrence_gate"` r[t], `"input_gate"` i[t], `"decay"`
            a[t] and `"state"` h[t]. What they hold at pads, where documents
            start and for complex recurrences says `RGLRU`.

        Raises:
            ValueError: for inputs that a call would refuse.

        Example:
        ```python
        model = keras_griffin.GriffinCausalLM.from_preset(
            "griffin_shakespeare_en"
        )
        inputs = model.preprocessor.generate_preprocess(["To be, or not to"])
        found = model.backbone.intermediates(inputs)
        decay = keras.ops.convert_to_numpy(found["block_0"]["decay"])
        remembered = 1 / (1 - decay[0, 1:4].mean(axis=0))  # tokens a channel
        ```
        """
        check_inputs(inputs, self.vocabulary_size)
        token_ids = ops.convert_to_tensor(inputs["token_ids"])
        batch, time = token_ids.shape
        layout = TokenLayout(batch, time, inputs.get("padding_mask"))
        x = self._embed(layout.compact(token_ids))
        found = {}
        for block in self.blocks:
            options = {}
            if isinstance(block.temporal, RecurrentBlock):
                options["intermediates"] = found[block.name] = {}
            x = ops.cast(x, block.compute_dtype)
            x, _ = block.mix(x, layout, None, **options)
        return found

    # === Fine-tuning ===

    default_lora_layer_names = lora.default_lora_layer_names
    enable_lora = lora.enable_lora
    merge_lora = lora.merge_lora
    quantize = quantization.quantize

    def save_lora_weights(self, filepath: str | os.PathLike[str]) -> None:
        """Saves the adapters; an old file is replaced when they are written.

        Args:
            filepath: str or path, ending in `.lora.h5`.

        Raises:
            ValueError: without adapters, or for another ending.
            OSError: if the disk is full.
        """
        keras_files.save_lora_weights(super().save_lora_weights, self, filepath)

    def load_lora_weights(self, filepath: str | os.PathLike[str]) -> None:
        """Loads adapters, and enables them on their layers if need be.

        Args:
            filepath: str or path. A file of `save_lora_weights`.

        Raises:
            ValueError: for another file, a backbone of other sizes, or one
                whose adapters are of another rank or on other layers.
        """
        rank, names = lora.targets_of_file(self, filepath)
        if not lora.lora_layers(self):
            self.enable_lora(rank, names)
        lora.check_same_targets(self, names)
        with keras_files.explained(filepath):
            super().load_lora_weights(filepath)

    def save_own_variables(self, store: Any) -> None:
        lora.check_saved_whole(self)
        super().save_own_variables(store)

    def get_quantization_layer_structure(
        self, mode: str | None = None
    ) -> dict[str, Any] | None:
        """What GPTQ and AWQ run one after the other; `None` for others."""
        if mode not in ("gptq", "awq"):
            return None
        embed, blocks = [self._embed], self.blocks
        return {"pre_block_layers": embed, "sequential_blocks": blocks}

    def get_config(self) -> dict[str, Any]:
        saved = quantization.saved_quantization(self)
        return {
            # KerasHub's own would put the layers' policies into a map, which
            # takes their names away when it is written.
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            **({"quantization": saved} if saved else {}),
            **{name: getattr(self, name) for name in ARGUMENTS},
            "block_types": list(self.block_types),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        saved = config.pop("quantization", {})
        if saved:
            dtype = config.get("dtype")
            config["dtype"] = quantization.quantized_policy(dtype, saved)
        of_config = super().from_config
        backbone = build_for_weights(lambda: of_config(config))
        quantization.set_own_policies(backbone)
        quantization.set_input_quantizers(backbone, saved)
        quantization.save_zero_points(backbone)
        return backbone


def _embedding(vocabulary_size, hidden_dim, dtype):
    normal = keras.initializers.RandomNormal(stddev=hidden_dim**-0.5)
    return ReversibleEmbedding(
        vocabulary_size,
        hidden_dim,
        embeddings_initializer=normal,
        dtype=dtype,
        name="token_embedding",
    )


# The arguments that say what the model is.
ARGUMENTS = tuple(inspect.signature(GriffinBackbone.__init__).parameters)[1:-2]
_KNOWN = (*ARGUMENTS, *_LAST_ARGUMENTS)
