"""`apply_dense` is the dense layer itself, only faster."""

import functools
import re

import keras
import numpy as np
import pytest
from keras import ops

import keras_griffin
from keras_griffin.layers.apply_dense import apply_dense
from keras_griffin.layers.apply_dense import order_kernels
from support.checks import assert_close
from support.checks import to_numpy
from support.checks import value_and_grad
from support.models import tiny_model

# PyTorch takes another way from 64 rows on.
SHAPES = [(2, 40, 8), (100, 8), (2, 3, 8), (1, 1, 8)]


def dense_layer(use_bias=True, dtype="float32", lora=False):
    dense = keras.layers.Dense(12, use_bias=use_bias, dtype=dtype)
    dense.build((None, 8))
    if lora:
        dense.enable_lora(2)
    rng = np.random.default_rng(0)
    for weight in dense.weights:
        weight.assign(rng.normal(size=weight.shape))
    return dense


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_the_layers_own(shape, use_bias, lora):
    dense = dense_layer(use_bias, lora=lora)
    rng = np.random.default_rng(1)
    x = rng.normal(size=shape).astype("float32")
    dy = rng.normal(size=(*shape[:-1], 12)).astype("float32")
    variables = dense.trainable_variables
    weights = [to_numpy(v.value).copy() for v in variables]

    def results(function):
        def run(x, *weights):
            mapping = list(zip(variables, weights, strict=True))
            with keras.StatelessScope(state_mapping=mapping):
                return function(dense, x)

        return value_and_grad(run, x, *weights, cotangents=[dy])

    (y,), gradients = results(apply_dense)
    (expected,), expected_gradients = results(lambda dense, x: dense(x))
    assert_close(y, expected)
    assert len(gradients) == len(expected_gradients) > 1
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert_close(a, b, kind="gradients")
        assert np.any(b)


@pytest.mark.parametrize("time", [3, 40])
def test_an_adapter_forms_no_whole_kernel(monkeypatch, time):
    dense = dense_layer(lora=True)
    dense._kernel.trainable = False
    x = np.random.default_rng(1).normal(size=(2, time, 8)).astype("float32")
    expected = to_numpy(dense(x))
    kernel = property(lambda self: pytest.fail("W + A B is formed"))
    monkeypatch.setattr(keras.layers.Dense, "kernel", kernel)
    x = ops.convert_to_tensor(x)
    assert_close(apply_dense(dense, x), expected)
    if keras.config.backend() == "jax":
        import jax

        def loss(x, a, b):
            mapping = [(dense.lora_kernel_a, a), (dense.lora_kernel_b, b)]
            with keras.StatelessScope(mapping):
                return ops.sum(apply_dense(dense, x) ** 2)

        adapter = [v.value for v in (dense.lora_kernel_a, dense.lora_kernel_b)]
        gradient = jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(x, *adapter)
        products = re.findall(r"f32\[([\d,]+)\] = dot_general", str(gradient))
        assert products and not {"8,12", "12,8"} & {*products}


@pytest.mark.skipif(keras.config.backend() != "torch", reason="PyTorch alone")
def test_a_frozen_kernel_of_torch_gets_no_gradient(monkeypatch):
    import torch

    from keras_griffin.layers import linear_torch

    shapes, product = [], linear_torch._product

    def recorded(a, b):
        y = product(a, b)
        shapes.append(tuple(y.shape))
        return y

    monkeypatch.setattr(linear_torch, "_product", recorded)
    x = torch.ones(64, 8, requires_grad=True)
    kernel = torch.ones(8, 12)
    linear_torch.Linear.apply(x, kernel).sum().backward()
    assert shapes == [(64, 12), (64, 8)]
    shapes.clear()
    kernel.requires_grad_()
    linear_torch.Linear.apply(x.detach(), kernel).sum().backward()
    assert shapes == [(64, 12), (8, 12)]


def test_other_dtypes_and_quantized_layers():
    x = np.random.default_rng(1).normal(size=(2, 40, 8))
    for dtype in ("bfloat16", "mixed_bfloat16"):
        dense = dense_layer(dtype=dtype)
        tensor = ops.convert_to_tensor(x, dtype="bfloat16")
        y = apply_dense(dense, tensor)
        assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
        assert_close(y, to_numpy(dense(tensor)), "bfloat16")
    dense = dense_layer()
    unquantized = to_numpy(dense(x))
    dense.quantize("int8")
    y = to_numpy(apply_dense(dense, ops.convert_to_tensor(x, dtype="float32")))
    np.testing.assert_allclose(y, to_numpy(dense(x)), rtol=1e-6)
    assert np.any(y != unquantized)


@pytest.mark.skipif(keras.config.backend() != "jax", reason="JAX alone")
def test_axes_stay_apart_on_several_devices(monkeypatch):
    ranks = []

    class Dense(keras.layers.Dense):
        def call(self, x):
            ranks.append(len(x.shape))
            return super().call(x)

    dense = Dense(3)
    x = ops.ones((2, 5, 4))
    apply_dense(dense, x)
    monkeypatch.setattr(keras.distribution, "distribution", lambda: object())
    apply_dense(dense, x)
    assert ranks == [2, 3]


@pytest.mark.skipif(keras.config.backend() != "torch", reason="PyTorch alone")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["dense", "embedding"])
def test_int8_products_of_torch_are_those_of_keras(kind, dtype, monkeypatch):
    """Values to the bit; and no kernel is widened to int32."""
    import torch

    from keras_griffin.layers import linear_torch

    if kind == "dense":
        layer = dense_layer(dtype=dtype)
        call = functools.partial(apply_dense, layer)
    else:
        layer = keras_griffin.layers.ReversibleEmbedding(12, 8, dtype=dtype)
        call = functools.partial(layer, reverse=True)
    layer.quantize("int8")
    x = np.random.default_rng(1).normal(size=(2, 3, 8))
    x = ops.convert_to_tensor(x, dtype=dtype)
    found = []
    for is_ours in (True, False):
        monkeypatch.setattr(
            linear_torch, "takes_int8", lambda x, ours=is_ours: ours
        )
        own = x.clone().requires_grad_()
        with torch.profiler.profile() as profile:
            y = call(own)
        names = {e.key for e in profile.key_averages()}
        assert ("aten::_int_mm" in names) == is_ours
        y.float().square().sum().backward()
        found.append((y, own.grad))
    (y, gradient), (expected, expected_gradient) = found
    assert torch.equal(y, expected)
    assert_close(gradient, to_numpy(expected_gradient), dtype, "gradients")


@pytest.mark.skipif(keras.config.backend() != "torch", reason="PyTorch alone")
def test_16_bit_kernels_lie_column_by_column(tmp_path):
    def kernels(backbone):
        return [
            v.value for v in backbone.weights if v.path.endswith("down/kernel")
        ]

    model = tiny_model(
        dtype="bfloat16",
        scale_embeddings=True,
        final_logit_soft_cap=30.0,
        num_gate_blocks=2,
    )
    assert not any(k.is_contiguous() for k in kernels(model.backbone))
    assert all(k.t().is_contiguous() for k in kernels(model.backbone))
    before = [to_numpy(k.float()) for k in kernels(model.backbone)]
    model.save_to_preset(tmp_path / "preset")
    model.export_to_transformers(tmp_path / "transformers")
    for form in ("preset", "transformers"):
        again = keras_griffin.GriffinBackbone.from_preset(
            str(tmp_path / form), dtype="bfloat16"
        )
        for kernel, old in zip(kernels(again), before, strict=True):
            assert kernel.t().is_contiguous()
            np.testing.assert_array_equal(to_numpy(kernel.float()), old)
    assert all(k.is_contiguous() for k in kernels(tiny_model().backbone))


@pytest.mark.skipif(keras.config.backend() != "torch", reason="PyTorch alone")
def test_products_of_torch_go_to_onednn():
    import torch

    from keras_griffin.layers import linear_torch

    if not torch.backends.mkldnn.is_available():
        pytest.skip("This PyTorch has no oneDNN.")
    x = torch.ones(2, linear_torch.MIN_ROWS, 8)
    assert linear_torch.is_usable(x)
    assert not linear_torch.is_usable(x[:1, 1:])
    assert not linear_torch.is_usable(x.double())
    assert not linear_torch.is_usable(x.to("meta"))
    with torch.profiler.profile() as profile:
        apply_dense(dense_layer(), x)
    assert "aten::mkldnn_linear" in {e.key for e in profile.key_averages()}


@pytest.mark.skipif(keras.config.backend() != "torch", reason="PyTorch alone")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(1, 1, 8), (1, 8)])
def test_one_token_in_16_bits_is_a_vector_of_torch(dtype, shape):
    import torch

    dense = dense_layer(dtype=dtype)
    x = torch.randn(*shape, dtype=getattr(torch, dtype), requires_grad=True)
    results = []
    for is_ordered in (False, True):
        if is_ordered:
            order_kernels(dense)
        with torch.profiler.profile() as profile:
            y = apply_dense(dense, x)
        assert ("aten::mv" in {e.key for e in profile.key_averages()}) == (
            is_ordered
        )
        sources = (x, dense.kernel.value, dense.bias.value)
        results.append((y, *torch.autograd.grad(y.sum(), sources)))
    for ordered, plain in zip(*results, strict=True):
        assert_close(ordered.float(), to_numpy(plain.float()), dtype)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_pytorch_adds_the_bias_in_the_product(dtype, monkeypatch):
    """As on a GPU, run on a CPU."""
    if keras.config.backend() != "torch":
        pytest.skip("about PyTorch")
    from keras_griffin.layers import linear_torch

    dense = dense_layer(dtype=dtype)
    x = np.random.default_rng(1).normal(size=(2, 3, 8)).astype("float32")
    dy = np.random.default_rng(2).normal(size=(2, 3, 12))

    def results():
        tensor = ops.convert_to_tensor(x, dense.compute_dtype)
        tensor.requires_grad_()
        y = apply_dense(dense, tensor)
        dense.zero_grad()
        y.backward(ops.convert_to_tensor(dy, y.dtype))
        return y, tensor.grad, *(v.value.grad for v in dense.weights)

    expected = results()
    assert not linear_torch.adds_bias(expected[0])
    monkeypatch.setattr(linear_torch, "adds_bias", lambda x: True)
    names = {type(results()[0].grad_fn.next_functions[0][0]).__name__}
    assert names == {"AddmmBackward0"}
    precision = dense.compute_dtype
    for i, (y, z) in enumerate(zip(results(), expected, strict=True)):
        assert y.dtype == z.dtype
        kind = "gradients" if i else "values"
        assert_close(y, to_numpy(z), precision, kind)
