"""JAX's caller of the Triton kernels, without a GPU."""

import keras
import numpy as np
import pytest

from keras_griffin.kernels.linear_scan import linear_scan
from keras_griffin.kernels.rg_lru import rg_lru
from support import processes
from support.kernels import lowered_for

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="about JAX"
)
X = np.ones((2, 7, 32), "float32")
KERNEL, BIAS = np.ones((2, 16, 16), "float32"), np.ones((2, 16), "float32")


def unit(x, kernel, bias):
    gates = (kernel, bias) * 2
    param = bias.reshape(-1)
    return rg_lru(x, *gates, param, implementation="triton_gpu")


def scan(x, kernel, bias):
    return linear_scan(x, 0.5 * x, implementation="triton_gpu")


def gradient(operation):
    import jax

    def loss(*arguments):
        y, last = operation(*arguments)
        return y.sum() + last.sum()

    return jax.grad(loss, (0, 1, 2))


@pytest.mark.slow
def test_values_and_gradients():
    """By an interpreter, in a process with four devices; see the script."""
    processes.run("support/run_triton_on_jax.py", devices=4, NPROC="24")


def calls_in(text):
    return text.count("@__gpu$xla.gpu.ptx(")


@pytest.mark.parametrize("operation", [unit, scan])
def test_in_a_shard_map(operation):
    """That checks what varies, as JAX does unless it is told not to."""
    import jax
    from jax.sharding import PartitionSpec

    mesh = jax.make_mesh((1,), ("rows",), (jax.sharding.AxisType.Auto,))
    rows, whole = PartitionSpec("rows"), PartitionSpec()
    divided = jax.shard_map(
        gradient(operation),
        mesh=mesh,
        in_specs=(rows, whole, whole),
        out_specs=(rows, whole, whole),
    )
    program = jax.jit(divided).trace(X, KERNEL, BIAS)
    text = program.lower(lowering_platforms=("cuda",)).as_text()
    assert calls_in(text) == 2


@pytest.mark.parametrize("operation", [unit, scan])
def test_vmap(operation):
    import jax

    mapped = jax.vmap(gradient(operation), (0, None, None))
    many = np.stack([X] * 3)
    text = lowered_for("cuda", mapped, many, KERNEL, BIAS)
    assert calls_in(text) == 2


@pytest.mark.parametrize("operation", [unit, scan])
def test_another_platform_is_refused_when_lowering(operation):
    import jax

    jax.eval_shape(operation, X, KERNEL, BIAS)
    with pytest.raises(NotImplementedError, match=r"an NVIDIA GPU.*'cpu'"):
        operation(X, KERNEL, BIAS)
    with pytest.raises(NotImplementedError, match=r"an NVIDIA GPU.*'tpu'"):
        lowered_for("tpu", operation, X, KERNEL, BIAS)


@pytest.mark.parametrize("operation", [unit, scan])
def test_in_a_shard_map_by_plain_operations(operation, monkeypatch):
    """Weights that all devices have alike get the sum of their gradients."""
    import jax
    from jax.sharding import PartitionSpec

    monkeypatch.setitem(globals(), "linear_scan", plain(linear_scan))
    monkeypatch.setitem(globals(), "rg_lru", plain(rg_lru))
    mesh = jax.make_mesh((1,), ("rows",), (jax.sharding.AxisType.Auto,))
    rows, whole = PartitionSpec("rows"), PartitionSpec()
    run = gradient(operation)
    specs = (rows, whole, whole)
    divided = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=specs)
    for one, other in zip(
        jax.jit(divided)(X, KERNEL, BIAS), run(X, KERNEL, BIAS), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def plain(operation):
    return lambda *args, implementation: operation(*args, implementation="ops")
