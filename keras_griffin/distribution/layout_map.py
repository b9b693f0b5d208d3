"""Which axis of a device mesh shards which dimension of which weight."""

from __future__ import annotations

import re
from typing import Any

import keras

from keras_griffin import keras_compat

BATCH = "batch"
MODEL = "model"
SEQUENCE = "sequence"
AXES = (BATCH, MODEL, SEQUENCE)

# Column-parallel layers split their outputs over "model", row-parallel ones
# their inputs; what lies between them stays on its device, channel by channel.
COLUMN = r"(linear_x|linear_y|query|gate|up)"
ROW = r"(linear_out|output_dense|down)"

# (pattern, axes, part of the paths of those layers that have such weights).
# Source: arXiv:2402.19427, section 4.1. One key/value head, which all query
# heads read, is on every device of "model".
LAYOUTS = (
    (r"token_embedding/embeddings", (MODEL, BATCH), ""),
    (rf"{COLUMN}/kernel", (BATCH, MODEL), ""),
    (rf"{COLUMN}/bias", (MODEL,), ""),
    (rf"{ROW}/kernel", (MODEL, BATCH), ""),
    (rf"{ROW}/bias", (None,), ""),
    (r"(key|value)/kernel", (BATCH, None), "attention/"),
    (r"conv/kernel", (None, MODEL), "recurrent_block/"),
    (r"conv/bias", (MODEL,), "recurrent_block/"),
    (r"(recurrence|input)_gate/kernel", (MODEL, None, None), "rglru/"),
    (r"(recurrence|input)_gate/bias", (MODEL, None), "rglru/"),
    (r"rglru/(recurrence|phase)_param", (MODEL,), "rglru/"),
    (r"(temporal|mlp|final)_norm/scale", (None,), ""),
    (r"logits/kernel", (None, None), "logits/"),
    (r"logits/bias", (None,), "logits/"),
    (r"token_embedding/lora_embeddings_a", (MODEL, None), "embeddings_a"),
    (r"token_embedding/lora_embeddings_b", (None, None), "embeddings_a"),
    (rf"{COLUMN}/lora_kernel_a", (None, None), f"{COLUMN}/lora"),
    (rf"{COLUMN}/lora_kernel_b", (None, MODEL), f"{COLUMN}/lora"),
    (rf"{ROW}/lora_kernel_a", (MODEL, None), f"{ROW}/lora"),
    (rf"{ROW}/lora_kernel_b", (None, None), f"{ROW}/lora"),
    (r"(key|value)/lora_kernel_[ab]", (None, None), "(key|value)/lora"),
)


def layout_map(device_mesh: Any, fully_sharded: bool = True) -> Any:
    """Makes the layout map of a Griffin for a mesh, by the mesh alone.

    | axis of the mesh | what it shards |
    |---|---|
    | `"batch"` | rows of the data and, fully sharded, the matrices (ZeRO) |
    | `"model"` | heads, channels, gate blocks, MLP width, vocabulary |
    | `"sequence"` | time; no weights |

    Under Keras' own `ModelParallel` this is all; `GriffinParallel` adds
    errors that name the weight, and the sequence axis.

    Args:
        device_mesh: a `keras.distribution.DeviceMesh` with an axis `"batch"`
            and, if wanted, `"model"` and `"sequence"`.
        fully_sharded: bool. Whether weights are spread over `"batch"` too,
            and with them gradients and the optimizer's variables. `False`
            keeps a copy on each device of that axis. Defaults to `True`.

    Returns:
        A `keras.distribution.LayoutMap`. Add the layouts of your own layers
        to it: `layout_map[".*/my_head/kernel"] = ("batch", "model")`.

    Raises:
        ValueError: for something else than a mesh, or for other axes.

    Example:
    ```python
    mesh = keras.distribution.DeviceMesh((1, 1), ("batch", "model"), ["cpu:0"])
    layouts = keras_griffin.distribution.layout_map(mesh)
    layouts["block_0/mlp/up/kernel"].axes  # ("batch", "model")
    ```

    Source:
        arXiv:2402.19427, section 4.1: Megatron's layout, ZeRO over the batch.
    """
    if not isinstance(device_mesh, keras.distribution.DeviceMesh):
        raise ValueError(
            "`device_mesh` must be a keras.distribution.DeviceMesh. Received: "
            f"{device_mesh!r}. Make one: DeviceMesh((2, 4), ('batch', 'model'))"
        )
    names = tuple(device_mesh.axis_names)
    if BATCH not in names or not set(names) <= set(AXES):
        raise ValueError(
            f"The axes of the mesh must be named {AXES}, 'batch' in any case. "
            f"Received: {names}. An axis may have size 1."
        )
    kept = set(names) - {SEQUENCE} - (set() if fully_sharded else {BATCH})
    layouts = keras.distribution.LayoutMap(device_mesh)
    for pattern, axes, _ in LAYOUTS:
        layouts[_prefixed(pattern)] = tuple(
            axis if axis in kept else None for axis in axes
        )
    return layouts


def check_layout_map(layout_map: Any, model: Any) -> None:
    """Raises unless a layout map says of every matrix of a model where it is.

    Keras keeps a full copy on every device of a weight that no pattern
    matches, without a word. `GriffinCausalLM.compile` calls this under a
    `GriffinParallel`.

    Args:
        layout_map: a `keras.distribution.LayoutMap`.
        model: a model or layer that is built.

    Raises:
        ValueError: for a weight of rank 2 or more that no pattern matches,
            for a pattern that matches no weight, for a dimension that its
            axis does not divide, and for query heads that `"model"` does not.

    Example:
    ```python
    mesh = keras.distribution.DeviceMesh((1, 1), ("batch", "model"), ["cpu:0"])
    layouts = keras_griffin.distribution.layout_map(mesh)
    model = keras_griffin.GriffinCausalLM.from_preset("griffin_shakespeare_en")
    keras_griffin.distribution.check_layout_map(layouts, model)
    ```
    """
    # A weight that is used twice has one path.
    shapes = {weight.path: tuple(weight.shape) for weight in model.weights}
    for path, shape in shapes.items():
        layout = layout_map[path]
        if layout is not None:
            check_divides(path, shape, layout)
        elif len(shape) > 1:
            layer, name = path.split("/")[-2:]
            one, all_ = (
                ("batch",) + (None,) * (len(shape) - 1),
                (None,) * len(shape),
            )
            raise ValueError(
                "Every weight of rank 2 or more needs a layout. Received: "
                f"{path!r} of shape {shape}, which no pattern matches. Add "
                f"layout_map['.*{layer}/{name}'] = {one}, or {all_} for a "
                "copy on every device."
            )
    needs = {_prefixed(pattern): part for pattern, _, part in LAYOUTS}
    for pattern in layout_map:
        # LAYOUTS is for all members of the family, with and without LoRA.
        part = needs.get(pattern, "")
        wanted = any(re.search(part, path) for path in shapes)
        if wanted and not any(re.fullmatch(pattern, path) for path in shapes):
            raise ValueError(
                "Every pattern of a layout map must match a weight. Received: "
                f"{pattern!r}, which matches none of {len(shapes)} weights. "
                f"Paths look like {next(iter(shapes))!r} and have to match "
                "from start to end."
            )
    model_size = axis_size(layout_map.device_mesh, MODEL)
    for layer in keras_compat.all_layers(model):
        heads = getattr(layer, "num_query_heads", model_size)
        if heads % model_size:
            raise ValueError(
                "The mesh's axis 'model' must divide the query heads. "
                f"Received: num_query_heads={heads} in {layer.name!r}, "
                f"'model' of size {model_size}. Take a divisor of {heads}, "
                "and the rest of the devices for 'batch'."
            )


def check_divides(path, shape, layout):
    """Raises unless the axes of a layout divide a weight's dimensions."""
    for dimension, axis in zip(shape, layout.axes, strict=False):
        size = 1 if axis is None else axis_size(layout.device_mesh, axis)
        if dimension % size:
            raise ValueError(
                "An axis of the mesh must divide the dimension that it "
                f"shards. Received: {path!r} of shape {shape} with layout "
                f"{layout.axes}, {axis!r} of size {size}, which does not "
                f"divide {dimension}. Take a mesh whose {axis!r} is a divisor "
                f"of {dimension}"
                + (
                    ", or fully_sharded=False."
                    if axis == BATCH
                    else " and the rest of the devices for 'batch'."
                )
            )


def axis_size(device_mesh, axis):
    """Devices along an axis of the mesh: 1 if it has no such axis."""
    sizes = dict(zip(device_mesh.axis_names, device_mesh.shape, strict=True))
    return sizes.get(axis, 1)


def _prefixed(pattern):
    # Weights of a model inside of another model have longer paths.
    return rf"(.*/)?{pattern}"
