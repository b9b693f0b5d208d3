"""What a training step needs on a TPU slice, compiled without one."""

import importlib.util
import os
import re
import subprocess
import sys

import keras
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        keras.config.backend() != "jax", reason="JAX's compiler makes a plan."
    ),
]

SCRIPT = """
import sys
import keras_griffin
from keras_griffin.cli import main as cli

backbone = keras_griffin.GriffinBackbone(
    vocabulary_size=256, num_layers=3, hidden_dim=128, intermediate_dim=384,
    num_query_heads=2, num_gate_blocks=4, attention_window_size=64,
)
backbone.save_to_preset(sys.argv[1])
plan = ["plan", sys.argv[1], "--slice", "v5e-4", "--remat"]
assert cli.main([*plan, "--length", "256", "--batch-size", "8"]) == 0
print("---")
lora = ["--lora", "2", "--length", "16384", "--batch-size", "4096"]
assert cli.main([*plan, *lora]) == 0
"""


@pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="libtpu is not installed"
)
def test_the_report_of_a_tiny_model(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "model")],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
    )
    assert result.returncode == 0, result.stderr
    fits, too_large = result.stdout.split("---\n")
    assert "Slice: v5e-4, 4 chips, mesh batch=4" in fits
    assert "8 rows of 256 tokens; mixed_bfloat16, all weights" in fits
    assert re.search(
        r"Memory of a chip: 0\.\d\d GiB of 15\.75 GiB: it fits", fits
    )
    parameters, trained = re.search(
        r"([\d,]+) parameters, ([\d,]+) trained", fits
    ).groups()
    assert parameters == trained
    # Weights are divided: they are gathered, and their gradients scattered.
    assert re.search(r"all-gather: [1-9]", fits)
    assert re.search(r"(reduce-scatter|all-reduce): [1-9]", fits)
    # Rank 2 beside each matrix: 2 recurrent blocks, one of attention, 3 MLPs.
    square, key, mlp = 128 + 128, 128 + 64, 128 + 384
    lora = 2 * (2 * 3 * square + 2 * square + 2 * key + 3 * 3 * mlp)
    assert f" {lora:,} trained" in too_large
    assert "LoRA of rank 2, remat of each block" in too_large
    assert re.search(
        r"Memory of a chip: \d{2,}\.\d\d GiB of 15\.75 GiB: IT DOES NOT FIT",
        too_large,
    )
    assert "Collectives" not in too_large
    share = r"products or memory: 0\.\d+ s at least; the products are (\d+)% "
    assert 0 < int(re.search(share, fits)[1]) <= 100
    assert "products or memory" not in too_large
    loss, embedding, optimizer = map(
        int,
        re.search(
            r"loss (\d+)%, embedding (\d+)%, optimizer (\d+)%", fits
        ).groups(),
    )
    assert loss and optimizer and loss + embedding + optimizer < 100


CAPACITIES = """
import jax
from keras_griffin.plan.slices import CHIPS, devices

for generation, chip in CHIPS.items():
    device = devices(f"{generation}-{8 if chip['cores'] == 2 else 1}")[0]
    place = jax.sharding.SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((2**37,), "float32", sharding=place)
    try:
        jax.jit(lambda x: x + 1).lower(x).compile()
    except jax.errors.JaxRuntimeError as error:
        print(generation, f"({chip['memory']}G)" in str(error), error)
"""


@pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="libtpu is not installed"
)
def test_the_memory_of_a_chip_is_what_the_compiler_says():
    result = subprocess.run(
        [sys.executable, "-c", CAPACITIES],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
    )
    assert result.returncode == 0, result.stderr
    for generation in ("v5e", "v5p", "v6e"):
        assert f"{generation} True" in result.stdout, result.stdout


def test_rows_must_divide(monkeypatch):
    from keras_griffin.plan import train_step_jax

    monkeypatch.setattr(
        train_step_jax.slices, "devices", lambda name: ["cpu:0"] * 4
    )
    monkeypatch.setattr(
        train_step_jax,
        "GriffinParallel",
        lambda *sizes, devices: _FakeParallel(),
    )
    with pytest.raises(ValueError, match="must divide `batch_size`"):
        train_step_jax.plan("griffin_100m", "v5e-4", batch_size=6)
    monkeypatch.setattr("keras.config.backend", lambda: "torch")
    with pytest.raises(ValueError, match="KERAS_BACKEND=jax"):
        train_step_jax.plan("griffin_100m", "v5e-4")


class _FakeParallel:
    class device_mesh:
        shape = (4, 1, 1)
        axis_names = ("batch", "sequence", "model")


def test_flops_of_loops_and_gradients_are_counted():
    import jax
    import jax.numpy as jnp

    from keras_griffin.plan.costs_jax import count_flops

    @jax.checkpoint
    def layer(x, w):
        return jnp.tanh(x @ w)

    def loss(w, x):
        x, _ = jax.lax.scan(lambda x, _: (layer(x, w), None), x, length=5)
        return jnp.sum(x)

    w, x = jnp.ones((4, 4)), jnp.ones((3, 4))
    product = 2 * 3 * 4 * 4
    forward = jax.jit(loss).trace(w, x).jaxpr
    assert count_flops(forward) == 5 * product
    # Forward, once more for the gradient, and the two products of that.
    backward = jax.jit(jax.grad(loss)).trace(w, x).jaxpr
    assert count_flops(backward) == 5 * 4 * product


def test_flops_of_a_choice_are_those_of_one_branch():
    import jax
    import jax.numpy as jnp

    from keras_griffin.plan.costs_jax import count_flops

    def run(x):
        return jax.lax.platform_dependent(
            x, tpu=lambda x: x @ x, default=lambda x: x @ x + 1.0
        )

    program = jax.jit(run).trace(jnp.ones((4, 4))).jaxpr
    assert count_flops(program) == 2 * 4 * 4 * 4


HLO = """
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.1 (x: bf16[8,128]) -> bf16[4,128] {
  %r = bf16[8,128]{1,0} all-reduce(%x), channel_id=1, to_apply=%add
}

%body (x: f32[4]) -> f32[4] {
  %g = (f32[4], f32[8]) all-gather-start(%x), channel_id=2, dimensions={0}
  %s = bf16[4,128]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
}

%part (x: f32[4]) -> f32[8] {
  %again = f32[16]{0} all-gather(%x), channel_id=3, dimensions={0}
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %a = f32[16]{0} all-gather(%x), channel_id=3, dimensions={0}
  %f = f32[16]{0} fusion(%x), kind=kLoop, calls=%part
  %both = (f32[2,2], bf16[6]) all-reduce(%x, %y), channel_id=4, to_apply=%add
  %w = f32[4] while(%x), body=%body, config={"known_trip_count":{"n":"7"}}
}
"""


def test_collectives_are_counted_once_and_in_loops():
    from keras_griffin.plan.costs_jax import count_collectives

    assert count_collectives(HLO) == {
        "all-gather": [1 + 7, 16 * 4 + 7 * 8 * 4],
        "all-reduce": [1, 4 * 4 + 6 * 2],
        "reduce-scatter": [7, 7 * 8 * 128 * 2],
    }


def test_what_the_compiler_says_of_too_little_memory():
    from keras_griffin.plan.costs_jax import memory_needed

    used = RuntimeError("Ran out of memory. Used 18.50G of 15.75G hbm.")
    assert memory_needed(used, 2**30) == 18.5 * 2**30
    temporaries = RuntimeError("HLO temporaries (512.0M) exceeds available HBM")
    assert memory_needed(temporaries, 2**30) == 1.5 * 2**30
    with pytest.raises(RuntimeError, match="Mosaic"):
        memory_needed(RuntimeError("Mosaic failed to compile"), 0)


STEP = """
HloModule jit_step, is_scheduled=true

%body (x: bf16[16,128]) -> bf16[16,128] {
  %x = bf16[16,128]{1,0} parameter(0)
  ROOT %n = bf16[16,128]{1,0} negate(%x), \
metadata={op_name="jit(train_step)/adam_w_1/sub"}
}

ENTRY %main (a: bf16[16,128], b: bf16[128,128]) -> bf16[16,128] {
  %a = bf16[16,128]{1,0} parameter(0)
  %b = bf16[128,128]{1,0} parameter(1)
  %y = bf16[16,128]{1,0} convolution(%a, %b), dim_labels=bf_io->bf, \
metadata={op_name="jit(train_step)/transpose(jvp())/token_embedding/dot"}
  %w = bf16[16,128]{1,0} while(%y), body=%body, condition=%until, \
backend_config={"known_trip_count":{"n":"3"}}
  %k = bf16[16,128]{1,0} custom-call(%w), custom_call_target="tpu_custom_call"
  ROOT %l = bf16[16,128]{1,0} custom-call(%k), \
custom_call_target="tpu_custom_call"
}
"""


def test_the_bound_of_a_step():
    from keras_griffin.plan.costs_jax import step_bound
    from keras_griffin.plan.report import Plan

    flops, array, weight = 2 * 16 * 128 * 128, 2 * 16 * 128, 2 * 128 * 128
    loop, kernels = 3 * 2 * array, 2 * 2 * array
    slow = {"tflops": flops / 1e12, "bandwidth": 1e6}  # waits for products
    bound, products, parts = step_bound(STEP, 5 * flops, slow)
    assert products == pytest.approx(1 + 5)
    # The loss' product is not the embedding's, which has the same weight.
    assert parts["loss"] == pytest.approx(1)
    assert parts["embedding"] == 0
    assert parts["optimizer"] == pytest.approx(loop / 1e15)
    assert bound == pytest.approx(1 + loop / 1e15 + 5)
    fast = {"tflops": 1e6, "bandwidth": 1e-9}  # waits for memory
    bound, products, _ = step_bound(STEP, 5 * flops, fast)
    assert bound == 2 * array + weight + loop + kernels
    assert products == pytest.approx(6 * flops / 1e18)
    plan = Plan(
        *("tiny", "v6e-8", 8, {"batch": 8}, 8, 64, "", 1, 1, 0, 0, True, 0),
        collectives={},
        bound=0.5,
        products=0.2,
        parts={"loss": 0.1, "optimizer": 0.05},
    )
    assert "0.500 s at least; the products are 40% of it" in str(plan)
    assert "of it loss 20%, optimizer 10%" in str(plan)


def test_flops_of_kernels_and_of_all_devices():
    import jax
    import jax.numpy as jnp
    from jax.experimental import pallas as pl
    from jax.sharding import AbstractMesh
    from jax.sharding import PartitionSpec

    from keras_griffin.plan.costs_jax import count_flops

    def kernel(x, y):
        y[...] = jnp.dot(x[...], x[...])

    def run(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return pl.pallas_call(kernel, shape, grid=(7,), interpret=True)(x @ x)

    x = jnp.ones((4, 4))
    product = 2 * 4**3
    program = jax.jit(run).trace(x).jaxpr
    assert count_flops(program) == 8 * product
    assert count_flops(program, in_kernels=True) == 7 * product

    split = jax.shard_map(
        run,
        mesh=AbstractMesh((2,), ("batch",)),
        in_specs=PartitionSpec("batch"),
        out_specs=PartitionSpec("batch"),
        check_vma=False,
    )
    program = jax.jit(split).trace(jnp.ones((8, 4))).jaxpr
    assert count_flops(program) == 2 * 8 * product
