"""The TPU kernels: interpreted on a CPU, lowered and compiled for a TPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_griffin.kernels.linear_scan import linear_scan
from keras_griffin.kernels.rg_lru import pallas_tpu_plan
from keras_griffin.kernels.rg_lru import rg_lru
from support.cases import RGLRUCase
from support.cases import ScanCase
from support.kernels import assert_rg_lru_case
from support.kernels import assert_scan_case

needs_jax = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="Pallas is of JAX"
)

SCAN_CASES = [
    ScanCase("no time", time=0),
    ScanCase("one step", time=1),
    ScanCase("two steps reverse", time=2, reverse=True),
    ScanCase("chunks and a rest", batch=1, time=300, width=130),
    ScanCase("a rest reverse", batch=1, time=150, reverse=True),
    ScanCase("resets", time=64, decay="resets", has_initial_state=False),
    ScanCase("complex", time=150, is_complex=True),
    ScanCase("complex reverse", time=64, is_complex=True, reverse=True),
    ScanCase("bfloat16", time=64, dtype="bfloat16"),
]
RG_LRU_CASES = [
    RGLRUCase("no time", time=0),
    RGLRUCase("decode step", time=1),
    RGLRUCase(
        "masks, a rest in time and channels",
        time=150,
        has_reset=True,
        has_padding=True,
    ),
    RGLRUCase("two chunks", batch=2, time=256, width=256, gate_blocks=2),
    RGLRUCase("blocks across vregs", batch=1, width=384, gate_blocks=2, time=9),
    RGLRUCase("complex", is_complex=True, has_padding=True),
    RGLRUCase(
        "complex masks and chunks",
        batch=1,
        time=150,
        is_complex=True,
        has_reset=True,
        has_padding=True,
    ),
    RGLRUCase(
        "complex blocks across vregs",
        batch=1,
        time=9,
        width=300,
        gate_blocks=3,
        is_complex=True,
    ),
    RGLRUCase("complex bfloat16", time=64, is_complex=True, dtype="bfloat16"),
    RGLRUCase(
        "complex normaliser at its bound",
        is_complex=True,
        recurrence_param=(-30.0, -12.0),
    ),
    RGLRUCase("normaliser at its bound", recurrence_param=(-30.0, -12.0)),
    RGLRUCase("bfloat16", dtype="bfloat16", time=64, has_reset=True),
]


# Races are looked for where chunks, masks or directions meet, which triples the
# time. The other cases run the same kernels over fewer of them.
RACED = {
    "chunks and a rest",
    "complex reverse",
    "masks, a rest in time and channels",
    "two chunks",
    "complex masks and chunks",
    "real chunks in a loop",
}


@pytest.fixture
def interpreter(request):
    from jax.experimental.pallas import tpu as pltpu

    # Scratch begins as NaN, and the parallel dimensions of the grid run in a
    # random order.
    call = getattr(request.node, "callspec", None)  # of a test with cases
    races = call is not None and call.params["case"].why in RACED
    with pltpu.force_tpu_interpret_mode(
        pltpu.InterpretParams(detect_races=races, random_seed=7)
    ):
        yield
    assert not (races and races_found())


@needs_jax
@pytest.mark.parametrize("case", SCAN_CASES, ids=str)
def test_linear_scan(case, interpreter):
    assert_scan_case(case, compiled=True, implementation="pallas_tpu")


@needs_jax
@pytest.mark.parametrize("case", RG_LRU_CASES, ids=str)
def test_rg_lru(case, interpreter):
    assert_rg_lru_case(case, compiled=True, implementation="pallas_tpu")


@needs_jax
@pytest.mark.parametrize(
    "case",
    [
        RGLRUCase(
            "real chunks in a loop",
            batch=1,
            time=256,
            width=192,
            gate_blocks=2,
            has_reset=True,
        ),
        RGLRUCase(
            "complex chunks in a loop",
            batch=1,
            time=256,
            is_complex=True,
            has_reset=True,
        ),
    ],
    ids=str,
)
def test_rg_lru_with_a_loop_over_chunks(case, interpreter, monkeypatch):
    """As for wide groups, which are slow to interpret."""
    monkeypatch.setattr(pallas_tpu_plan, "CODE_SIZE", 1)
    assert_rg_lru_case(case, compiled=True, implementation="pallas_tpu")


def races_found():
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    races = interpret_pallas_call.races
    return races is not None and races.races_found


@needs_jax
def test_padding_may_hold_nan(interpreter):
    x = np.ones((1, 3, 4), "float32")
    x[0, 1] = np.nan
    kernel = np.ones((1, 4, 4), "float32")
    bias = np.zeros((1, 4), "float32")
    y, _ = rg_lru(
        x,
        *(kernel, bias) * 2,
        np.full(4, -4.0, "float32"),
        padding_mask=np.array([[True, False, True]]),
        implementation="pallas_tpu",
    )
    assert np.all(np.isfinite(y))
    np.testing.assert_array_equal(y[0, 0], y[0, 1])


@needs_jax
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "blocks, is_complex, is_loop",
    [
        (2, False, False),
        (3, False, False),
        (3, True, False),
        (2, False, True),
        (4, True, True),
    ],
)
def test_lowers_for_tpu(dtype, blocks, is_complex, is_loop, monkeypatch):
    """Mosaic takes the kernels; libtpu is not needed."""
    import jax

    # As for wide groups, whose programs are long.
    if is_loop:
        monkeypatch.setattr(pallas_tpu_plan, "CODE_SIZE", 1)
    parts = 2 if is_complex else 1
    time = 256 if is_loop else 200

    def spec(*shape, dtype=dtype):
        return jax.ShapeDtypeStruct(shape, dtype)

    width = 96 * blocks
    kernel = spec(blocks, 96, 96 // parts, dtype="float32")
    bias = spec(blocks, 96 // parts, dtype="float32")
    # The last is the phase, if there is one.
    arguments = (
        spec(2, time, width),
        *(kernel, bias) * 2,
        *[spec(width // parts, dtype="float32")] * parts,
    )

    def loss(*arguments):
        y, last = rg_lru(*arguments, implementation="pallas_tpu")
        y, _ = linear_scan(y, y, last, implementation="pallas_tpu")
        return (y.sum() + last.sum()).astype("float32")

    gradient = jax.grad(loss, argnums=tuple(range(len(arguments))))
    exported = jax.export.export(jax.jit(gradient), platforms=["tpu"])
    program = exported(*arguments).mlir_module()
    # Two operations, forward and backward.
    assert program.count("@tpu_custom_call") == 4


@needs_jax
@pytest.mark.parametrize(
    "dtype, setting, precision",
    [
        ("float32", None, "HIGHEST"),
        ("float32", "high", "HIGHEST"),
        ("float32", "bfloat16", "DEFAULT"),
        ("bfloat16", "float32", "DEFAULT"),
    ],
)
def test_products_follow_the_precision_of_jax(dtype, setting, precision):
    import jax

    kernel = np.ones((2, 64, 64), "float32")
    bias = np.zeros((2, 64), "float32")
    x = np.ones((1, 9, 128), dtype)

    def loss(x):
        y, _ = rg_lru(
            *(x, kernel, bias, kernel, bias, bias.reshape(-1)),
            implementation="pallas_tpu",
        )
        return y.sum().astype("float32")

    with jax.default_matmul_precision(setting):
        program = str(jax.make_jaxpr(jax.grad(loss))(x))
    # Forward, and in the backward pass the gates and the two gradients.
    products = program.count("dot_general[")
    assert products >= 4
    assert program.count(f"precision=(Precision.{precision}") == products


@needs_jax
@pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="libtpu is not installed"
)
def test_compiles_with_libtpu():
    """In a process of its own: libtpu reads its environment once."""
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(
        [sys.executable, str(root / "tests/support/compile_for_tpus.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    compiled = result.stdout.splitlines()
    assert compiled == [
        "v4 bfloat16: 2 kernels",
        "v4 float32: 2 kernels",
        "v4 complex: 2 kernels",
        "v5e bfloat16: 2 kernels",
        "v5e float32: 2 kernels",
        "v5e complex: 2 kernels",
        # Four chips: kernels in a shard_map; divided in time each pass runs
        # twice; none where no mesh is known.
        "v5e batchxmodel: 2 kernels",
        "v5e batchxsequence: 4 kernels",
        "v5e no mesh: 0 kernels",
        "v5p bfloat16: 2 kernels",
        "v5p complex: 2 kernels",
        "v6e bfloat16: 2 kernels",
        "v6e complex: 2 kernels",
        "tpu7x bfloat16: 2 kernels",
        "tpu7x complex: 2 kernels",
    ]


@needs_jax
def test_too_wide_groups_are_refused():
    kernel, bias = np.ones((1, 131, 131)), np.ones((1, 131))
    with pytest.raises(NotImplementedError, match="at most 2048.*width 131"):
        rg_lru(
            np.ones((1, 3, 131), "float32"),
            *(kernel.astype("float32"), bias.astype("float32")) * 2,
            np.ones(131, "float32"),
            implementation="pallas_tpu",
        )


@needs_jax
def test_too_wide_complex_units_are_refused():
    kernel, bias = np.ones((683, 6, 3)), np.ones((683, 3))
    with pytest.raises(NotImplementedError, match="at most 2048.*: 2049"):
        rg_lru(
            np.ones((1, 3, 4098), "float32"),
            *(kernel.astype("float32"), bias.astype("float32")) * 2,
            *[np.ones(2049, "float32")] * 2,
            implementation="pallas_tpu",
        )
