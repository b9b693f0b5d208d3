"""The presets by name: one JSON entry each in `presets/`. Needs no Keras."""

import collections
import json
from importlib import resources

from keras_griffin.near_names import near_names

_ENDING = ".json"


def _folder():
    return resources.files("keras_griffin.presets")


def preset_names():
    """The names of all presets, in alphabetical order.

    Returns:
        A list of strings.

    Example:

    ```python
    from keras_griffin.checkpoints.preset_index import preset_names
    "recurrent_gemma_2b_en" in preset_names()  # True
    ```
    """
    return sorted(
        file.name.removesuffix(_ENDING)
        for file in _folder().iterdir()
        if file.name.endswith(_ENDING)
    )


def preset_entry(name):
    """What is known about a preset before anything is built or downloaded.

    Args:
        name: string. One of `preset_names()`.

    Returns:
        A dict: "name", "description", "parameters" (their number, embeddings
        included), "source" (where the sizes come from), "weights" (`None`, or
        a dict of handles: "shipped" a folder of `presets/`, "hf", "kaggle"),
        "backbone" (the arguments of `GriffinBackbone`), and where they are
        not the defaults "preprocessor" (those of its preprocessor).

    Raises:
        ValueError: if no preset has this name.

    Example:

    ```python
    from keras_griffin.checkpoints.preset_index import preset_entry
    preset_entry("recurrent_gemma_2b_en")["parameters"]  # 2682862080
    ```
    """
    names = preset_names()
    if name not in names:
        raise ValueError(
            f"A preset's name must be one of the index. Received: {name!r}. "
            f"{near_presets(name)}`keras-griffin presets` lists all names."
        )
    text = _folder().joinpath(name + _ENDING).read_text(encoding="utf-8")
    return json.loads(text)


def preprocessor_arguments(preset):
    """What the preprocessor of a preset is made with, beside its tokenizer.

    Args:
        preset: string. A name, or anything else a preset can be, for which
            nothing is known here.

    Returns:
        A dict of arguments of `GriffinCausalLMPreprocessor`.
    """
    name = name_of(preset)
    return {} if name is None else preset_entry(name).get("preprocessor", {})


def name_of(preset):
    """The name of a preset that is called by it or as its hub calls it.

    Args:
        preset: string. `"recurrent_gemma_2b_en"`,
            `"google/recurrentgemma-2b"` or `"hf://google/recurrentgemma-2b"`.

    Returns:
        The name, or `None` for anything else that a preset can be.
    """
    for name in preset_names():
        handles = (preset_entry(name)["weights"] or {}).values()
        if preset == name or {preset, f"hf://{preset}"} & set(handles):
            return name
    return None


def near_presets(name):
    """A sentence with the presets that a mistyped name may have meant.

    Args:
        name: string. Also as a hub spells it, with its owner or without.

    Returns:
        `"Did you mean ...? "`, or `""`.
    """
    meant = {known: known for known in preset_names()}
    for known in preset_names():
        handle = (preset_entry(known)["weights"] or {}).get("hf", known)
        handle = handle.removeprefix("hf://")
        meant |= {handle: known, handle.rpartition("/")[2]: known}
    near = dict.fromkeys(meant[spelt] for spelt in near_names(name, meant))
    return f"Did you mean {', '.join(near)}? " if near else ""


def preset_summaries():
    """What KerasHub's classes have as `presets`, for the presets of all names.

    Returns:
        A dict of name to a dict: "metadata" ("description", "params": the
        number of parameters, "path", "source") and, where there are weights,
        their handles ("kaggle_handle", "hf_handle").

    Example:

    ```python
    presets = keras_griffin.GriffinBackbone.presets
    presets["recurrent_gemma_2b_en"]["metadata"]["params"]  # 2682862080
    ```
    """
    summaries = {}
    for name in preset_names():
        entry = preset_entry(name)
        summaries[name] = {
            "metadata": {
                "description": entry["description"],
                "params": entry["parameters"],
                "path": "griffin",
                "source": entry["source"],
            }
        }
        for hub in ("kaggle", "hf"):
            if hub in (entry["weights"] or {}):
                summaries[name][f"{hub}_handle"] = entry["weights"][hub]
    return summaries


def shipped_preset_path(name):
    """The folder of a preset whose weights came with the package.

    Args:
        name: string. One of `preset_names()`.

    Returns:
        A path, or `None` if the weights of this preset are elsewhere.

    Raises:
        ValueError: if no preset has this name.
    """
    shipped = (preset_entry(name)["weights"] or {}).get("shipped")
    return None if shipped is None else _folder().joinpath(shipped)


def parameter_count(backbone):
    """The exact number of parameters of a backbone, from its arguments.

        embedding + final norm + sum over blocks (2 norms + mixer + MLP)

    The output embedding is tied to the input's, so this is the number of the
    whole language model too.

    Args:
        backbone: dict. Arguments of `GriffinBackbone`, with all sizes given.

    Returns:
        An integer.

    Example:

    ```python
    from keras_griffin.checkpoints import preset_index
    entry = preset_index.preset_entry("recurrent_gemma_9b_en")
    preset_index.parameter_count(entry["backbone"])  # 8579977216
    ```
    """
    hidden = backbone["hidden_dim"]
    recurrent = backbone["recurrent_dim"]
    heads = backbone["num_query_heads"] * backbone["head_dim"]
    # A complex recurrence has half as many gates and decays, and a phase for
    # each decay.
    halves = 2 if backbone["recurrence"] == "complex" else 1
    gate = (recurrent // backbone["num_gate_blocks"] + 1) * recurrent // halves
    mixers = {
        "recurrent": 2 * _dense(hidden, recurrent)
        + (backbone["conv_kernel_size"] + 1) * recurrent
        + 2 * gate
        + recurrent  # one decay a channel, or a decay and a phase for two
        + _dense(recurrent, hidden),
        "attention": hidden * (heads + 2 * backbone["head_dim"])
        + _dense(heads, hidden),
    }
    mlp = 2 * _dense(hidden, backbone["intermediate_dim"]) + _dense(
        backbone["intermediate_dim"], hidden
    )
    blocks = sum(
        count * (2 * hidden + mixers[block_type.rpartition("_")[2]] + mlp)
        for block_type, count in block_counts(backbone).items()
    )
    return backbone["vocabulary_size"] * hidden + blocks + hidden


def block_counts(backbone):
    """The number of blocks of each type, the pattern repeated to `num_layers`.

    Args:
        backbone: dict. Arguments of `GriffinBackbone`.

    Returns:
        A `collections.Counter` of strings, in the order of the pattern.
    """
    pattern = tuple(backbone["block_types"])
    rounds, rest = divmod(backbone["num_layers"], len(pattern))
    counts = collections.Counter()
    for i, block_type in enumerate(pattern):
        counts[block_type] += rounds + (i < rest)
    return +counts  # without the types that are not there


def _dense(inputs, outputs):
    return inputs * outputs + outputs
