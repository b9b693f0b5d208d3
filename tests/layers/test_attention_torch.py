"""What PyTorch runs on CUDA, run here on a CPU, equals plain operations."""

import keras
import numpy as np
import pytest

from support.checks import assert_close
from support.checks import to_numpy

if keras.config.backend() != "torch":
    pytest.skip("about PyTorch", allow_module_level=True)

import torch

from keras_griffin.layers import LocalMQA
from keras_griffin.layers import attention_torch
from keras_griffin.layers.windowed_attention import windowed_attention

BATCH, HEADS, DIM = 2, 3, 16


def inputs(time, before, dtype):
    rng = np.random.default_rng(0)

    def normal(*shape):
        x = torch.tensor(rng.normal(size=shape), dtype=dtype)
        return x.requires_grad_()

    q = normal(BATCH, time, HEADS, DIM)
    k, v, keys, values = (
        normal(BATCH, n, DIM) for n in (time, time, before, before)
    )
    # A second document in one of the rows.
    positions = before + torch.arange(time, dtype=torch.int32).repeat(BATCH, 1)
    positions[1, time // 3 :] -= before + time // 3
    return (q, k, v, keys, values) if before else (q, k, v), positions


def run(arrays, positions, window):
    q, k, v, *before = arrays
    y = windowed_attention(q, k, v, positions, window, *before)
    dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return y, *torch.autograd.grad(y, arrays, dy)


CASES = [
    (50, None, 0),  # all in one block
    (20, 8, 8),
    (200, 40, 0),  # blocks, the last one not full
    (256, 64, 64),
    (130, 1, 1),
    (90, 3, 0),
]


@pytest.mark.parametrize("time, window, before", CASES)
def test_equals_plain_operations(time, window, before, monkeypatch):
    arrays, positions = inputs(time, before, torch.float32)
    exact = [z.detach().double().requires_grad_() for z in arrays]
    expected = run(exact, positions, window)
    monkeypatch.setattr(attention_torch, "is_usable", lambda q: True)
    found = run(arrays, positions, window)
    for i, (actual, wanted) in enumerate(zip(found, expected, strict=True)):
        kind = "gradients" if i else "values"
        assert_close(actual, to_numpy(wanted), kind=kind)


@pytest.mark.parametrize("time, window, before", CASES)
def test_bfloat16_beside_plain_operations(time, window, before, monkeypatch):
    """In bfloat16, where a softmax's gradient has errors of its own."""
    arrays, positions = inputs(time, before, torch.bfloat16)
    exact = [z.detach().double().requires_grad_() for z in arrays]
    expected = run(exact, positions, window)

    def errors():
        pairs = zip(run(arrays, positions, window), expected, strict=True)
        return np.array([float((y - z).abs().max().detach()) for y, z in pairs])

    plain = errors()
    monkeypatch.setattr(attention_torch, "is_usable", lambda q: True)
    own = errors()
    assert np.all(own[:2] <= plain[:2]), (own, plain)
    # Of keys and values each head's gradient is rounded before their sum.
    assert np.all(own[2:] <= 2 * plain[2:]), (own, plain)


def test_the_layer_and_its_state(monkeypatch):
    layer = LocalMQA(2, 8, window_size=70)
    x = np.random.default_rng(1).normal(size=(2, 200, 16)).astype("float32")
    mask = np.ones((2, 200), "int32")
    mask[0, :30], mask[1, 90:] = 0, 2
    y, state = layer(x, padding_mask=mask, return_state=True)
    z = layer(x[:, :90], initial_state=state)
    assert not attention_torch.is_usable(y)
    monkeypatch.setattr(attention_torch, "is_usable", lambda q: True)
    found, state = layer(x, padding_mask=mask, return_state=True)
    real = mask.astype("bool")
    assert_close(to_numpy(found)[real], to_numpy(y)[real])
    assert_close(layer(x[:, :90], initial_state=state), to_numpy(z))
