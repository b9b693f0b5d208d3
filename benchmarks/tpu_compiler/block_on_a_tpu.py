"""A block of RecurrentGemma 2B on a TPU, operation by operation.

    python benchmarks/tpu_compiler/block_on_a_tpu.py
    python benchmarks/tpu_compiler/block_on_a_tpu.py --case "ours, GatedMLP" \\
        --target v6e

Compiles a residual block or a layer, ours or DeepMind's, forward and backward,
for a TPU that is not there. For each operation of the program: its schedule in
bundles, its matrix products at the peak rate, its bytes at the bandwidth of the
data sheet, and the largest of the three times; their sum is a lower bound. One
case is printed. Without `--case` all blocks are compiled for all targets, and
the tables written to `benchmarks/results/`; what stands in
`block_on_a_tpu.json` there is not compiled again. A case takes some minutes.
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
from unittest import mock

os.environ["KERAS_BACKEND"] = "jax"
BENCHMARKS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BENCHMARKS.parent))  # So that it runs from a checkout.

import tpu_schedule  # noqa: E402

RESULTS = BENCHMARKS / "results" / "block_on_a_tpu.json"
TARGETS = ("v5e", "v6e")
# RecurrentGemma 2B
BATCH, TIME, WIDTH = 8, 2048, 2560
HEADS, HEAD_DIM, WINDOW, INTERMEDIATE = 10, 256, 2048, 7680
LEAST_MS = 0.01  # operations below it share a row of the table
SUMMED = (
    *("bundles", "bytes"),
    *("compute_ms", "products_ms", "hbm_ms", "bound_ms"),
)


def our_layer(name):
    from keras_griffin import layers

    policy = {"dtype": "mixed_bfloat16"}
    make = {
        "RGLRU": lambda: layers.RGLRU(WIDTH, HEADS, **policy),
        "CausalConv1D": lambda: layers.CausalConv1D(**policy),
        "RMSNormalization": lambda: layers.RMSNormalization(**policy),
        "GatedMLP": lambda: layers.GatedMLP(INTERMEDIATE, **policy),
        "RecurrentBlock": lambda: layers.RecurrentBlock(WIDTH, HEADS, **policy),
        "LocalMQA": lambda: layers.LocalMQA(HEADS, HEAD_DIM, WINDOW, **policy),
    }
    mixers = {
        "recurrent block": make["RecurrentBlock"],
        "local attention block": make["LocalMQA"],
        "global attention block": lambda: layers.LocalMQA(
            HEADS, HEAD_DIM, None, **policy
        ),
    }
    if name in make:
        return make[name]()
    return layers.ResidualBlock(mixers[name](), make["GatedMLP"](), **policy)


def ours(spec, name):
    takes_positions = name not in ("RMSNormalization", "GatedMLP")
    return of_layer(
        spec, lambda: our_layer(name), (BATCH, TIME, WIDTH), takes_positions
    )


def of_layer(spec, make, shape, takes_positions=True):
    """`(function, arguments)` of a Keras layer, and its gradient.

    Args:
        make: callable, to the layer.
        shape: that of its input, `(batch, time, width)`.
        takes_positions: bool. Whether it is called with `positions`.
    """
    import keras

    from keras_griffin.layers import splash_attention_jax

    with keras.StatelessScope(initialize_variables=False):
        layer = make()
        layer.build(shape)
    variables = layer.trainable_variables

    def call(weights, x, positions):
        mapping = list(zip(variables, weights, strict=True))
        others = {"positions": positions} if takes_positions else {}
        # The layer asks which devices there are.
        with (
            keras.StatelessScope(mapping, initialize_variables=False),
            mock.patch.object(splash_attention_jax, "takes", lambda q: True),
        ):
            return layer(x, **others)

    weights = [spec(v.shape, v.dtype) for v in variables]
    return with_gradient(spec, call, weights, shape)


def deepmind(spec, name):
    """The same of `recurrentgemma`, with its own Pallas kernel."""
    import jax
    from recurrentgemma import common
    from recurrentgemma.jax import modules

    kind = {
        "recurrent block": common.TemporalBlockType.RECURRENT,
        "local attention block": common.TemporalBlockType.ATTENTION,
    }[name]
    block = modules.ResidualBlock(
        width=WIDTH,
        mlp_expanded_width=INTERMEDIATE,
        num_heads=HEADS,
        attention_window_size=WINDOW,
        temporal_block_type=kind,
        scan_type=common.ScanType.LINEAR_PALLAS,
        dtype=jax.numpy.bfloat16,
    )

    def call(weights, x, positions):
        return block.apply(weights, x, positions, return_cache=False)[0]

    weights = jax.eval_shape(
        functools.partial(block.init, return_cache=False),
        jax.random.key(0),
        jax.ShapeDtypeStruct((BATCH, TIME, WIDTH), jax.numpy.bfloat16),
        jax.ShapeDtypeStruct((BATCH, TIME), jax.numpy.int32),
    )
    weights = jax.tree.map(lambda p: spec(p.shape, p.dtype), weights)
    return with_gradient(spec, call, weights, (BATCH, TIME, WIDTH))


def with_gradient(spec, call, weights, shape):
    import jax

    def function(weights, x, positions, dy):
        y, gradient = jax.vjp(
            lambda weights, x: call(weights, x, positions), weights, x
        )
        # In a model the blocks above lie between: nothing of the backward pass
        # can begin early, or be part of the forward pass' operations.
        y, dy = jax.lax.optimization_barrier((y, dy))
        return y, gradient(dy)

    x = spec(shape, "bfloat16")
    return function, (weights, x, spec(shape[:2], "int32"), x)


BLOCKS = ("recurrent block", "local attention block", "global attention block")
LAYERS = (
    *("RGLRU", "CausalConv1D", "RMSNormalization", "GatedMLP"),
    *("RecurrentBlock", "LocalMQA"),
)
CASES = {
    **{f"ours, {n}": functools.partial(ours, name=n) for n in BLOCKS + LAYERS},
    **{
        f"DeepMind's, {n}": functools.partial(deepmind, name=n)
        for n in BLOCKS[:2]
    },
}
IN_TABLE = [name for name in CASES if name.endswith(" block")]


def report(result):
    """One case's operations, as a table."""
    lines = [
        "| operation | from | result | bundles | schedule [ms] | products at "
        "peak [ms] | bytes | memory [ms] | largest [ms] |",
        "|" + "---|" * 9,
    ]
    for row in result["operations"]:
        lines.append(
            f"| {row['name']} | {short(row['source'])} | {row['result']} | "
            f"{row['bundles']} | {row['compute_ms']:.3f} | "
            f"{row['products_ms']:.3f} | {row['bytes'] / 1e6:.1f}e6 | "
            f"{row['hbm_ms']:.3f} | **{row['bound_ms']:.3f}** |"
        )
    lines += [
        f"| all | | | | {result['compute_ms']:.2f} | "
        f"{result['products_ms']:.2f} | {result['hbm_bytes'] / 1e6:.0f}e6 | "
        f"{result['hbm_ms']:.2f} | **{result['bound_ms']:.2f}** |",
    ]
    return lines


def trimmed(result):
    """A result with small operations as one, and without kernels' loops."""
    rows = sorted(result["operations"], key=lambda row: -row["bound_ms"])
    small = [row for row in rows if row["bound_ms"] < LEAST_MS]
    if len(small) > 1:
        rest = {name: sum(row[name] for row in small) for name in SUMMED}
        name = f"{len(small)} below {LEAST_MS} ms"
        rows = rows[: -len(small)]
        rows.append({"name": name, "source": "", "result": "", **rest})
    others = {k: v for k, v in result.items() if k != "kernels"}
    return {**others, "operations": rows}


def short(source):
    """The last names of where an operation comes from."""
    parts = source.replace("|", "/").split("/")
    way = "backward" if "transpose(" in source else "forward"
    return f"{way}: {'/'.join(parts[-2:])}" if source else ""


def summary(results):
    lines = [
        "| target | block | bound [ms] | products alone [ms] | their share | "
        "memory traffic [GB] | peak memory [GiB] |",
        "|" + "---|" * 7,
    ]
    for target in TARGETS:
        for case in IN_TABLE:
            result = results.get(f"{target}, {case}")
            if result is None:
                lines.append(f"| {target} | {case} | not compiled | | | | |")
                continue
            share = result["products_ms"] / result["bound_ms"]
            lines.append(
                f"| {target} | {case} | **{result['bound_ms']:.2f}** | "
                f"{result['products_ms']:.2f} | {share:.0%} | "
                f"{result['hbm_bytes'] / 1e9:.2f} | "
                f"{result['peak_mib'] / 1024:.2f} |"
            )
    return lines


def page(results):
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("keras", "jax", "libtpu", "recurrentgemma")
    )
    lines = [
        "# A block of RecurrentGemma 2B on a TPU, from its compiler",
        "",
        f"`python benchmarks/tpu_compiler/{Path(__file__).name}`, "
        f"{datetime.date.today().isoformat()}, {versions}.",
        "No TPU was used. A residual block, forward and backward, "
        f"{BATCH} x {TIME} x {WIDTH}, MLP {INTERMEDIATE}, mixed bfloat16, its",
        "weights' gradients in float32. Of each operation the largest of its "
        "schedule, its matrix products",
        "at the chip's peak and its bytes at the data sheet's bandwidth; the "
        "sum is a lower bound. DeepMind has",
        "no global attention; at 2048 tokens its window of 2048 is the whole "
        "row. Copies that run beside",
        "other operations (copy-start) are counted as if nothing did. Of "
        "equal operations the compiler",
        "schedules one, whose bundles count for all. Kernels' products are "
        "in their bundles alone. Our attention's",
        "two kernels skip 6 of their 16 pairs of blocks here, behind the "
        "mask; the bundles count all 16, so",
        "that 6/16 of their time are not spent.",
        "[What was tried](block_on_a_tpu_tried.md).",
        "",
        *summary(results),
    ]
    for target in TARGETS:
        for case in IN_TABLE:
            if f"{target}, {case}" in results:
                lines += ["", f"## {target}, {case}", ""]
                lines += report(results[f"{target}, {case}"])
    return "\n".join([*lines, ""])


def measure(case, target, *options):
    """In a process of its own: the compiler reads its options once."""
    command = [sys.executable, __file__, "--json", "--case", case]
    output = subprocess.run(
        [*command, "--target", target, *options],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return json.loads(output.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, help="one alone, printed")
    parser.add_argument(
        "--target", choices=tpu_schedule.TOPOLOGY, default="v6e"
    )
    parser.add_argument("--dump", help="keep the compiler's files here")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--table", action="store_true", help="compile nothing, write the page"
    )
    arguments = parser.parse_args()
    if arguments.case:
        result = trimmed(
            tpu_schedule.measure(
                CASES[arguments.case], arguments.target, arguments.dump
            )
        )
        text = "\n".join(report(result))
        return print(json.dumps(result) if arguments.json else text)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for target in TARGETS:
        for case in IN_TABLE:
            key = f"{target}, {case}"
            if key not in results and not arguments.table:
                results[key] = measure(case, target)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
                print(key, f"{results[key]['bound_ms']:.2f} ms", flush=True)
    RESULTS.with_suffix(".md").write_text(page(results))


if __name__ == "__main__":
    main()
