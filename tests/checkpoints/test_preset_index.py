import inspect
import json

import keras
import pytest

import keras_griffin
from keras_griffin.checkpoints import preset_index

TINY = {
    "vocabulary_size": 50,
    "num_layers": 4,
    "hidden_dim": 24,
    "intermediate_dim": 40,
    "num_query_heads": 3,
    "head_dim": 4,
    "recurrent_dim": 32,
    "block_types": ["recurrent", "local_attention", "global_attention"],
    "num_gate_blocks": 4,
    "conv_kernel_size": 3,
    "recurrence": "real",
}

# Griffin paper, table 2: width, width of the recurrence, blocks, heads.
PAPER_SIZES = {
    "100m": (768, 1024, 12, 6),
    "200m": (1024, 1536, 12, 8),
    "400m": (1536, 2048, 12, 12),
    "1b": (2048, 2560, 24, 16),
    "3b": (3072, 4096, 24, 24),
    "7b": (4096, 5632, 32, 32),
    "14b": (5120, 8192, 40, 40),
}
FAMILIES = {
    "griffin": ["recurrent", "recurrent", "local_attention"],
    "hawk": ["recurrent"],
    "mqa": ["global_attention"],
}
PAPER_NAMES = [
    f"{family}_{size}"
    for family in FAMILIES
    for size in PAPER_SIZES
    if family == "griffin" or size != "14b"  # a Griffin only
]
# Parameters with and without the embedding: arXiv:2404.07839, table 1, to the
# digit as DeepMind's own code counts them.
RECURRENT_GEMMA_SIZES = {
    "2b": (2_682_862_080, 2_027_502_080),
    "9b": (8_579_977_216, 7_531_401_216),
}
RECURRENT_GEMMA_NAMES = [
    f"recurrent_gemma_{kind}{size}_en"
    for kind in ("", "instruct_")
    for size in RECURRENT_GEMMA_SIZES
]
NAMES = preset_index.preset_names()


@pytest.mark.parametrize("recurrence", ["real", "complex"])
@pytest.mark.parametrize("block_types", [None, *FAMILIES.values()])
def test_parameter_count_is_that_of_a_model(recurrence, block_types):
    config = {**TINY, "recurrence": recurrence}
    if block_types is not None:
        config["block_types"] = block_types
    backbone = keras_griffin.GriffinBackbone(**config)
    assert preset_index.parameter_count(config) == backbone.count_params()
    assert preset_index.parameter_count(backbone.get_config()) == (
        backbone.count_params()
    )


@pytest.mark.backend_independent
def test_names():
    assert set(PAPER_NAMES) | set(RECURRENT_GEMMA_NAMES) <= set(NAMES)
    assert NAMES == sorted(NAMES)


@pytest.mark.backend_independent
@pytest.mark.parametrize("name", NAMES)
def test_entry(name):
    entry = preset_index.preset_entry(name)
    assert list(entry) == [
        "name",
        "description",
        "parameters",
        "source",
        "weights",
        "backbone",
        *(["preprocessor"] if "instruct" in name else []),
    ]
    assert entry["name"] == name
    assert entry["description"].endswith(".")
    assert entry["parameters"] == (
        preset_index.parameter_count(entry["backbone"])
    )
    assert set(entry["weights"] or {}) <= {"shipped", "hf", "kaggle"}


@pytest.mark.backend_independent
@pytest.mark.parametrize("name", NAMES)
def test_preprocessor_arguments(name):
    expected = {"turn_format": "gemma"} if "instruct" in name else {}
    assert preset_index.preprocessor_arguments(name) == expected
    assert preset_index.preprocessor_arguments(f"./{name}") == {}


@pytest.mark.backend_independent
@pytest.mark.parametrize("name", NAMES)
def test_backbone_is_fully_described(name):
    backbone = preset_index.preset_entry(name)["backbone"]
    parameters = inspect.signature(keras_griffin.GriffinBackbone).parameters
    # How and in what precision it is computed is the user's choice.
    expected = set(parameters) - {"implementation", "dtype", "kwargs"}
    assert set(backbone) == expected


@pytest.mark.backend_independent
@pytest.mark.parametrize("name", PAPER_NAMES)
def test_paper_preset(name):
    family, _, size = name.partition("_")
    entry = preset_index.preset_entry(name)
    backbone = entry["backbone"]
    hidden, recurrent, num_layers, heads = PAPER_SIZES[size]
    assert backbone["hidden_dim"] == hidden
    assert backbone["recurrent_dim"] == recurrent
    assert backbone["num_layers"] == num_layers
    assert backbone["num_query_heads"] == heads
    assert backbone["head_dim"] == 128 == hidden // heads
    assert backbone["intermediate_dim"] == 3 * hidden
    assert backbone["num_gate_blocks"] == 16
    assert backbone["attention_window_size"] == 1024
    assert backbone["block_types"] == FAMILIES[family]
    assert backbone["decay_initializer"] == "reference"
    assert not backbone["scale_embeddings"]
    assert backbone["final_logit_soft_cap"] is None
    assert entry["weights"] is None


@pytest.mark.backend_independent
@pytest.mark.parametrize("name", RECURRENT_GEMMA_NAMES)
def test_recurrent_gemma_preset(name):
    entry = preset_index.preset_entry(name)
    size = name.split("_")[-2]
    total, without_embedding = RECURRENT_GEMMA_SIZES[size]
    backbone = entry["backbone"]
    embedding = backbone["vocabulary_size"] * backbone["hidden_dim"]
    assert entry["parameters"] == total
    assert total - embedding == without_embedding
    assert backbone["recurrent_dim"] == backbone["hidden_dim"]
    assert backbone["num_gate_blocks"] == backbone["num_query_heads"]
    assert backbone["head_dim"] == 256
    assert backbone["attention_window_size"] == 2048
    assert backbone["scale_embeddings"]
    assert backbone["final_logit_soft_cap"] == 30.0
    instruct = "-it" if "instruct" in name else ""
    assert entry["weights"] == {
        "hf": f"hf://google/recurrentgemma-{size}{instruct}",
        "kaggle": f"kaggle://google/recurrentgemma/flax/{size}{instruct}",
    }


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "name, hint",
    [
        ("griffin_1", "Did you mean griffin_1b"),
        ("recurrent_gemma_2b", "recurrent_gemma_2b_en"),
        ("xyzzy", "'xyzzy'. `keras-griffin presets` lists all names."),
    ],
)
def test_unknown_name(name, hint):
    with pytest.raises(ValueError, match="must be one of the index") as raised:
        preset_index.preset_entry(name)
    assert hint in str(raised.value)
    with pytest.raises(ValueError, match="must be one of the index"):
        preset_index.shipped_preset_path(name)


@pytest.mark.backend_independent
@pytest.mark.parametrize("name", NAMES)
def test_shipped_folder(name):
    entry = preset_index.preset_entry(name)
    path = preset_index.shipped_preset_path(name)
    if "shipped" not in (entry["weights"] or {}):
        assert path is None
        return
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config = config["config"]
    assert {key: config[key] for key in entry["backbone"]} == entry["backbone"]
    assert (path / "model.weights.h5").is_file()
    assert (path / "assets" / "tokenizer" / "vocabulary.spm").is_file()


@pytest.mark.backend_independent
def test_every_folder_has_an_entry():
    shipped = {preset_index.shipped_preset_path(name) for name in NAMES}
    folders = [
        path for path in preset_index._folder().iterdir() if path.is_dir()
    ]
    for folder in folders:
        assert folder.name == "__pycache__" or folder in shipped


@pytest.mark.backend_independent
def test_block_counts_repeat_and_cut():
    config = {"num_layers": 5, "block_types": ["a", "b", "c"]}
    counts = preset_index.block_counts(config)
    assert list(counts.items()) == [("a", 2), ("b", 2), ("c", 1)]
    assert preset_index.block_counts({**config, "num_layers": 2}) == {
        "a": 1,
        "b": 1,
    }


@pytest.mark.backend_independent
def test_an_entry_builds():
    backbone = preset_index.preset_entry("griffin_100m")["backbone"]
    config = {**backbone, "num_layers": 3, "vocabulary_size": 32}
    model = keras_griffin.GriffinBackbone(**config)
    assert model.count_params() == preset_index.parameter_count(config)
    assert keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(model)
    ).block_types == tuple(backbone["block_types"])
