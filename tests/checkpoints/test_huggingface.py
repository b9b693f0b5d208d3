import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from keras_griffin.checkpoints import arrays
from keras_griffin.checkpoints import huggingface_config
from keras_griffin.checkpoints import huggingface_weights
from keras_griffin.checkpoints import weight_map
from keras_griffin.models.griffin_backbone import GriffinBackbone
from support.processes import xla_flags

# config.json of the 2B model as the Hub has it: old spelling.
HUB_2B = {
    "model_type": "recurrent_gemma",
    "_block_types": ["recurrent", "recurrent", "attention"],
    "attention_bias": False,
    "attention_window_size": 2048,
    "conv1d_width": 4,
    "embeddings_scale_by_sqrt_dim": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2560,
    "intermediate_size": 15360,
    "logits_soft_cap": 30.0,
    "lru_width": 2560,
    "num_attention_heads": 10,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000.0,
    "vocab_size": 256000,
}
# A small one in the spelling of transformers 5.
TINY = {
    "model_type": "recurrent_gemma",
    "block_types": ["recurrent", "attention"],
    "attention_window_size": 5,
    "hidden_size": 16,
    "intermediate_size": 48,
    "lru_width": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 100.0,
        "partial_rotary_factor": 1.0,
    },
    "vocab_size": 20,
}


def make_backbone(**arguments):
    config = huggingface_config.backbone_config(TINY)
    return GriffinBackbone(**{**config, **arguments})


def randomize(backbone, seed=0):
    rng = np.random.default_rng(seed)
    for variable in backbone.weights:
        variable.assign(rng.standard_normal(variable.shape))


def weights(backbone):
    return [keras.ops.convert_to_numpy(v.value) for v in backbone.weights]


@pytest.fixture
def tensors():
    backbone = make_backbone()
    randomize(backbone)
    return dict(huggingface_weights.export_tensors(backbone))


def write(folder, tensors, config=TINY):
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")


def write_shards(folder, tensors, count=3):
    names = list(tensors)
    index = {}
    for i in range(count):
        file = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        shard = {name: tensors[name] for name in names[i::count]}
        index.update(dict.fromkeys(shard, file))
        save_file(shard, folder / file)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "change, rule",
    [
        ({"hidden_size": "16"}, "`hidden_size` must be a positive integer"),
        ({"num_attention_heads": 0}, "`num_attention_heads` must be a posit"),
        ({"lru_width": 2.5}, "`lru_width` must be a positive integer"),
        ({"rms_norm_eps": None}, "`rms_norm_eps` must be a float"),
        ({"logits_soft_cap": float("nan")}, "`logits_soft_cap` must be a fl"),
        ({"attention_bias": "no"}, "`attention_bias` must be a bool"),
        ({"rope_parameters": [1]}, "`rope_parameters` must be a dict"),
        ({"rope_parameters": {"rope_theta": []}}, "`rope_theta` must be a num"),
        ({"block_types": [[]]}, "`block_types` must be among"),
        ({"keras_griffin": {}}, "must be one more than that of"),
    ],
)
def test_values_of_another_kind(change, rule):
    with pytest.raises(ValueError, match=f"{rule}.*Received"):
        huggingface_config.backbone_config({**TINY, **change})


@pytest.mark.backend_independent
def test_config_of_the_hub_2b():
    assert huggingface_config.backbone_config(HUB_2B) == {
        "vocabulary_size": 256000,
        "num_layers": 26,
        "hidden_dim": 2560,
        "intermediate_dim": 7680,
        "num_query_heads": 10,
        "head_dim": 256,
        "recurrent_dim": 2560,
        "block_types": ("recurrent", "recurrent", "local_attention"),
        "attention_window_size": 2048,
        "num_gate_blocks": 10,
        "conv_kernel_size": 4,
        "recurrence": "real",
        "scale_embeddings": True,
        "final_logit_soft_cap": 30.0,
        "rope_max_wavelength": 5000.0,
        "rope_fraction": 0.25,
        "layer_norm_epsilon": 1e-6,
        "decay_initializer": "reference",
    }


@pytest.mark.backend_independent
def test_config_in_the_new_spelling():
    config = huggingface_config.backbone_config(TINY)
    assert config["block_types"] == ("recurrent", "local_attention")
    assert config["rope_max_wavelength"] == 100.0
    assert config["rope_fraction"] == 1.0
    assert config["recurrent_dim"] == 24
    assert config["intermediate_dim"] == 24


@pytest.mark.backend_independent
def test_config_fills_in_what_transformers_assumes():
    config = huggingface_config.backbone_config(
        {"model_type": "recurrent_gemma", "num_key_value_heads": 1}
    )
    assert config["num_layers"] == 26
    assert config["intermediate_dim"] == 3840  # half of the default 7680
    assert config["recurrent_dim"] == 2560  # lru_width null
    assert config["rope_max_wavelength"] == 10_000.0
    assert config["rope_fraction"] == 0.5
    assert config["final_logit_soft_cap"] == 30.0


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "name, value, argument, expected",
    [
        ("logits_soft_cap", None, "final_logit_soft_cap", None),
        ("embeddings_scale_by_sqrt_dim", False, "scale_embeddings", False),
        ("lru_width", None, "recurrent_dim", 2560),
        ("conv1d_width", 3, "conv_kernel_size", 3),
        ("rms_norm_eps", 1e-5, "layer_norm_epsilon", 1e-5),
        ("attention_window_size", 7, "attention_window_size", 7),
        ("_block_types", ["recurrent"], "block_types", ("recurrent",)),
    ],
)
def test_each_field_reaches_its_argument(name, value, argument, expected):
    config = huggingface_config.backbone_config({**HUB_2B, name: value})
    assert config[argument] == expected


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "changes, match",
    [
        ({"model_type": "gemma"}, "`model_type` must be"),
        ({"model_type": None}, "`model_type` must be"),
        ({"num_key_value_heads": 10}, "`num_key_value_heads` must be 1"),
        ({"num_key_value_heads": None}, "`num_key_value_heads` must be 1"),
        ({"attention_bias": True}, "`attention_bias` must be false"),
        ({"hidden_activation": "silu"}, "`hidden_activation` must be"),
        ({"intermediate_size": 15}, "`intermediate_size` must be even"),
        ({"num_attention_heads": 3}, "must divide `hidden_size`"),
        ({"logits_soft_cap": 0}, "`logits_soft_cap` must be positive"),
        ({"_block_types": ["mamba"]}, "`block_types` must be among"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "`rope_type` must be"),
    ],
)
def test_config_refusals(changes, match):
    with pytest.raises(ValueError, match=match):
        huggingface_config.backbone_config({**HUB_2B, **changes})


@pytest.mark.backend_independent
def test_one_query_head_may_leave_key_value_heads_out():
    config = {**TINY, "num_attention_heads": 1}
    del config["num_key_value_heads"]
    assert huggingface_config.backbone_config(config)["head_dim"] == 16


@pytest.mark.backend_independent
def test_read_config(tmp_path):
    with pytest.raises(ValueError, match="must hold config.json"):
        huggingface_config.read_config(tmp_path)
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="config.json must be JSON"):
        huggingface_config.read_config(tmp_path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object"):
        huggingface_config.read_config(tmp_path)
    path.write_text(json.dumps(TINY))
    assert huggingface_config.read_config(tmp_path) == TINY


@pytest.mark.backend_independent
def test_the_table_covers_every_weight_once():
    backbone = make_backbone()
    table = weight_map.rows(huggingface_weights.HUGGINGFACE, backbone)
    found = [
        id(weight_map.find_variable(backbone, row.variable)) for row in table
    ]
    assert sorted(found) == sorted(id(v) for v in backbone.weights)
    assert len({row.tensor for row in table}) == len(table)


@pytest.mark.parametrize("shards", [False, True])
def test_round_trip_is_exact(tmp_path, tensors, shards):
    (write_shards if shards else write)(tmp_path, tensors)
    backbone = make_backbone()
    randomize(backbone, seed=1)
    huggingface_weights.load_weights(backbone, tmp_path)
    exported = dict(huggingface_weights.export_tensors(backbone))
    assert set(exported) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(exported[name], tensor)


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtypes(tmp_path, tensors, stored, dtype):
    stored = arrays.np_dtype(stored)
    write(tmp_path, {k: x.astype(stored) for k, x in tensors.items()})
    backbone = make_backbone(dtype=dtype)
    huggingface_weights.load_weights(backbone, tmp_path)
    for name, exported in huggingface_weights.export_tensors(backbone):
        # Some variables stay float32 whatever the policy.
        expected = tensors[name].astype(stored).astype(exported.dtype)
        np.testing.assert_array_equal(exported, expected)
    assert backbone.token_embedding.embeddings.dtype == dtype


def test_tied_output_embedding_is_ignored(tmp_path, tensors, monkeypatch):
    # Compared in several pieces.
    monkeypatch.setattr(huggingface_weights, "ROWS_COMPARED_AT_ONCE", 7)
    embedding = tensors["model.embed_tokens.weight"]
    write(tmp_path, {**tensors, "lm_head.weight": embedding})
    huggingface_weights.load_weights(make_backbone(), tmp_path)


@pytest.mark.parametrize("shape", [(20, 16), (21, 16)])
def test_separate_output_embedding(tmp_path, tensors, shape):
    output = np.zeros(shape, "float32")
    output[:20] = tensors["model.embed_tokens.weight"]
    output[19, 0] += 1
    write(tmp_path, {**tensors, "lm_head.weight": output})
    with pytest.raises(ValueError, match="lm_head.weight must equal"):
        huggingface_weights.load_weights(make_backbone(), tmp_path)


def check_refused(folder, error, match):
    """Loading is refused, and before anything is assigned."""
    backbone = make_backbone()
    before = weights(backbone)
    with pytest.raises(error, match=match):
        huggingface_weights.load_weights(backbone, folder)
    for old, new in zip(before, weights(backbone), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.backend_independent
def test_missing_tensor(tmp_path, tensors):
    del tensors["model.layers.1.temporal_block.q_proj.weight"]
    write(tmp_path, tensors)
    check_refused(tmp_path, ValueError, "without model.layers.1.*q_proj")


@pytest.mark.backend_independent
def test_missing_embedding(tmp_path, tensors):
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    write(tmp_path, tensors)
    check_refused(tmp_path, ValueError, "without model.embed_tokens.weight")


@pytest.mark.backend_independent
def test_unknown_tensor(tmp_path, tensors):
    tensors["model.layers.2.temporal_pre_norm.weight"] = np.zeros(16, "f4")
    write(tmp_path, tensors)
    check_refused(tmp_path, ValueError, "with model.layers.2.* besides")


@pytest.mark.backend_independent
def test_wrong_shape(tmp_path, tensors):
    name = "model.layers.0.temporal_block.conv_1d.weight"
    tensors[name] = np.zeros((24, 1, 5), "f4")
    write(tmp_path, tensors)
    match = r"conv_1d.weight \(24, 1, 5\) instead of \(24, 1, 4\)"
    check_refused(tmp_path, ValueError, match)


@pytest.mark.backend_independent
def test_integer_weights(tmp_path, tensors):
    tensors["model.final_norm.weight"] = np.zeros(16, "int8")
    write(tmp_path, tensors)
    check_refused(tmp_path, ValueError, "final_norm.weight as I8")


@pytest.mark.backend_independent
def test_nan(tmp_path, tensors):
    tensors["model.final_norm.weight"][3] = np.nan
    write(tmp_path, tensors)
    with pytest.raises(ValueError, match="final_norm.weight with 1 of 16"):
        huggingface_weights.load_weights(make_backbone(), tmp_path)


@pytest.mark.backend_independent
@pytest.mark.parametrize("left", [4, 50, -4])
def test_truncated_file(tmp_path, tensors, left):
    write(tmp_path, tensors)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    check_refused(tmp_path, ValueError, "complete and undamaged")


@pytest.mark.backend_independent
def test_no_weights(tmp_path):
    check_refused(tmp_path, ValueError, "without either")


@pytest.mark.backend_independent
def test_missing_shard(tmp_path, tensors):
    write_shards(tmp_path, tensors)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    match = "without model-00002-of-00003.safetensors"
    check_refused(tmp_path, ValueError, match)


@pytest.mark.backend_independent
def test_damaged_index(tmp_path, tensors):
    write_shards(tmp_path, tensors)
    path = tmp_path / "model.safetensors.index.json"
    path.write_text('{"weight_map": ')
    check_refused(tmp_path, ValueError, "index.json must be JSON")
    path.write_text('{"metadata": {}}')
    check_refused(tmp_path, ValueError, "under `weight_map`")


@pytest.mark.backend_independent
def test_tensor_in_two_shards(tmp_path, tensors):
    write_shards(tmp_path, tensors)
    first = tmp_path / "model-00001-of-00003.safetensors"
    second = tmp_path / "model-00002-of-00003.safetensors"
    second.write_bytes(first.read_bytes())
    check_refused(tmp_path, ValueError, "in one shard only")


@pytest.mark.backend_independent
def test_without_safetensors(tmp_path, tensors, monkeypatch):
    write(tmp_path, tensors)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    check_refused(tmp_path, ImportError, r"keras-griffin\[convert\]")


@pytest.mark.backend_independent
def test_complex_recurrence_cannot_be_exported():
    backbone = make_backbone(recurrence="complex")
    with pytest.raises(ValueError, match='can only hold `recurrence="real"`'):
        huggingface_weights.export_tensors(backbone)


SHARDED = """
import sys, json, math, jax, keras, numpy as np
import keras_griffin
from keras_griffin.checkpoints import huggingface_weights
from keras_griffin.checkpoints import safetensors_folder

folder = sys.argv[1]
mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"))
layout_map = keras.distribution.LayoutMap(mesh)
layout_map[".*embeddings"] = ("model", None)
layout_map[".*(linear_x|gate|up).*kernel"] = (None, "model")
keras.distribution.set_distribution(
    keras.distribution.ModelParallel(layout_map=layout_map)
)

def held():
    # Bytes on each device; nothing else is alive on them.
    sizes = dict.fromkeys(jax.devices(), 0)
    for array in jax.live_arrays():
        shape = array.sharding.shard_shape(array.shape)
        for device in array.sharding.device_set:
            sizes[device] += math.prod(shape) * array.itemsize
    return sizes

before = held()
peaks, read = [], safetensors_folder.read

def watched_read(tensors, name):
    peaks.append(held())
    return read(tensors, name)

safetensors_folder.read = watched_read
put = jax.device_put

def watched_put(x, layout):
    # Whole tensors come from the host and are cut on the way.
    assert isinstance(x, np.ndarray), type(x)
    return put(x, layout)

jax.device_put = watched_put
backbone = keras_griffin.GriffinBackbone.from_preset(folder)
jax.device_put = put
peaks.append(held())
after = peaks[-1]
for variable in (
    backbone.token_embedding.embeddings,
    backbone.blocks[0].temporal.linear_x.kernel,
    backbone.final_norm.scale,
):
    layout = keras.distribution.distribution().get_variable_layout(variable)
    assert variable.value.sharding.is_equivalent_to(
        layout.backend_layout, variable.ndim
    )
    print(json.dumps(variable.value.addressable_shards[0].data.shape))
share = max(after[d] - before[d] for d in after)
peak = max(held[d] - before[d] for held in peaks for d in held)
largest = max(v.value.nbytes for v in backbone.weights)
total = sum(v.value.nbytes for v in backbone.weights)
print(json.dumps([share, peak, largest, total]))
exported = huggingface_weights.export_tensors(backbone)
np.savez(folder + "/out.npz", **dict(exported))
"""


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="only JAX has layouts"
)
def test_weights_go_straight_to_their_shards(tmp_path, tensors):
    write(tmp_path, tensors)
    result = subprocess.run(
        [sys.executable, "-c", SHARDED, str(tmp_path)],
        env={
            **os.environ,
            "XLA_FLAGS": xla_flags(8),
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
        timeout=600,  # a hang; it takes 10 s
        cwd=pathlib.Path(__file__).parents[2],
    )
    assert result.returncode == 0, result.stderr
    *shapes, sizes = [json.loads(x) for x in result.stdout.splitlines()]
    assert shapes == [[5, 16], [16, 6], [16]]
    share, peak, largest, total = sizes
    assert share < total
    assert peak <= share + largest
    exported = np.load(tmp_path / "out.npz")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(exported[name], tensor)
