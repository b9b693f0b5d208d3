import keras
import numpy as np
import pytest

from keras_griffin.layers import RMSNormalization
from support import numpy_layers
from support.checks import assert_close
from support.checks import to_numpy
from support.layers import assert_equals_reference
from support.layers import normal
from support.layers import probe_of


def test_equals_numpy():
    probe = probe_of(RMSNormalization())
    x = normal((3, 5, 8))
    x[0, 0] = 0.0
    assert_equals_reference(probe, numpy_layers.rms_normalization, x)


def test_starts_at_scale_one():
    layer = RMSNormalization()
    layer.build((None, None, 8))
    np.testing.assert_array_equal(to_numpy(layer.scale.value), 0.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_float16"])
def test_float32_inside(dtype):
    """The squares are beyond what float16 can hold."""
    layer = RMSNormalization(dtype=dtype)
    layer.build((None, None, 4))
    x = np.array([[[1e3, 2e3, -3e3, 4e3]]], "float32")
    y = layer(x)
    precision = layer.compute_dtype
    assert keras.backend.standardize_dtype(y.dtype) == precision
    expected = numpy_layers.rms_normalization(
        {"scale": np.zeros(4)}, to_numpy(keras.ops.cast(x, precision))
    )
    assert_close(y, expected, dtype=precision)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gradients_on_pytorch(dtype):
    if keras.config.backend() != "torch":
        pytest.skip("about PyTorch")
    import torch

    from keras_griffin.layers import rms_norm_torch

    x = torch.tensor(3 * normal((2, 5, 64)), dtype=getattr(torch, dtype))
    dy = torch.tensor(normal((2, 5, 64)), dtype=x.dtype)
    scale = torch.tensor(normal((64,)), requires_grad=True)
    x.requires_grad_()
    y = rms_norm_torch.rms_norm(x, scale, 1e-6, dtype)
    y.backward(dy)
    x64, scale64 = (z.detach().double().requires_grad_() for z in (x, scale))
    mean = x64.square().mean(-1, keepdim=True)
    expected = x64 * torch.rsqrt(mean + 1e-6) * (1 + scale64)
    expected.backward(dy.double())
    assert y.dtype == x.grad.dtype == x.dtype
    assert_close(y, to_numpy(expected), dtype)
    assert_close(x.grad, to_numpy(x64.grad), dtype, "gradients")
    assert_close(scale.grad, to_numpy(scale64.grad), "float32", "gradients")


def test_second_derivatives_on_pytorch():
    if keras.config.backend() != "torch":
        pytest.skip("about PyTorch")
    import torch

    from keras_griffin.layers import rms_norm_torch

    layer = RMSNormalization()
    x = torch.tensor(normal((2, 3, 4)), requires_grad=True)
    (plain,) = torch.autograd.grad(_twice(x, rms_norm_torch._plain), x)
    own = _twice(x, lambda x, s, e: rms_norm_torch.rms_norm(x, s, e, "float32"))
    (gradient,) = torch.autograd.grad(own, x)
    assert_close(gradient, to_numpy(plain), kind="gradients")
    assert layer(x).requires_grad


def _twice(x, function):
    import torch

    y = function(x, torch.full((4,), 0.5), 1e-6)
    (dx,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    return (dx * dx).sum()
