"""The Triton kernels on PyTorch: interpreted, or run where there is a GPU.

`tests/conftest.py` asks for the interpreter. On a GPU set TRITON_INTERPRET=0.
"""

import sys

import keras
import numpy as np
import pytest

from keras_griffin.kernels.linear_scan import linear_scan
from keras_griffin.kernels.linear_scan import triton_plan
from keras_griffin.kernels.rg_lru import rg_lru
from keras_griffin.layers import RGLRU
from support.cases import RG_LRU_CASES
from support.cases import SCAN_CASES
from support.cases import RGLRUCase
from support.cases import ScanCase
from support.kernels import assert_rg_lru_case
from support.kernels import assert_scan_case

pytestmark = [
    pytest.mark.skipif(
        keras.config.backend() != "torch", reason="about PyTorch"
    ),
    # Triton's interpreter (3.7) with NumPy 2.
    pytest.mark.filterwarnings(
        "ignore:Conversion of an array with ndim > 0:DeprecationWarning"
    ),
]


def named(cases, *names):
    return [case for case in cases if case.why in names]


UNIT_CASES = [
    *named(
        RG_LRU_CASES,
        "no time",
        "decode step",
        "no initial state",
        "forgets at once",
    ),
    RGLRUCase("normaliser at its bound", recurrence_param=(-30.0, -12.0)),
    RGLRUCase("bfloat16", dtype="bfloat16", time=20, has_reset=True),
    RGLRUCase("float16", dtype="float16", time=20, has_padding=True),
    RGLRUCase(
        "parts of time",
        batch=1,
        time=200,
        gate_blocks=1,
        width=4,
        has_reset=True,
        has_padding=True,
    ),
    RGLRUCase(
        "two programs a gate block",
        time=20,
        gate_blocks=1,
        width=70,
        has_padding=True,
    ),
]
LOOP_CASES = [
    *named(
        SCAN_CASES,
        "no time",
        "one step",
        "three steps reverse",
        "no initial state",
        "bfloat16 reverse",
    ),
    ScanCase(
        "resets float16", batch=1, time=9, dtype="float16", decay="resets"
    ),
    ScanCase("channels of two programs", time=9, width=70),
    ScanCase("parts of time", batch=1, time=35, width=3, decay="near_one"),
    ScanCase("parts of time reverse", time=29, reverse=True),
]


@pytest.mark.parametrize("case", UNIT_CASES, ids=str)
def test_rg_lru(case):
    assert_rg_lru_case(case, implementation="triton_gpu")


@pytest.mark.parametrize("case", LOOP_CASES, ids=str)
def test_linear_scan(case, monkeypatch):
    monkeypatch.setattr(triton_plan, "CHUNK", 8)  # the interpreter is slow
    assert_scan_case(case, implementation="triton_gpu")


def test_compiled_as_one_graph():
    case = RGLRUCase("compiled", time=5)
    assert_rg_lru_case(case, compiled=True, implementation="triton_gpu")


def test_the_operations_are_good_ones():
    """`opcheck`: schema, fakes, gradients and `torch.compile` agree."""
    import torch

    case = RGLRUCase(
        "opcheck",
        batch=1,
        time=3,
        width=4,
        gate_blocks=1,
        has_reset=True,
        has_padding=True,
    )
    inputs, _, _ = case.make()
    given = {
        name: keras.ops.convert_to_tensor(value)
        for name, value in inputs.items()
    }
    arguments = [
        t.requires_grad_() if t.is_floating_point() else t
        for t in given.values()
    ]
    rg_lru(**given)  # which defines the operations
    unit = torch.ops.keras_griffin.rg_lru.default
    torch.library.opcheck(unit, tuple(arguments))
    arguments = [t.detach() for t in arguments]
    y, last = unit(*arguments)
    back = torch.ops.keras_griffin.rg_lru_backward.default
    torch.library.opcheck(back, (*arguments, y, y, last))
    scan = torch.ops.keras_griffin.triton_scan.default
    torch.library.opcheck(scan, (y, y, last, False, True))


def test_second_derivatives_are_those_of_plain_operations():
    import torch

    case = RGLRUCase("twice", time=3, has_initial_state=False)
    inputs, dy, _ = case.make()

    def second(implementation):
        x = keras.ops.convert_to_tensor(inputs["x"]).requires_grad_()
        others = {k: v for k, v in inputs.items() if k != "x"}
        y, _ = rg_lru(x, **others, implementation=implementation)
        weights = keras.ops.convert_to_tensor(dy)
        (dx,) = torch.autograd.grad((y * weights).sum(), x, create_graph=True)
        return torch.autograd.grad((dx * dx).sum(), x)[0].numpy()

    expected = second("ops")
    np.testing.assert_allclose(
        second("triton_gpu"), expected, rtol=1e-3, atol=1e-5
    )


def tiny_layer():
    """An RGLRU by the kernels, its weights, and what it is called with."""
    layer = RGLRU(8, num_gate_blocks=2, implementation="triton_gpu")
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
    return layer, keras.ops.convert_to_tensor(x)


def gradients(layer, y):
    layer.zero_grad()
    (y * y).sum().backward()
    return [weight.value.grad.clone() for weight in layer.trainable_weights]


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def counted(monkeypatch):
    """A list that gets the name of each kernel that runs."""
    from keras_griffin.kernels.rg_lru import rg_lru_torch

    names, run = [], rg_lru_torch.run

    def spy(kernel, *arguments):
        names.append(kernel.__name__)
        return run(kernel, *arguments)

    monkeypatch.setattr(rg_lru_torch, "run", spy)
    return names


def test_exported():
    """The program holds the operation, and gives its values."""
    import torch

    layer, x = tiny_layer()
    program = torch.export.export(layer, (x,))
    assert str(program.graph).count("keras_griffin.rg_lru.default") == 1
    with torch.no_grad():
        same([program.module()(x)], [layer(x)])


def test_activation_checkpointing(monkeypatch):
    """The forward kernel runs again, and the gradients are the same."""
    from torch.utils.checkpoint import checkpoint

    layer, x = tiny_layer()
    expected = gradients(layer, layer(x))
    kernels = counted(monkeypatch)
    found = gradients(layer, checkpoint(layer, x, use_reentrant=False))
    same(found, expected)
    assert kernels == ["forward_kernel"] * 2 + ["backward_kernel"]


def test_data_parallel():
    """Through the hooks of `DistributedDataParallel`, in a group of one."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    layer, x = tiny_layer()
    expected = gradients(layer, layer(x))
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        module = DistributedDataParallel(layer)
        same(gradients(layer, module(x)), expected)
    finally:
        torch.distributed.destroy_process_group()


def linear(x, **options):
    return linear_scan(x, x, implementation="triton_gpu", **options)


def unit(x, block=4, **options):
    blocks = np.shape(x)[-1] // block
    kernel = np.ones((blocks, block, block), "float32")
    bias = np.ones((blocks, block), "float32")
    param = np.ones(blocks * block, "float32")
    gates = (kernel, bias) * 2
    return rg_lru(x, *gates, param, implementation="triton_gpu", **options)


X = np.ones((1, 3, 4), "float32")
WIDE = np.ones((1, 3, 130), "float32")


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda: linear(X.astype("float64")), "16-bit and 32-bit.*float64"),
        (lambda: linear((X, X)), "of `linear_scan` take real.*pairs"),
        (lambda: unit(X.astype("float64")), "16-bit and 32-bit.*float64"),
        (lambda: unit(WIDE, 130), "at most 128 channels.*130"),
    ],
)
def test_what_the_kernels_do_not_take(operation, message):
    with pytest.raises(NotImplementedError, match=message):
        operation()


def test_complex_units_are_refused():
    inputs, _, _ = RGLRUCase("complex", is_complex=True).make()
    with pytest.raises(NotImplementedError, match="real numbers.*phase_param"):
        rg_lru(**inputs, implementation="triton_gpu")


def test_a_name_needs_a_gpu(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    for operation in (linear, unit):
        with pytest.raises(NotImplementedError, match="an NVIDIA GPU.*cpu"):
            operation(X)


def test_triton_does_not_come_after_tensorflow(monkeypatch):
    monkeypatch.setattr("keras_griffin.kernels.triton_plan.CRASHES_LATE", True)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    with pytest.raises(NotImplementedError, match="before TensorFlow"):
        linear(X)


def test_a_name_needs_triton(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotImplementedError, match="pip install triton"):
        linear(X)
