"""`keras-griffin convert`: a model in another form, with the same logits."""

import gc
from pathlib import Path

from keras_griffin.cli import common

FORMS = ("keras", "transformers", "deepmind")
FRAMEWORKS = ("flax", "torch")
CHECKED_TOKENS = 32
STRIDE = 7919  # a prime: the tokens lie all over the vocabulary

SUMMARY = "write a model in another library's format"
DESCRIPTION = """\
Writes a model in another form, for KerasHub, transformers or DeepMind's code.

  keras-griffin convert hf://google/recurrentgemma-2b ./rg --to keras
  keras-griffin convert ./my_griffin ./for_hf --to transformers
  keras-griffin convert ./my_griffin ./for_dm --to deepmind --framework torch

The source may have any form that can be loaded. The weights keep their dtype.
The target appears only when it was loaded again and gave the same logits; what
its form cannot express is refused."""


def add_arguments(parser):
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a name of `keras-griffin presets`, a folder, a .pt file, or an "
        "hf:// or kaggle:// address",
    )
    parser.add_argument(
        "target", metavar="TARGET", type=Path, help="a new or empty folder"
    )
    parser.add_argument(
        "--to", choices=FORMS, required=True, help="the form of the target"
    )
    parser.add_argument(
        "--framework",
        choices=FRAMEWORKS,
        default="flax",
        help="with --to deepmind: orbax's folder, or a .pt file "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=common.DTYPES,
        help="of the written weights (default: that of the source)",
    )
    common.add_backend_argument(parser)


def run(arguments):
    common.check_has_weights(arguments.source)
    with common.importing_keras(arguments.backend):
        from keras_griffin.models import griffin_causal_lm  # noqa: F401
    try:
        report = convert(
            arguments.source,
            arguments.target,
            arguments.to,
            arguments.framework,
            arguments.dtype,
        )
    except (ImportError, OSError, ValueError) as error:
        raise common.CommandError(f"{arguments.source}: {error}") from error
    tokenizer = "with" if report["tokenizer"] else "without"
    print(
        f"{arguments.target}: {report['parameters']:,} parameters in "
        f"{report['dtype']}, {tokenizer} tokenizer. Loaded again, it gives the "
        "same logits."
    )


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
    from keras_griffin.checkpoints import preset_loading
    from keras_griffin.files.whole import whole_folder
    from keras_griffin.models.griffin_causal_lm import GriffinCausalLM

    with whole_folder(target) as folder:
        found = preset_loading.find_preset(source)
        dtype = dtype or preset_loading.stored_dtype(found)
        has_tokenizer = preset_loading.has_tokenizer(found)
        options = {} if has_tokenizer else {"preprocessor": None}
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
    import keras
    import numpy as np

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
    difference = abs(received - expected).max()
    if difference == 0:
        return
    raise ValueError(
        "A converted model must give the logits of its source. Received: "
        f"{target}, up to {difference} off. Nothing was written; please "
        "report it."
    )
