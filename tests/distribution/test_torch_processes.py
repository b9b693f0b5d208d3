"""Two PyTorch processes train to the weights of one."""

import keras
import numpy as np
import pytest

from support.models import tiny_model
from support.models import tokens
from support.processes import finish
from support.processes import free_port
from support.processes import start
from support.tolerances import TOLERANCES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        keras.config.backend() != "torch", reason="about PyTorch"
    ),
]


def test_two_processes_train_to_the_weights_of_one(tmp_path):
    port = free_port()

    def run(name, *arguments):
        script = "distribution/torch_processes.py"
        return start(script, tmp_path / name, *arguments, backend="torch")

    finish(
        run("one.npz", 1),
        run("0.npz", 2, 0, port),
        run("1.npz", 2, 1, port),
    )
    one, *two = [np.load(tmp_path / f"{n}.npz") for n in ("one", 0, 1)]
    # Each process has the loss of its own rows.
    mean = (two[0]["losses"] + two[1]["losses"]) / 2
    np.testing.assert_allclose(mean, one["losses"], rtol=1e-6)
    for name, expected in one.items():
        if name == "losses":
            continue
        np.testing.assert_array_equal(two[0][name], two[1][name])
        error = np.abs(two[0][name] - expected).max() / np.abs(expected).max()
        assert error < TOLERANCES["float32"].gradients, name


@pytest.fixture
def process_group():
    """A group of this process alone."""
    import torch

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_adapters_are_what_is_trained(process_group):
    """They came after the model, and a look at its parameters."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    model = tiny_model(num_layers=1, block_types=("recurrent",))
    before = {id(p) for p in model.parameters()}
    assert before == {id(v.value) for v in model.variables}
    model.backbone.enable_lora(2)
    adapters = {id(v.value) for v in model.trainable_variables}
    assert len(adapters) == 12 and not adapters & before
    module = DistributedDataParallel(model)
    parameters = {id(p): p for p in module.parameters()}
    assert parameters.keys() == before | adapters
    trained = {i for i, p in parameters.items() if p.requires_grad}
    assert trained == adapters
    token_ids = torch.from_numpy(tokens(2, 9))
    inputs = {
        "token_ids": token_ids,
        "padding_mask": torch.ones_like(token_ids),
    }
    module(inputs).square().mean().backward()
    with_gradient = {i for i, p in parameters.items() if p.grad is not None}
    assert with_gradient == adapters
    # At first every second matrix is zero, and so is the first's gradient.
    moved = [p for p in parameters.values() if p.grad is not None]
    assert sum(bool(p.grad.abs().max() > 0) for p in moved) == 6
