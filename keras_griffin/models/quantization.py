"""Which layers of a model are quantized, and what of it KerasHub forgets."""

import re

import keras

from keras_griffin.models.adapters import lora_layers

# The large matrices; everything else (convolution, gates and decay of the
# RG-LRU, norms) is small, sensitive, and stays as it is.
QUANTIZED_LAYERS = {
    "int8": (keras.layers.Dense, keras.layers.ReversibleEmbedding),
    "int4": (keras.layers.Dense, keras.layers.ReversibleEmbedding),
    "float8": (keras.layers.Dense,),
    "gptq": (keras.layers.Dense,),
    "awq": (keras.layers.Dense,),
}


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
        for layer in model._flatten_layers()
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


def input_quantizers(backbone):
    """How each quantized layer rounds its inputs, by path, to be saved.

    KerasHub saves the kernels' policies alone, and Keras then takes its
    default quantizer: int4 logits and weight-only int8 came back different.
    """
    return {
        layer.path: keras.saving.serialize_keras_object(layer.inputs_quantizer)
        for layer in backbone._flatten_layers()
        if hasattr(layer, "inputs_quantizer")
    }


def set_input_quantizers(backbone, quantizers):
    """Puts back what `input_quantizers` gave."""
    for layer in backbone._flatten_layers():
        if layer.path in quantizers:
            layer.inputs_quantizer = keras.saving.deserialize_keras_object(
                quantizers[layer.path]
            )


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
