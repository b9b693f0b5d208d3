"""`keras-griffin info`: sizes and memory of a model, nothing built."""

import json
import textwrap
from pathlib import Path

from keras_griffin.checkpoints import preset_index
from keras_griffin.cli import common
from keras_griffin.files import inside

ITEM_BYTES = {"float32": 4, "bfloat16": 2}
# Weights, gradients and AdamW's two moments.
TRAINING_COPIES = 4
COLUMNS = 80

SUMMARY = "show the size and memory of a model"
DESCRIPTION = """\
Prints the configuration, the exact number of parameters and the memory that a
model needs. Nothing is built, and of a hub's model its config.json alone is
downloaded.

  keras-griffin info griffin_7b
  keras-griffin info hf://google/recurrentgemma-2b
  keras-griffin info ./my_model        a folder of `save_to_preset`, or one in
                                       Hugging Face's or DeepMind's format"""


def add_arguments(parser):
    parser.add_argument(
        "preset",
        metavar="PRESET_OR_FOLDER",
        help="a name of `keras-griffin presets`, a folder, or an hf:// or "
        "kaggle:// address",
    )

    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(arguments):
    facts = _facts(arguments.preset)
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return
    print(facts["name"])
    if "description" in facts:
        weights = " or ".join((facts["weights"] or {}).values()) or "none"
        for line in (
            facts["description"],
            f"Weights: {weights}",
            f"Source: {facts['source']}",
        ):
            print(textwrap.fill(line, COLUMNS, break_on_hyphens=False))
    backbone, parameters = facts["backbone"], facts["parameters"]
    embedding = backbone["vocabulary_size"] * backbone["hidden_dim"]
    print(
        f"\nParameters: {parameters:,} "
        f"({parameters - embedding:,} without the embedding)"
    )
    counts = ", ".join(
        f"{count} {name}" for name, count in facts["blocks"].items()
    )
    print(f"Blocks: {backbone['num_layers']} ({counts})")
    print(
        "\nMemory:" + " " * 25 + "".join(f"{dtype:>12}" for dtype in ITEM_BYTES)
    )
    for name, sizes in facts["bytes"].items():
        numbers = "".join(f"{_bytes(n):>12}" for n in sizes.values())
        print(f"  {name:30}{numbers}")
    print("\nConfiguration:")
    for name, value in backbone.items():
        if isinstance(value, list):
            value = ", ".join(value)
        print(f"  {name:21}  {value}")


def _facts(preset):
    """All that is told of a model."""
    if "://" in preset:
        facts = {"name": preset, "backbone": folder_config(_download(preset))}
    else:
        entry = common.index_entry(preset)
        facts = dict(entry or {})
        if entry is None:
            facts = {"name": preset, "backbone": folder_config(Path(preset))}
    backbone = facts.pop("backbone")
    facts["parameters"] = preset_index.parameter_count(backbone)
    facts["blocks"] = preset_index.block_counts(backbone)
    facts["bytes"] = _memory(backbone, facts["parameters"], facts["blocks"])
    return {**facts, "backbone": backbone}


def _download(handle):
    """The folder with a hub's config.json, and nothing else of the model."""
    with common.importing_keras():
        from keras_griffin.checkpoints import preset_download
    try:
        file = preset_download.config_file(handle)
    except ConnectionError as error:
        raise common.Failure(str(error)) from error
    except (OSError, ValueError) as error:
        raise common.CommandError(str(error)) from error
    if file is None:
        raise common.CommandError(f"{handle} has no config.json.")
    return Path(file).parent


def _memory(backbone, parameters, blocks):
    """Bytes by what they are for and by dtype."""
    rows = {
        "weights": [parameters * size for size in ITEM_BYTES.values()],
        "training with AdamW, at least": [
            TRAINING_COPIES * parameters * size for size in ITEM_BYTES.values()
        ],
        "state of a sequence": [
            state_bytes(backbone, blocks, size) for size in ITEM_BYTES.values()
        ],
    }
    if blocks["global_attention"]:
        rows["and for each of its tokens"] = [
            blocks["global_attention"] * 2 * backbone["head_dim"] * size
            for size in ITEM_BYTES.values()
        ]
    return {
        name: dict(zip(ITEM_BYTES, sizes, strict=True))
        for name, sizes in rows.items()
    }


def state_bytes(backbone, blocks, size):
    """Bytes of a row's state, whatever its length: DESIGN of the state."""
    recurrent = backbone["recurrent_dim"]
    kept_inputs = (backbone["conv_kernel_size"] - 1) * recurrent
    ring = (backbone["attention_window_size"] + 1) * backbone["head_dim"]
    return (
        blocks["recurrent"] * (ITEM_BYTES["float32"] * recurrent)
        + blocks["recurrent"] * (size * kept_inputs)
        + blocks["local_attention"] * (size * 2 * ring)
    )


def _bytes(number):
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def folder_config(folder):
    """The arguments of `GriffinBackbone` that a folder's config.json gives."""
    file = folder / "config.json"
    if not inside.has_file(folder, file.name):
        return _archive_config(folder)
    try:
        config = inside.read_json(folder, file.name)
        if config.get("registered_name") == "keras_griffin>GriffinBackbone":
            return _keras_config(config, file)
        if config.get("model_type") == "recurrent_gemma":
            with common.importing_keras():
                from keras_griffin.checkpoints import huggingface_config
            return huggingface_config.backbone_config(config)
    except (OSError, ValueError) as error:
        raise common.CommandError(f"{file}: {error}") from error
    raise common.CommandError(
        f"{file} describes no model of this package. It must be a folder "
        "of `save_to_preset`, or have model_type recurrent_gemma."
    )


def _keras_config(config, file):
    from keras_griffin.checkpoints import sizes

    # What is left out says nothing about the architecture.
    return {
        name: value
        for name, value in sizes.check(config.get("config"), None, file).items()
        if name not in ("name", "trainable", "dtype")
    }


def _archive_config(folder):
    """The same for a folder without config.json: an archive of DeepMind's."""
    with common.importing_keras():
        from keras_griffin.checkpoints import deepmind_archive
    try:
        archive = deepmind_archive.find(folder)
        if archive is not None:
            return deepmind_archive.backbone_config(archive)
    except (ImportError, OSError, ValueError) as error:
        raise common.CommandError(f"{folder}: {error}") from error
    raise common.CommandError(
        f"There is no config.json in {folder}, and no checkpoint of DeepMind's."
    )
