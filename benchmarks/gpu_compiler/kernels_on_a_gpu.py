"""The Triton kernels on GPUs, as their compiler leaves them; no GPU is needed.

    python benchmarks/gpu_compiler/kernels_on_a_gpu.py

Compiles the kernels of `rg_lru` and `linear_scan` for each target, as their own
plans say, and reads the machine code: registers, instructions that spill them,
shared memory, instructions of the loop over time. Writes a table to
`benchmarks/results/`. Nothing is measured on a device: the times are lower
bounds, and only ratios on one target mean something.
"""

import argparse
import datetime
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.update(KERAS_BACKEND="jax", JAX_PLATFORMS="cpu")
BENCHMARKS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BENCHMARKS.parent))  # So that it runs from a checkout.

import triton  # noqa: E402  # isort: skip  (before KerasHub's TensorFlow)
import jax  # noqa: E402
import keras  # noqa: E402

from keras_griffin.kernels.linear_scan import triton_plan  # noqa: E402
from keras_griffin.kernels.rg_lru import triton_passes  # noqa: E402
from keras_griffin.kernels.rg_lru.ops_rg_lru import Inputs  # noqa: E402
from keras_griffin.kernels.triton_plan import Output  # noqa: E402
from keras_griffin.kernels.triton_ptx import compile_kernel  # noqa: E402

# Of the data sheets: multiprocessors, memory [B/s], 16-bit products [FLOP/s],
# shared memory [B] and warps of a multiprocessor, clock [Hz].
CHIPS = {
    "sm_80": ("A100", 108, 2.04e12, 312e12, 164 << 10, 64, 1.41e9),
    "sm_89": ("L4", 58, 0.30e12, 121e12, 100 << 10, 48, 2.04e9),
    "sm_90": ("H100", 132, 3.35e12, 990e12, 228 << 10, 64, 1.755e9),
    "sm_100": ("B200", 148, 8.0e12, 2250e12, 228 << 10, 64, 1.85e9),
}
SCHEDULERS = 4  # of a multiprocessor: a warp instruction a cycle each
REGISTERS = 65536
# (batch, time, width, gate blocks): RecurrentGemma 2B, and few rows
LARGE, SMALL = (8, 2048, 2560, 10), (4, 2048, 512, 4)
ITEMSIZE = {"float32": 4, "int8": 1}  # else 2

# 8 x 2048 x 2560 on an H100 in bfloat16; copied, not made by this script.
BESIDE = (
    "",
    "Beside these, 8 x 2048 x 2560, bfloat16, H100. The aim was a prototype: "
    "forward 2 x and issue",
    "0.156 ms with 37 spills; with backward 15 x (6 x of them its kernel, 7 x "
    "two products) and 0.54 ms.",
    "JAX today, scan as a kernel: 28 x and 84 x (XLA's program, made for an "
    "absent H100).",
)


def assemble(compiled):
    """`(registers, instructions, those of the longest loop)` of a kernel."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run(
                [tools / tool, option, file.name],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            for tool, option in (
                ("cuobjdump", "-res-usage"),
                ("nvdisasm", "-c"),
            )
        )
    names, labels, longest = [], {}, []
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(names)
        found = re.search(
            r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*);", line
        )
        if not found:
            continue
        names.append(found[1])
        back = re.search(r"\.L_x_\d+", found[2])
        if found[1].startswith("BRA") and back and back[0] in labels:
            span = names[labels[back[0]] :]
            longest = max(longest, span, key=len)
    return int(re.search(r"REG:(\d+)", usage)[1]), names, longest


def weigh(kernel, plan, arguments, target):
    """A row of the table, as a dict."""
    name, processors, memory, _, shared, warps, clock = CHIPS[target]
    capability = divmod(int(target[3:]), 10)
    compiled = compile_kernel(kernel, plan, arguments, capability)
    registers, names, loop = assemble(compiled)
    held = compiled.metadata.shared
    fit = min(
        REGISTERS // (-(-registers // 8) * 8 * 32 * plan.warps),
        shared // (held + 1024),
        warps // plan.warps,
    )
    arrays = [v for v in arguments.values() if hasattr(v, "dtype")]
    moved = sum(
        math.prod(v.shape) * ITEMSIZE.get(str(v.dtype), 2) for v in arrays
    )
    trips = plan.constants["CHUNKS"] * max(plan.programs / processors, 1)
    cycles = len(loop) * plan.warps / SCHEDULERS
    tile = plan.constants["CHUNK"] * plan.constants["CHANNELS"]
    return {
        "kernel": kernel.__name__.removesuffix("_kernel"),
        "target": f"{name} ({target})",
        "programs": plan.programs,
        "bytes": moved,
        "registers": registers,
        "spills": sum(n.startswith(("LDL", "STL")) for n in names),
        "shared": held,
        "fit": fit,
        "instructions": len(loop) * plan.warps * 32 / tile,
        "memory_ms": 1e3 * moved / memory,
        "issue_ms": 1e3 * trips * cycles / clock,
    }


def trace(shape, dtype, target, is_unit):
    """The rows of all kernels that run forward and backward."""
    batch, time, width, blocks = shape
    block, rows = width // blocks, []
    spec = jax.ShapeDtypeStruct

    def run(kernel, plan, arguments):
        rows.append(weigh(kernel, plan, arguments, target))
        outputs = [v for v in arguments.values() if isinstance(v, Output)]
        return [keras.ops.zeros(v.shape, v.dtype) for v in outputs]

    x, state = spec(shape[:3], dtype), spec((batch, width), "float32")
    if not is_unit:

        def scan(x, a, state):
            return triton_plan.loop(run, x, a, state, False, False)

        jax.eval_shape(scan, x, x, state)
        return rows
    gate = spec((blocks, block, block), dtype), spec((blocks, block), "float32")
    inputs = Inputs(
        x,
        *gate * 2,
        spec((width,), "float32"),
        None,
        spec((batch, time), bool),
        None,
        state,
    )
    capability = divmod(int(target[3:]), 10)

    def unit(inputs, dy):
        y, last = triton_passes.forward(run, capability, inputs)
        return triton_passes.backward(run, capability, inputs, y, dy, last)

    jax.eval_shape(unit, inputs, x)
    return rows


def table():
    lines = [
        "# The Triton kernels on GPUs, from their compiler",
        "",
        f"`python benchmarks/gpu_compiler/{Path(__file__).name}`, "
        f"{datetime.date.today().isoformat()}, triton {triton.__version__}.",
        "**Nothing here ran on a GPU.** Milliseconds are lower bounds: bytes "
        "by the data sheet's bandwidth,",
        "and instructions of the loop over time at one a cycle and scheduler. "
        "Only ratios on one target mean something.",
        '"x" is bytes by the size of `x`; "fit" programs a multiprocessor; '
        '"spills" instructions that move',
        "registers to memory and back; a kernel named twice takes time in "
        "parts and runs twice.",
        "",
        "| kernel | shape | target | programs | x | registers | spills | "
        "shared [KB] | fit | instructions an element | memory [ms] | "
        "issue [ms] |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for is_unit, shape, dtype in (
        (True, LARGE, "bfloat16"),
        (True, SMALL, "bfloat16"),
        (True, SMALL, "float32"),
        (False, LARGE, "float32"),
        (False, SMALL, "float32"),
    ):
        size = math.prod(shape[:3]) * ITEMSIZE.get(dtype, 2)
        for target in CHIPS:
            for row in trace(shape, dtype, target, is_unit):
                lines.append(
                    f"| {row['kernel']} | {'x'.join(map(str, shape[:3]))} "
                    f"{dtype} | {row['target']} | {row['programs']} | "
                    f"{row['bytes'] / size:.1f} | {row['registers']} | "
                    f"{row['spills']} | {row['shared'] / 1024:.0f} | "
                    f"{row['fit']} | {row['instructions']:.0f} | "
                    f"{row['memory_ms']:.3f} | {row['issue_ms']:.3f} |"
                )
                print(lines[-1], flush=True)
    return "\n".join([*lines, *BESIDE, ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=BENCHMARKS / "results")
    path = parser.parse_args().output / "kernels_on_a_gpu.md"
    path.write_text(table())


if __name__ == "__main__":
    main()
