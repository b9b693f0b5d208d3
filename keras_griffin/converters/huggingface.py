"""RecurrentGemma in Hugging Face's format: configuration, weights, tokenizer.

Reads a folder as `RecurrentGemmaForCausalLM.save_pretrained` of transformers
writes it and as `google/recurrentgemma-*` on the Hub have it. Checked against
transformers 5.23.
"""

import contextlib
import json
import pathlib

import numpy as np

from keras_griffin.converters import weight_map
from keras_griffin.converters.weight_map import Weight
from keras_griffin.converters.weight_map import WeightMap

MODEL_TYPE = "recurrent_gemma"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILE = "tokenizer.model"
EMBEDDING = "model.embed_tokens.weight"
OUTPUT_EMBEDDING = "lm_head.weight"
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
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
    return _read_json(path)


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
        # The number is DeepMind's, where a token sees itself and W before it,
        # as here. In transformers 5.23 it sees one fewer, W with itself: past
        # W tokens its logits are not those of the model that was trained.
        "attention_window_size": config["attention_window_size"],
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
    with contextlib.ExitStack() as stack:
        files = _open_weights(pathlib.Path(folder), stack)
        _check_dtypes(files, folder)
        _drop_output_embedding(files, folder)
        weight_map.load(
            table,
            backbone,
            shapes={
                name: tuple(file.get_slice(name).get_shape())
                for name, file in files.items()
            },
            read=lambda name: files[name].get_tensor(name),
            origin=str(folder),
        )


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


def _open_weights(folder, stack):
    """Returns `{tensor name: open file}`; only headers are read."""
    files = {}
    for path in _weight_files(folder):
        file = _open_safetensors(path, stack)
        for name in file.keys():
            if name in files:
                raise ValueError(
                    "A tensor must be in one shard only. Received: "
                    f"{folder}, with {name} in {path.name} and another file. "
                    "Remove shards that belong to another checkpoint."
                )
            files[name] = file
    return files


def _weight_files(folder):
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    index_path = folder / INDEX_FILE
    if not index_path.is_file():
        raise ValueError(
            f"Weights are read from {WEIGHTS_FILE}, or from {INDEX_FILE} and "
            f"its shards. Received: {folder}, without either. Save the model "
            "with `save_pretrained(folder)` of transformers 5, which writes "
            "safetensors."
        )
    index = _read_json(index_path)
    if not isinstance(index.get("weight_map"), dict):
        raise ValueError(
            "An index must map tensor names to files under `weight_map`. "
            f"Received: {index_path}, with the keys {sorted(index)}. "
            "Fetch the file anew."
        )
    names = sorted(set(index["weight_map"].values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"Every shard named in {INDEX_FILE} must be there. Received: "
            f"{folder}, without {', '.join(missing)}. Download what is missing."
        )
    return [folder / name for name in names]


def _open_safetensors(path, stack):
    try:
        import safetensors
    except ImportError as error:
        raise ImportError(
            "Reading Hugging Face's weights needs safetensors. Received: "
            f"{path}. Install it with `pip install keras-griffin[convert]`."
        ) from error
    try:
        return stack.enter_context(safetensors.safe_open(path, framework="np"))
    except safetensors.SafetensorError as error:
        raise ValueError(
            "A safetensors file must be complete and undamaged. Received: "
            f"{path} ({error}). Download it again."
        ) from error


def _check_dtypes(files, folder):
    for name, file in files.items():
        dtype = file.get_slice(name).get_dtype()
        _require(
            dtype in FLOAT_DTYPES,
            f"Weights must be stored as one of {', '.join(FLOAT_DTYPES)}",
            f"{folder}, with {name} as {dtype}",
            "Load the original checkpoint, before quantisation.",
        )


def _drop_output_embedding(files, folder):
    """Forgets lm_head.weight after checking that it repeats the embedding."""
    output_file = files.pop(OUTPUT_EMBEDDING, None)
    if output_file is None or EMBEDDING not in files:
        return
    output = output_file.get_slice(OUTPUT_EMBEDDING)
    embedding = files[EMBEDDING].get_slice(EMBEDDING)
    size = output.get_shape()[0]
    pieces = [
        slice(start, min(start + ROWS_COMPARED_AT_ONCE, size))
        for start in range(0, size, ROWS_COMPARED_AT_ONCE)
    ]
    tied = output.get_shape() == embedding.get_shape() and all(
        np.array_equal(output[rows], embedding[rows]) for rows in pieces
    )
    _require(
        tied,
        f"{OUTPUT_EMBEDDING} must equal {EMBEDDING}: the model's output "
        "embedding is its input embedding",
        f"{folder}, where they differ",
        "A model trained with separate embeddings cannot be loaded.",
    )


def _read_json(path):
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path.name} must be JSON. Received: {path} ({error}). "
            "Download it again."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path.name} must hold a JSON object. Received: {path}, with a "
            f"{type(content).__name__}. Download it again."
        )
    return content


def _require(condition, rule, received, advice):
    if not condition:
        raise ValueError(f"{rule}. Received: {received}. {advice}")
