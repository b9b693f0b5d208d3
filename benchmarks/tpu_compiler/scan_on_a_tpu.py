"""The RG-LRU on TPUs, as their compiler schedules it; no TPU is needed.

    python benchmarks/tpu_compiler/scan_on_a_tpu.py
    python benchmarks/tpu_compiler/scan_on_a_tpu.py --others
    python benchmarks/tpu_compiler/scan_on_a_tpu.py --compile-only v5e

Compiles the RG-LRU as a user calls it, ours and DeepMind's, forward and
backward, and `linear_scan`, for each target with libtpu, and reads schedule and
memory traffic (`tpu_schedule.py`). Writes a table and a plot to
`benchmarks/results/`. Nothing is measured on a device: the times are lower
bounds, and only ratios between two programs on one target mean something.
"""

import argparse
import datetime
import functools
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
BENCHMARKS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BENCHMARKS.parent))  # So that it runs from a checkout.

import tpu_schedule  # noqa: E402

TARGETS = ("v5e", "v5p", "v6e")
# RecurrentGemma 2B: (batch, time, width, gate blocks)
SHAPE = BATCH, TIME, WIDTH, GATE_BLOCKS = 8, 2048, 2560, 10
# Of the paper's 7B model: the gate blocks are 2.75 vregs wide.
SHAPE_OF_7B = (1, 8192, 5632, 16)
SCAN_TILE = 1024  # numbers in a vreg
CORES = {"v5e": 1, "v5p": 2, "v6e": 1}  # that share a kernel's grid
# Small, and with a rest in time and blocks across vregs: for `--compile-only`.
SMALL = (2, 300, 704, 2)
SMALL_ON_V4 = (2, 300, 512, 2)  # its 16 MiB of VMEM cannot hold such blocks


def ours(spec, shape=SHAPE, dtype="bfloat16", is_complex=False):
    """Our operation with resets, and its gradient."""
    import jax

    from keras_griffin.kernels.rg_lru import rg_lru

    batch, time, width, blocks = shape
    size = width // blocks
    units = width // 2 if is_complex else width
    x = spec((batch, time, width), dtype)
    kernel, bias = (
        spec((blocks, size, units // blocks), "float32"),
        spec((blocks, units // blocks), "float32"),
    )
    param = spec((units,), "float32")
    arguments = (x, *(kernel, bias) * 2, param)
    if is_complex:
        arguments = (*arguments, param)

    def function(positions, dy, *arguments):
        def layer(*arguments):
            return rg_lru(
                *arguments,
                reset=positions == 0,
                implementation="pallas_tpu",
            )[0]

        y, gradient = jax.vjp(layer, *arguments)
        return y, gradient(dy)

    return function, (spec((batch, time), "int32"), x, *arguments)


def deepmind(spec, shape=SHAPE, dtype="bfloat16", is_complex=False):
    """`recurrentgemma.jax.layers.RGLRU` with its own Pallas kernel."""
    import jax
    from recurrentgemma import common
    from recurrentgemma.jax import layers

    batch, time, width, blocks = shape
    x = spec((batch, time, width), dtype)
    positions = spec((batch, time), "int32")
    layer = layers.RGLRU(
        width=width,
        num_heads=blocks,
        dtype=x.dtype,
        only_real=not is_complex,
        scan_type=common.ScanType.LINEAR_PALLAS,
    )
    parameters = jax.eval_shape(
        layer.init,
        jax.random.key(0),
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        jax.ShapeDtypeStruct(positions.shape, positions.dtype),
    )
    parameters = jax.tree.map(lambda p: spec(p.shape, p.dtype), parameters)

    def function(parameters, x, positions, dy):
        def call(parameters, x):
            return layer.apply(parameters, x, positions)[0]

        y, gradient = jax.vjp(call, parameters, x)
        return y, gradient(dy)

    return function, (parameters, x, positions, x)


def scan(spec):
    """`linear_scan`, forward, float32."""
    from keras_griffin.kernels.linear_scan import linear_scan

    x = spec((BATCH, TIME, WIDTH), "float32")
    return lambda x, a: linear_scan(x, a, implementation="pallas_tpu"), (x, x)


def forward(case):
    """The case without its gradient: the compiler drops what is unused."""

    def make(spec):
        function, arguments = case(spec)
        return lambda *arguments: function(*arguments)[0], arguments

    return make


MAIN_CASES = {
    "ours, forward": forward(ours),
    "DeepMind's, forward": forward(deepmind),
    "ours, forward and backward": ours,
    "DeepMind's, forward and backward": deepmind,
    "linear_scan": scan,
}
CASES = dict(MAIN_CASES)

# Beside the shape of the table: `(arguments of the cases, targets)`.
OTHERS = {
    "1 x 8192 x 5632, 16 gate blocks": ({"shape": SHAPE_OF_7B}, TARGETS),
    "float32": ({"dtype": "float32"}, ("v5e",)),
    "complex": ({"is_complex": True}, TARGETS),
    "on v4": ({}, ("v4",)),
}
for _name, (_arguments, _) in OTHERS.items():
    CASES[f"ours, {_name}"] = functools.partial(ours, **_arguments)
    CASES[f"DeepMind's, {_name}"] = functools.partial(deepmind, **_arguments)


def others_table():
    """Forward and backward, of shapes and dtypes that are not in the table."""
    lines = [
        "# The RG-LRU on TPUs, from their compiler: other shapes",
        "",
        f"`python benchmarks/tpu_compiler/{Path(__file__).name} --others`, "
        f"{datetime.date.today().isoformat()}. Read it like scan_on_a_tpu.md: "
        "forward and backward,",
        f"{SHAPE[:3]}, bfloat16, {GATE_BLOCKS} gate blocks, but for what the "
        "row says.",
        "",
        "| what | target | ours [ms] | DeepMind's [ms] | ratio | our traffic "
        "[GB] | DeepMind's |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, (_, targets) in OTHERS.items():
        for target in targets:
            we, they = (
                measure(f"{who}, {name}", target)
                for who in ("ours", "DeepMind's")
            )
            lines.append(
                f"| {name} | {target} | {we['bound_ms']:.3f} | "
                f"{they['bound_ms']:.3f} | "
                f"**{they['bound_ms'] / we['bound_ms']:.2f}** | "
                f"{we['hbm_bytes'] / 1e9:.2f} | {they['hbm_bytes'] / 1e9:.2f} |"
            )
            print(lines[-1], flush=True)
    return "\n".join([*lines, ""])


def compile_only(target):
    shape = SMALL_ON_V4 if target == "v4" else SMALL

    # Once a process: both in one program.
    def both(spec):
        real, complex_ = (
            ours(spec, shape, is_complex=is_complex)
            for is_complex in (False, True)
        )

        def function(first, second):
            return real[0](*first), complex_[0](*second)

        return function, (real[1], complex_[1])

    tpu_schedule.measure(both, target)
    print(f"compiled for {target}")


def measure(case, target):
    """In a process of its own: the compiler reads its options once."""
    command = [sys.executable, __file__, "--case", case, "--target", target]
    output = subprocess.run(
        command, check=True, capture_output=True, text=True
    ).stdout
    return json.loads(output.splitlines()[-1])


def scan_bundles(result):
    """Bundles of a core for 1024 numbers, in the scan's kernel."""
    (kernel,) = result["kernels"].values()
    ghz = tpu_schedule.GHZ_AND_GBS[result["target"]][0]
    vregs = BATCH * TIME * WIDTH / SCAN_TILE / CORES[result["target"]]
    return kernel["compute_ms"] * ghz * 1e6 / vregs


def table(results):
    size = BATCH * TIME * WIDTH * 2  # bytes of x in bfloat16
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("jax", "libtpu", "recurrentgemma")
    )
    lines = [
        "# The RG-LRU on TPUs, from their compiler",
        "",
        f"`python benchmarks/tpu_compiler/{Path(__file__).name}`, "
        f"{datetime.date.today().isoformat()}, {versions}.",
        "No TPU was used: milliseconds are lower bounds from the compiler's "
        "schedule and the data sheet's memory",
        "bandwidth, and only ratios on one target mean something.",
        "",
        f"`(batch, time, width)` = ({BATCH}, {TIME}, {WIDTH}), bfloat16, "
        f"{GATE_BLOCKS} gate blocks, with resets.",
        "",
        "| target | pass | ours [ms] | DeepMind's [ms] | ratio | our traffic "
        "/ size of x | DeepMind's |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for target in TARGETS:
        for step in ("forward", "forward and backward"):
            we = results[target][f"ours, {step}"]
            they = results[target][f"DeepMind's, {step}"]
            lines.append(
                f"| {target} | {step} | {we['bound_ms']:.3f} | "
                f"{they['bound_ms']:.3f} | "
                f"**{they['bound_ms'] / we['bound_ms']:.2f}** | "
                f"{we['hbm_bytes'] / size:.1f} | "
                f"{they['hbm_bytes'] / size:.1f} |"
            )
    lines += [
        "",
        "`linear_scan` forward, the same shape, float32:",
        "",
        "| target | bundles for 1024 numbers | traffic / size of x |",
        "| --- | --- | --- |",
    ]
    for target in TARGETS:
        result = results[target]["linear_scan"]
        lines.append(
            f"| {target} | {scan_bundles(result):.1f} | "
            f"{result['hbm_bytes'] / size / 2:.1f} |"
        )
    return "\n".join([*lines, ""])


def plot(results, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for k, who in enumerate(("DeepMind's", "ours")):
        values = [
            results[target][f"{who}, forward and backward"]["bound_ms"]
            for target in TARGETS
        ]
        places = [i + 0.4 * k for i in range(len(TARGETS))]
        axes.bar_label(axes.bar(places, values, 0.38, label=who), fmt="%.2f")
    axes.set_xticks([i + 0.2 for i in range(len(TARGETS))], TARGETS)
    axes.set_ylabel("bound, forward and backward [ms]")
    axes.legend()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile-only", choices=tpu_schedule.TOPOLOGY)
    parser.add_argument(
        "--others", action="store_true", help="other shapes and dtypes"
    )
    parser.add_argument("--case", choices=CASES, help="one case, as JSON")
    parser.add_argument(
        "--target", choices=tpu_schedule.TOPOLOGY, default="v5e"
    )
    parser.add_argument("--output", type=Path, default=BENCHMARKS / "results")
    arguments = parser.parse_args()
    if arguments.others:
        path = arguments.output / "scan_on_a_tpu_others.md"
        return path.write_text(others_table())
    if arguments.compile_only:
        return compile_only(arguments.compile_only)
    if arguments.case:
        result = tpu_schedule.measure(CASES[arguments.case], arguments.target)
        return print(json.dumps(result))
    results = {}
    for target in TARGETS:
        results[target] = {}
        for case in MAIN_CASES:
            result = measure(case, target)
            results[target][case] = result
            print(f"{target}, {case}: {result['bound_ms']:.3f} ms", flush=True)
    text = table(results)
    print(text)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "scan_on_a_tpu.md").write_text(text)
    try:
        plot(results, arguments.output / "scan_on_a_tpu.svg")
    except ImportError:
        print("No plot: matplotlib is not installed.")


if __name__ == "__main__":
    main()
