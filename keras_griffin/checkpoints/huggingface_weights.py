"""RecurrentGemma's weights in Hugging Face's format.

Reads and writes the safetensors of a folder as
`RecurrentGemmaForCausalLM.save_pretrained` of transformers does and as
`google/recurrentgemma-*` on the Hub have them. Checked against transformers
5.23.
"""

import math

import numpy as np

from keras_griffin.checkpoints import safetensors_folder
from keras_griffin.checkpoints import weight_map
from keras_griffin.checkpoints.weight_map import Weight
from keras_griffin.checkpoints.weight_map import WeightMap

EMBEDDING = "model.embed_tokens.weight"
OUTPUT_EMBEDDING = "lm_head.weight"
ROWS_COMPARED_AT_ONCE = 8192  # 64 MiB of a 4096 wide bfloat16 embedding

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


def load_weights(backbone, folder):
    """Assigns the weights of a folder in Hugging Face's format.

    Tensors are read one by one, cast to their variable's dtype and placed with
    its sharding. All names and shapes are checked before the first assignment.

    Args:
        backbone: `GriffinBackbone`, built with
            `huggingface_config.backbone_config` of the same folder.
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


def stored_elements(folder):
    """Returns how many numbers a folder's weights have.

    Args:
        folder: str or path. A folder in Hugging Face's format.

    Raises:
        ValueError: as `load_weights`.
    """
    tensors = safetensors_folder.stored_tensors(folder)
    tensors.pop(OUTPUT_EMBEDDING, None)
    return sum(math.prod(tensor.shape) for tensor in tensors.values())


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


def _check_dtypes(tensors, folder):
    for name, tensor in tensors.items():
        if tensor.dtype not in safetensors_folder.FLOAT_DTYPES:
            raise ValueError(
                "Weights must be stored as one of "
                f"{', '.join(safetensors_folder.FLOAT_DTYPES)}. Received: "
                f"{folder}, with {name} as {tensor.dtype}. Load the original "
                "checkpoint, before quantisation."
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
            safetensors_folder.read(tensors, OUTPUT_EMBEDDING)[rows],
            safetensors_folder.read(tensors, EMBEDDING)[rows],
        )
        for rows in pieces
    )
    if not tied:
        raise ValueError(
            f"{OUTPUT_EMBEDDING} must equal {EMBEDDING}: the model's output "
            f"embedding is its input embedding. Received: {folder}, where they "
            "differ. A model trained with separate embeddings cannot be loaded."
        )
    del tensors[OUTPUT_EMBEDDING]
