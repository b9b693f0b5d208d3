#!/usr/bin/env python3
"""Makes results/plan.md: what steps of training need on TPU slices.

    cd benchmarks/tpu_compiler
    nice python plan_table.py [--only SUBSTRING] [--full] [--table]

Each row is compiled by `keras_griffin.plan.train_step_jax.plan` with the
first 3 and then the first 6 blocks of the model, minutes of CPU and some GiB
of memory each, and continued in a straight line to all of its blocks: every
three of them add the same weights, gradients, moments, kept inputs and
operations. Where the compilation of 6 blocks is missing, what a block adds to
the memory is computed from these sizes. Results are kept in results/plan.json;
only what is missing there is compiled, rows without the time of a step (of
earlier versions) too. No TPU is used. `--table` compiles nothing.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path

os.environ.update(KERAS_BACKEND="jax", JAX_PLATFORMS="cpu")

RESULTS = Path(__file__).parents[1] / "results"
DEPTHS = (3, 6)
GIB = 2**30

# Beyond the paper's range: its rules (appendix C) carried on. Widths are
# multiples of 128 and of 16 gate blocks.
LARGER = {
    "griffin_20b": {
        "num_layers": 45,
        "hidden_dim": 5632,
        "intermediate_dim": 3 * 5632,
        "num_query_heads": 44,
        "head_dim": 128,
        "recurrent_dim": 8192,
    },
    "griffin_50b": {
        "num_layers": 60,
        "hidden_dim": 8192,
        "intermediate_dim": 3 * 8192,
        "num_query_heads": 64,
        "head_dim": 128,
        "recurrent_dim": 10240,
    },
}

FULL = {"remat": True, "length": 2048}
# (name, preset, slice, arguments of `plan`).
ROWS = [
    (
        "RecurrentGemma 2B, LoRA",
        "recurrent_gemma_2b_en",
        "v5e-1",
        {**FULL, "batch_size": 4, "lora_rank": 16, "dtype": "bfloat16"},
    ),
    (
        "RecurrentGemma 2B",
        "recurrent_gemma_2b_en",
        "v5e-8",
        {**FULL, "batch_size": 8},
    ),
    (
        "RecurrentGemma 2B",
        "recurrent_gemma_2b_en",
        "v6e-8",
        {**FULL, "batch_size": 16},
    ),
    (
        "RecurrentGemma 9B",
        "recurrent_gemma_9b_en",
        "v5p-16",
        {**FULL, "batch_size": 8},
    ),
    (
        "RecurrentGemma 9B",
        "recurrent_gemma_9b_en",
        "v6e-16",
        {**FULL, "batch_size": 16},
    ),
    ("Griffin 14B", "griffin_14b", "v5p-64", {**FULL, "batch_size": 32}),
    ("Griffin 20B", "griffin_20b", "v5p-64", {**FULL, "batch_size": 32}),
    ("Griffin 50B", "griffin_50b", "v5p-128", {**FULL, "batch_size": 64}),
]

HEAD = """\
# What a step of training needs on TPU slices

Made by `benchmarks/tpu_compiler/plan_table.py`, which says how: compiled for
the slice by libtpu with 3 blocks (and 6, where "line from" says so), and
continued to all blocks of the model. Where "line from" says what this line
gave, all blocks were compiled. AdamW, remat of each block, weights divided over
all chips, logits in pieces. No TPU was used. The memory of a chip is the
compiler's own number. **The line is too low, by what "line from" says**: rows
without all blocks need more than it tells. Weights, gradients and moments alone
are 16 bytes a parameter, over all chips (v5p-16 has 8 chips, v5p-64 has 32).

A step takes at least the sum over its operations of the longer of two times:
matrix products at the chip's peak, bytes at its bandwidth. What chips send each
other is not in it. The products' share of that time is the MFU that it allows;
what remat computes anew counts among them. All was compiled with least effort,
as `keras-griffin plan` does; `fit` needs a little less memory and time.

| model | parameters | slice, chips | rows x tokens | policy | GiB of a chip, \
3 blocks | each further block | all blocks | of | fits | line from | \
a step [s] | products' share |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name has it")
    parser.add_argument(
        "--table", action="store_true", help="write plan.md from plan.json"
    )
    parser.add_argument(
        "--full", action="store_true", help="compile all blocks"
    )
    arguments = parser.parse_args()
    file = RESULTS / "plan.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for depth in ("all",) if arguments.full else DEPTHS:
        for name, preset, slice_name, options in ROWS:
            key = f"{name}, {slice_name}, {depth} blocks"
            known = results.get(key, {"fits": True, "bound": None})
            known = known.get("bound") or not known["fits"]
            if arguments.table or known or arguments.only not in key:
                continue
            results[key] = compile_row(preset, slice_name, options, depth)
            file.write_text(json.dumps(results, indent=1) + "\n")
            print(key, results[key]["memory"] / 2**30, flush=True)
    (RESULTS / "plan.md").write_text(table(results))


def compile_row(preset, slice_name, options, depth):
    from keras_griffin.plan.train_step_jax import plan

    changes = dict(LARGER.get(preset, {}))
    if depth != "all":
        changes["num_layers"] = depth
    preset = "griffin_14b" if preset in LARGER else preset
    result = plan(preset, slice_name, **options, **changes)
    return dataclasses.asdict(result)


def table(results):
    from keras_griffin.plan.slices import CHIPS

    lines = HEAD.splitlines()
    for name, preset, slice_name, options in ROWS:
        first = results.get(f"{name}, {slice_name}, 3 blocks")
        if first is None:
            _, parameters = full_size(preset)
            lines.append(
                f"| {name} | {parameters / 1e9:.2f}B | {slice_name} | "
                f"{options['batch_size']} x {options['length']} | "
                "mixed_bfloat16 | not compiled yet | | | "
                f"{CHIPS[slice_name.partition('-')[0]]['memory']} | | | | |"
            )
            continue
        second = results.get(f"{name}, {slice_name}, 6 blocks")
        backbone, parameters = full_size(preset)
        layers = backbone["num_layers"]
        if second is None or not (first["fits"] and second["fits"]):
            slope, source = block_bytes(first, backbone, parameters), "sizes"
        else:
            slope = (second["memory"] - first["memory"]) / 3
            source = "6 blocks"
        total = first["memory"] + (layers - 3) * slope
        full = results.get(f"{name}, {slice_name}, all blocks")
        if full is not None:
            off = total / full["memory"] - 1
            source += f" gave {total / GIB:.2f} ({off:+.1%})"
            total = full["memory"]
        available = CHIPS[slice_name.partition("-")[0]]["memory"]
        policy = options.get("dtype", "mixed_bfloat16")
        if "lora_rank" in options:
            policy += f", LoRA {options['lora_rank']}"
        lines.append(
            f"| {name} | {parameters / 1e9:.2f}B | {slice_name}, "
            f"{first['num_chips']} | {first['batch_size']} x "
            f"{first['length']} | {policy} | {first['memory'] / GIB:.2f} | "
            f"{slope / GIB:.3f} | **{total / GIB:.1f}** | {available} | "
            f"{'yes' if total < available * GIB else 'no'} | {source} | "
            f"{step_of(first, second, full, layers)} |"
        )
    return "\n".join(lines) + "\n"


def step_of(first, second, full, layers):
    """Two cells: the time of a step, and the products' share of it."""
    times = [
        (plan["bound"], plan["products"])
        for plan in (full, first, second)
        if plan and plan.get("bound")
    ]
    if full and full.get("bound"):
        bound, products = times[0]
    elif len(times) == 2:
        bound, products = (
            three + (layers - 3) * (six - three) / 3
            for three, six in zip(*times, strict=True)
        )
    else:
        return "not compiled yet |"
    return f"{bound:.2f} | {products / bound:.0%}"


def full_size(preset):
    """The backbone's arguments, and its parameters."""
    from keras_griffin.checkpoints import preset_index

    base = "griffin_14b" if preset in LARGER else preset
    backbone = dict(preset_index.preset_entry(base)["backbone"])
    backbone.update(LARGER.get(preset, {}))
    return backbone, preset_index.parameter_count(backbone)


def block_bytes(plan, backbone, parameters):
    """What another block adds to a chip, from the sizes of its arrays."""
    layers = backbone["num_layers"]
    weights = (parameters - plan["parameters"]) / (layers - 3)
    # float32: weight, gradient and two moments; a frozen bfloat16 weight: 2.
    weights *= 2 if plan["trainable"] < plan["parameters"] / 2 else 16
    kept = plan["batch_size"] * plan["length"] * backbone["hidden_dim"] * 2
    return (weights + kept) / plan["num_chips"]


if __name__ == "__main__":
    main()
