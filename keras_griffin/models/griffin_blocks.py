"""The residual blocks of a backbone, from its arguments."""

from keras_griffin.layers.block_diagonal_dense import fan_in_normal
from keras_griffin.layers.gated_mlp import GatedMLP
from keras_griffin.layers.local_mqa import LocalMQA
from keras_griffin.layers.recurrent_block import RecurrentBlock
from keras_griffin.layers.residual_block import ResidualBlock

BLOCK_TYPES = ("recurrent", "local_attention", "global_attention")
SIZES = (
    "vocabulary_size",
    "num_layers",
    "hidden_dim",
    "intermediate_dim",
    "num_query_heads",
)


def complete_arguments(arguments):
    """Checks the arguments of a backbone and fills in its defaults."""
    for name in SIZES:
        size = arguments[name]
        if size < 1:
            raise ValueError(
                f"`{name}` must be at least 1. Received: {name}={size}. Give "
                "a positive integer."
            )
    cap = arguments["final_logit_soft_cap"]
    if cap is not None and cap <= 0:
        raise ValueError(
            "`final_logit_soft_cap` must be positive, or None for no cap. "
            f"Received: {cap}. RecurrentGemma uses 30."
        )
    hidden_dim = arguments["hidden_dim"]
    head_dim, heads = arguments["head_dim"], arguments["num_query_heads"]
    if head_dim is None:
        if hidden_dim % heads:
            raise ValueError(
                "`num_query_heads` must divide `hidden_dim` unless `head_dim` "
                f"is given. Received: num_query_heads={heads}, hidden_dim="
                f"{hidden_dim}. Give `head_dim`, or a divisor."
            )
        head_dim = hidden_dim // heads
    return {
        **arguments,
        "head_dim": head_dim,
        "recurrent_dim": arguments["recurrent_dim"] or hidden_dim,
        "block_types": _check_block_types(arguments["block_types"]),
    }


def make_blocks(arguments, dtype):
    """The `ResidualBlock`s of complete arguments."""
    num_layers, types = arguments["num_layers"], arguments["block_types"]
    # Each of the 2 branches of every block adds to the residual stream; this
    # keeps its variance. Source: recurrentgemma `jax/modules.py`.
    initializer = fan_in_normal(2.0 / num_layers)
    blocks = []
    for i in range(num_layers):
        block_type = types[i % len(types)]
        if block_type == "recurrent":
            temporal = _recurrent(arguments, initializer, dtype)
        else:
            temporal = _attention(arguments, block_type, initializer, dtype)
        mlp = GatedMLP(
            arguments["intermediate_dim"],
            output_kernel_initializer=initializer,
            dtype=dtype,
            name="mlp",
        )
        blocks.append(
            ResidualBlock(
                temporal,
                mlp,
                layer_norm_epsilon=arguments["layer_norm_epsilon"],
                dropout=arguments["dropout"],
                dtype=dtype,
                name=f"block_{i}",
            )
        )
    return blocks


def _recurrent(arguments, initializer, dtype):
    return RecurrentBlock(
        arguments["recurrent_dim"],
        num_gate_blocks=arguments["num_gate_blocks"],
        conv_kernel_size=arguments["conv_kernel_size"],
        recurrence=arguments["recurrence"],
        decay_initializer=arguments["decay_initializer"],
        output_kernel_initializer=initializer,
        implementation=arguments["implementation"],
        dtype=dtype,
        name="recurrent_block",
    )


def _attention(arguments, block_type, initializer, dtype):
    is_local = block_type == "local_attention"
    return LocalMQA(
        arguments["num_query_heads"],
        arguments["head_dim"],
        window_size=arguments["attention_window_size"] if is_local else None,
        rope_max_wavelength=arguments["rope_max_wavelength"],
        rope_fraction=arguments["rope_fraction"],
        output_kernel_initializer=initializer,
        dtype=dtype,
        name="attention",
    )


def _check_block_types(block_types):
    block_types = tuple(block_types)
    unknown = [name for name in block_types if name not in BLOCK_TYPES]
    if unknown or not block_types:
        raise ValueError(
            f"`block_types` must name at least one of {BLOCK_TYPES}. "
            f"Received: {block_types}. Griffin is ('recurrent', 'recurrent', "
            "'local_attention'), Hawk ('recurrent',)."
        )
    return block_types
