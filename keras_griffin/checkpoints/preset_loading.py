"""Finds out what a preset's name, folder or handle stands for, and loads it."""

import json
import os
from dataclasses import dataclass

import h5py

from keras_griffin.checkpoints import deepmind_archive
from keras_griffin.checkpoints import huggingface_config
from keras_griffin.checkpoints import huggingface_weights
from keras_griffin.checkpoints import preset_download
from keras_griffin.checkpoints import weight_map
from keras_griffin.checkpoints.preset_index import preset_entry
from keras_griffin.checkpoints.preset_index import shipped_preset_path
from keras_griffin.checkpoints.tokenizer_files import TOKENIZER_FILE

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.weights.h5"
SHARDED_WEIGHTS_FILE = "model.weights.json"
# Parts of a Kaggle handle, with and without the version.
KAGGLE_PARTS = (4, 5)


@dataclass(frozen=True)
class PresetSource:
    """Where a preset comes from.

    Attributes:
        kind: `"keras"`: a folder or handle that KerasHub reads.
            `"huggingface"`: a folder in Hugging Face's format.
            `"deepmind"`: an archive of DeepMind's, Flax or PyTorch.
            `"architecture"`: sizes alone, without weights.
        path: the folder or handle; for an architecture the preset's name.
    """

    kind: str
    path: str


def find_preset(preset, load_weights=True):
    """Returns the `PresetSource` of a preset.

    Args:
        preset: str. A name of `keras-griffin presets`, a folder (KerasHub's,
            Hugging Face's or DeepMind's format), a .pt file, or a handle
            (`"hf://..."`, `"kaggle://..."`).
        load_weights: bool. Whether weights are wanted: without them a named
            preset is built from its sizes and not downloaded. Defaults to
            `True`.

    Raises:
        ValueError: for an unknown name, a folder without a readable
            configuration or weights, or weights that do not exist.
        PermissionError, ConnectionError, FileNotFoundError: for what cannot be
            downloaded. See `preset_download.explained`.
    """
    if not isinstance(preset, (str, os.PathLike)):
        raise ValueError(
            "A preset must be a name, a folder or a handle. Received: "
            f"{preset!r}. `keras-griffin presets` lists the names."
        )
    preset = os.fspath(preset)
    if preset.startswith(preset_download.HF_PREFIX):
        return _find_on_hub(preset, load_weights)
    if preset.startswith(preset_download.KAGGLE_PREFIX):
        return _find_on_kaggle(preset, load_weights)
    if "://" in preset:
        return PresetSource("keras", preset)
    if os.path.isdir(preset):
        return _find_in_folder(preset, load_weights)
    if os.path.isfile(preset) and deepmind_archive.find(preset):
        return PresetSource("deepmind", preset)
    if os.sep in preset or preset.startswith("."):
        raise ValueError(
            "A preset's folder must exist. Received: "
            f"{preset!r}, which is none. Check the path; names without a "
            "slash are looked up among the built-in presets."
        )
    return _find_by_name(preset, load_weights)


def build_backbone(cls, source, load_weights, overrides):
    """Builds and loads the backbone of a source that is not KerasHub's.

    With weights, its variables stay empty until their tensor is read, so that
    the model is never in memory twice.

    Args:
        cls: `GriffinBackbone`.
        source: `PresetSource`.
        load_weights: bool.
        overrides: dict. Arguments that replace those of the source.

    Raises:
        ValueError: for damaged or unfitting files. Nothing is returned then.
    """
    arguments = {**_arguments(source), **overrides}
    if not load_weights:
        return cls(**arguments)
    backbone = weight_map.build_empty(lambda: cls(**arguments))
    if source.kind == "huggingface":
        huggingface_weights.load_weights(backbone, source.path)
    else:
        archive = deepmind_archive.find(source.path)
        deepmind_archive.load_weights(backbone, archive)
    weight_map.fill_rest(backbone)
    return backbone


def tokenizer_path(source):
    """Returns the SentencePiece file of a source that is not KerasHub's.

    Args:
        source: `PresetSource`.

    Raises:
        ValueError: if there is none.
    """
    if source.kind == "architecture":
        return _tokenizer_of_name(source.path)
    if source.kind == "deepmind":
        path = deepmind_archive.find(source.path).tokenizer
        if path is not None:
            return os.fspath(path)
    else:
        path = os.path.join(source.path, TOKENIZER_FILE)
        if os.path.isfile(path):
            return path
    raise ValueError(
        f"A checkpoint must come with {TOKENIZER_FILE} for text to "
        f"be tokenized. Received: {source.path!r} without it. Copy the file "
        "from the original checkpoint, or load the model with "
        "`preprocessor=None`."
    )


def has_tokenizer(source):
    """True if a source on disk comes with a tokenizer."""
    if source.kind == "keras":
        return True  # KerasHub knows: the task's own file says so
    try:
        tokenizer_path(source)
    except ValueError:
        return False
    return True


def stored_dtype(source):
    """Returns the name of the dtype that loses nothing of a source's weights.

    Args:
        source: `PresetSource` with weights.

    Raises:
        ValueError: if the weights are quantized.
    """
    if source.kind == "huggingface":
        dtypes = huggingface_weights.stored_dtypes(source.path)
    elif source.kind == "deepmind":
        archive = deepmind_archive.find(source.path)
        dtypes = deepmind_archive.stored_dtypes(archive)
    else:
        dtype = _read_config(_keras_config_path(source.path))
        dtype = dtype["config"]["dtype"]["config"]
        # A policy that casts for its computations has a name of its own.
        name = dtype.get("name", "")
        dtypes = {"float32" if name.startswith("mixed_") else name}
    if len(dtypes) > 1:
        return "float32"  # bfloat16 and float16 both fit
    (dtype,) = dtypes
    if not dtype.startswith(("float", "bfloat")):
        raise ValueError(
            "The weights must be floats. Received: "
            f"{source.path!r}, a quantized model. Take the model that was "
            "quantized."
        )
    return dtype


def _keras_config_path(path):
    if path.startswith(preset_download.HF_PREFIX):
        return preset_download.hf_file(path, CONFIG_FILE)
    if path.startswith(preset_download.KAGGLE_PREFIX):
        path = preset_download.kaggle_folder(path)
    return os.path.join(path, CONFIG_FILE)


def _arguments(source):
    """`GriffinBackbone` arguments of a source that is not KerasHub's."""
    if source.kind == "architecture":
        return preset_entry(source.path)["backbone"]
    if source.kind == "deepmind":
        archive = deepmind_archive.find(source.path)
        return deepmind_archive.backbone_config(archive)
    config = huggingface_config.read_config(source.path)
    return huggingface_config.backbone_config(config)


def _find_by_name(name, load_weights):
    entry = preset_entry(name)
    shipped = shipped_preset_path(name)
    if shipped is not None:
        return PresetSource("keras", os.fspath(shipped))
    if not load_weights:
        return PresetSource("architecture", name)
    if entry["weights"] is None:
        raise ValueError(
            f"The weights of a preset must exist to be loaded. Received: "
            f"{name!r}, an architecture of the paper whose weights were never "
            "released. Build it by `from_preset(..., load_weights=False)` and "
            "train it with `fit`, or choose another of `keras-griffin "
            "presets`."
        )
    return find_preset(entry["weights"]["hf"])


def _tokenizer_of_name(name):
    weights = preset_entry(name)["weights"]
    if weights is None:
        raise ValueError(
            "A preset must have been trained to have a tokenizer. Received: "
            f"{name!r}, an architecture of the paper without weights. Take "
            "the tokenizer of another preset, or train one with the "
            "`sentencepiece` package."
        )
    path = preset_download.hf_file(weights["hf"], TOKENIZER_FILE)
    if path is None:
        raise ValueError(
            f"A repository must hold {TOKENIZER_FILE}. Received: "
            f"{weights['hf']}, without it. Take it from the Kaggle archive, "
            f"{weights['kaggle']}."
        )
    return path


def _find_on_hub(handle, load_weights):
    config_path = preset_download.hf_file(handle, CONFIG_FILE)
    if config_path is None:  # DeepMind's Flax repositories have none
        folder = preset_download.hf_folder(handle)
        return _find_in_folder(folder, load_weights)
    if _read_config(config_path).get("model_type") is None:
        return PresetSource("keras", handle)
    patterns = preset_download.HF_CONFIG_FILES
    if load_weights:
        patterns += preset_download.HF_WEIGHT_FILES
    return PresetSource(
        "huggingface", preset_download.hf_folder(handle, patterns)
    )


def _find_on_kaggle(handle, load_weights):
    parts = handle.removeprefix(preset_download.KAGGLE_PREFIX).split("/")
    if len(parts) not in KAGGLE_PARTS:
        raise ValueError(
            "A Kaggle handle must be kaggle://owner/model/framework/variation, "
            f"with or without /version. Received: {handle!r}. Correct it."
        )
    if parts[2].lower() == "keras":
        return PresetSource("keras", handle)
    folder = preset_download.kaggle_folder(handle)
    return _find_in_folder(folder, load_weights)


def _find_in_folder(folder, load_weights):
    config_path = os.path.join(folder, CONFIG_FILE)
    if not os.path.exists(config_path):
        if deepmind_archive.find(folder):
            return PresetSource("deepmind", folder)
        raise ValueError(
            f"A preset's folder must hold {CONFIG_FILE}, or a checkpoint of "
            f"DeepMind's. Received: {folder!r} "
            f"with {sorted(os.listdir(folder))[:8]}. Is it the folder that "
            "`save_to_preset` or `save_pretrained` wrote, or that Kaggle's "
            "archive was unpacked into?"
        )
    if "model_type" in _read_config(config_path):
        return PresetSource("huggingface", folder)
    if load_weights:
        _check_keras_weights(folder)
    return PresetSource("keras", folder)


def _read_config(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise ValueError(
            f"{CONFIG_FILE} must be JSON. Received: {path!r}, which breaks off "
            f"or is damaged ({error}). Copy or download the folder again."
        ) from error


def _check_keras_weights(folder):
    path = os.path.join(folder, WEIGHTS_FILE)
    if os.path.exists(path):
        _check_hdf5(path)
        return
    index = os.path.join(folder, SHARDED_WEIGHTS_FILE)
    if not os.path.exists(index):
        raise ValueError(
            f"A preset's folder must hold its weights, {WEIGHTS_FILE} or "
            f"{SHARDED_WEIGHTS_FILE}. Received: {folder!r} with "
            f"{sorted(os.listdir(folder))[:8]}. Copy the missing file, or "
            "build without weights by `load_weights=False`."
        )
    shards = set()
    for names in _read_config(index)["weight_map"].values():
        shards |= {names} if isinstance(names, str) else set(names)
    missing = [
        name
        for name in sorted(shards)
        if not os.path.exists(os.path.join(folder, name))
    ]
    if missing:
        raise ValueError(
            f"Every shard named in {SHARDED_WEIGHTS_FILE} must be there. "
            f"Received: {folder!r}, without {', '.join(missing)}. Copy or "
            "download what is missing."
        )
    for name in shards:
        _check_hdf5(os.path.join(folder, name))


def _check_hdf5(path):
    try:
        h5py.File(path, "r").close()
    except OSError as error:
        raise ValueError(
            f"{os.path.basename(path)} must be a whole HDF5 file. Received: "
            f"{path!r} of {os.path.getsize(path)} bytes ({error}). Copy or "
            "download it again."
        ) from error
