#!/usr/bin/env python3
"""Makes results/plan.md: what steps of training need on TPU slices.

    cd benchmarks/tpu_compiler
    nice python plan_table.py [--only SUBSTRING] [--batches] [--table]

Each row is compiled with all of its blocks by
`keras_griffin.plan.train_step_jax.plan`: 1 to 5 minutes of CPU and some GiB of
memory. So is the MQA Transformer of the same shape: global attention in each
block. `--batches` looks for the largest batch that fits, in a few compilations
more. Results are kept in results/plan.json; only what is missing there is
compiled, and what an earlier version wrote without the parts of a step's time.
No TPU is used. `--table` compiles nothing.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path

os.environ.update(KERAS_BACKEND="jax", JAX_PLATFORMS="cpu")

RESULTS = Path(__file__).parents[1] / "results"
FILE = RESULTS / "plan.json"
GIB = 2**30
MQA = {"block_types": ["global_attention"]}
MAX_TRIES = 4  # compilations for the largest batch of a row

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

Made by `benchmarks/tpu_compiler/plan_table.py`: each step compiled for the
slice by libtpu, with all blocks of the model. AdamW, remat of each block,
weights divided over all chips, logits in pieces. No TPU was used. Weights,
gradients and moments alone are 16 bytes a parameter, over all chips (v5p-16 has
8 chips, v5p-64 has 32). All was compiled with least effort, as `keras-griffin
plan` does; `fit` needs a little less memory and time.

## Memory

The compiler's own number. "MQA": the Transformer of the same shape, with global
attention in each block. "Largest batch": the most rows that fit, of those that
were tried; where the next multiple of the chips was not tried, the fewest rows
that did not fit stand behind it.

| model | parameters | slice, chips | rows x tokens | policy | GiB of a chip \
| of | fits | MQA: GiB | largest batch |
|---|---|---|---|---|---|---|---|---|---|
"""
TIME = """
## Time

A step takes at least the sum over its operations of the longer of two times:
matrix products at the chip's peak, bytes at its bandwidth. What chips send each
other is not in it. The products' share of that time is the MFU that it allows;
what remat computes anew counts among them. Attention's kernels count with all
pairs of blocks, also those that they skip behind the mask (6 of 16 at 2048
tokens). Of the same time: the vocabulary's loss (its products, twice forward,
and the sum of its gradient), the embedding, and AdamW, each by the name that
the compiler gives an operation. Rows without them were compiled before this was
read off; `plan_table.py` will compile them again.

| model | slice | rows | a step [s] | products' share | loss | embedding \
| AdamW | MQA: a step [s] | its products' share | its loss |
|---|---|---|---|---|---|---|---|---|---|---|
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name has it")
    parser.add_argument(
        "--batches", action="store_true", help="look for the largest that fit"
    )
    parser.add_argument(
        "--table", action="store_true", help="write plan.md from plan.json"
    )
    arguments = parser.parse_args()
    for name, *row in [] if arguments.table else ROWS:
        key = f"{name}, {row[1]}"
        if arguments.only in key:
            griffin = compiled(key, *row)
            compiled(f"{key}, MQA", *row, **MQA)
            if arguments.batches:
                largest_batch(key, griffin, *row)
    (RESULTS / "plan.md").write_text(table(read()))


def read():
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def compiled(key, preset, slice_name, options, **changes):
    """The result of a key; compiles it if there is none, or an older one."""
    from keras_griffin.plan.train_step_jax import plan

    known = read().get(key, {"fits": True})
    if known["fits"] and not known.get("parts"):
        changes = {**LARGER.get(preset, {}), **changes}
        preset = "griffin_14b" if preset in LARGER else preset
        result = dataclasses.asdict(
            plan(preset, slice_name, **{**options, **changes})
        )
        # Another process may have written meanwhile, of another row.
        FILE.write_text(json.dumps({**read(), key: result}, indent=1) + "\n")
        print(key, result["memory"] / GIB, result["seconds"], flush=True)
    return read()[key]


def largest_batch(key, result, preset, slice_name, options):
    """Compiles other batches, where the memory's line says that they fit."""
    from keras_griffin.plan.slices import CHIPS

    memory = CHIPS[slice_name.partition("-")[0]]["memory"] * GIB
    chips = result["num_chips"]
    tried = {0: result["arguments"], result["batch_size"]: result["memory"]}
    for _ in range(MAX_TRIES):
        fit = max(batch for batch in tried if tried[batch] <= memory)
        less, more = sorted(tried, key=lambda batch: abs(batch - fit))[:2]
        slope = (tried[more] - tried[less]) / (more - less)
        batch = fit + max(1, int((memory - tried[fit]) / slope / chips)) * chips
        too_large = [b for b in tried if tried[b] > memory]
        if too_large and batch >= min(too_large):
            batch = (fit + min(too_large)) // 2 // chips * chips
        if batch in tried:
            break
        found = compiled(
            *(f"{key}, {batch} rows", preset, slice_name, options),
            batch_size=batch,
        )
        tried[batch] = found["memory"]


def table(results):
    from keras_griffin.plan.slices import CHIPS

    memory, time = HEAD.splitlines(), TIME.splitlines()
    for name, preset, slice_name, options in ROWS:
        key = f"{name}, {slice_name}"
        result = results.get(key)
        rows = f"{options['batch_size']} x {options['length']}"
        start = f"| {name} | {parameters_of(preset) / 1e9:.2f}B | {slice_name}"
        if result is None:
            memory.append(f"{start} | {rows} | | not compiled | | | | |")
            continue
        policy = options.get("dtype", "mixed_bfloat16")
        if "lora_rank" in options:
            policy += f", LoRA {options['lora_rank']}"
        transformer = results.get(f"{key}, MQA")
        gib = f"{transformer['memory'] / GIB:.1f}" if transformer else ""
        memory.append(
            f"{start}, {result['num_chips']} | {rows} | {policy} | "
            f"**{result['memory'] / GIB:.1f}** | "
            f"{CHIPS[slice_name.partition('-')[0]]['memory']} | "
            f"{'yes' if result['fits'] else 'no'} | {gib} | "
            f"{largest(results, key)} |"
        )
        time.append(
            f"| {name} | {slice_name} | {options['batch_size']} | "
            f"{step_of(result, ('loss', 'embedding', 'optimizer'))} | "
            f"{step_of(transformer, ('loss',))} |"
        )
    return "\n".join([*memory, *time, ""])


def step_of(result, parts):
    """Cells: the time of a step, the shares of its products and parts."""
    if result is None or not result["fits"]:
        text = "not compiled" if result is None else "does not fit"
        return " | ".join([text, "", *("" for _ in parts)])
    bound, known = result["bound"], result.get("parts") or {}
    shares = [result["products"], *(known.get(name) for name in parts)]
    return " | ".join(
        [
            f"**{bound:.2f}**",
            *("" if s is None else f"{s / bound:.0%}" for s in shares),
        ]
    )


def largest(results, key):
    """The most rows that fit, and what is known of more."""
    tried = [
        found
        for name, found in results.items()
        if name == key or name.startswith(key) and name.endswith(" rows")
    ]
    if len(tried) == 1:
        return "not looked for"
    best = max((r for r in tried if r["fits"]), key=lambda r: r["batch_size"])
    text = f"{best['batch_size']}: {best['memory'] / GIB:.1f} GiB"
    more = min((r["batch_size"] for r in tried if not r["fits"]), default=None)
    if more is None:
        return f"{text}, more not tried"
    is_next = more == best["batch_size"] + best["num_chips"]
    return text if is_next else f"{text} ({more} does not fit)"


def parameters_of(preset):
    from keras_griffin.checkpoints import preset_index

    base = "griffin_14b" if preset in LARGER else preset
    backbone = dict(preset_index.preset_entry(base)["backbone"])
    return preset_index.parameter_count({**backbone, **LARGER.get(preset, {})})


if __name__ == "__main__":
    main()
