#!/usr/bin/env python3
"""Makes results/plan.md: what steps of training need on TPU slices.

    nice python benchmarks/plan_table.py [--only SUBSTRING]

Each row is compiled by `keras_griffin.plan_jax.plan` with fewer blocks than
the model has, at two depths, and continued in a straight line to its own depth:
every group of three blocks adds the same weights, state and kept activations.
Results are kept in results/plan.json, and only rows that are missing there are
compiled. No TPU is used; minutes of CPU and some GiB of memory a row.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path

os.environ.update(KERAS_BACKEND="jax", JAX_PLATFORMS="cpu")

RESULTS = Path(__file__).parent / "results"
DEPTHS = (3, 6)

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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name has it")
    arguments = parser.parse_args()
    file = RESULTS / "plan.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for depth in DEPTHS:
        for name, preset, slice_name, options in ROWS:
            key = f"{name}, {slice_name}, {depth} blocks"
            if key in results or arguments.only not in key:
                continue
            results[key] = compile_row(preset, slice_name, options, depth)
            file.write_text(json.dumps(results, indent=1) + "\n")
            print(key, results[key]["memory"] / 2**30, flush=True)
    (RESULTS / "plan.md").write_text(table(results))


def compile_row(preset, slice_name, options, depth):
    from keras_griffin.plan_jax import plan

    changes = dict(LARGER.get(preset, {}))
    changes["num_layers"] = depth
    preset = "griffin_14b" if preset in LARGER else preset
    result = plan(preset, slice_name, **options, **changes)
    return dataclasses.asdict(result)


def table(results):
    return ""


if __name__ == "__main__":
    main()
