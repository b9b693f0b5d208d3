"""The Triton kernels through JAX's caller, with an interpreter for a GPU.

JAX traces, differentiates, batches and divides what it would compile for CUDA.
In place of the call to XLA stands one to Python, of `interpreted_calls.py`.
Values and gradients are compared with the float64 loops, transformations with
plain operations. What is left out is the PTX, and what XLA does with it.
"""

import functools
import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import AxisType  # noqa: E402
from jax.sharding import PartitionSpec  # noqa: E402

from keras_griffin.kernels import triton_jax  # noqa: E402
from keras_griffin.kernels.dispatch_jax import alike  # noqa: E402
from keras_griffin.kernels.linear_scan import triton_plan  # noqa: E402
from keras_griffin.kernels.rg_lru import rg_lru  # noqa: E402
from support.cases import RGLRUCase  # noqa: E402
from support.cases import ScanCase  # noqa: E402
from support.interpreted_calls import calls  # noqa: E402
from support.interpreted_calls import interpret  # noqa: E402
from support.kernels import assert_rg_lru_case  # noqa: E402
from support.kernels import assert_scan_case  # noqa: E402

NAME = "triton_gpu"


def ffi_call(
    target,
    outputs,
    *,
    custom_call_api_version,
    legacy_backend_config,
    vmap_method,
):
    assert target == "__gpu$xla.gpu.ptx" and custom_call_api_version == 2
    run = functools.partial(interpret, legacy_backend_config)

    def call(*inputs):
        results = jax.pure_callback(
            run, outputs, *inputs, vmap_method=vmap_method
        )
        # A callback forgets what its results vary over; `ffi_call` is told.
        return alike([*results, *inputs])[: len(outputs)]

    return call


def check_cases():
    for case in (
        RGLRUCase("plain", has_initial_state=False),
        RGLRUCase("masks", time=9, has_reset=True, has_padding=True),
        RGLRUCase("bfloat16", dtype="bfloat16", time=5, has_reset=True),
        RGLRUCase("parts", batch=1, time=200, gate_blocks=1, width=4),
    ):
        assert_rg_lru_case(case, compiled=True, implementation=NAME)
        print(case, flush=True)
    # Forward once, backward once; the last of them twice.
    assert calls.count("backward_kernel") == 5
    triton_plan.CHUNK = 8  # the interpreter is slow
    for case in (
        ScanCase("plain", has_initial_state=False),
        ScanCase("reverse", time=9, reverse=True),
        ScanCase("float16", time=9, dtype="float16", decay="resets"),
        ScanCase("parts", batch=1, time=35, width=3, reverse=True),
    ):
        assert_scan_case(case, compiled=True, implementation=NAME)
        print(case, flush=True)


def check_meshes():
    names = ("batch", "sequence", "model")
    for shape, axis_type in (
        ((1, 2, 2), AxisType.Auto),
        ((2, 1, 2), AxisType.Explicit),
    ):
        mesh = jax.make_mesh(shape, names, axis_types=(axis_type,) * 3)
        unit = RGLRUCase("unit", time=6, width=8, gate_blocks=2, has_reset=True)
        scan = ScanCase("scan", time=6, width=4)
        with jax.set_mesh(mesh):
            calls.clear()
            assert_rg_lru_case(unit, compiled=True, implementation=NAME)
            assert len(calls) >= 8  # four devices, two passes
            assert_scan_case(scan, compiled=True, implementation=NAME)
        print(shape, flush=True)


def unit_gradient(implementation, dtype="float32"):
    """A function of `x`, and its argument: rows that are a `vmap`'s."""
    case = RGLRUCase("rows", batch=4, time=5, dtype=dtype, has_reset=True)
    inputs, dy, _ = case.make()
    x = inputs.pop("x")
    reset = inputs.pop("reset")
    state = inputs.pop("initial_state")

    def loss(weights, x, dy, reset, state):
        y, last = rg_lru(
            x,
            **weights,
            reset=reset,
            initial_state=state,
            implementation=implementation,
        )
        return (y * dy).sum() + (last * last).sum()

    gradient = jax.value_and_grad(loss, (0, 1, 4))
    return gradient, inputs, (x, dy, reset, state)


def check_same(found, expected):
    for one, other in zip(
        *map(jax.tree.leaves, (found, expected)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


def check_transforms():
    """`vmap`, a `shard_map` of one's own, `checkpoint`, second derivatives."""
    ours, weights, data = unit_gradient(NAME)
    plain, *_ = unit_gradient("ops")
    rows = jax.tree.map(lambda z: z.reshape(2, 2, *z.shape[1:]), data)
    axes = (None, 0, 0, 0, 0)
    check_same(
        jax.jit(jax.vmap(ours, axes))(weights, *rows),
        jax.jit(jax.vmap(plain, axes))(weights, *rows),
    )
    print("vmap", flush=True)
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
    rows, whole = PartitionSpec("rows"), PartitionSpec()

    def on_devices(weights, *data):
        # The gradient of weights that all have alike is summed by JAX.
        value, (d_weights, *d_data) = ours(weights, *data)
        return jax.lax.psum(value, "rows"), (d_weights, *d_data)

    divided = jax.shard_map(
        on_devices,
        mesh=mesh,
        in_specs=(whole, rows, rows, rows, rows),
        out_specs=(whole, (whole, rows, rows)),
    )
    expected = plain(weights, *data)
    check_same(jax.jit(divided)(weights, *data), expected)
    print("shard_map", flush=True)
    check_same(jax.checkpoint(ours)(weights, *data), expected)

    def twice(gradient):
        def size(x, *others):
            return (gradient(weights, x, *others)[1][1] ** 2).sum()

        return jax.jit(jax.grad(size))(*data)

    check_same(twice(ours), twice(plain))
    print("second derivative", flush=True)


def main():
    triton_jax.only_cuda = lambda x: x
    jax.ffi.ffi_call = ffi_call
    check_cases()
    check_meshes()
    check_transforms()
    print("all equal")


if __name__ == "__main__":
    main()
