"""Models as folders for other libraries, whole or not at all."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import keras_hub

from keras_griffin.checkpoints import deepmind_archive
from keras_griffin.checkpoints import huggingface_config
from keras_griffin.checkpoints import huggingface_weights
from keras_griffin.checkpoints import keras_files
from keras_griffin.checkpoints import model_card
from keras_griffin.checkpoints import preset_files
from keras_griffin.checkpoints import tokenizer_files
from keras_griffin.files.whole import check_room
from keras_griffin.files.whole import is_partial
from keras_griffin.files.whole import whole_folder
from keras_griffin.generation import chat_template


def save_preset(save, path, model, max_shard_size):
    """Runs KerasHub's `save_to_preset`, whole or not at all.

    Args:
        save: callable. KerasHub's method.
        path: str or path. The folder.
        model: a task, `GriffinCausalLM` say, or a `GriffinBackbone`.
        max_shard_size: int, float or `None` [GB].

    Raises:
        OSError: if the disk is full.
    """
    if is_partial(path):  # of a task, which KerasHub saves by its parts
        save(str(path), max_shard_size=max_shard_size)
        return
    backbone, _ = _parts(model)
    of_backbone = backbone is model
    stale = preset_files.OF_BACKBONE if of_backbone else preset_files.OF_TASK
    target = pathlib.Path(path)
    check_room(target, keras_files.hdf5_bytes(backbone))
    with whole_folder(target, replace=True, stale=stale) as folder:
        save(str(folder), max_shard_size=max_shard_size)
        if (target / model_card.FILE).exists():  # the user's, or an older one
            (folder / model_card.FILE).unlink(missing_ok=True)
        else:
            model_card.write(folder, backbone, _form(model))
        preset_files.write_manifest(folder, target, stale)


def save_part_of_preset(save, path):
    """Runs `save_to_preset` of a tokenizer or preprocessor, in the same way.

    Args:
        save: callable. KerasHub's method.
        path: str or path. The folder; other files in it stay.
    """
    if is_partial(path):
        save(str(path))
        return
    with whole_folder(path, replace=True) as folder:
        save(str(folder))
        preset_files.write_manifest(folder, pathlib.Path(path))


def export_to_transformers(
    model: Any, path: str | os.PathLike[str], max_shard_size: float = 5
) -> None:
    """Writes a folder that transformers loads as RecurrentGemma.

    config.json, safetensors in the weights' own dtype and, with a
    preprocessor, the tokenizer. `from_preset` reads it back bit for bit.
    transformers counts a token itself into its window, so that config.json
    has `attention_window_size + 1`: then its logits are this model's.

    Args:
        model: a `GriffinCausalLM`, or a `GriffinBackbone` alone.
        path: str or path. A new or empty folder. It appears when all is
            written, or not at all.
        max_shard_size: int or float. A weight file's largest size.
            Defaults to `5` [GB].

    Raises:
        ImportError: if safetensors is not installed.
        ValueError: if transformers cannot express the model (the message
            says what), a weight is quantized, or the folder holds files.

    Example:
    ```python
    import transformers

    backbone = keras_griffin.GriffinBackbone(
        vocabulary_size=256,
        num_layers=3,
        hidden_dim=64,
        intermediate_dim=192,
        num_query_heads=4,
        num_gate_blocks=4,
        # What transformers' RecurrentGemma always has:
        scale_embeddings=True,
        final_logit_soft_cap=30.0,
    )
    model = keras_griffin.GriffinCausalLM(backbone)
    model.export_to_transformers("./my_recurrent_gemma")
    transformers.AutoModelForCausalLM.from_pretrained(
        "./my_recurrent_gemma"
    )
    ```
    """
    backbone, preprocessor = _parts(model)
    tokenizer = preprocessor and preprocessor.tokenizer
    config = huggingface_config.hf_config(backbone, tokenizer)
    with whole_folder(path) as folder:
        huggingface_config.write_config(config, folder)
        huggingface_weights.write_weights(backbone, folder, max_shard_size)
        if tokenizer is not None:
            _write_tokenizer(tokenizer, preprocessor.turn_format, folder)
        model_card.write(folder, backbone, "transformers")


def export_tokenizer(path, tokenizer, turn_format=None):
    """Writes what transformers reads a tokenizer from.

    Args:
        path: str or path. A folder; other files in it stay.
        tokenizer: `GriffinTokenizer`.
        turn_format: see `GriffinCausalLMPreprocessor`. Defaults to `None`.
    """
    with whole_folder(path, replace=True) as folder:
        _write_tokenizer(tokenizer, turn_format, folder)


def _write_tokenizer(tokenizer, turn_format, folder):
    template = chat_template.CHAT_TEMPLATES[turn_format]
    tokenizer_files.write(tokenizer.proto, folder, template)


def export_to_deepmind(
    model: Any, path: str | os.PathLike[str], framework: str = "flax"
) -> None:
    """Writes an archive as Google's on Kaggle, for DeepMind's own code.

    `model/` by orbax or `model.pt`, in the weights' own dtype, and with a
    preprocessor `tokenizer.model`. `keras_griffin.json` keeps what such an
    archive does not tell; the model card has DeepMind's `GriffinConfig`.
    Takes as much memory again as the weights.

    Args:
        model: a `GriffinCausalLM`, or a `GriffinBackbone` alone.
        path: str or path. A new or empty folder. It appears when all is
            written, or not at all.
        framework: `"flax"` or `"torch"`. Defaults to `"flax"`.

    Raises:
        ImportError: if orbax-checkpoint or torch is not installed.
        ValueError: if DeepMind's code cannot express the model (the
            message says what), a weight is quantized, or the folder holds
            files.

    Example:
    ```python
    model.export_to_deepmind("./my_archive", framework="torch")
    ```
    """
    backbone, preprocessor = _parts(model)
    with whole_folder(path) as folder:
        deepmind_archive.write(backbone, folder, framework)
        if preprocessor is not None:
            file = folder / deepmind_archive.TOKENIZER_FILE
            file.write_bytes(preprocessor.tokenizer.proto)
        model_card.write(folder, backbone, framework)


def _form(model):
    """What the model card of a KerasHub folder is to tell."""
    if isinstance(model, keras_hub.models.TextClassifier):
        return "classifier"
    if isinstance(model, keras_hub.models.TextEmbedder):
        return "embedder"
    return "keras-hub"


def _parts(model):
    """The backbone, and the preprocessor if there is one."""
    backbone = getattr(model, "backbone", model)
    return backbone, getattr(model, "preprocessor", None)
