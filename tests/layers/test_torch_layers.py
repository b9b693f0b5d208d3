"""On PyTorch a layer is a `torch.nn.Module` like any other."""

import copy
import pickle

import keras
import numpy as np
import pytest

if keras.config.backend() != "torch":
    pytest.skip("about PyTorch's modules", allow_module_level=True)

import torch

from keras_griffin import layers
from support.checks import assert_close
from support.layers import TEMPORAL_LAYERS
from support.layers import WIDTH
from support.layers import normal

# Those whose arguments say all of their weights' shapes.
KNOWN = {
    "rglru": TEMPORAL_LAYERS["rglru"],
    "cell": lambda: layers.RGLRUCell(WIDTH, num_gate_blocks=2),
    "embedding": lambda: layers.ReversibleEmbedding(10, WIDTH),
}
OTHERS = {
    name: TEMPORAL_LAYERS[name]
    for name in ("conv", "recurrent_block", "local_mqa")
}
OTHERS["residual"] = lambda: layers.ResidualBlock(
    layers.RecurrentBlock(WIDTH, num_gate_blocks=2),
    layers.GatedMLP(4),
    dropout=0.5,
)
OTHERS["mlp"] = lambda: layers.GatedMLP(4)
OTHERS["norm"] = layers.RMSNormalization
OTHERS["gate"] = lambda: layers.BlockDiagonalDense(WIDTH, num_blocks=2)
ALL = {**KNOWN, **OTHERS}
NAMES = pytest.mark.parametrize("name", ALL)


def built(name):
    layer = ALL[name]()
    layer.build((None, None, WIDTH))
    return layer


def values(module):
    return [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize("name", KNOWN)
def test_weights_are_there_from_the_start(name):
    layer = KNOWN[name]()
    model = torch.nn.Sequential(layer)
    assert [*map(id, model.parameters())]
    assert {*map(id, model.parameters())} == {
        id(v.value) for v in layer.weights
    }


@pytest.mark.parametrize("name", OTHERS)
def test_what_an_optimizer_would_leave_out_is_told(name):
    layer = OTHERS[name]()
    model = torch.nn.Sequential(layer, torch.nn.Linear(WIDTH, 1))
    for look in (layer.parameters, model.parameters, model.named_parameters):
        with pytest.raises(ValueError, match="Call `layer.build"):
            list(look())
    layer.build((None, None, WIDTH))
    assert len(list(model.parameters())) == len(layer.variables) + 2


def test_an_optimizer_made_before_the_first_call():
    model = torch.nn.Sequential(KNOWN["rglru"](), torch.nn.Linear(WIDTH, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = values(model)
    assert len(before) == 7
    data = torch.utils.data.TensorDataset(torch.randn(4, 5, WIDTH))
    for (x,) in torch.utils.data.DataLoader(data, batch_size=2):
        optimizer.zero_grad()
        torch.mean(model(x) ** 2).backward()
        optimizer.step()
    for one, other in zip(before, values(model), strict=True):
        assert torch.any(one != other)


@NAMES
def test_a_state_dict_fits_another_instance(name, tmp_path):
    model, other = (torch.nn.Sequential(built(name)) for _ in range(2))
    state = model.state_dict()
    assert len(state) == len(model[0].variables)
    assert model[0].name != other[0].name
    torch.save(state, tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt"))
    for one, two in zip(values(model), values(other), strict=True):
        assert torch.equal(one, two)
    other[0].load_state_dict(model[0].state_dict())


def test_names_of_a_state_dict():
    prefix = "_torch_params."
    state = built("residual").state_dict()
    assert f"{prefix}temporal/rglru/input_gate/kernel" in state
    assert f"{prefix}mlp/down/bias" in state
    assert f"{prefix}recurrence_param" in built("rglru").state_dict()


def test_adapters_are_in_the_state_dict():
    layer = built("recurrent_block")
    model = torch.nn.Sequential(layer)
    before = len(model.state_dict())
    layer.linear_x.enable_lora(2)
    added = [name for name in model.state_dict() if "lora" in name]
    assert len(added) == 2
    assert len(list(model.parameters())) == len(model.state_dict())
    assert len(model.state_dict()) == before + 2
    embedding = built("embedding")
    embedding.enable_lora(2)
    assert len(embedding.state_dict()) == 3


@NAMES
def test_the_dtype_is_kerass(name):
    layer = ALL[name]()
    model = torch.nn.Sequential(layer)
    for change in (
        layer.half,
        model.half,
        model.double,
        lambda: model.to(torch.bfloat16),
        lambda: layer.to("cpu", torch.float16),
    ):
        with pytest.raises(ValueError, match="set when a layer or model is"):
            change()
    assert model.float().to("cpu").to(torch.float32) is model


@NAMES
@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        lambda layer: pickle.loads(pickle.dumps(layer)),
        lambda layer: copy.deepcopy(torch.nn.Sequential(layer))[0],
    ],
)
def test_copies_are_apart(name, duplicate):
    layer = built(name)
    other = duplicate(layer)
    assert other.get_config() == layer.get_config()
    for one, two in zip(layer.weights, other.weights, strict=True):
        assert torch.equal(one.value, two.value)
        assert one.value is not two.value


def test_a_layer_without_weights_is_copied():
    other = pickle.loads(pickle.dumps(OTHERS["conv"]()))
    assert not other.built


def test_train_and_eval():
    layer, x = built("residual"), normal((1, 4, WIDTH))
    model = torch.nn.Sequential(layer)
    expected = model(x)
    assert_close(layer(x), expected)  # Keras' default
    model.train()
    assert torch.any(model(x) != expected)
    assert_close(layer(x, training=False), expected)
    model.eval()
    assert_close(model(x), expected)
    assert torch.any(layer(x, training=True) != expected)


def test_a_mask_is_not_lost_between_modules():
    embedding = keras.layers.Embedding(10, WIDTH, mask_zero=True)
    model = torch.nn.Sequential(embedding, KNOWN["rglru"]())
    y = model(torch.tensor([[3, 0, 4]]))
    assert_close(y[:, ::2], model(torch.tensor([[3, 4]])).detach().numpy())
    assert np.any(y.detach().numpy())
