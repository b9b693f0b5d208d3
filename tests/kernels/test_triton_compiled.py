"""The Triton kernels compiled for GPUs that are not here."""

import math

import keras
import numpy as np
import pytest

from keras_griffin.kernels.linear_scan import linear_scan
from keras_griffin.kernels.linear_scan import triton_plan as scan_plan
from keras_griffin.kernels.rg_lru import rg_lru
from keras_griffin.kernels.rg_lru.ops_rg_lru import Inputs
from keras_griffin.kernels.triton_plan import Output
from keras_griffin.kernels.triton_plan import shared_memory
from support.gpu_code import usage
from support.kernels import lowered_for

# PyTorch's run interprets the kernels, and such a process cannot compile them.
pytestmark = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="compiled in JAX's run"
)
A100, H100 = (8, 0), (9, 0)
LARGE = (8, 2048, 2560)  # RecurrentGemma 2B: 10 gate blocks of
BLOCK = 256
SMALL = (4, 2048, 512)  # whose time is cut into parts
# Instructions that move registers to memory and back. A warp has about 3000 in
# a chunk of the backward kernel: 1 %, in 16 bits on an A100 6 %.
MOST_SPILLS = {("bfloat16", A100): 180, ("bfloat16", H100): 32}
MOST_SPILLS[("float32", H100)] = 100


class Recorder:
    """A `run` that compiles kernels, and returns zeros for a trace of JAX."""

    def __init__(self, capability, folder, numbers=()):
        self.capability, self.folder = capability, folder
        self.numbers = numbers
        self.found = []

    def __call__(self, kernel, plan, arguments):
        from keras_griffin.kernels.triton_ptx import compile_kernel

        compiled = compile_kernel(
            kernel, plan, arguments, self.capability, self.numbers
        )
        arrays = [v for v in arguments.values() if hasattr(v, "dtype")]
        itemsize = {"float32": 4, "int8": 1}
        self.found.append(
            {
                **usage(compiled, self.folder),
                "programs": plan.programs,
                "bytes": sum(
                    math.prod(a.shape) * itemsize.get(str(a.dtype), 2)
                    for a in arrays
                ),
            }
        )
        outputs = [v for v in arrays if isinstance(v, Output)]
        return [keras.ops.zeros(v.shape, v.dtype) for v in outputs]


def compile_unit(shape, block, dtype, *others, has_reset=True):
    """What the kernels of both passes take."""
    import jax

    from keras_griffin.kernels.rg_lru import triton_passes

    batch, time, width = shape
    blocks = width // block
    kernel = (blocks, block, block)
    spec = jax.ShapeDtypeStruct
    inputs = Inputs(
        spec(shape, dtype),
        *(spec(kernel, dtype), spec((blocks, block), "float32")) * 2,
        spec((width,), "float32"),
        None,
        spec((batch, time), bool) if has_reset else None,
        None,
        spec((batch, width), "float32"),
    )
    run = Recorder(*others)

    def both(inputs, dy):
        y, last = triton_passes.forward(run, others[0], inputs)
        return triton_passes.backward(run, others[0], inputs, y, dy, last)

    jax.eval_shape(both, inputs, inputs.x)
    return run.found


@pytest.mark.parametrize(
    ("shape", "block", "dtype", "capability", "runs"),
    [
        (LARGE, BLOCK, "bfloat16", A100, 1),
        (LARGE, BLOCK, "bfloat16", H100, 1),
        (SMALL, 128, "float32", H100, 2),
    ],
)
def test_unit(shape, block, dtype, capability, runs, tmp_path):
    found = compile_unit(shape, block, dtype, capability, tmp_path)
    assert len(found) == 2 * runs
    for kernel in found:
        assert kernel["spills"] <= MOST_SPILLS[dtype, capability], found
        assert kernel["shared"] <= shared_memory(capability), found
    # x and y; x, y, dy, dx and two of dz.
    size = math.prod(shape) * (4 if dtype == "float32" else 2)
    for kernel, arrays in zip(found[runs - 1 :: runs], (2, 6), strict=True):
        assert arrays < kernel["bytes"] / size < arrays + 0.2, found
    if runs == 2:
        assert all(kernel["programs"] >= 132 for kernel in found)


def test_as_pytorch_calls_them(tmp_path):
    """With sizes that are arguments; and without marks."""
    shape, numbers = (1, 300, 32), ("T", "PARTS", "CHUNKS")
    arguments = (shape, 16, "float16", A100, tmp_path, numbers)
    assert len(compile_unit(*arguments, has_reset=False)) == 4
    run = Recorder(A100, tmp_path, numbers)
    compile_scan(run, shape, "float16", reverse=False, shifted=False)
    assert len(run.found) == 2


def compile_scan(run, shape, dtype, reverse, shifted):
    import jax

    spec = jax.ShapeDtypeStruct
    x, h = spec(shape, dtype), spec(shape[::2], "float32")
    jax.eval_shape(
        lambda x, a, h: scan_plan.loop(run, x, a, h, reverse, shifted), x, x, h
    )


@pytest.mark.parametrize("capability", [A100, H100])
def test_scan(capability, tmp_path):
    run = Recorder(capability, tmp_path)
    compile_scan(run, LARGE, "float32", reverse=True, shifted=True)
    (kernel,) = run.found
    assert kernel["spills"] == 0
    assert kernel["shared"] <= shared_memory(capability)
    assert 3 < kernel["bytes"] / (4 * math.prod(LARGE)) < 3.1


def test_the_call_of_jax():
    """The program for CUDA holds a call a pass, with the kernel's arrays."""
    import jax

    x = np.ones((2, 7, 32), "float32")
    kernel, bias = np.ones((2, 16, 16), "float32"), np.ones((2, 16), "float32")

    def loss(x, kernel, bias):
        gates = (kernel, bias) * 2
        param = bias.reshape(-1)
        y, last = rg_lru(x, *gates, param, implementation="triton_gpu")
        return y.sum() + last.sum()

    text = lowered_for("cuda", jax.grad(loss, (0, 1, 2)), x, kernel, bias)
    calls = [line for line in text.splitlines() if "gpu$xla.gpu.ptx" in line]
    assert len(calls) == 2
    # x, two matrices and biases, rate, state; two pointers to nothing.
    forward, backward = sorted(calls, key=len)
    assert "-> (tensor<2x7x32xf32>, tensor<2x32xf32>)" in forward
    assert forward.count("tensor<16xui8>") == 2
    assert "output_indices = [7 : i32, 8 : i32]" in forward
    assert "grid_x = 4 : i32" in forward
    places = ", ".join(f"{i} : i32" for i in range(10, 16))
    assert f"output_indices = [{places}]" in backward


def test_what_jax_does_not_take():
    x = np.ones((1, 3, 4), "float32")
    with pytest.raises(NotImplementedError, match="real numbers.*pairs"):
        linear_scan((x, x), (x, x), implementation="triton_gpu")
