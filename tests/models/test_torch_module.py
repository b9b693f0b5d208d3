"""On PyTorch a model is a `torch.nn.Module` like any other."""

import copy
import pickle

import keras
import numpy as np
import pytest

if keras.config.backend() != "torch":
    pytest.skip("about PyTorch's modules", allow_module_level=True)

import torch

from support.checks import assert_close
from support.models import tiny_backbone
from support.models import tiny_model
from support.models import tokens

INPUTS = {
    "token_ids": tokens(2, 6),
    "padding_mask": np.ones((2, 6), bool),
}


@pytest.mark.parametrize("make", [tiny_backbone, tiny_model])
def test_the_state_dict_of_a_fresh_model_is_whole(make, tmp_path):
    model, other = make(), make()
    other.set_weights([0.5 * w for w in other.get_weights()])
    state = model.state_dict()
    assert {id(v.value) for v in model.variables} == {
        id(p) for p in model.parameters()
    }
    assert len(state) == len(model.variables)
    torch.save(state, tmp_path / "weights.pt")
    loaded = torch.load(tmp_path / "weights.pt")
    assert (
        str(other.load_state_dict(loaded)) == "<All keys matched successfully>"
    )
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert_close(other(INPUTS), model(INPUTS).detach().numpy())


def test_what_is_missing_is_told():
    model = tiny_model()
    state = model.state_dict()
    state.pop(next(iter(state)))
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(state)


def test_adapters_are_in_the_state_dict():
    model = tiny_model()
    before = set(model.state_dict())
    model.backbone.enable_lora(2)
    added = set(model.state_dict()) - before
    assert added and all("lora" in name for name in added)


@pytest.mark.parametrize("make", [tiny_backbone, tiny_model])
def test_the_dtype_is_kerass(make):
    model = make()
    for change in (
        model.half,
        model.double,
        model.bfloat16,
        lambda: model.to(torch.bfloat16),
        lambda: model.to("cpu", torch.float16),
        lambda: model.to(dtype=torch.float16),
        lambda: model.to(torch.zeros(1, dtype=torch.float64)),
    ):
        with pytest.raises(ValueError, match="set when a layer or model is"):
            change()
    for same in (
        model.float(),
        model.to("cpu"),
        model.to(torch.float32),
        model.to(torch.zeros(1)),
    ):
        assert same is model
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_copies_are_apart():
    model = tiny_model()
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
    ):
        assert_close(other(INPUTS), model(INPUTS).detach().numpy())
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert np.any(model.get_weights()[0])


def test_train_and_eval():
    model = tiny_model(dropout=0.5)
    expected = model(INPUTS).detach().numpy()
    model.train()
    assert np.any(model(INPUTS, training=True).detach().numpy() != expected)
    model.eval()
    assert_close(model(INPUTS), expected)


@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_autocast_around_training(method):
    labels = tokens(2, 6, seed=1)
    model, again = tiny_model(), tiny_model()
    again.set_weights(model.get_weights())
    with torch.autocast("cpu", torch.bfloat16):
        result = getattr(model, method)(INPUTS, labels, verbose=0)
    loss = result.history["loss"][0] if method == "fit" else result[0]
    expected = again.evaluate(INPUTS, labels, verbose=0)[0]
    assert abs(loss - expected) < 0.02 * expected
