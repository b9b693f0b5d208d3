"""Times the scan and the RG-LRU on your TPU, beside DeepMind's: five minutes.

    pip install 'keras-griffin[jax]' 'jax[tpu]' recurrentgemma
    python benchmarks/speed/on_a_tpu.py
    python benchmarks/speed/on_a_tpu.py --compile-for v6e

One chip is used. Each function is compared with a float64 loop on a short row,
then timed: many calls, one after the other, without waiting between them. The
rows that it prints belong into `benchmarks/results/on_a_tpu.md`, from whoever
has a TPU. `--compile-for` needs none: it compiles all that would be timed, and
prints the lower bounds that the compiler's schedule gives
(`../tpu_compiler/tpu_schedule.py`).
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
sys.path[:0] = [str(ROOT), str(BENCHMARKS / "tpu_compiler")]

# (batch, time, width) of the only public timing of such a scan on a v6e, with
# x in bfloat16 and a in float32; and of a block of RecurrentGemma 2B.
SCAN_SHAPE = (4, 2048, 2560)
UNIT_SHAPE = (8, 2048, 2560)
GATE_BLOCKS = 10
CHECKED_SHAPE = (2, 256, 2560)  # of the comparison with the float64 loop
CALLS, REPEATS = 50, 5
ALLOWED_ERROR = 2e-2  # of the largest value; y is rounded to bfloat16


def our_scan(x, a):
    from keras_griffin.kernels.linear_scan import linear_scan

    return linear_scan(x, a, implementation="pallas_tpu")[0]


def deepminds_scan(x, a):
    from recurrentgemma import common
    from recurrentgemma.jax import scan

    # It wants one dtype for both.
    y, _ = scan.linear_scan(
        x.astype(a.dtype), a, scan_type=common.ScanType.LINEAR_PALLAS
    )
    return y.astype(x.dtype)


def associative_scan(x, a):
    import jax

    def combine(first, second):
        (a_1, x_1), (a_2, x_2) = first, second
        return a_1 * a_2, a_2 * x_1 + x_2

    _, y = jax.lax.associative_scan(combine, (a, x.astype(a.dtype)), axis=1)
    return y.astype(x.dtype)


def our_unit(x, *parameters):
    from keras_griffin.kernels.rg_lru import rg_lru

    return rg_lru(x, *parameters, implementation="pallas_tpu")[0]


def deepminds_unit(x, r_kernel, r_bias, i_kernel, i_bias, param):
    import jax.numpy as jnp
    from recurrentgemma import common
    from recurrentgemma.jax import layers

    layer = layers.RGLRU(
        width=x.shape[-1],
        num_heads=r_kernel.shape[0],
        dtype=x.dtype,
        scan_type=common.ScanType.LINEAR_PALLAS,
    )
    weights = {
        "a_param": param,
        "input_gate": {"w": i_kernel, "b": i_bias},
        "a_gate": {"w": r_kernel, "b": r_bias},
    }
    # Its first token starts a document, ours goes on from a state of zeros.
    positions = jnp.broadcast_to(1 + jnp.arange(x.shape[1]), x.shape[:2])
    return layer.apply({"params": weights}, x, positions)[0]


SCANS = {
    "ours": our_scan,
    "DeepMind's kernel": deepminds_scan,
    "`jax.lax.associative_scan`": associative_scan,
}
UNITS = {"ours": our_unit, "DeepMind's layer": deepminds_unit}
PARTS = {
    "linear scan, x bfloat16, a float32": (SCANS, SCAN_SHAPE),
    "RG-LRU with its gates, bfloat16": (UNITS, UNIT_SHAPE),
}


def arguments_of(functions, shape):
    """`[(shape, dtype)]`"""
    *_, width = shape
    if functions is SCANS:
        return [(shape, "bfloat16"), (shape, "float32")]
    size = width // GATE_BLOCKS
    gate = [
        ((GATE_BLOCKS, size, size), "float32"),
        ((GATE_BLOCKS, size), "float32"),
    ]
    return [(shape, "bfloat16"), *gate, *gate, ((width,), "float32")]


def values_of(functions, shape):
    """Random arrays: decays between 0.9 and 1, kernels of variance 1/width."""
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)
    values = []
    for dims, dtype in arguments_of(functions, shape):
        value = rng.standard_normal(dims)
        if functions is SCANS and dtype == "float32":
            value = 0.9 + 0.1 * rng.random(dims)
        elif len(dims) == 3 and dtype == "float32":
            value /= dims[1] ** 0.5
        values.append(jnp.asarray(value, dtype))
    return values


def error(function, functions):
    """Largest difference from the float64 loop, of the largest value."""
    import jax
    import numpy as np

    from keras_griffin.kernels.linear_scan.reference import (
        linear_scan_reference,
    )
    from keras_griffin.kernels.rg_lru.reference import rg_lru_reference

    values = values_of(functions, CHECKED_SHAPE)
    y = np.asarray(jax.jit(function)(*values), "float64")
    reference = (
        linear_scan_reference if functions is SCANS else rg_lru_reference
    )
    expected, _ = reference(*(np.asarray(v, "float64") for v in values))
    return float(np.abs(y - expected).max() / np.abs(expected).max())


def with_backward(function):
    import jax

    def run(*arguments):
        y, transpose = jax.vjp(function, *arguments)
        return y, transpose(y)

    return run


def milliseconds(function, values):
    """Of a call, of many that the chip does one after the other."""
    import jax

    function = jax.jit(function)
    jax.block_until_ready(function(*values))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(CALLS):
            y = function(*values)
        jax.block_until_ready(y)
        times.append(time.perf_counter() - start)
    return 1e3 * min(times) / CALLS


def row(part, name, forward, both, found):
    batch, length, width = PARTS[part][1]
    return (
        f"| {part} | {batch} x {length} x {width} | {name} | {forward} | "
        f"{both} | {found} |"
    )


def time_all():
    import jax

    if jax.default_backend() != "tpu":
        raise SystemExit(
            "This times a TPU. Received: a machine whose JAX computes on "
            f"{jax.default_backend()!r}. Take a runtime with a TPU, or "
            "--compile-for v6e, which needs none."
        )
    print_head(jax.devices()[0].device_kind, "jax", "keras", "recurrentgemma")
    for part, (functions, shape) in PARTS.items():
        values = values_of(functions, shape)
        for name, function in functions.items():
            if "DeepMind" in name and not is_installed("recurrentgemma"):
                print(row(part, name, "recurrentgemma is missing", "", ""))
                continue
            wrong = error(function, functions)
            if wrong > ALLOWED_ERROR:
                print(row(part, name, "**wrong**", "", f"{wrong:.1e}"))
                continue
            times = [
                f"{milliseconds(f, values):.3f}"
                for f in (function, with_backward(function))
            ]
            print(row(part, name, *times, f"{wrong:.1e}"), flush=True)


def print_head(where, *packages):
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in packages
        if is_installed(name)
    )
    print(f"{where}, {datetime.date.today().isoformat()}, {versions}\n")
    print(
        "| what | shape | who | forward [ms] | with backward [ms] | error |\n"
        "|---|---|---|---|---|---|"
    )


def is_installed(package):
    return importlib.util.find_spec(package) is not None


def case(part, name, backward):
    """What `tpu_schedule.measure` compiles."""
    functions, shape = PARTS[part]
    function = functions[name]
    if backward:
        function = with_backward(function)
    return lambda spec: (
        function,
        [spec(*a) for a in arguments_of(functions, shape)],
    )


def compile_all(target):
    print_head(
        f"Lower bounds from the compiler for {target}",
        *("jax", "libtpu", "recurrentgemma"),
    )
    for part, (functions, _) in PARTS.items():
        for name in functions:
            bounds = []
            for backward in (False, True):
                # In a process of its own: the compiler reads options once.
                command = [sys.executable, __file__, "--compile-for", target]
                wanted = json.dumps([part, name, backward])
                output = subprocess.run(
                    [*command, "--case", wanted],
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                ).stdout
                bounds.append(output.splitlines()[-1])
            print(row(part, name, *bounds, ""), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile-for", choices=("v4", "v5e", "v5p", "v6e"))
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        import tpu_schedule

        result = tpu_schedule.measure(
            case(*arguments.case), arguments.compile_for
        )
        print(f"{result['bound_ms']:.3f}")
    elif arguments.compile_for:
        compile_all(arguments.compile_for)
    else:
        time_all()


if __name__ == "__main__":
    main()
