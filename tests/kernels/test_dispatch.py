"""Which implementation runs: by name, setting, platform and mesh."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_griffin.kernels import dispatch
from keras_griffin.kernels.linear_scan import linear_scan
from keras_griffin.kernels.rg_lru import rg_lru
from keras_griffin.layers import RGLRU
from support.kernels import lowered_for
from support.processes import xla_flags

needs_jax = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="kernels are of JAX"
)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_setting(monkeypatch):
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    yield
    dispatch.set_implementation(None)


def test_setting_is_for_auto_only(monkeypatch):
    assert dispatch.resolve("auto") == "auto"
    monkeypatch.setenv(dispatch.VARIABLE, "ops")
    assert dispatch.resolve("auto") == "ops"
    dispatch.set_implementation("auto")
    assert dispatch.resolve("auto") == "auto"
    dispatch.set_implementation("ops")
    assert dispatch.resolve("auto") == "ops"
    if keras.config.backend() == "jax":
        assert dispatch.resolve("pallas_tpu") == "pallas_tpu"
    dispatch.set_implementation(None)
    monkeypatch.delenv(dispatch.VARIABLE)
    assert dispatch.resolve("auto") == "auto"


def test_unknown_names(monkeypatch):
    known = "one of 'auto', 'ops', 'pallas_tpu', 'pallas_gpu', .*'fast'"
    with pytest.raises(ValueError, match=known):
        dispatch.set_implementation("fast")
    monkeypatch.setenv(dispatch.VARIABLE, "fast")
    with pytest.raises(ValueError, match=f"{dispatch.VARIABLE}.*{known}"):
        linear_scan(np.ones((1, 3, 4), "float32"), np.ones((1, 3, 4)))


@pytest.mark.skipif(keras.config.backend() == "jax", reason="about the others")
@pytest.mark.parametrize("name", ["pallas_tpu", "pallas_gpu"])
def test_kernels_need_jax(name):
    x = np.ones((1, 3, 4), "float32")
    with pytest.raises(NotImplementedError, match="needs the JAX backend"):
        linear_scan(x, x, implementation=name)
    dispatch.set_implementation(name)
    with pytest.raises(NotImplementedError, match="set_implementation.*needs"):
        linear_scan(x, x)


def layer_and_loss(**arguments):
    """An RGLRU with two gate blocks, and a loss of its weights and input."""
    layer = RGLRU(128, num_gate_blocks=2, **arguments)
    x = np.random.default_rng(0).normal(size=(2, 20, 128)).astype("float32")
    layer.build(x.shape)
    weights = [variable.value for variable in layer.trainable_variables]

    def loss(weights, x):
        y, _ = layer.stateless_call(weights, [], x)
        return (y * y).sum()

    return weights, x, loss


def test_few_frames_lie_between_the_layer_and_the_loop():
    """Each is one more thing to read: check, mesh, gradient, pass, loop."""
    frames = []

    def look(frame, event, _):
        file = Path(frame.f_code.co_filename)
        if event != "call" or f"{file.stem}.{frame.f_code.co_name}" != (
            f"loop_{keras.config.backend()}.loop"
        ):
            return
        ours = []
        while frame.f_code.co_name != "mix":
            file = Path(frame.f_code.co_filename)
            if {"kernels", "keras_griffin"} & set(file.parts[-3:-1]):
                ours.append(f"{file.name}:{frame.f_code.co_name}")
            frame = frame.f_back
        frames.append(ours)

    layer = RGLRU(12, num_gate_blocks=2)
    layer.build((2, 7, 12))
    sys.setprofile(look)
    try:
        layer(np.ones((2, 7, 12), "float32"))
    finally:
        sys.setprofile(None)
    assert frames
    assert max(map(len, frames)) <= 7, frames  # with `mix` 8


def kernels_in(function, *arguments, platform="tpu"):
    """How many kernels are in the program for a platform that is not here."""
    lowered = lowered_for(platform, function, *arguments)
    return lowered.count("tpu_custom_call") + lowered.count("xla.gpu.triton")


@needs_jax
def test_kernels_are_chosen_when_lowering():
    import jax

    weights, x, loss = layer_and_loss()
    gradient = jax.grad(loss)
    assert kernels_in(loss, weights, x) == 1
    assert kernels_in(gradient, weights, x) == 2
    assert kernels_in(gradient, weights, x, platform="cuda") == 2
    assert kernels_in(gradient, weights, x, platform="cpu") == 0
    exported = jax.export.export(jax.jit(gradient), platforms=["tpu"])
    program = exported(weights, x).mlir_module()
    assert program.count("@tpu_custom_call") == 2


@needs_jax
def test_one_step_is_no_kernel():
    import jax

    weights, x, loss = layer_and_loss()
    for platform in ("tpu", "cuda"):
        assert kernels_in(loss, weights, x[:, :1], platform=platform) == 0

    def decode(x, a, h):
        return linear_scan(x, a, h, implementation="pallas_tpu")

    # So it runs here, without a TPU: one update, no loop.
    step = jax.make_jaxpr(decode)(x[:, :1], x[:, :1], x[:, 0])
    assert "while" not in str(step) and "pallas" not in str(step)
    assert kernels_in(decode, x[:, :1], x[:, :1], x[:, 0]) == 0


@needs_jax
@pytest.mark.parametrize(
    "transform", ["remat", "vmap", "scan", "second derivative"]
)
def test_transformations_keep_the_kernel_and_the_values(transform):
    import jax

    weights, x, loss = layer_and_loss()
    gradient = jax.grad(loss)

    def scalar(weights, x):
        return sum((g * g).sum() for g in gradient(weights, x))

    function, expected = {
        "remat": (jax.grad(jax.checkpoint(loss)), gradient),
        "vmap": (
            lambda weights, x: jax.tree.map(
                lambda g: g.sum(0),
                jax.vmap(gradient, (None, 0))(weights, x[:, None]),
            ),
            gradient,
        ),
        "scan": (
            lambda weights, x: jax.tree.map(
                lambda g: g.sum(0),
                jax.lax.scan(
                    lambda carry, row: (carry, gradient(weights, row)),
                    0,
                    x[:, None],
                )[1],
            ),
            gradient,
        ),
        # The kernels have none: it is that of the plain operations.
        "second derivative": (jax.grad(scalar), jax.grad(scalar)),
    }[transform]
    assert kernels_in(function, weights, x) > 0
    actual = jax.jit(function)(weights, x)
    dispatch.set_implementation("ops")
    for a, b in zip(actual, jax.jit(expected)(weights, x), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5 * abs(b).max())


@needs_jax
def test_names_and_setting_are_obeyed():
    import jax

    weights, x, loss = layer_and_loss(implementation="ops")
    assert kernels_in(jax.grad(loss), weights, x) == 0
    weights, x, loss = layer_and_loss()
    dispatch.set_implementation("ops")
    assert kernels_in(jax.grad(loss), weights, x) == 0
    dispatch.set_implementation(None)
    weights, x, loss = layer_and_loss(implementation="pallas_tpu")
    # On a CPU, and on a GPU.
    says = "interpret mode is supported on CPU|cannot be used for gpu"
    with pytest.raises(ValueError, match=says):
        jax.jit(loss)(weights, x)


@needs_jax
def test_model_has_the_kernels():
    import jax

    from keras_griffin import GriffinBackbone

    model = GriffinBackbone(
        vocabulary_size=16,
        num_layers=3,
        hidden_dim=32,
        intermediate_dim=32,
        num_query_heads=2,
        num_gate_blocks=2,
    )
    weights = [variable.value for variable in model.variables]
    inputs = {
        "token_ids": np.ones((2, 9), "int32"),
        "padding_mask": np.ones((2, 9), "int32"),
    }

    def loss(weights):
        count = len(model.trainable_variables)
        y, _ = model.stateless_call(weights[:count], weights[count:], inputs)
        return (y * y).sum()

    # Two recurrent layers of one shape: a function each for the two passes.
    assert kernels_in(jax.grad(loss), weights) == 2


@needs_jax
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_auto_falls_back_and_says_why_once(platform, monkeypatch, caplog):
    import jax

    caplog.set_level("INFO", logger="keras_griffin")
    dispatch.log_once.cache_clear()
    x = np.ones((1, 3, 4), "float64" if platform == "cuda" else "float16")
    with jax.enable_x64(True):
        for _ in range(2):
            count = kernels_in(
                lambda x: linear_scan(x, x)[0], x, platform=platform
            )
            assert count == 0
    said = f"Plain operations instead of a kernel on '{platform}'"
    assert caplog.text.count(said) == 1
    assert f"Received: {x.dtype}" in caplog.text


@needs_jax
def test_unknown_sizes_are_plain_operations(caplog):
    import jax

    caplog.set_level("INFO", logger="keras_griffin")
    dispatch.log_once.cache_clear()
    (batch,) = jax.export.symbolic_shape("batch")
    x = jax.ShapeDtypeStruct((batch, 3, 4), "float32")

    def run(x, implementation="auto"):
        return linear_scan(x, x, implementation=implementation)[0]

    program = jax.export.export(jax.jit(run), platforms=["tpu"])(x)
    assert "tpu_custom_call" not in program.mlir_module()
    assert "needs sizes that are known" in caplog.text
    with pytest.raises(NotImplementedError, match="known.*'batch', '3', '4'"):
        jax.eval_shape(lambda x: run(x, "pallas_tpu"), x)


@needs_jax
def test_where_the_unit_is_refused_the_scan_is_a_kernel():
    kernel = np.ones((1, 131, 131), "float32")  # see MAX_GROUP
    bias = np.ones((1, 131), "float32")

    def unit(x):
        return rg_lru(x, kernel, bias, kernel, bias, np.ones(131, "float32"))[0]

    x = np.ones((1, 3, 131), "float32")
    assert kernels_in(unit, x) == 1
    assert kernels_in(unit, x, platform="cpu") == 0


@needs_jax
@pytest.mark.parametrize("operation", [linear_scan, rg_lru])
def test_a_name_never_falls_back(operation):
    x = np.ones((1, 3, 4), "float16")
    kernel, bias = np.ones((1, 4, 4), "float16"), np.ones((1, 4), "float16")
    arguments = (x, x)
    if operation is rg_lru:
        arguments = (x, *(kernel, bias) * 2, x[0, 0])
    with pytest.raises(NotImplementedError, match="float32 and bfloat16.*16"):
        operation(*arguments, implementation="pallas_tpu")


@needs_jax
def test_over_devices():
    """In a process with 8 devices; see the script."""
    script = ROOT / "tests" / "support" / "run_over_devices.py"
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(script)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "KERAS_BACKEND": "jax",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": xla_flags(8),
            # Threads: an interpreted kernel waits for those of other devices.
            "NPROC": "24",
        },
    )
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    assert result.stdout.splitlines()[-1] == "all equal"
