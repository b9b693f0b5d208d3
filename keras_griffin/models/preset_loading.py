"""Finds out what a preset's name, folder or handle stands for."""

import json
import os
from dataclasses import dataclass

import h5py

from keras_griffin.converters import huggingface
from keras_griffin.models.preset_index import preset_entry
from keras_griffin.models.preset_index import shipped_preset_path

HF_PREFIX = "hf://"

# What a Hub repository in Hugging Face's format is read from.
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
HF_FILES = (
    "config.json",
    "*.safetensors*",
    "tokenizer.model",
    TOKENIZER_CONFIG_FILE,
)

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.weights.h5"
SHARDED_WEIGHTS_FILE = "model.weights.json"


@dataclass(frozen=True)
class PresetSource:
    """Where a preset comes from.

    Attributes:
        kind: `"keras"`: a folder or handle that KerasHub reads.
            `"huggingface"`: a folder in Hugging Face's format.
            `"architecture"`: sizes alone, without weights.
        path: the folder or handle; for an architecture the preset's name.
    """

    kind: str
    path: str


def find_preset(preset, load_weights=True):
    """Returns the `PresetSource` of a preset.

    Args:
        preset: str. A name of `keras-griffin presets`, a folder (KerasHub's
            format or Hugging Face's), or a handle (`"hf://..."`,
            `"kaggle://..."`).
        load_weights: bool. Whether weights are wanted: without them a named
            preset is built from its sizes, and nothing is downloaded.
            Defaults to `True`.

    Raises:
        ValueError: for an unknown name, a folder without a readable
            configuration or weights, or weights that do not exist.
    """
    if not isinstance(preset, (str, os.PathLike)):
        raise ValueError(
            "A preset must be a name, a folder or a handle. Received: "
            f"{preset!r}. `keras-griffin presets` lists the names."
        )
    preset = os.fspath(preset)
    if preset.startswith(HF_PREFIX):
        return _find_on_hub(preset)
    if "://" in preset:
        return PresetSource("keras", preset)
    if os.path.isdir(preset):
        return _find_in_folder(preset, load_weights)
    if os.sep in preset or preset.startswith("."):
        raise ValueError(
            "A preset's folder must exist. Received: "
            f"{preset!r}, which is none. Check the path; names without a "
            "slash are looked up among the built-in presets."
        )
    return _find_by_name(preset, load_weights)


def build_arguments(source):
    """`GriffinBackbone` arguments of a source that is not KerasHub's."""
    if source.kind == "architecture":
        return preset_entry(source.path)["backbone"]
    return huggingface.backbone_config(huggingface.read_config(source.path))


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


def _find_on_hub(handle):
    import huggingface_hub

    repository = handle.removeprefix(HF_PREFIX)
    config_path = huggingface_hub.hf_hub_download(repository, CONFIG_FILE)
    if _read_config(config_path).get("model_type") is None:
        return PresetSource("keras", handle)
    folder = huggingface_hub.snapshot_download(
        repository, allow_patterns=list(HF_FILES)
    )
    return PresetSource("huggingface", folder)


def _find_in_folder(folder, load_weights):
    config_path = os.path.join(folder, CONFIG_FILE)
    if not os.path.exists(config_path):
        raise ValueError(
            f"A preset's folder must hold {CONFIG_FILE}. Received: {folder!r} "
            f"with {sorted(os.listdir(folder))[:8]}. Is it the folder that "
            "`save_to_preset` or `save_pretrained` wrote?"
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
    if not os.path.exists(path):
        if os.path.exists(os.path.join(folder, SHARDED_WEIGHTS_FILE)):
            return
        raise ValueError(
            f"A preset's folder must hold its weights, {WEIGHTS_FILE} or "
            f"{SHARDED_WEIGHTS_FILE}. Received: {folder!r} with "
            f"{sorted(os.listdir(folder))[:8]}. Copy the missing file, or "
            "build without weights by `load_weights=False`."
        )
    try:
        h5py.File(path, "r").close()
    except OSError as error:
        raise ValueError(
            f"{WEIGHTS_FILE} must be a whole HDF5 file. Received: {path!r} of "
            f"{os.path.getsize(path)} bytes ({error}). Copy or download it "
            "again."
        ) from error
