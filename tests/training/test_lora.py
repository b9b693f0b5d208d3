"""Adapters reach every branch, train alone, travel alone, and merge."""

import keras
import numpy as np
import pytest

import keras_griffin
from support.checks import to_numpy
from support.models import run
from support.models import tiny_backbone
from support.models import tiny_model
from support.models import tokens

RANK = 2
IDS = tokens(4, 9)
SIZES = {"num_layers": 2, "block_types": ("recurrent", "local_attention")}
INPUTS = {"token_ids": IDS, "padding_mask": np.ones_like(IDS)}
RECURRENT = ["linear_x", "linear_y", "linear_out"]
ATTENTION = ["query", "key", "value", "output_dense"]
MLP = ["gate", "up", "down"]


def values(model):
    return {v.path: to_numpy(v.value).copy() for v in model.variables}


def copy_of(weights, **changes):
    """A model with the weights of another one."""
    model = tiny_model(**{**SIZES, **changes})
    for variable in model.variables:
        variable.assign(weights[variable.path])
    return model


def train(model, epochs=3):
    model.compile(
        optimizer=keras.optimizers.Adam(3e-2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        sampler="greedy",
    )
    model.fit(INPUTS, np.roll(IDS, -1, 1), epochs=epochs, verbose=0)


def compiled_and_eager_agree(model):
    """Generation's logits are those of the model as it is now."""
    logits, _ = model.prefill({"token_ids": IDS})
    np.testing.assert_allclose(
        to_numpy(logits), run(model, IDS)[:, -1], atol=2e-4
    )


@pytest.fixture(scope="module")
def trained():
    """A model with trained adapters, and what it was before."""
    model = tiny_model(**SIZES)
    base = values(model)
    compiled_and_eager_agree(model)  # compiles before there are adapters
    outputs = run(model, IDS)
    model.enable_lora(RANK)
    np.testing.assert_allclose(run(model, IDS), outputs, atol=1e-5)
    train(model)
    return model, base, outputs


def test_fit_trains_the_adapters_alone(trained):
    model, base, outputs = trained
    names = {v.path.rpartition("/")[2] for v in model.trainable_variables}
    assert names == {"lora_kernel_a", "lora_kernel_b"}
    adapted = {v.path.split("/")[-2] for v in model.trainable_variables}
    assert adapted == {*RECURRENT, *ATTENTION, *MLP}
    now = values(model)
    for path, value in base.items():
        np.testing.assert_array_equal(now[path], value)
    assert np.abs(run(model, IDS) - outputs).max() > 0.1


def test_generation_sees_the_adapters(trained):
    model, _, _ = trained
    compiled_and_eager_agree(model)


def test_adapters_are_saved_and_loaded(trained, tmp_path):
    model, base, _ = trained
    path = tmp_path / "a.lora.h5"
    model.save_lora_weights(path)
    expected = run(model, IDS)
    fresh = copy_of(base)
    for _ in range(2):  # the second time into adapters that are there
        fresh.load_lora_weights(path)
        np.testing.assert_allclose(run(fresh, IDS), expected, atol=1e-5)


def test_merging(trained, tmp_path):
    model, base, _ = trained
    model.backbone.save_lora_weights(tmp_path / "a.lora.h5")
    merged = copy_of(base)
    merged.backbone.load_lora_weights(tmp_path / "a.lora.h5")
    compiled_and_eager_agree(merged)  # compiles with adapters
    expected = run(merged, IDS)
    merged.merge_lora()
    np.testing.assert_allclose(run(merged, IDS), expected, atol=1e-5)
    compiled_and_eager_agree(merged)
    assert [v.path for v in merged.variables] == list(base)
    assert len(merged.trainable_variables) == len(base)
    # And on: all weights, or adapters again.
    train(merged, epochs=1)
    assert np.abs(run(merged, IDS) - expected).max() > 1e-3
    merged.backbone.enable_lora(1, ["query"])
    assert len(merged.trainable_variables) == 2


def test_a_saved_model_has_the_adapters_merged(trained, tmp_path):
    model, base, _ = trained
    model.save_to_preset(str(tmp_path))
    again = keras_griffin.GriffinCausalLM.from_preset(str(tmp_path))
    assert [v.path for v in again.variables] == list(base)
    np.testing.assert_allclose(run(again, IDS), run(model, IDS), atol=1e-5)


@pytest.mark.backend_independent
def test_some_layers(tmp_path):
    backbone = tiny_backbone()
    backbone.enable_lora(1, ["linear_x", "down"])
    adapted = {v.path.split("/")[-2] for v in backbone.trainable_variables}
    assert adapted == {"linear_x", "down"}
    backbone.save_lora_weights(tmp_path / "some.lora.h5")
    again = tiny_backbone()
    again.load_lora_weights(tmp_path / "some.lora.h5")
    assert [v.path for v in again.variables] == [
        v.path for v in backbone.variables
    ]
    other = tiny_backbone()
    other.enable_lora(1)
    with pytest.raises(ValueError, match="layers that they are of"):
        other.load_lora_weights(tmp_path / "some.lora.h5")


@pytest.mark.backend_independent
def test_default_targets():
    hawk = tiny_backbone(block_types=("recurrent",))
    assert hawk.default_lora_layer_names() == RECURRENT + MLP
    griffin = tiny_backbone()
    assert griffin.default_lora_layer_names() == RECURRENT + ATTENTION + MLP


@pytest.mark.skipif(
    keras.config.backend() == "tensorflow",
    reason="Keras' rematerialization takes no keywords in a tf.function",
)
def test_with_rematerialization():
    weights = values(tiny_model(num_layers=1))
    # "full" fails in Keras: its embedding looks at `reverse`, which JAX traces.
    with keras.RematScope(mode="list_of_layers", layer_names=["block_0"]):
        rematerialized = tiny_model(num_layers=1)
    for variable in rematerialized.variables:
        variable.assign(weights[variable.path])
    outputs = []
    for model in (copy_of(weights, num_layers=1), rematerialized):
        keras.utils.set_random_seed(0)
        model.backbone.enable_lora(RANK)
        train(model, epochs=2)
        outputs.append(run(model, IDS))
    np.testing.assert_allclose(*outputs, atol=1e-3)


@pytest.mark.backend_independent
@pytest.mark.parametrize("rank", [0, 1.5, "4"])
def test_other_ranks_are_refused(rank):
    with pytest.raises(ValueError, match="`rank` must be an integer"):
        tiny_backbone(num_layers=1).enable_lora(rank)


@pytest.mark.backend_independent
@pytest.mark.parametrize(
    "names", [["recurrence_gate"], ["token_embedding"], ["qeury"], []]
)
def test_other_layers_are_refused(names):
    backbone = tiny_backbone(num_layers=1)
    with pytest.raises(ValueError, match="block-diagonal.*train them whole"):
        backbone.enable_lora(1, names)
    assert len(backbone.trainable_variables) == len(backbone.variables)


@pytest.mark.backend_independent
def test_what_cannot_be_is_refused(tmp_path):
    backbone = tiny_backbone(num_layers=1)
    with pytest.raises(ValueError, match="must be adapters to merge"):
        backbone.merge_lora()
    with pytest.raises(ValueError, match="no lora-enabled layers"):
        backbone.save_lora_weights(tmp_path / "a.lora.h5")
    backbone.enable_lora(1)
    with pytest.raises(ValueError, match="takes adapters once"):
        backbone.enable_lora(1)
    backbone.save_lora_weights(tmp_path / "a.lora.h5")
    other = tiny_backbone(num_layers=1)
    other.enable_lora(2)
    with pytest.raises(ValueError, match="[Rr]ank"):
        other.load_lora_weights(tmp_path / "a.lora.h5")
    for changes in (
        {"intermediate_dim": 32},
        {"block_types": ("global_attention",)},
    ):
        other = tiny_backbone(num_layers=1, **changes)
        with pytest.raises(ValueError, match="backbone of the same sizes"):
            other.load_lora_weights(tmp_path / "a.lora.h5")
        assert not other.weights[0].path.startswith("lora")
    (tmp_path / "b.lora.h5").write_bytes(b"no file of ours")
    with pytest.raises(ValueError, match="`save_lora_weights` wrote"):
        backbone.load_lora_weights(tmp_path / "b.lora.h5")
    backbone.save_weights(tmp_path / "c.weights.h5")
    with pytest.raises(ValueError, match="`save_lora_weights` wrote"):
        backbone.load_lora_weights(tmp_path / "c.weights.h5")


def test_adapters_and_other_quantizations():
    model = tiny_model(num_layers=1)
    model.backbone.enable_lora(1)
    with pytest.raises(ValueError, match="Call `merge_lora` first"):
        model.quantize("float8")
    model = tiny_model(num_layers=1)
    model.quantize("float8")
    with pytest.raises(ValueError, match="float, int8 and int4 kernels"):
        model.backbone.enable_lora(1)


def test_adapters_are_float32_and_move_at_a_small_rate():
    """In bfloat16, 1 + 1e-5 is 1: a step of Adam would be lost."""
    model = keras_griffin.GriffinCausalLM(
        tiny_backbone(num_layers=1, dtype="bfloat16")
    )
    model.enable_lora(RANK)
    adapters = model.trainable_variables
    for variable in adapters:
        assert variable.dtype == "float32"
        variable.assign(1 + 0 * variable)
    model.compile(optimizer=keras.optimizers.Adam(1e-5))
    model.fit(INPUTS, np.roll(IDS, -1, 1), epochs=1, verbose=0)
    for variable in adapters:
        steps = np.abs(to_numpy(variable.value) - 1)
        assert 5e-6 < np.median(steps) < 2e-5, variable.path
