"""Low-rank adapters (LoRA) of a backbone: where they go, files, merging."""

from __future__ import annotations

import os
from collections.abc import Sequence

import h5py
import keras
import keras_hub
from keras import ops

from keras_griffin import keras_compat

# Every matrix of the three kinds of branches: adapting all linear layers is
# what matches full fine-tuning. Source: QLoRA, arXiv:2305.14314, figure 2.
LORA_LAYER_NAMES = (
    "linear_x",
    "linear_y",
    "linear_out",
    "query",
    "key",
    "value",
    "output_dense",
    "gate",
    "up",
    "down",
)

# Keras trains an adapter on these kernels only.
LORA_QUANTIZATIONS = (None, "int8", "int4")


def weighted_layers(backbone):
    """The layers among which KerasHub's adapter files count."""
    layers = keras_compat.all_layers(backbone, include_self=False)
    return [layer for layer in layers if layer.weights]


def lora_layers(backbone):
    """The layers that have an adapter."""
    return [
        layer
        for layer in keras_compat.all_layers(backbone)
        if getattr(layer, "lora_enabled", False)
    ]


def check_targets(backbone, rank, names):
    """Raises unless adapters of `rank` can be put on the layers `names`."""
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(
            f"`rank` must be an integer of at least 1. Received: {rank!r}. 4 "
            "to 16 are usual."
        )
    if lora_layers(backbone):
        raise ValueError(
            "A backbone takes adapters once. Received: a backbone that has "
            "some. `merge_lora` puts them into the weights; then new ones can "
            "be enabled."
        )
    layers = weighted_layers(backbone)
    possible = {
        layer.name for layer in layers if type(layer) is keras.layers.Dense
    }
    unknown = [name for name in names if name not in possible]
    if unknown or not names:
        raise ValueError(
            "`target_layer_names` must name dense layers of this backbone: "
            f"{sorted(possible)}. Received: {list(names)}. The gates of the "
            "RG-LRU are block-diagonal and small, and the embedding is not in "
            "KerasHub's adapter files: set their `trainable` to True to train "
            "them whole."
        )
    for layer in layers:
        mode = layer.quantization_mode
        if layer.name in names and mode not in LORA_QUANTIZATIONS:
            raise ValueError(
                "Adapters go onto float, int8 and int4 kernels. Received: "
                f"{layer.path!r} quantized to {mode}. Enable them before "
                "quantizing to int8 or int4, or train without quantization."
            )


def check_saved_whole(backbone):
    """Raises for what a file of all weights can't hold: QLoRA's adapters.

    Keras would add them to the quantized kernels, round those anew, and read
    another model back.
    """
    for layer in lora_layers(backbone):
        if layer.quantization_mode is not None:
            raise ValueError(
                "Adapters on quantized weights are saved by themselves: to add "
                "them to the weights, those would have to be rounded once "
                f"more. Received: {layer.path!r} quantized to "
                f"{layer.quantization_mode}, with an adapter. Call "
                "`save_lora_weights`. To have the model back, load the base "
                "model, `quantize` it as before, or load what was saved after "
                "that, and call `load_lora_weights`."
            )


def freeze_biases(backbone):
    """Leaves the adapters as all that is trained.

    KerasHub's `enable_lora` would also train the biases of their layers,
    which its adapter files do not have.
    """
    for layer in lora_layers(backbone):
        if layer.bias is not None:
            layer.bias.trainable = False


def targets_of_file(backbone, path):
    """The rank and the layer names of an adapter file; checks that it fits.

    Args:
        backbone: a `GriffinBackbone`.
        path: str or path. A file of `save_lora_weights`.

    Returns:
        `(rank, names)`.
    """
    layers = weighted_layers(backbone)
    try:
        with h5py.File(path, "r") as file:
            rank = int(file["lora/vars/rank"][()])
            shapes = {
                int(index): [
                    group[f"vars/lora_kernel_{side}"].shape for side in "ab"
                ]
                for index, group in file["lora"].items()
                if index.isdigit()
            }
    except (
        AttributeError,
        KeyError,
        OSError,
        RuntimeError,
        TypeError,
    ) as error:
        raise ValueError(
            "An adapter file must be one that `save_lora_weights` wrote. "
            f"Received: {str(path)!r} ({error}). Check the path."
        ) from error
    for index, (a, b) in shapes.items():
        layer = layers[index] if index < len(layers) else None
        if type(layer) is not keras.layers.Dense or (
            a[0],
            b[1],
        ) != kernel_shape(layer):
            raise ValueError(
                "An adapter file must belong to a backbone of the same sizes. "
                f"Received: {str(path)!r} with an adapter of shape {a} x {b} "
                f"for layer {index}, here "
                f"{None if layer is None else layer.path!r}. Load the base "
                "model that it was trained on."
            )
    return rank, sorted({layers[index].name for index in shapes})


def kernel_shape(dense):
    """`(inputs, units)`, also of a packed kernel."""
    return (dense.input_spec.axes[-1], dense.units)


def merge(backbone):
    """Adds the adapters to the kernels in float32, and removes them."""
    layers = lora_layers(backbone)
    if not layers:
        raise ValueError(
            "There must be adapters to merge. Received: a backbone without "
            "any. Call `enable_lora` or `load_lora_weights` first."
        )
    for layer in layers:
        if layer.quantization_mode is not None:
            raise ValueError(
                "Adapters are merged into float kernels; a quantized kernel "
                f"would round them away. Received: {layer.path!r} quantized "
                f"to {layer.quantization_mode}. Save them by "
                "`save_lora_weights`, load the float model, then "
                "`load_lora_weights`, `merge_lora` and `quantize`."
            )
    for layer in layers:
        delta = ops.matmul(layer.lora_kernel_a, layer.lora_kernel_b)
        delta = delta * (layer.lora_alpha / layer.lora_rank)
        layer.lora_enabled = False
        kernel = layer.kernel  # without the adapter
        kernel.assign(
            ops.cast(ops.cast(kernel, "float32") + delta, kernel.dtype)
        )
        for name in ("lora_kernel_a", "lora_kernel_b"):
            keras_compat.remove_weight(layer, name)
        layer.lora_rank = layer.lora_alpha = None
    keras_compat.forget_adapters(backbone)
    # TensorFlow's trackables ignore what is assigned a second time, so that a
    # layer has to be frozen for its weights to be freed.
    for trainable in (False, True):
        for layer in keras_compat.all_layers(backbone):
            layer.trainable = trainable


def check_same_targets(backbone, names):
    """Raises unless the layers with adapters are those of a file."""
    enabled = sorted({layer.name for layer in lora_layers(backbone)})
    if enabled != names:
        raise ValueError(
            "Adapters must be loaded onto the layers that they are of. "
            f"Received: a file for {names}, and a backbone with adapters on "
            f"{enabled}. Load it into a backbone without adapters."
        )


# === Methods of the backbone, and of a task for its backbone ===


def default_lora_layer_names(self) -> list[str]:
    """Returns the names of all layers that can have an adapter."""
    present = {layer.name for layer in keras_compat.all_layers(self)}
    return [name for name in LORA_LAYER_NAMES if name in present]


def enable_lora(
    self, rank: int, target_layer_names: Sequence[str] | None = None
) -> None:
    """Freezes all weights and trains low-rank adapters beside matrices.

    `y = W x + B (A x) + b`, with `A` of `rank` rows, random, and `B` of
    `rank` columns, 0 at first, both float32 in every policy. Compile the
    model after it.

    `save_to_preset` and `.keras` files have the adapters added to float
    weights; on int8 and int4 weights they go into a file of their own.

    Args:
        rank: int. Rank of the adapters.
        target_layer_names: names of the layers that get one:
            `"linear_x"`, `"linear_y"`, `"linear_out"` of recurrent
            blocks, `"query"`, `"key"`, `"value"`, `"output_dense"` of
            attention, `"gate"`, `"up"`, `"down"` of the MLP. Defaults to
            `None`: all of them.

    Raises:
        ValueError: for a rank below 1, other names, layers quantized to
            float8, GPTQ or AWQ, and a backbone that has adapters.

    Example:
    ```python
    model = keras_griffin.GriffinCausalLM.from_preset(
        "griffin_shakespeare_en"
    )
    model.enable_lora(rank=4)
    model.compile(optimizer=keras.optimizers.Adam(1e-3))
    model.fit(["To be, or not to be"] * 4, batch_size=2)
    model.save_lora_weights("hamlet.lora.h5")
    model.merge_lora()
    ```

    Source:
        LoRA, arXiv:2106.09685.
    """
    backbone = getattr(self, "backbone", self)
    names = target_layer_names
    names = backbone.default_lora_layer_names() if names is None else names
    check_targets(backbone, rank, names)
    keras_hub.models.Backbone.enable_lora(backbone, rank, names)
    freeze_biases(backbone)


def merge_lora(self) -> None:
    """Adds the adapters to the weights and removes them.

    The outputs stay what they were, and the weights are those of a
    backbone without adapters, all of them trainable.

    Raises:
        ValueError: without adapters, and for quantized layers.
    """
    merge(getattr(self, "backbone", self))


# === Methods of a task alone ===


def save_lora_weights(self, filepath: str | os.PathLike[str]) -> None:
    """Saves the adapters alone, to a file that ends in `.lora.h5`."""
    self.backbone.save_lora_weights(filepath)


def load_lora_weights(self, filepath: str | os.PathLike[str]) -> None:
    """Loads adapters. See `GriffinBackbone.load_lora_weights`."""
    self.backbone.load_lora_weights(filepath)
