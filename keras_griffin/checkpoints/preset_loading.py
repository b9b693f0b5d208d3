"""Finds out what a preset's name, folder or handle stands for, and loads it."""

import contextlib
import os
from dataclasses import dataclass

import keras

from keras_griffin import keras_compat
from keras_griffin.checkpoints import deepmind_archive
from keras_griffin.checkpoints import huggingface_config
from keras_griffin.checkpoints import huggingface_weights
from keras_griffin.checkpoints import keras_files
from keras_griffin.checkpoints import keras_weights
from keras_griffin.checkpoints import preset_download
from keras_griffin.checkpoints import preset_files
from keras_griffin.checkpoints import sizes
from keras_griffin.checkpoints import weight_map
from keras_griffin.checkpoints.preset_index import name_of
from keras_griffin.checkpoints.preset_index import near_presets
from keras_griffin.checkpoints.preset_index import preset_entry
from keras_griffin.checkpoints.preset_index import shipped_preset_path
from keras_griffin.checkpoints.tokenizer_files import TOKENIZER_FILE
from keras_griffin.files import inside
from keras_griffin.files.whole import finish
from keras_griffin.training import quantization

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.weights.h5"
SHARDED_WEIGHTS_FILE = "model.weights.json"
TASK_FILE, TASK_WEIGHTS_FILE = "task.json", "task.weights.h5"
# Of KerasHub, beside CONFIG_FILE; each may be missing.
OBJECT_FILES = (TASK_FILE, "preprocessor.json", "tokenizer.json")
VOCABULARY_FILE = "assets/tokenizer/vocabulary.spm"
OUR_BACKBONE = "keras_griffin>GriffinBackbone"
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
        preset: str. A name of `keras-griffin presets` or Hugging Face's
            name for it (`"google/recurrentgemma-2b"`), a folder (KerasHub's,
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
    name = name_of(preset) or preset
    if os.sep in name or name.startswith("."):
        raise ValueError(
            "A preset's folder must exist. Received: "
            f"{preset!r}, which is none. {near_presets(preset)}Check the "
            "path; `keras-griffin presets` lists all names."
        )
    return _find_by_name(name, load_weights)


def build_backbone(cls, source, load_weights, overrides):
    """Builds and loads the backbone of a source that KerasHub does not load.

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
    arguments = {**_arguments(source, load_weights), **overrides}
    if not load_weights:
        with keras_files.explained(source.path):
            return cls(**arguments)
    arguments["dtype"] = _layers_dtype(cls, arguments)
    with keras_files.explained(source.path):
        backbone = weight_map.build_empty(lambda: cls(**arguments))
    if source.kind == "huggingface":
        huggingface_weights.load_weights(backbone, source.path)
    elif source.kind == "keras":
        with loading(source):
            keras_weights.read(backbone, _keras_files(source.path))
    else:
        archive = deepmind_archive.find(source.path)
        deepmind_archive.load_weights(backbone, archive)
    weight_map.fill_rest(backbone)
    quantization.set_own_policies(backbone)
    return backbone


def _layers_dtype(cls, arguments):
    """The `dtype` of arguments; for "int8_from_..." a map of the layers."""
    dtype = arguments.get("dtype")
    policy = keras.dtype_policies.get(dtype)
    if policy.quantization_mode != "int8":
        return dtype
    source = policy.name.partition(quantization.SOURCE)[2]
    model = weight_map.build_empty(
        lambda: cls(**{**arguments, "dtype": source})
    )
    is_chosen = quantization.choose_layers(model, "int8", None)
    saved = {
        layer.path: {"policy": "int8"}
        for layer in keras_compat.all_layers(model)
        if is_chosen(layer)
    }
    return quantization.quantized_policy(source, saved)


def load_task(
    cls,
    keras_hub_load,
    preset,
    load_weights,
    dtype,
    arguments,
    preprocessor_arguments=None,
):
    """Builds a task of a preset of any kind.

    Args:
        cls: the task's class.
        keras_hub_load: callable. KerasHub's `from_preset` of the class.
        preset: str.
        load_weights: bool.
        dtype: dtype or policy of the backbone, or `None`.
        arguments: dict. Arguments of the constructor.
        preprocessor_arguments: callable, from a preset to arguments of the
            preprocessor where KerasHub does not load it. Defaults to `None`:
            none.

    Raises:
        ValueError: for what cannot be found or loaded. See `find_preset`.
    """
    source = find_preset(preset, load_weights)
    if source.kind == "keras":
        if "backbone" not in arguments and is_mapped(
            source, load_weights, dtype
        ):
            return _mapped_task(cls, keras_hub_load, source, dtype, arguments)
        with loading(source, load_weights):
            return keras_hub_load(
                source.path, load_weights, dtype=dtype, **arguments
            )
    if "backbone" not in arguments:
        arguments["backbone"] = cls.backbone_cls.from_preset(
            source.path, load_weights, dtype=dtype
        )
    if "preprocessor" not in arguments and source.kind != "architecture":
        more = preprocessor_arguments(preset) if preprocessor_arguments else {}
        arguments["preprocessor"] = cls.preprocessor_cls.from_preset(
            source.path, **more
        )
    return cls(**arguments)


def is_mapped(source, load_weights, dtype):
    """Whether weights are mapped from a folder, and not read by Keras.

    Those of a float model of ours are. Its matrices may become int8.

    Args:
        source: `PresetSource`.
        load_weights: bool.
        dtype: dtype or policy of the backbone, or `None`.
    """
    if source.kind != "keras" or not load_weights:
        return False
    policy = keras.dtype_policies.get(dtype)
    if (
        isinstance(policy, keras.dtype_policies.DTypePolicyMap)
        or policy.quantization_mode not in (None, "int8")
        or not os.path.isdir(source.path)
    ):
        return False
    config = _read_config(_keras_config_path(source.path))
    is_ours = config["registered_name"] == OUR_BACKBONE
    return is_ours and "quantization" not in config["config"]


def _mapped_task(cls, keras_hub_load, source, dtype, arguments):
    backbone = cls.backbone_cls.from_preset(source.path, dtype=dtype)
    with loading(source, weights=False):  # those were compared just now
        task = keras_hub_load(
            source.path, load_weights=False, backbone=backbone, **arguments
        )
        # A classifier's head, unless it is to have other classes.
        is_new = "num_classes" in arguments or not task.has_task_weights()
        if not is_new and inside.has_file(source.path, TASK_WEIGHTS_FILE):
            path = inside.file_inside(source.path, TASK_WEIGHTS_FILE)
            task.load_task_weights(path)
    return task


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
        if inside.has_file(source.path, TOKENIZER_FILE):
            path = inside.file_inside(
                source.path, TOKENIZER_FILE, inside.TOKENIZER_LIMIT
            )
            return os.fspath(path)
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
        config = _read_config(_keras_config_path(source.path))
        try:
            # A policy that casts for its computations has a name of its own.
            name = config["config"]["dtype"]["config"].get("name", "")
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{CONFIG_FILE} must tell the dtype. Received: "
                f"{source.path!r}, without it. Copy or download it again."
            ) from error
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


def _arguments(source, load_weights):
    """`GriffinBackbone` arguments of a source that is not KerasHub's."""
    if source.kind == "architecture":
        return preset_entry(source.path)["backbone"]
    if source.kind == "deepmind":
        archive = deepmind_archive.find(source.path)
        return deepmind_archive.backbone_config(archive)
    if source.kind == "keras":
        config = _read_config(_keras_config_path(source.path))["config"]
        return {**config, "dtype": keras.config.dtype_policy()}
    config = huggingface_config.read_config(source.path)
    arguments = huggingface_config.backbone_config(config)
    elements = None
    if load_weights:
        elements = huggingface_weights.stored_elements(source.path)
    sizes.check(arguments, elements, f"{CONFIG_FILE} of {source.path!r}")
    return arguments


def _read_config(path):
    return inside.read_json(*os.path.split(path))


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
    finish(folder)
    if not inside.has_file(folder, CONFIG_FILE):
        if deepmind_archive.find(folder):
            return PresetSource("deepmind", folder)
        raise ValueError(
            f"A preset's folder must hold {CONFIG_FILE}, or a checkpoint of "
            f"DeepMind's. Received: {folder!r} "
            f"with {sorted(os.listdir(folder))[:8]}. Is it the folder that "
            "`save_to_preset` or `save_pretrained` wrote, or that Kaggle's "
            "archive was unpacked into?"
        )
    config = inside.read_json(folder, CONFIG_FILE)
    if "model_type" in config:
        return PresetSource("huggingface", folder)
    _check_keras_folder(folder, config, load_weights)
    return PresetSource("keras", folder)


def _check_keras_folder(folder, config, load_weights):
    """Refuses what KerasHub would build or follow without looking."""
    if inside.has_file(folder, VOCABULARY_FILE):
        inside.file_inside(folder, VOCABULARY_FILE, inside.TOKENIZER_LIMIT)
    objects = {CONFIG_FILE: config}
    for name in OBJECT_FILES:
        if inside.has_file(folder, name):
            objects[name] = inside.read_json(folder, name)
    for name, content in objects.items():
        if not isinstance(content.get("registered_name"), str) or not (
            isinstance(content.get("config"), dict)
        ):
            raise ValueError(
                f"{name} must hold an object's `registered_name` and `config`. "
                f"Received: {folder!r}, in which it has {sorted(content)[:8]}. "
                "Copy or download the folder again."
            )
    elements = None
    if load_weights:
        elements = sum(map(sizes.hdf5_elements, _keras_files(folder)))
    backbones = {CONFIG_FILE: config}
    if TASK_FILE in objects:
        backbones[TASK_FILE] = objects[TASK_FILE]["config"].get("backbone")
    for name, content in backbones.items():
        # KerasHub says that a class is another one.
        if isinstance(content, dict) and (
            content.get("registered_name") == OUR_BACKBONE
        ):
            origin = f"{name} of {folder!r}"
            sizes.check(content.get("config"), elements, origin)


def _keras_files(folder):
    """The files with the weights of KerasHub's folder."""
    if inside.has_file(folder, WEIGHTS_FILE):
        return [inside.file_inside(folder, WEIGHTS_FILE)]
    if inside.has_file(folder, SHARDED_WEIGHTS_FILE):
        return inside.indexed_files(folder, SHARDED_WEIGHTS_FILE)
    raise ValueError(
        f"A preset's folder must hold its weights, {WEIGHTS_FILE} or "
        f"{SHARDED_WEIGHTS_FILE}. Received: {folder!r} with "
        f"{sorted(os.listdir(folder))[:8]}. Copy the missing file, or "
        "build without weights by `load_weights=False`."
    )


@contextlib.contextmanager
def loading(source, weights=True):
    """Around KerasHub's loading: its files fit together, or an error says so.

    Args:
        source: `PresetSource` of kind `"keras"`.
        weights: bool. Whether weights are loaded.

    Raises:
        ValueError: for files that were not saved together, or are damaged.
    """
    with contextlib.ExitStack() as stack:
        if os.path.isdir(source.path):
            stack.enter_context(preset_files.checked(source.path, weights))
        if "://" in source.path:
            reading = preset_download.read_by_tensorflow(source.path)
            stack.enter_context(reading)
        stack.enter_context(keras_files.explained(source.path))
        if weights:
            stack.enter_context(weight_map.weights_follow())
        yield
