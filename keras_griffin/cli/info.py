"""`keras-griffin info`: sizes and memory of a model, nothing built."""

from pathlib import Path

from keras_griffin.checkpoints import preset_index
from keras_griffin.cli import common
from keras_griffin.files import inside

ITEM_BYTES = {"float32": 4, "bfloat16": 2}
# Weights, gradients and AdamW's two moments.
TRAINING_COPIES = 4

SUMMARY = "sizes and memory of a model"
DESCRIPTION = """\
Prints the configuration, the exact number of parameters and the memory that a
model needs. Nothing is built or downloaded.

  keras-griffin info griffin_7b
  keras-griffin info ./my_model        a folder of `save_to_preset`, or one in
                                       Hugging Face's or DeepMind's format"""


def add_arguments(parser):
    parser.add_argument(
        "preset",
        metavar="PRESET_OR_FOLDER",
        help="a name of `keras-griffin presets`, or a folder",
    )


def run(arguments):
    entry = common.index_entry(arguments.preset)
    if entry is None:
        backbone = folder_config(Path(arguments.preset))
        print(arguments.preset)
    else:
        backbone = entry["backbone"]
        print(f"{entry['name']}\n{entry['description']}")
        weights = " or ".join((entry["weights"] or {}).values()) or "none"
        print(f"Weights: {weights}\nSource: {entry['source']}")

    parameters = preset_index.parameter_count(backbone)
    embedding = backbone["vocabulary_size"] * backbone["hidden_dim"]
    print(
        f"\nParameters: {parameters:,} "
        f"({parameters - embedding:,} without the embedding)"
    )
    blocks = preset_index.block_counts(backbone)
    counts = ", ".join(f"{count} {name}" for name, count in blocks.items())
    print(f"Blocks: {backbone['num_layers']} ({counts})")
    _print_memory(backbone, parameters, blocks)
    print("\nConfiguration:")
    for name, value in backbone.items():
        if isinstance(value, list):
            value = ", ".join(value)
        print(f"  {name:21}  {value}")


def _print_memory(backbone, parameters, blocks):
    print(
        "\nMemory:" + " " * 25 + "".join(f"{dtype:>12}" for dtype in ITEM_BYTES)
    )
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
    for name, sizes in rows.items():
        print(f"  {name:30}" + "".join(f"{_bytes(n):>12}" for n in sizes))


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
