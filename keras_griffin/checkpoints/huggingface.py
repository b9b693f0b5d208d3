"""RecurrentGemma in Hugging Face's format: configuration, weights, tokenizer.

Reads and writes a folder as `RecurrentGemmaForCausalLM.save_pretrained` of
transformers does and as `google/recurrentgemma-*` on the Hub have it. Checked
against transformers 5.23.
"""

import json
import pathlib

import numpy as np

from keras_griffin.checkpoints import safetensors_folder
from keras_griffin.checkpoints import weight_map
from keras_griffin.checkpoints.weight_map import Weight
from keras_griffin.checkpoints.weight_map import WeightMap

MODEL_TYPE = "recurrent_gemma"
CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.model"
# Of config.json, for what is ours to know.
OUR_KEY = "keras_griffin"
EMBEDDING = "model.embed_tokens.weight"
OUTPUT_EMBEDDING = "lm_head.weight"
ROWS_COMPARED_AT_ONCE = 8192  # 64 MiB of a 4096 wide bfloat16 embedding

# What transformers 5.23 assumes for a field that config.json leaves out.
# They are not the 2B model's values: its file spells each of them out.
DEFAULTS = {
    "num_hidden_layers": 26,
    "vocab_size": 256000,
    "hidden_size": 2560,
    "intermediate_size": 7680,
    "num_attention_heads": 10,
    "num_key_value_heads": None,
    "lru_width": None,
    "attention_window_size": 2048,
    "conv1d_width": 4,
    "logits_soft_cap": 30.0,
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "embeddings_scale_by_sqrt_dim": True,
}
DEFAULT_PATTERN = ("recurrent", "recurrent", "attention")
DEFAULT_ROPE_THETA = 10_000.0
DEFAULT_PARTIAL_ROTARY_FACTOR = 0.5
BLOCK_TYPES = {"recurrent": "recurrent", "attention": "local_attention"}

HUGGINGFACE = WeightMap(
    name="Hugging Face's RecurrentGemma format",
    model=(
        Weight("token_embedding.embeddings", EMBEDDING),
        Weight("final_norm.scale", "model.final_norm.weight"),
    ),
    block=(
        Weight(
            "blocks.{block}.temporal_norm.scale",
            "model.layers.{block}.temporal_pre_norm.weight",
        ),
        Weight(
            "blocks.{block}.mlp_norm.scale",
            "model.layers.{block}.channel_pre_norm.weight",
        ),
        Weight(
            "blocks.{block}.mlp.gate.kernel",
            "model.layers.{block}.mlp_block.gate_proj.weight",
            "transposed",
        ),
        Weight(
            "blocks.{block}.mlp.gate.bias",
            "model.layers.{block}.mlp_block.gate_proj.bias",
        ),
        Weight(
            "blocks.{block}.mlp.up.kernel",
            "model.layers.{block}.mlp_block.up_proj.weight",
            "transposed",
        ),
        Weight(
            "blocks.{block}.mlp.up.bias",
            "model.layers.{block}.mlp_block.up_proj.bias",
        ),
        Weight(
            "blocks.{block}.mlp.down.kernel",
            "model.layers.{block}.mlp_block.down_proj.weight",
            "transposed",
        ),
        Weight(
            "blocks.{block}.mlp.down.bias",
            "model.layers.{block}.mlp_block.down_proj.bias",
        ),
    ),
    recurrent=(
        Weight(
            "blocks.{block}.temporal.linear_x.kernel",
            "model.layers.{block}.temporal_block.linear_x.weight",
            "transposed",
        ),
        Weight(
            "blocks.{block}.temporal.linear_x.bias",
            "model.layers.{block}.temporal_block.linear_x.bias",
        ),
        Weight(
            "blocks.{block}.temporal.linear_y.kernel",
            "model.layers.{block}.temporal_block.linear_y.weight",
            "transposed",
        ),
        Weight(
            "blocks.{block}.temporal.linear_y.bias",
            "model.layers.{block}.temporal_block.linear_y.bias",
        ),
        Weight(
            "blocks.{block}.temporal.conv.kernel",
            "model.layers.{block}.temporal_block.conv_1d.weight",
            "depthwise",
        ),
        Weight(
            "blocks.{block}.temporal.conv.bias",
            "model.layers.{block}.temporal_block.conv_1d.bias",
        ),
        Weight(
            "blocks.{block}.temporal.rglru.recurrence_param",
            "model.layers.{block}.temporal_block.rg_lru.recurrent_param",
        ),
        Weight(
            "blocks.{block}.temporal.rglru.input_gate.kernel",
            "model.layers.{block}.temporal_block.rg_lru.input_gate_weight",
        ),
        Weight(
            "blocks.{block}.temporal.rglru.input_gate.bias",
            "model.layers.{block}.temporal_block.rg_lru.input_gate_bias",
        ),
        Weight(
            "blocks.{block}.temporal.rglru.recurrence_gate.kernel",
            "model.layers.{block}.temporal_block.rg_lru.recurrent_gate_weight",
        ),
        Weight(
            "blocks.{block}.temporal.rglru.recurrence_gate.bias",
            "model.layers.{block}.temporal_block.rg_lru.recurrent_gate_bias",
        ),
        Weight(
            "blocks.{block}.temporal.linear_out.kernel",
            "model.layers.{block}.temporal_block.linear_out.weight",
            "transposed",
        ),
        Weight(
            "blocks.{block}.temporal.linear_out.bias",
            "model.layers.{block}.temporal_block.linear_out.bias",
        ),
    ),
    attention=(
        Weight(
            "blocks.{block}.temporal.query.kernel",
            "model.layers.{block}.temporal_block.q_proj.weight",
            "transposed",
        ),
        Weight(
            "blocks.{block}.temporal.key.kernel",
            "model.layers.{block}.temporal_block.k_proj.weight",
            "transposed",
        ),
        Weight(
            "blocks.{block}.temporal.value.kernel",
            "model.layers.{block}.temporal_block.v_proj.weight",
            "transposed",
        ),
        Weight(
            "blocks.{block}.temporal.output_dense.kernel",
            "model.layers.{block}.temporal_block.o_proj.weight",
            "transposed",
        ),
        Weight(
            "blocks.{block}.temporal.output_dense.bias",
            "model.layers.{block}.temporal_block.o_proj.bias",
        ),
    ),
)


def read_config(folder):
    """Returns the contents of a folder's config.json.

    Args:
        folder: str or path. A folder in Hugging Face's format.

    Returns:
        dict.

    Raises:
        ValueError: if there is no config.json, or it is not a JSON object.
    """
    path = pathlib.Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise ValueError(
            f"A folder in Hugging Face's format must hold {CONFIG_FILE}. "
            f"Received: {folder}. Give the folder that `save_pretrained` wrote."
        )
    return safetensors_folder.read_json(path)


def backbone_config(hf_config):
    """Returns the arguments of `GriffinBackbone` for a config.json.

    Fields that are left out have the values that transformers 5.23 assumes.
    Fields about training, generation and special tokens do not change what the
    backbone computes and are not read.

    Args:
        hf_config: dict. The contents of config.json, in the spelling of any
            transformers version.

    Returns:
        dict of keyword arguments.

    Raises:
        ValueError: if the file is of another model or asks for something that
            RecurrentGemma's architecture does not have.

    Example:
        >>> config = backbone_config({"model_type": "recurrent_gemma",
        ...                           "num_key_value_heads": 1})
        >>> config["intermediate_dim"]
        3840
    """
    received_type = hf_config.get("model_type")
    _require(
        received_type == MODEL_TYPE,
        f'`model_type` must be "{MODEL_TYPE}"',
        f"model_type={received_type!r}",
        "Load this checkpoint with the library it was made for.",
    )
    config = {**DEFAULTS, **hf_config}
    hidden = config["hidden_size"]
    heads = config["num_attention_heads"]
    _require(
        hidden % heads == 0,
        "`num_attention_heads` must divide `hidden_size`",
        f"hidden_size={hidden}, num_attention_heads={heads}",
        "Correct config.json.",
    )
    # transformers takes "none given" as one key/value head per query head.
    key_value_heads = config["num_key_value_heads"]
    _require(
        (heads if key_value_heads is None else key_value_heads) == 1,
        "`num_key_value_heads` must be 1: the attention is multi-query (and "
        "null means as many as query heads)",
        f"num_key_value_heads={key_value_heads}, num_attention_heads={heads}",
        "Set it to 1 in config.json if the checkpoint has one key/value head.",
    )
    _require(
        not config["attention_bias"],
        "`attention_bias` must be false: query, key and value have no bias",
        f"attention_bias={config['attention_bias']}",
        "Convert the checkpoint without these biases.",
    )
    _require(
        config["hidden_activation"] == "gelu_pytorch_tanh",
        '`hidden_activation` must be "gelu_pytorch_tanh"',
        f"hidden_activation={config['hidden_activation']!r}",
        "Other activations are another architecture.",
    )
    _require(
        config["intermediate_size"] % 2 == 0,
        "`intermediate_size` must be even: it counts both branches of the MLP",
        f"intermediate_size={config['intermediate_size']}",
        "Correct config.json.",
    )
    cap = config["logits_soft_cap"]
    _require(
        cap is None or cap > 0,
        "`logits_soft_cap` must be positive, or null for no cap. With 0 "
        "transformers returns logits that are all zero",
        f"logits_soft_cap={cap}",
        "Write null in config.json if the model has no soft cap.",
    )
    rope_theta, rotary_factor = _rope(config)
    return {
        "vocabulary_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "hidden_dim": hidden,
        "intermediate_dim": config["intermediate_size"] // 2,
        "num_query_heads": heads,
        "head_dim": hidden // heads,
        "recurrent_dim": config["lru_width"] or hidden,
        "block_types": _block_types(config),
        "attention_window_size": _window(config),
        "num_gate_blocks": heads,
        "conv_kernel_size": config["conv1d_width"],
        "recurrence": "real",
        "scale_embeddings": config["embeddings_scale_by_sqrt_dim"],
        "final_logit_soft_cap": cap,
        "rope_max_wavelength": rope_theta,
        "rope_fraction": rotary_factor,
        "layer_norm_epsilon": config["rms_norm_eps"],
        # For a model built without the weights.
        "decay_initializer": "reference",
    }


def load_weights(backbone, folder):
    """Assigns the weights of a folder in Hugging Face's format.

    Tensors are read one by one, cast to their variable's dtype and placed with
    its sharding. All names and shapes are checked before the first assignment.

    Args:
        backbone: `GriffinBackbone`, built with `backbone_config` of the same
            folder.
        folder: str or path. Holds model.safetensors, or its index and shards.

    Raises:
        ImportError: if safetensors is not installed.
        ValueError: if there are no weights, a file is missing or damaged, a
            tensor is missing, unknown, doubled, of another shape, of a dtype
            other than float, or holds NaN, or the output embedding is not the
            input embedding. Only for NaN has anything been assigned by then.
    """
    table = weight_map.rows(HUGGINGFACE, backbone)
    tensors = safetensors_folder.stored_tensors(folder)
    _check_dtypes(tensors, folder)
    _drop_output_embedding(tensors, folder)
    weight_map.load(
        table,
        backbone,
        shapes={name: tensor.shape for name, tensor in tensors.items()},
        read=lambda name: safetensors_folder.read(tensors, name),
        origin=str(folder),
    )


def stored_dtypes(folder):
    """Returns the set of Keras dtype names of a folder's weights.

    Args:
        folder: str or path. A folder in Hugging Face's format.

    Raises:
        ValueError: if there are no weights, or they are no floats.
    """
    tensors = safetensors_folder.stored_tensors(folder)
    _check_dtypes(tensors, folder)
    names = safetensors_folder.FLOAT_DTYPES
    return {names[tensor.dtype] for tensor in tensors.values()}


def export_tensors(backbone):
    """Yields `(name, NumPy array)` as Hugging Face names and lays them out.

    The inverse of `load_weights`, one tensor at a time. lm_head.weight is not
    among them: it is tied to the embedding.

    Args:
        backbone: `GriffinBackbone` with `recurrence="real"`.

    Raises:
        ValueError: if the backbone has a complex recurrence.
    """
    return weight_map.export(weight_map.rows(HUGGINGFACE, backbone), backbone)


def hf_config(backbone, tokenizer=None):
    """Returns the config.json with which transformers computes the same.

    transformers 5.23 counts the token itself into its window, so that the
    number is one more than the backbone's. `backbone_config` gives the
    backbone's back. `dropout` has no place in the file.

    Args:
        backbone: `GriffinBackbone`.
        tokenizer: `GriffinTokenizer`, for the ids of special tokens. Defaults
            to `None`: RecurrentGemma's ids.

    Returns:
        dict.

    Raises:
        ValueError: if RecurrentGemma's architecture, as transformers has it,
            cannot express the backbone; the message says what.
    """
    _check_expressible(backbone)
    window = backbone.attention_window_size
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    if tokenizer is not None:
        ids = {
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.end_token_id,
            "bos_token_id": tokenizer.start_token_id,
        }
    theirs = {ours: theirs for theirs, ours in BLOCK_TYPES.items()}
    return {
        "architectures": ["RecurrentGemmaForCausalLM"],
        "model_type": MODEL_TYPE,
        "attention_bias": False,
        "attention_window_size": window + 1,
        OUR_KEY: {"attention_window_size": window},
        "block_types": [theirs[name] for name in backbone.block_types],
        "conv1d_width": backbone.conv_kernel_size,
        "dtype": backbone.variable_dtype,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": backbone.hidden_dim,
        "intermediate_size": 2 * backbone.intermediate_dim,
        "logits_soft_cap": backbone.final_logit_soft_cap,
        "lru_width": backbone.recurrent_dim,
        "num_attention_heads": backbone.num_query_heads,
        "num_hidden_layers": backbone.num_layers,
        "num_key_value_heads": 1,
        "rms_norm_eps": backbone.layer_norm_epsilon,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": backbone.rope_max_wavelength,
            "partial_rotary_factor": backbone.rope_fraction,
        },
        "tie_word_embeddings": True,
        "vocab_size": backbone.vocabulary_size,
        **ids,
    }


def _check_expressible(backbone):
    def require(condition, rule, received):
        _require(
            condition,
            f"{rule}, in transformers' RecurrentGemma",
            received,
            "Keep this model with `save_to_preset`.",
        )

    recurrent = "recurrent" in backbone.block_types
    heads = backbone.num_query_heads
    require(
        "global_attention" not in backbone.block_types,
        "Attention is local",
        f"block_types={backbone.block_types}",
    )
    require(
        backbone.recurrence == "real" or not recurrent,
        "The recurrence is real",
        f'recurrence="{backbone.recurrence}"',
    )
    require(
        backbone.scale_embeddings,
        "Embeddings are always scaled",
        f"scale_embeddings={backbone.scale_embeddings}",
    )
    require(
        backbone.final_logit_soft_cap is not None,
        "Logits always have a soft cap",
        f"final_logit_soft_cap={backbone.final_logit_soft_cap}",
    )
    require(
        backbone.num_gate_blocks == heads or not recurrent,
        "`num_gate_blocks` is `num_query_heads`",
        f"num_gate_blocks={backbone.num_gate_blocks}, num_query_heads={heads}",
    )
    require(
        backbone.head_dim * heads == backbone.hidden_dim,
        "`head_dim` is `hidden_dim // num_query_heads`",
        f"head_dim={backbone.head_dim}, hidden_dim={backbone.hidden_dim}, "
        f"num_query_heads={heads}",
    )


def write_weights(backbone, folder, max_shard_size):
    """Writes a backbone's weights as safetensors, in their own dtype.

    Args:
        backbone: `GriffinBackbone`.
        folder: str or path. Exists.
        max_shard_size: int or float. A file's largest size [GB].

    Raises:
        ImportError: if safetensors is not installed.
        ValueError: if a weight is no float, or has no name in the format.
    """
    table = weight_map.rows(HUGGINGFACE, backbone)
    shapes = weight_map.tensor_shapes(table, backbone)
    dtypes = weight_map.tensor_dtypes(table, backbone)
    safetensors_folder.write(
        folder,
        {name: (shape, dtypes[name]) for name, shape in shapes.items()},
        weight_map.export(table, backbone),
        max_shard_size,
    )


def write_config(config, folder):
    """Writes config.json.

    Args:
        config: dict.
        folder: str or path. Exists.
    """
    path = pathlib.Path(folder) / CONFIG_FILE
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def tokenizer_file(folder):
    """Returns the path of a folder's SentencePiece model.

    Args:
        folder: str or path. A folder in Hugging Face's format.

    Returns:
        `pathlib.Path`.

    Raises:
        ValueError: if there is no tokenizer.model.
    """
    path = pathlib.Path(folder) / TOKENIZER_FILE
    if not path.is_file():
        raise ValueError(
            f"The tokenizer is read from {TOKENIZER_FILE}, a SentencePiece "
            f"model. Received: {folder}, without it. Copy it from the original "
            "checkpoint (tokenizer.json is not read)."
        )
    return path


def _window(config):
    """Returns W: a token sees itself and the W tokens before it.

    The number in Google's files is DeepMind's W. transformers 5.23 takes it for
    the keys that a token sees with itself, one fewer, so that past W tokens its
    logits are not those of the model that was trained. `hf_config` therefore
    writes W + 1 and, under OUR_KEY, W.
    """
    theirs = config["attention_window_size"]
    if OUR_KEY not in config:
        return theirs
    ours = config[OUR_KEY]["attention_window_size"]
    _require(
        theirs == ours + 1,
        f"`attention_window_size` must be one more than that of `{OUR_KEY}`, "
        "which does not count the token itself",
        f"{theirs} and {ours}",
        f"Remove `{OUR_KEY}` from config.json to have {theirs} tokens before "
        "itself, as in Google's checkpoints.",
    )
    return ours


def _block_types(config):
    # The 2B file on the Hub says `_block_types`, the 9B one `block_types`.
    pattern = config.get("block_types") or config.get("_block_types")
    pattern = tuple(pattern or DEFAULT_PATTERN)
    _require(
        set(pattern) <= set(BLOCK_TYPES),
        f"`block_types` must be among {list(BLOCK_TYPES)}",
        f"block_types={list(pattern)}",
        "Correct config.json.",
    )
    return tuple(BLOCK_TYPES[name] for name in pattern)


def _rope(config):
    # transformers 5 groups what older files have at the top level.
    rope = {
        "rope_type": "default",
        "rope_theta": config.get("rope_theta") or DEFAULT_ROPE_THETA,
        "partial_rotary_factor": config.get("partial_rotary_factor")
        or DEFAULT_PARTIAL_ROTARY_FACTOR,
        **(config.get("rope_parameters") or {}),
    }
    _require(
        rope["rope_type"] == "default",
        '`rope_type` must be "default"',
        f"rope_type={rope['rope_type']!r}",
        "Scaled rotary embeddings are not part of RecurrentGemma.",
    )
    return rope["rope_theta"], rope["partial_rotary_factor"]


def _check_dtypes(tensors, folder):
    for name, tensor in tensors.items():
        _require(
            tensor.dtype in safetensors_folder.FLOAT_DTYPES,
            "Weights must be stored as one of "
            f"{', '.join(safetensors_folder.FLOAT_DTYPES)}",
            f"{folder}, with {name} as {tensor.dtype}",
            "Load the original checkpoint, before quantisation.",
        )


def _drop_output_embedding(tensors, folder):
    """Forgets lm_head.weight after checking that it repeats the embedding."""
    output = tensors.get(OUTPUT_EMBEDDING)
    embedding = tensors.get(EMBEDDING)
    if output is None or embedding is None:
        tensors.pop(OUTPUT_EMBEDDING, None)
        return
    size = output.shape[0]
    pieces = [
        slice(start, min(start + ROWS_COMPARED_AT_ONCE, size))
        for start in range(0, size, ROWS_COMPARED_AT_ONCE)
    ]
    tied = output.shape == embedding.shape and all(
        np.array_equal(
            safetensors_folder.read_rows(tensors, OUTPUT_EMBEDDING, rows),
            safetensors_folder.read_rows(tensors, EMBEDDING, rows),
        )
        for rows in pieces
    )
    _require(
        tied,
        f"{OUTPUT_EMBEDDING} must equal {EMBEDDING}: the model's output "
        "embedding is its input embedding",
        f"{folder}, where they differ",
        "A model trained with separate embeddings cannot be loaded.",
    )
    del tensors[OUTPUT_EMBEDDING]


def _require(condition, rule, received, advice):
    if not condition:
        raise ValueError(f"{rule}. Received: {received}. {advice}")
