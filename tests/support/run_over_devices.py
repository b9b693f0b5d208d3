"""Compares the operations on 8 CPU devices with the float64 loops.

Values and all gradients, under each kind of mesh: that of a context, with
automatic and with explicit axes, and those of `keras.distribution`.
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental.pallas import tpu as pltpu  # noqa: E402
from jax.sharding import AxisType  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec  # noqa: E402

from keras_griffin.kernels.linear_scan import linear_scan  # noqa: E402
from support.cases import RGLRUCase  # noqa: E402
from support.cases import ScanCase  # noqa: E402
from support.kernels import assert_rg_lru_case  # noqa: E402
from support.kernels import assert_scan_case  # noqa: E402

SIZE = {"batch": 4, "time": 16}
CASES = [
    RGLRUCase(
        "all axes", gate_blocks=4, has_reset=True, has_padding=True, **SIZE
    ),
    RGLRUCase("complex", width=16, gate_blocks=2, is_complex=True, **SIZE),
    RGLRUCase("nothing divides", batch=3, time=15),
    RGLRUCase("decode step", time=1, batch=4, gate_blocks=4),
    ScanCase("reverse", width=8, reverse=True, **SIZE),
    ScanCase("complex scan", width=8, is_complex=True, **SIZE),
    ScanCase("bfloat16", width=8, dtype="bfloat16", **SIZE),
]
NAMES = ("batch", "sequence", "model")


def keras_mesh(shape, names):
    devices = [f"cpu:{i}" for i in range(8)]
    return keras.distribution.DeviceMesh(shape, names, devices)


def context(axis_type):
    mesh = jax.make_mesh((2, 2, 2), NAMES, axis_types=(axis_type,) * 3)
    return jax.set_mesh(mesh)


def model_parallel():
    mesh = keras_mesh((2, 2, 2), ("data", "sequence", "model"))
    return keras.distribution.ModelParallel(
        layout_map=keras.distribution.LayoutMap(mesh), batch_dim_name="data"
    ).scope()


def data_parallel():
    mesh = keras_mesh((8,), ("data",))
    return keras.distribution.DataParallel(mesh).scope()


def check(case, implementation):
    run = assert_scan_case if isinstance(case, ScanCase) else assert_rg_lru_case
    run(case, compiled=True, implementation=implementation)


def check_meshes():
    for name, mesh in {
        "automatic": lambda: context(AxisType.Auto),
        "explicit": lambda: context(AxisType.Explicit),
        "ModelParallel": model_parallel,
    }.items():
        for case in CASES:
            with mesh():
                check(case, "auto")
            print(name, case, flush=True)
    with data_parallel():
        check(RGLRUCase("rows", batch=8, gate_blocks=4), "auto")
        check(RGLRUCase("complex rows", batch=8, is_complex=True), "auto")
    with context(AxisType.Auto):
        check(CASES[0], "ops")


def check_kernels():
    """Interpreted, four devices: time in two parts, channels in two."""
    mesh = jax.make_mesh((2, 2), NAMES[1:], axis_types=(AxisType.Auto,) * 2)
    case = RGLRUCase("kernel", batch=1, time=6, width=8, gate_blocks=2)
    with jax.set_mesh(mesh), pltpu.force_tpu_interpret_mode():
        check(case, "pallas_tpu")
    # Complex numbers, rows alone: the whole unit is a kernel on each device.
    mesh = jax.make_mesh((2,), NAMES[:1], axis_types=(AxisType.Auto,))
    case = RGLRUCase("rows", time=6, width=8, gate_blocks=2, is_complex=True)
    with jax.set_mesh(mesh), pltpu.force_tpu_interpret_mode():
        check(case, "pallas_tpu")
    print("kernels", flush=True)


def check_division():
    """Each device computes its part: nothing is gathered but states."""
    with context(AxisType.Auto):
        mesh = jax.make_mesh((2, 2, 2), NAMES, axis_types=(AxisType.Auto,) * 3)
        x = jax.ShapeDtypeStruct(
            (4, 64, 8),
            "float32",
            sharding=NamedSharding(mesh, PartitionSpec(*NAMES)),
        )
        program = jax.jit(lambda x, a: linear_scan(x, a)[0]).lower(x, x)
        text = program.compile().as_text()
    gathered = [line for line in text.splitlines() if " all-gather(" in line]
    assert gathered and not any("64" in line for line in gathered), gathered
    assert "f32[2,32,4]" in text


def check_refusals():
    x = np.ones((2, 4, 8), "float32")
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        y, _ = jax.jit(linear_scan)(x, x)
        assert np.asarray(y)[0, :, 0].tolist() == [1.0, 2.0, 3.0, 4.0]
        refused(
            lambda: linear_scan(x, x, implementation="pallas_tpu"),
            "'batch', 'model' and 'sequence'. Received: ['rows']",
        )
    # No mesh is known: XLA cannot divide a kernel, and it is left out.
    spec = jax.ShapeDtypeStruct(
        (8, 4, 8),
        "float32",
        sharding=NamedSharding(mesh, PartitionSpec("rows")),
    )
    lowered = traced(spec).lower(lowering_platforms=("tpu",))
    assert "tpu_custom_call" not in lowered.as_text()
    refused(lambda: traced(spec, implementation="pallas_tpu"), "no mesh")
    # Types do not tell of `in_shardings`: JAX refuses the kernel when lowering.
    arrays = jax.ShapeDtypeStruct(spec.shape, spec.dtype)
    program = traced(arrays, in_shardings=spec.sharding)
    refused(
        lambda: program.lower(lowering_platforms=("tpu",)),
        "cannot be automatically partitioned",
    )
    program.lower(lowering_platforms=("cpu",))


def traced(x, implementation="auto", **shardings):
    def run(x):
        return linear_scan(x, x, implementation=implementation)[0]

    return jax.jit(run, **shardings).trace(x)


def refused(run, message):
    try:
        run()
    except NotImplementedError as error:
        assert message in str(error), error
    else:
        raise AssertionError(f"Not refused: {message}")


class Messages(logging.Handler):
    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def main():
    assert jax.device_count() == 8
    messages = Messages()
    logging.getLogger("keras_griffin").addHandler(messages)
    logging.getLogger("keras_griffin").setLevel("INFO")
    check_meshes()
    check_kernels()
    check_division()
    check_refusals()
    for expected in (
        "axis 'batch' computes the whole recurrence: 3 is not divisible",
        "its 3 gate blocks, complex or not divisible",
        "Received: ['rows']",
        "8 devices and no mesh",
    ):
        found = [text for text in messages.texts if expected in text]
        assert len(found) == 1, (expected, messages.texts)
    print("all equal")


if __name__ == "__main__":
    main()
