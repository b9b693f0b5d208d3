"""The kernel for CUDA: interpreted and lowered, or run where there is a GPU.

On one, products in full float32 are asked for from outside:
`JAX_PLATFORMS=cuda JAX_DEFAULT_MATMUL_PRECISION=float32`.
"""

import functools

import keras
import numpy as np
import pytest

from keras_griffin.kernels.linear_scan import linear_scan
from support.cases import RG_LRU_CASES
from support.cases import SCAN_CASES
from support.cases import ScanCase
from support.kernels import assert_rg_lru_case
from support.kernels import assert_scan_case
from support.kernels import lowered_for

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="Pallas is of JAX"
)
STEPS = 4  # a quarter of the code to compile, with whole groups and a rest
CASES = [
    case
    for case in SCAN_CASES
    if case.why
    in (
        "no time",
        "one step",
        "two steps",
        "three steps reverse",
        "one row one channel",
        "resets reverse",
        "chunks and a rest",
        "complex reverse",
        "training length",
        "bfloat16",
        "float16",
        "bfloat16 complex",
    )
] + [ScanCase("channels of two programs", time=9, width=70)]


@pytest.fixture
def interpreter(monkeypatch):
    """The kernel on a CPU; on a GPU it is compiled, and runs."""
    import jax
    from jax.experimental import pallas

    from keras_griffin.kernels.linear_scan import pallas_gpu

    if jax.default_backend() == "gpu":
        yield
        return
    interpreted = functools.partial(pallas.pallas_call, interpret=True)
    monkeypatch.setattr(pallas, "pallas_call", interpreted)
    monkeypatch.setattr(pallas_gpu, "STEPS", STEPS)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_linear_scan(case, interpreter):
    assert_scan_case(case, compiled=True, implementation="pallas_gpu")


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in RG_LRU_CASES
        if case.why in ("complex resets and padding", "bfloat16")
    ],
    ids=str,
)
def test_rg_lru(case, interpreter):
    assert_rg_lru_case(case, compiled=True, implementation="pallas_gpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_lowers_for_cuda(dtype):
    import jax

    x = jax.ShapeDtypeStruct((2, 100, 130), dtype)

    def loss(x, a):
        pair, last = linear_scan((x, x), (a, a), reverse=True)
        return sum(part.sum() for part in (*pair, *last)).astype("float32")

    lowered = lowered_for("cuda", jax.grad(loss, argnums=(0, 1)), x, x)
    assert lowered.count("xla.gpu.triton") == 2


def test_other_dtypes_are_refused():
    import jax

    with jax.enable_x64(True):
        x = np.ones((1, 3, 4), "float64")
        with pytest.raises(NotImplementedError, match="16-bit and 32.*float64"):
            linear_scan(x, x, implementation="pallas_gpu")


def test_a_name_needs_its_platform():
    import jax

    if jax.default_backend() == "gpu":
        pytest.skip("Here it has its platform.")
    x = np.ones((1, 3, 4), "float32")
    with pytest.raises(ValueError, match="interpret mode is supported on CPU"):
        jax.jit(lambda x: linear_scan(x, x, implementation="pallas_gpu"))(x)
