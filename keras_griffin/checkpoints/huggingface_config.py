"""RecurrentGemma's config.json in Hugging Face's format, read and written.

As `RecurrentGemmaConfig` of transformers has it and `google/recurrentgemma-*`
on the Hub. Checked against transformers 5.23.
"""

import json
import math
import pathlib

from keras_griffin.files import inside

MODEL_TYPE = "recurrent_gemma"
CONFIG_FILE = "config.json"
# Of config.json, for what is ours to know.
OUR_KEY = "keras_griffin"

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
# Their default is that they are not there.
OLDER_FIELDS = {
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 0.5,
    "rope_parameters": {},
    "block_types": [],
    "_block_types": [],
    OUR_KEY: {},
}
MAY_BE_NULL = ("logits_soft_cap", *OLDER_FIELDS)
DEFAULT_PATTERN = ("recurrent", "recurrent", "attention")
DEFAULT_ROPE_THETA = 10_000.0
DEFAULT_PARTIAL_ROTARY_FACTOR = 0.5
BLOCK_TYPES = {"recurrent": "recurrent", "attention": "local_attention"}


def read_config(folder):
    """Returns the contents of a folder's config.json.

    Args:
        folder: str or path. A folder in Hugging Face's format.

    Returns:
        dict.

    Raises:
        ValueError: if there is no config.json, or it is not a JSON object.
    """
    if not inside.has_file(folder, CONFIG_FILE):
        raise ValueError(
            f"A folder in Hugging Face's format must hold {CONFIG_FILE}. "
            f"Received: {folder}. Give the folder that `save_pretrained` wrote."
        )
    return inside.read_json(folder, CONFIG_FILE)


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
    _check_kinds(config)
    _check_architecture(config)
    hidden = config["hidden_size"]
    heads = config["num_attention_heads"]
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
        "final_logit_soft_cap": config["logits_soft_cap"],
        "rope_max_wavelength": rope_theta,
        "rope_fraction": rotary_factor,
        "layer_norm_epsilon": config["rms_norm_eps"],
        # For a model built without the weights.
        "decay_initializer": "reference",
    }


def _check_kinds(config):
    """Refuses values of another kind than the field has."""
    for name, default in {**DEFAULTS, **OLDER_FIELDS}.items():
        value = config.get(name)
        if value is None and (default is None or name in MAY_BE_NULL):
            continue
        kind = int if default is None else type(default)
        fits = type(value) is kind or (kind is float and type(value) is int)
        if kind is int:
            fits = fits and value > 0
        if kind is float:
            fits = fits and math.isfinite(value)
        _require(
            fits,
            f"`{name}` must be "
            + ("a positive integer" if kind is int else f"a {kind.__name__}"),
            f"{name}={value!r:.80}",
            "Correct config.json, or download it again.",
        )


def _check_architecture(config):
    """Refuses what RecurrentGemma does not have."""
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


def write_config(config, folder):
    """Writes config.json.

    Args:
        config: dict.
        folder: str or path. Exists.
    """
    path = pathlib.Path(folder) / CONFIG_FILE
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _window(config):
    """Returns W: a token sees itself and the W tokens before it.

    The number in Google's files is DeepMind's W. transformers 5.23 takes it for
    the keys that a token sees with itself, one fewer, so that past W tokens its
    logits are not those of the model that was trained. `hf_config` therefore
    writes W + 1 and, under OUR_KEY, W.
    """
    theirs = config["attention_window_size"]
    if config.get(OUR_KEY) is None:
        return theirs
    ours = config[OUR_KEY].get("attention_window_size")
    _require(
        type(ours) is int and theirs == ours + 1,
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
        all(isinstance(x, str) and x in BLOCK_TYPES for x in pattern),
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
    for name in ("rope_theta", "partial_rotary_factor"):
        _require(
            type(rope[name]) in (int, float) and math.isfinite(rope[name]),
            f"`{name}` must be a number",
            f"{name}={rope[name]!r:.80}",
            "Correct config.json.",
        )
    return rope["rope_theta"], rope["partial_rotary_factor"]


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


def _require(condition, rule, received, advice):
    if not condition:
        raise ValueError(f"{rule}. Received: {received}. {advice}")
