"""DeepMind's parameters: the Flax tree and the PyTorch state dict.

Takes parameters that are in memory and gives them back in the same form;
`deepmind_archive` reads and writes files. Checked against recurrentgemma 1.0.1
(`recurrentgemma.jax`, `recurrentgemma.torch`).
"""

import dataclasses

import ml_dtypes
import numpy as np

from keras_griffin.checkpoints import weight_map
from keras_griffin.checkpoints.weight_map import Weight
from keras_griffin.checkpoints.weight_map import WeightMap

# Flax names a block "blocks.0", one key with a dot in it. Levels of the tree
# are joined by "/" here.
FLAX = WeightMap(
    name="DeepMind's Flax format",
    model=(
        Weight("token_embedding.embeddings", "embedder/input_embedding"),
        Weight("final_norm.scale", "final_norm/scale"),
    ),
    block=(
        Weight(
            "blocks.{block}.temporal_norm.scale",
            "blocks.{block}/temporal_pre_norm/scale",
        ),
        Weight(
            "blocks.{block}.mlp_norm.scale",
            "blocks.{block}/channel_pre_norm/scale",
        ),
        Weight(
            "blocks.{block}.mlp.gate.kernel",
            "blocks.{block}/mlp_block/ffw_up/w",
            part=0,
        ),
        Weight(
            "blocks.{block}.mlp.gate.bias",
            "blocks.{block}/mlp_block/ffw_up/b",
            "row",
            part=0,
        ),
        Weight(
            "blocks.{block}.mlp.up.kernel",
            "blocks.{block}/mlp_block/ffw_up/w",
            part=1,
        ),
        Weight(
            "blocks.{block}.mlp.up.bias",
            "blocks.{block}/mlp_block/ffw_up/b",
            "row",
            part=1,
        ),
        Weight(
            "blocks.{block}.mlp.down.kernel",
            "blocks.{block}/mlp_block/ffw_down/kernel",
        ),
        Weight(
            "blocks.{block}.mlp.down.bias",
            "blocks.{block}/mlp_block/ffw_down/bias",
        ),
    ),
    recurrent=(
        Weight(
            "blocks.{block}.temporal.linear_x.kernel",
            "blocks.{block}/recurrent_block/linear_x/kernel",
        ),
        Weight(
            "blocks.{block}.temporal.linear_x.bias",
            "blocks.{block}/recurrent_block/linear_x/bias",
        ),
        Weight(
            "blocks.{block}.temporal.linear_y.kernel",
            "blocks.{block}/recurrent_block/linear_y/kernel",
        ),
        Weight(
            "blocks.{block}.temporal.linear_y.bias",
            "blocks.{block}/recurrent_block/linear_y/bias",
        ),
        Weight(
            "blocks.{block}.temporal.conv.kernel",
            "blocks.{block}/recurrent_block/conv_1d/w",
        ),
        Weight(
            "blocks.{block}.temporal.conv.bias",
            "blocks.{block}/recurrent_block/conv_1d/b",
        ),
        Weight(
            "blocks.{block}.temporal.rglru.recurrence_param",
            "blocks.{block}/recurrent_block/rg_lru/a_param",
        ),
        Weight(
            "blocks.{block}.temporal.rglru.input_gate.kernel",
            "blocks.{block}/recurrent_block/rg_lru/input_gate/w",
        ),
        Weight(
            "blocks.{block}.temporal.rglru.input_gate.bias",
            "blocks.{block}/recurrent_block/rg_lru/input_gate/b",
        ),
        Weight(
            "blocks.{block}.temporal.rglru.recurrence_gate.kernel",
            "blocks.{block}/recurrent_block/rg_lru/a_gate/w",
        ),
        Weight(
            "blocks.{block}.temporal.rglru.recurrence_gate.bias",
            "blocks.{block}/recurrent_block/rg_lru/a_gate/b",
        ),
        Weight(
            "blocks.{block}.temporal.linear_out.kernel",
            "blocks.{block}/recurrent_block/linear_out/kernel",
        ),
        Weight(
            "blocks.{block}.temporal.linear_out.bias",
            "blocks.{block}/recurrent_block/linear_out/bias",
        ),
    ),
    attention=(
        Weight(
            "blocks.{block}.temporal.query.kernel",
            "blocks.{block}/attention_block/proj_q/kernel",
        ),
        Weight(
            "blocks.{block}.temporal.key.kernel",
            "blocks.{block}/attention_block/proj_k/kernel",
        ),
        Weight(
            "blocks.{block}.temporal.value.kernel",
            "blocks.{block}/attention_block/proj_v/kernel",
        ),
        Weight(
            "blocks.{block}.temporal.output_dense.kernel",
            "blocks.{block}/attention_block/proj_final/kernel",
        ),
        Weight(
            "blocks.{block}.temporal.output_dense.bias",
            "blocks.{block}/attention_block/proj_final/bias",
        ),
    ),
    phase=(
        Weight(
            "blocks.{block}.temporal.rglru.phase_param",
            "blocks.{block}/recurrent_block/rg_lru/a_imag_param",
        ),
    ),
)


def _torch_row(row):
    """Returns the PyTorch row of a Flax row.

    The names differ only in what joins them and in the linear layers' kernels,
    which torch.nn.Linear calls `weight` and stores as (out, in).
    """
    name = row.tensor.replace("/", ".")
    if not name.endswith(".kernel"):
        return dataclasses.replace(row, tensor=name)
    name = name.removesuffix("kernel") + "weight"
    return dataclasses.replace(row, tensor=name, layout="transposed")


TORCH = WeightMap(
    name="DeepMind's PyTorch format",
    model=tuple(_torch_row(row) for row in FLAX.model),
    block=tuple(_torch_row(row) for row in FLAX.block),
    recurrent=tuple(_torch_row(row) for row in FLAX.recurrent),
    attention=tuple(_torch_row(row) for row in FLAX.attention),
)


def backbone_config(
    params, attention_window_size, final_logit_soft_cap, scale_embeddings
):
    """Returns the arguments of `GriffinBackbone` for a Flax parameter tree.

    What the shapes cannot tell must be given. RecurrentGemma has 2048, 30.0 and
    True, the Griffin paper's models 1024, `None` and False.

    Args:
        params: nested dict, possibly under one key `"params"`.
        attention_window_size: int. Tokens before itself that a token sees.
        final_logit_soft_cap: float or `None`.
        scale_embeddings: bool.

    Returns:
        dict of keyword arguments.

    Raises:
        ValueError: if it is not a Griffin model's tree.
    """
    return config_from_shapes(
        {name: leaf.shape for name, leaf in _flatten(params).items()},
        attention_window_size,
        final_logit_soft_cap,
        scale_embeddings,
    )


def config_from_shapes(
    shapes, attention_window_size, final_logit_soft_cap, scale_embeddings
):
    """Does what `backbone_config` does, from names and shapes alone.

    Args:
        shapes: dict of Flax name, levels joined by "/", to shape.
        attention_window_size: int. See `backbone_config`.
        final_logit_soft_cap: float or `None`.
        scale_embeddings: bool.

    Returns:
        dict of keyword arguments.

    Raises:
        ValueError: if it is not a Griffin model's tree.
    """
    if "embedder/input_embedding" not in shapes:
        raise ValueError(
            "A Griffin parameter tree must hold `embedder/input_embedding`. "
            f"Received: the top level {sorted(_top_level(shapes))}. "
            "Give the tree of `recurrentgemma.jax.Griffin`."
        )
    vocabulary_size, hidden_dim = shapes["embedder/input_embedding"]
    gate = "recurrent_block/rg_lru/input_gate/w"
    key = "attention_block/proj_k/kernel"
    block_types = []
    head_dim = num_gate_blocks = recurrent_dim = None
    while f"blocks.{len(block_types)}/temporal_pre_norm/scale" in shapes:
        block = f"blocks.{len(block_types)}"
        if f"{block}/{gate}" in shapes:
            block_types.append("recurrent")
            num_gate_blocks, block_width, _ = shapes[f"{block}/{gate}"]
            recurrent_dim = num_gate_blocks * block_width
        elif f"{block}/{key}" in shapes:
            block_types.append("local_attention")
            head_dim = shapes[f"{block}/{key}"][1]
        else:
            raise ValueError(
                "Every block must hold `recurrent_block` or `attention_block`. "
                f"Received: {block} with neither. "
                "Give the whole tree of `recurrentgemma.jax.Griffin`."
            )
    # DeepMind has one number for both. Without attention blocks, or without
    # recurrent ones, the other kind tells it.
    if head_dim is None:
        head_dim = hidden_dim // num_gate_blocks
    num_query_heads = hidden_dim // head_dim
    is_complex = any(name.endswith("a_imag_param") for name in shapes)
    conv_kernels = [
        shape[0] for name, shape in shapes.items() if name.endswith("conv_1d/w")
    ]
    config = {
        "vocabulary_size": vocabulary_size,
        "num_layers": len(block_types),
        "hidden_dim": hidden_dim,
        "intermediate_dim": shapes["blocks.0/mlp_block/ffw_up/w"][2],
        "num_query_heads": num_query_heads,
        "head_dim": head_dim,
        "recurrent_dim": recurrent_dim or hidden_dim,
        "block_types": tuple(block_types),
        "attention_window_size": attention_window_size,
        "num_gate_blocks": num_gate_blocks or num_query_heads,
        "recurrence": "complex" if is_complex else "real",
        "scale_embeddings": scale_embeddings,
        "final_logit_soft_cap": final_logit_soft_cap,
        "decay_initializer": "reference",
    }
    if conv_kernels:
        config["conv_kernel_size"] = conv_kernels[0]
    return config


def load_flax_params(backbone, params):
    """Assigns a Flax parameter tree to a backbone.

    Args:
        backbone: `GriffinBackbone`.
        params: nested dict of arrays, possibly under one key `"params"`.

    Raises:
        ValueError: if an array is missing, unknown, of another shape or not
            finite.
    """
    leaves = _flatten(params)
    weight_map.load(
        weight_map.rows(FLAX, backbone),
        backbone,
        shapes={name: leaf.shape for name, leaf in leaves.items()},
        read=lambda name: np.array(leaves[name]),
        origin="a Flax parameter tree",
    )


def to_flax_params(backbone):
    """Returns a backbone's weights as a Flax parameter tree.

    Args:
        backbone: `GriffinBackbone`.

    Returns:
        nested dict of NumPy arrays, for `Griffin.apply({"params": ...}, ...)`.
    """
    tree = {}
    table = weight_map.rows(FLAX, backbone)
    for name, value in weight_map.export(table, backbone):
        *levels, leaf = name.split("/")
        branch = tree
        for level in levels:
            branch = branch.setdefault(level, {})
        branch[leaf] = value
    return tree


def load_torch_params(backbone, state_dict):
    """Assigns a PyTorch state dict of DeepMind's model to a backbone.

    Args:
        backbone: `GriffinBackbone` with `recurrence="real"`.
        state_dict: dict of name to `torch.Tensor` or array, on any device.

    Raises:
        ValueError: if a tensor is missing, unknown, of another shape or not
            finite, or the backbone has a complex recurrence.
    """
    weight_map.load(
        weight_map.rows(TORCH, backbone),
        backbone,
        shapes={name: tuple(x.shape) for name, x in state_dict.items()},
        read=lambda name: torch_to_numpy(state_dict[name]),
        origin="a PyTorch state dict",
    )


def to_torch_params(backbone):
    """Returns a backbone's weights under DeepMind's PyTorch names.

    Args:
        backbone: `GriffinBackbone` with `recurrence="real"`.

    Returns:
        dict of name to NumPy array.

    Raises:
        ValueError: if the backbone has a complex recurrence.
    """
    return dict(weight_map.export(weight_map.rows(TORCH, backbone), backbone))


def flax_shapes(torch_shapes):
    """Returns PyTorch names and shapes as the Flax ones.

    Args:
        torch_shapes: dict of name to shape.

    Returns:
        dict of name, levels joined by "/", to shape.
    """
    shapes = {}
    for name, shape in torch_shapes.items():
        levels = name.split(".")
        if levels[0] == "blocks" and len(levels) > 1:
            levels[:2] = [".".join(levels[:2])]
        if levels[-1] == "weight":
            levels[-1] = "kernel"
            shape = shape[::-1]
        shapes["/".join(levels)] = tuple(shape)
    return shapes


def _top_level(shapes):
    return {name.split("/")[0] for name in shapes}


def _unwrap(params):
    # `save_parameters` of recurrentgemma wraps the tree, its archives may not.
    return params["params"] if set(params) == {"params"} else params


def _flatten(params):
    """Returns `{"level/level/leaf": array}` of a nested dict."""
    flat = {}
    for name, value in _unwrap(params).items():
        if hasattr(value, "items"):
            inner = _flatten(value)
            flat.update({f"{name}/{key}": x for key, x in inner.items()})
        else:
            flat[name] = value
    return flat


def torch_to_numpy(tensor):
    """Returns a NumPy copy of a torch tensor or an array."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":
            import torch

            # The same bits; torch hands NumPy no bfloat16.
            bits = tensor.contiguous().view(torch.int16).numpy()
            return np.array(bits).view(ml_dtypes.bfloat16)
        tensor = tensor.numpy()
    return np.array(tensor)
