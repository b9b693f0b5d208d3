import keras
import numpy as np
import pytest

from keras_griffin.layers import CausalConv1D
from support import numpy_layers
from support.checks import assert_close
from support.checks import to_numpy
from support.layers import WIDTH
from support.layers import assert_equals_reference
from support.layers import fresh_state
from support.layers import normal
from support.layers import probe_of
from support.layers import random_state
from support.layers import run_pieces


@pytest.mark.parametrize(
    "kernel_size, time", [(1, 5), (3, 5), (4, 5), (8, 5), (4, 1)]
)
def test_equals_numpy(kernel_size, time):
    probe = probe_of(CausalConv1D(kernel_size))
    assert_equals_reference(
        probe, numpy_layers.causal_conv1d, normal((3, time, WIDTH))
    )


def test_state_holds_the_last_inputs_oldest_first():
    probe = probe_of(CausalConv1D(4))
    x = normal((3, 5, WIDTH))
    _, state = probe.values(
        x, return_state=True, initial_state=fresh_state(probe.layer)
    )
    np.testing.assert_array_equal(to_numpy(state["inputs"]), x[:, 2:])
    _, state = probe.values(
        x[:, :2], return_state=True, initial_state=fresh_state(probe.layer)
    )
    np.testing.assert_array_equal(to_numpy(state["inputs"])[:, 1:], x[:, :2])
    np.testing.assert_array_equal(to_numpy(state["inputs"])[:, 0], 0.0)


@pytest.mark.parametrize("kernel_size", [1, 8])
def test_pieces_shorter_than_the_kernel(kernel_size):
    """A kernel of 1 has a state without inputs."""
    probe = probe_of(CausalConv1D(kernel_size))
    x = normal((3, 5, WIDTH))
    dy = normal(x.shape, seed=1)
    state = random_state(probe.layer, position=6)
    assert state["inputs"].shape == (3, kernel_size - 1, WIDTH)
    dstate = {"inputs": normal(state["inputs"].shape, seed=2)}
    whole = probe(x, initial_state=state, dy=dy, dstate=dstate)
    pieces = [{"x": x[:, [t]], "dy": dy[:, [t]]} for t in range(5)]
    parts = run_pieces(probe, pieces, state, dstate)
    assert_close(parts.y, whole.y)
    assert_close(parts.dx, whole.dx, kind="gradients")
    for name in ("y", "dx"):
        assert np.any(to_numpy(getattr(whole, name)) != 0.0)
    assert_close(
        parts.dstate["inputs"], whole.dstate["inputs"], kind="gradients"
    )


@pytest.mark.backend_independent
def test_initial_values():
    layer = CausalConv1D(4)
    layer.build((None, None, 2000))
    np.testing.assert_allclose(np.std(to_numpy(layer.kernel.value)), 0.05, 0.1)
    np.testing.assert_array_equal(to_numpy(layer.bias.value), 0.0)


def test_a_kernel_sees_the_token_itself():
    with pytest.raises(ValueError, match="at least 1.*kernel_size=0"):
        CausalConv1D(0)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_on_pytorch(size, dtype):
    """First and second ones, beside those of plain operations."""
    if keras.config.backend() != "torch":
        pytest.skip("about PyTorch")
    import torch

    from keras_griffin.layers.conv_torch import convolve

    positions = torch.tensor([[5, 6, 0, 1, 2, 3], [0, 1, 2, 0, 0, 1]])
    shapes = (2, 5 + size, WIDTH), (size, WIDTH), (WIDTH,), (2, 6, WIDTH)

    def run(function, dtype):
        *arrays, dy = (
            torch.tensor(normal(s), dtype=dtype).requires_grad_()
            for s in shapes
        )
        y = function(*arrays, positions)
        first = torch.autograd.grad(y, arrays, dy, create_graph=True)
        total = sum(g.pow(2).sum() for g in first)
        second = torch.autograd.grad(total, [arrays[0], dy])
        return arrays, dy, y, first, second

    exact = run(_plain, torch.float64)
    arrays, dy, y, first, second = run(convolve, getattr(torch, dtype))
    assert_close(y, to_numpy(exact[2]), dtype)
    alone = torch.autograd.grad(convolve(*arrays, positions), arrays, dy)
    for wanted, *found in zip(exact[3], first, alone, strict=True):
        for gradient in found:
            assert_close(gradient, to_numpy(wanted), dtype, "gradients")
    if dtype == "float32":
        for gradient, wanted in zip(second, exact[4], strict=True):
            assert_close(gradient, to_numpy(wanted), kind="gradients")


def _plain(inputs, kernel, bias, positions):
    size, time = len(kernel), positions.shape[1]
    y = bias
    for s in range(size):
        seen = (positions >= size - 1 - s)[..., None]
        y = y + inputs[:, s : s + time] * seen * kernel[s]
    return y


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_token_on_pytorch(dtype):
    if keras.config.backend() != "torch":
        pytest.skip("about PyTorch")
    import torch

    from keras_griffin.layers import conv_torch

    positions = torch.tensor([[0], [2], [9]])
    exact = [
        torch.tensor(normal(s), dtype=torch.float64)
        for s in ((3, 4, WIDTH), (4, WIDTH), (WIDTH,))
    ]
    arrays = [z.to(getattr(torch, dtype)) for z in exact]
    assert conv_torch.is_usable(*arrays[:2])
    y = conv_torch.convolve(*arrays, positions)
    assert y.dtype == arrays[0].dtype
    arrays = [z.double() for z in arrays]
    assert_close(y, to_numpy(_plain(*arrays, positions)), dtype)
    more = torch.zeros(3, 9, WIDTH)
    assert not conv_torch.is_usable(more, arrays[1])  # no gradient wanted
