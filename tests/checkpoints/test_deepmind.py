import types

import keras
import numpy as np
import pytest

from keras_griffin.checkpoints import deepmind
from keras_griffin.checkpoints import weight_map
from keras_griffin.models.griffin_backbone import GriffinBackbone

SETTINGS = {
    "vocabulary_size": 20,
    "num_layers": 3,
    "hidden_dim": 16,
    "intermediate_dim": 24,
    "num_query_heads": 2,
    "head_dim": 8,
    "recurrent_dim": 32,
    "block_types": ("recurrent", "recurrent", "local_attention"),
    "attention_window_size": 5,
    "num_gate_blocks": 2,
    "conv_kernel_size": 3,
    "recurrence": "real",
    "scale_embeddings": True,
    "final_logit_soft_cap": 30.0,
    "decay_initializer": "reference",
}


def make_backbone(seed=0, **changes):
    backbone = GriffinBackbone(**{**SETTINGS, **changes})
    rng = np.random.default_rng(seed)
    for variable in backbone.weights:
        variable.assign(rng.standard_normal(variable.shape))
    return backbone


def infer(params):
    return deepmind.backbone_config(
        params,
        attention_window_size=5,
        final_logit_soft_cap=30.0,
        scale_embeddings=True,
    )


def check_equal(backbone, expected):
    for ours, theirs in zip(backbone.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(ours.value),
            keras.ops.convert_to_numpy(theirs.value),
        )


@pytest.mark.backend_independent
@pytest.mark.parametrize("table", [deepmind.FLAX, deepmind.TORCH])
def test_the_table_covers_every_weight_once(table):
    backbone = make_backbone()
    table = weight_map.rows(table, backbone)
    found = [
        id(weight_map.find_variable(backbone, row.variable)) for row in table
    ]
    assert sorted(found) == sorted(id(v) for v in backbone.weights)
    assert len({(row.tensor, row.part) for row in table}) == len(table)


@pytest.mark.parametrize("recurrence", ["real", "complex"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_flax_round_trip_is_exact(recurrence, wrapped):
    source = make_backbone(recurrence=recurrence)
    params = deepmind.to_flax_params(source)
    assert set(params) == {"embedder", "final_norm"} | {
        f"blocks.{i}" for i in range(3)
    }
    backbone = make_backbone(seed=1, recurrence=recurrence)
    params = {"params": params} if wrapped else params
    deepmind.load_flax_params(backbone, params)
    check_equal(backbone, source)


@pytest.mark.parametrize("format", ["flax", "torch"])
def test_the_model_does_not_share_memory_with_its_source(format):
    source = make_backbone()
    params = getattr(deepmind, f"to_{format}_params")(source)
    backbone = make_backbone(seed=1)
    getattr(deepmind, f"load_{format}_params")(backbone, params)
    norm = params["final_norm"] if format == "flax" else params
    norm["scale" if format == "flax" else "final_norm.scale"][:] = 7
    check_equal(backbone, source)


def test_flax_layout_of_the_mlp():
    params = deepmind.to_flax_params(make_backbone())
    mlp = params["blocks.0"]["mlp_block"]
    assert mlp["ffw_up"]["w"].shape == (2, 16, 24)
    assert mlp["ffw_up"]["b"].shape == (2, 1, 1, 24)
    assert mlp["ffw_down"]["kernel"].shape == (24, 16)


def test_torch_round_trip_is_exact():
    source = make_backbone()
    state_dict = deepmind.to_torch_params(source)
    name = "blocks.0.recurrent_block.linear_x.weight"
    assert state_dict[name].shape == (32, 16)
    backbone = make_backbone(seed=1)
    deepmind.load_torch_params(backbone, state_dict)
    check_equal(backbone, source)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_tensors(dtype):
    torch = pytest.importorskip("torch")
    source = make_backbone()
    for variable in source.weights:  # numbers that bfloat16 holds exactly
        variable.assign(keras.ops.round(variable * 8) / 8)
    state_dict = {
        name: torch.from_numpy(x).to(getattr(torch, dtype)).requires_grad_()
        for name, x in deepmind.to_torch_params(source).items()
    }
    backbone = make_backbone(seed=1)
    deepmind.load_torch_params(backbone, state_dict)
    check_equal(backbone, source)


@pytest.mark.backend_independent
def test_torch_has_no_complex_recurrence():
    backbone = make_backbone(recurrence="complex")
    with pytest.raises(ValueError, match="DeepMind's PyTorch format can only"):
        deepmind.to_torch_params(backbone)
    with pytest.raises(ValueError, match="DeepMind's PyTorch format can only"):
        deepmind.load_torch_params(backbone, {})


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"recurrence": "complex"},
        {"block_types": ("recurrent",) * 3},
        {"num_query_heads": 4, "num_gate_blocks": 4, "head_dim": 4},
    ],
)
def test_config_is_inferred(changes):
    backbone = make_backbone(**changes)
    config = infer(deepmind.to_flax_params(backbone))
    assert config == {**SETTINGS, **changes}
    assert (
        config.items()
        <= {
            **backbone.get_config(),
            "block_types": backbone.block_types,
        }.items()
    )


@pytest.mark.backend_independent
def test_config_of_attention_alone():
    changes = {
        "block_types": ("local_attention",) * 3,
        "recurrent_dim": 16,
    }
    config = infer(deepmind.to_flax_params(make_backbone(**changes)))
    expected = {**SETTINGS, **changes}
    del expected["conv_kernel_size"]  # nothing tells it, nothing has it
    assert config == expected


@pytest.mark.backend_independent
def test_config_of_something_else():
    with pytest.raises(ValueError, match=r"top level \['decoder'\]"):
        infer({"params": {"decoder": {"kernel": np.zeros(2)}}})
    params = deepmind.to_flax_params(make_backbone())
    del params["blocks.1"]["recurrent_block"]
    with pytest.raises(ValueError, match="blocks.1 with neither"):
        infer(params)


@pytest.mark.backend_independent
def test_a_missing_leaf_is_named():
    params = deepmind.to_flax_params(make_backbone())
    del params["blocks.0"]["recurrent_block"]["rg_lru"]["a_param"]
    match = "without blocks.0/recurrent_block/rg_lru/a_param"
    with pytest.raises(ValueError, match=match):
        deepmind.load_flax_params(make_backbone(), params)


@pytest.mark.backend_independent
def test_mappings_other_than_dict():
    params = types.MappingProxyType(deepmind.to_flax_params(make_backbone()))
    backbone = make_backbone(seed=1)
    deepmind.load_flax_params(backbone, params)
    check_equal(backbone, make_backbone())
