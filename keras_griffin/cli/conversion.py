"""A checkpoint from one form into another, checked before it appears."""

import gc

import keras
import numpy as np

from keras_griffin.checkpoints.preset_loading import find_preset
from keras_griffin.checkpoints.preset_loading import has_tokenizer
from keras_griffin.checkpoints.preset_loading import stored_dtype
from keras_griffin.checkpoints.whole_folder import whole_folder
from keras_griffin.models.griffin_causal_lm import GriffinCausalLM

FORMS = ("keras", "transformers", "deepmind")
CHECKED_TOKENS = 32
STRIDE = 7919  # a prime: the tokens lie all over the vocabulary


def convert(source, target, to, framework="flax", dtype=None):
    """Loads a model, writes it in another form, and compares the two.

    Both must give the same logits, bit by bit, before `target` appears.

    Args:
        source: str. A preset: see `GriffinCausalLM.from_preset`.
        target: str or path. A new or empty folder.
        to: `"keras"`, `"transformers"` or `"deepmind"`.
        framework: `"flax"` or `"torch"`, for `"deepmind"`. Defaults to
            `"flax"`.
        dtype: str. The weights' dtype in `target`. Defaults to `None`: that of
            `source`.

    Returns:
        dict of `"parameters"`, `"dtype"` and `"tokenizer"`, whether the source
        has one.

    Raises:
        ValueError: as `from_preset` and the exports; and if the logits differ.
    """
    if to not in FORMS:
        raise ValueError(
            f"`to` must be one of {', '.join(FORMS)}. Received: {to!r}."
        )
    with whole_folder(target) as folder:
        found = find_preset(source)
        dtype = dtype or stored_dtype(found)
        options = {} if has_tokenizer(found) else {"preprocessor": None}
        model = GriffinCausalLM.from_preset(found.path, dtype=dtype, **options)
        report = {
            "parameters": model.count_params(),
            "dtype": dtype,
            "tokenizer": model.preprocessor is not None,
        }
        expected = _logits(model)
        if to == "keras":
            model.save_to_preset(folder)
        elif to == "transformers":
            model.export_to_transformers(folder)
        else:
            model.export_to_deepmind(folder, framework)
        # Two of them might not fit into memory.
        del model
        gc.collect()
        if not report["tokenizer"]:
            options = {"preprocessor": None}
        again = GriffinCausalLM.from_preset(folder, dtype=dtype, **options)
        _check_equal(_logits(again), expected, target)
    return report


def _logits(model):
    vocabulary = model.backbone.vocabulary_size
    token_ids = np.arange(1, CHECKED_TOKENS + 1)[None] * STRIDE % vocabulary
    logits = model(
        {
            "token_ids": token_ids.astype("int32"),
            "padding_mask": np.ones_like(token_ids, "int32"),
        }
    )
    return keras.ops.convert_to_numpy(logits)


def _check_equal(received, expected, target):
    if np.array_equal(received, expected):
        return
    raise ValueError(
        "A converted model must give the logits of its source. Received: "
        f"{target}, up to {np.abs(received - expected).max()} off. Nothing was "
        "written; please report it."
    )
