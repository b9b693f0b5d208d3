"""Models as folders for other libraries, whole or not at all."""

import pathlib

from keras_griffin.checkpoints import deepmind_archive
from keras_griffin.checkpoints import huggingface_config
from keras_griffin.checkpoints import huggingface_weights
from keras_griffin.checkpoints import model_card
from keras_griffin.checkpoints import tokenizer_files
from keras_griffin.checkpoints.whole_folder import whole_folder
from keras_griffin.generation import chat_template


def save_preset(save, path, backbone, max_shard_size):
    """Runs KerasHub's `save_to_preset`, whole or not at all.

    Args:
        save: callable. KerasHub's method.
        path: str or path. The folder.
        backbone: `GriffinBackbone`, for the model card.
        max_shard_size: int, float or `None` [GB].
    """
    target = pathlib.Path(path)
    with whole_folder(target, replace=True) as folder:
        save(str(folder), max_shard_size=max_shard_size)
        if (target / model_card.FILE).exists():  # the user's, or an older one
            (folder / model_card.FILE).unlink(missing_ok=True)
        else:
            model_card.write(folder, backbone, "keras-hub")
        new = {file.name for file in folder.iterdir()}
    # KerasHub would rather read one old file than the new shards.
    for file in target.glob("model*.weights.*"):
        if file.name not in new:
            file.unlink()


def export_to_transformers(path, backbone, preprocessor, max_shard_size):
    """Writes config.json, safetensors, tokenizer and model card.

    Args:
        path: str or path. A new or empty folder.
        backbone: `GriffinBackbone`.
        preprocessor: `GriffinCausalLMPreprocessor` or `None`.
        max_shard_size: int or float. A weight file's largest size [GB].

    Raises:
        ValueError: if transformers cannot express the backbone, or the folder
            holds something.
    """
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


def export_to_deepmind(path, backbone, tokenizer, framework):
    """Writes an archive as DeepMind's on Kaggle, with a model card.

    Args:
        path: str or path. A new or empty folder.
        backbone: `GriffinBackbone`.
        tokenizer: `GriffinTokenizer` or `None`.
        framework: `"flax"` or `"torch"`.

    Raises:
        ValueError: if DeepMind's code cannot express the backbone, or the
            folder holds something.
    """
    with whole_folder(path) as folder:
        deepmind_archive.write(backbone, folder, framework)
        if tokenizer is not None:
            file = folder / deepmind_archive.TOKENIZER_FILE
            file.write_bytes(tokenizer.proto)
        model_card.write(folder, backbone, framework)
