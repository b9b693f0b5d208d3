"""Which layers of a model are quantized, and what of it KerasHub forgets."""

from __future__ import annotations

import collections
import concurrent.futures
import os
import re
from typing import Any

import keras
import numpy as np

from keras_griffin import keras_compat
from keras_griffin.layers.apply_dense import order_kernels
from keras_griffin.layers.reversible_embedding import ReversibleEmbedding
from keras_griffin.training.lora import lora_layers

# In the names of policies, as "int8_from_float32".
SOURCE = "_from_"

# The large matrices; everything else (convolution, gates and decay of the
# RG-LRU, norms) is small, sensitive, and stays as it is.
QUANTIZED_LAYERS = {
    "int8": (keras.layers.Dense, ReversibleEmbedding),
    "int4": (keras.layers.Dense, ReversibleEmbedding),
    "float8": (keras.layers.Dense,),
    "gptq": (keras.layers.Dense,),
    "awq": (keras.layers.Dense,),
}

# Numbers that are rounded to int8 together: in float32 they fit into a cache.
ROUNDED_AT_ONCE = 2**18
# Along which a scale of int8 weights holds, by the name of the weights.
INT8_AXES = {"kernel": 0, "embeddings": -1}


def quantize(
    self,
    mode: str | None = None,
    config: Any = None,
    filters: Any = None,
    **kwargs: Any,
) -> None:
    """Quantizes the dense layers and, to int8 and int4, the embedding.

    The convolutions, the gates and decays of the RG-LRUs and the norms
    stay as they are. It can't be undone.

    Args:
        mode: `"int8"` (weights and activations), `"int4"` (weights),
            `"float8"` (for training: the weights stay float beside their
            scales), `"gptq"` or `"awq"` (4 bits, from texts). Defaults to
            `None`: the mode of `config`.
        config: a `keras.quantizers.QuantizationConfig`; needed for GPTQ
            and AWQ, which take their texts from it.
        filters: a regular expression for layers' names, a list of them,
            or a function of a layer. Defaults to `None`: all.

    Raises:
        ValueError: for filters that match nothing, for float8, GPTQ and
            AWQ of a model with LoRA, and as `keras.Model.quantize`.

    Example:
    ```python
    model = keras_griffin.GriffinCausalLM.from_preset(
        "griffin_shakespeare_en"
    )
    model.quantize("int8")
    model.generate("ROMEO:", max_new_tokens=20)
    model.save_to_preset("./my_int8_griffin")
    ```
    """
    filters = choose_layers(self, mode, filters)
    keras.Model.quantize(self, mode, config=config, filters=filters, **kwargs)
    save_zero_points(self)
    order_kernels(self)


def choose_layers(model, mode, filters):
    """Returns a filter for `keras.Model.quantize`: the layers to quantize.

    Args:
        model: a built model.
        mode: `"int8"`, `"int4"`, `"float8"`, `"gptq"` or `"awq"`.
        filters: the user's: a regular expression, several, a function of a
            layer, or `None`.
    """
    if mode in ("float8", "gptq", "awq") and lora_layers(model):
        raise ValueError(
            "Adapters go with int8 and int4 kernels. Received: "
            f"mode={mode!r} for a model with LoRA. Call `merge_lora` first."
        )
    chosen = {
        id(layer)
        for layer in keras_compat.all_layers(model)
        if type(layer) in QUANTIZED_LAYERS[mode] and _matches(layer, filters)
    }
    if not chosen:
        raise ValueError(
            "`filters` must match at least one layer that can be quantized to "
            f"{mode}. Received: filters={filters!r}. A string is searched in "
            "the names of the layers: 'down', 'query' and so on."
        )
    return lambda layer: id(layer) in chosen


def _matches(layer, filters):
    if filters is None:
        return True
    if callable(filters):
        return filters(layer)
    patterns = [filters] if isinstance(filters, str) else filters
    return any(re.search(pattern, layer.name) for pattern in patterns)


def saved_quantization(backbone):
    """How each quantized layer is quantized, by path, for a configuration.

    KerasHub 0.32 saves the kernels' policies alone. It forgets them when a
    backbone is loaded by itself or in another dtype, and never saves how
    inputs are rounded, where Keras then takes a default: int4 logits and
    weight-only int8 would come back different.
    """
    return {
        layer.path: {
            "policy": _policy(layer).name.partition(SOURCE)[0],
            "inputs": keras.saving.serialize_keras_object(
                getattr(layer, "inputs_quantizer", None)
            ),
        }
        for layer in keras_compat.all_layers(backbone)
        if layer.quantization_mode is not None
    }


def quantized_policy(dtype, saved):
    """The policy of a backbone of which `saved_quantization` tells.

    Args:
        dtype: dtype or policy, in which what is not quantized computes.
        saved: dict of `saved_quantization`.
    """
    policy = keras.dtype_policies.get(dtype)
    if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        default, policies = policy.default_policy, policy
    else:
        default, policies = policy, collections.defaultdict(lambda: policy)
    quantized = {}
    for path, layer in saved.items():
        source = policies[path].name.rpartition(SOURCE)[2]
        quantized[path] = keras.dtype_policies.get(
            f"{layer['policy']}{SOURCE}{source}"
        )
    others = policies.keys() - quantized.keys()
    quantized.update({path: policies[path] for path in others})
    # By its name, which is how a configuration has it.
    return keras.dtype_policies.DTypePolicyMap(default.name, quantized)


def set_input_quantizers(backbone, saved):
    """Makes layers round their inputs as `saved_quantization` tells."""
    for layer in keras_compat.all_layers(backbone):
        if layer.path in saved and hasattr(layer, "inputs_quantizer"):
            layer.inputs_quantizer = keras.saving.deserialize_keras_object(
                saved[layer.path]["inputs"]
            )


def set_own_policies(backbone):
    """Gives the quantized layers their own policies, in place of the map."""
    for layer in keras_compat.all_layers(backbone):
        if layer.quantization_mode is not None:
            keras_compat.set_own_policy(layer)


def save_zero_points(backbone):
    """Has Keras write the zero points of GPTQ and AWQ kernels."""
    for layer in keras_compat.all_layers(backbone):
        if layer.quantization_mode in ("gptq", "awq"):
            keras_compat.save_zero_point(layer)


def _policy(layer):
    policy = layer.dtype_policy
    if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        return policy[layer.path]
    return policy


def rounded(value, name, numbers):
    """Rounds a matrix as `quantize("int8")` does; returns the scales.

    In NumPy, on all cores: a backend's operations would each write the whole
    matrix in float32.

    Args:
        value: NumPy array of two axes.
        name: str. `"kernel"` or `"embeddings"`.
        numbers: int8 NumPy array of the same shape, to be filled.
    """
    axis = INT8_AXES[name] % 2
    # Along the other axis, each row or column has a scale of its own.
    size = max(1, ROUNDED_AT_ONCE // value.shape[axis])
    scales = np.empty(value.shape[1 - axis], "float32")

    def fill(start):
        own = slice(start, start + size)
        part = (own, slice(None)) if axis else (slice(None), own)
        x = value[part].astype("float32")
        largest = np.abs(x).max(axis=axis, keepdims=True)
        # Keras' numbers, `keras.quantizers.abs_max_quantize` (3.15).
        scale = np.float32(127) / (largest + np.float32(keras.config.epsilon()))
        numbers[part] = np.rint(x * scale).clip(-127, 127)
        scales[own] = scale.squeeze(axis)

    starts = range(0, value.shape[1 - axis], size)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, starts))
    return scales


def check_dtype(dtype):
    """Raises for one quantized policy for all layers.

    A map from layers' paths to policies, as of a model that was quantized, is
    the form in which layers know their own.
    """
    policy = keras.dtype_policies.get(dtype)
    if policy.quantization_mode is not None:
        raise ValueError(
            "`dtype` must be a float policy, or a DTypePolicyMap whose default "
            f"is one. Received: {policy.name!r}, which quantizes all layers. "
            "Load the model in float, then call "
            f"`model.quantize({policy.quantization_mode!r})`."
        )
