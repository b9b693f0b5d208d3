"""Times scan, training step and generated token on a GPU, beside the peers.

    python benchmarks/speed/on_a_gpu.py

Each row runs in a process of its own, one after the other: the scan and the
unit, checked against the float64 loop before they are timed, with products in
full float32; then a Griffin of 6 layers of width 1024, in bfloat16 with
float32 parameters for training (8 x 2048 tokens, AdamW) and all in bfloat16 for
generation (batch 8, greedy). Random weights. JAX and PyTorch have to be those
for CUDA. Writes what there is after each row to
`benchmarks/results/on_a_gpu.md`.
"""

import argparse
import datetime
import importlib.metadata
import os
import subprocess
import sys
import time
from pathlib import Path

import generation
import numpy as np
import scan_on_this_machine
import train_step

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
SHAPES = ((4, 2048, 512), (8, 2048, 2560))  # batch, time, width
SCAN_SECONDS = 0.2  # of a row, at least
# Heads are gate blocks, as Hugging Face's model knows no other.
SETTINGS = {
    "vocabulary_size": 32768,
    "num_layers": 6,
    "hidden_dim": 1024,
    "intermediate_dim": 3072,
    "num_query_heads": 8,
    "recurrent_dim": 1024,
    "attention_window_size": 1024,
    "num_gate_blocks": 8,
}
TRAIN_BATCH, TRAIN_LENGTH, TRAIN_STEPS = 8, 2048, 5
PROMPTS = (16, 4096)
GENERATION_BATCH = 8
LIMIT = 100  # seconds of a row
# The scan is compared with a float64 loop.
FULL_FLOAT32 = {"JAX_DEFAULT_MATMUL_PRECISION": "float32"}

TRAIN = {
    "ours, JAX": ("jax", train_step.ours, {}),
    "ours, PyTorch": ("torch", train_step.ours, {}),
    "Hugging Face, PyTorch": ("torch", train_step.huggingface, {}),
    "DeepMind, JAX, associative scan": (
        "jax",
        train_step.deepmind,
        {"scan_type": "ASSOCIATIVE_NATIVE"},
    ),
    # Their default unrolls 128 steps of each scan: minutes to compile.
}
GENERATE = {
    "ours, JAX": ("jax", generation.ours),
    "ours, PyTorch": ("torch", generation.ours),
    "DeepMind, JAX, a jitted step a token": ("jax", generation.deepmind),
    "Hugging Face, PyTorch, `generate`": ("torch", generation.huggingface),
}


def token_ids(batch, length):
    rng = np.random.default_rng(0)
    ids = rng.integers(3, SETTINGS["vocabulary_size"], (batch, length))
    return ids.astype("int32")


def measure_scan(backend):
    scan_on_this_machine.SHAPES = SHAPES
    scan_on_this_machine.MIN_SECONDS = SCAN_SECONDS
    scan_on_this_machine.measure(backend)


def measure_train(who):
    _, make, options = TRAIN[who]
    dtype = "bfloat16" if make is train_step.deepmind else "mixed_bfloat16"
    step = make(
        token_ids(TRAIN_BATCH, TRAIN_LENGTH + 1), dtype=dtype, **options
    )
    seconds = []
    for _ in range(1 + TRAIN_STEPS):
        start = time.perf_counter()
        loss = step()
        seconds.append(time.perf_counter() - start)
    if not np.isfinite(loss):
        raise RuntimeError(f"The loss of {who} is {loss}.")
    tokens = TRAIN_BATCH * TRAIN_LENGTH / min(seconds[1:])
    print(
        f"| {who} | {seconds[0]:.1f} | {1e3 * min(seconds[1:]):.1f} | "
        f"{tokens:,.0f} |"
    )


def measure_generate(who):
    _, make = GENERATE[who]
    cells = [
        f"{make(token_ids(GENERATION_BATCH, prompt), dtype='bfloat16'):.2f}"
        for prompt in PROMPTS
    ]
    print(f"| {who} | {' | '.join(cells)} |")


def measure(part, who):
    settings = {**generation.SETTINGS, **SETTINGS}
    generation.SETTINGS.update(settings)
    generation.BATCH = GENERATION_BATCH
    train_step.BATCH, train_step.LENGTH = TRAIN_BATCH, TRAIN_LENGTH
    globals()[f"measure_{part}"](who)


def parts():
    """`(heading, head of the table, [(part, who, backend), ...])`."""
    yield (
        "Scan and unit: milliseconds, and how many times ours",
        "| shape | implementation | forward | x | with backward | x |",
        [("scan", backend, backend) for backend in ("jax", "torch")],
    )
    yield (
        f"A training step, {TRAIN_BATCH} x {TRAIN_LENGTH} tokens, mixed "
        "bfloat16, AdamW",
        "| | first step [s] | step [ms] | tokens a second |",
        [("train", who, row[0]) for who, row in TRAIN.items()],
    )
    yield (
        f"A generated token, batch {GENERATION_BATCH}, bfloat16, greedy: "
        "milliseconds",
        f"| | {' | '.join(f'prompt {n}' for n in PROMPTS)} |",
        [("generate", who, row[0]) for who, row in GENERATE.items()],
    )


def run(part, who, backend):
    """The rows that a process of its own prints."""
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--measure", part, who],
            env={
                **os.environ,
                "KERAS_BACKEND": backend,
                "JAX_PLATFORMS": "cuda" if backend == "jax" else "cpu",
                "PYTHONPATH": os.pathsep.join(
                    [
                        str(ROOT),
                        str(ROOT / "tests"),
                        os.environ.get("PYTHONPATH", ""),
                    ]
                ),
                **(FULL_FLOAT32 if part == "scan" else {}),
            },
            stdout=subprocess.PIPE,
            text=True,
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired as late:
        rows = rows_of((late.stdout or b"").decode())
        return [*rows, f"| {who} | not done in {LIMIT} s |"]
    rows = rows_of(done.stdout)
    if done.returncode:
        rows.append(f"| {who} | failed |")
    return rows


def rows_of(text):
    return [line for line in text.splitlines() if line.startswith("| ")]


def conditions():
    device = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.splitlines()[-1]
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("keras", "jax", "torch", "recurrentgemma", "transformers")
    )
    return (
        "`python benchmarks/speed/on_a_gpu.py`, "
        f"{datetime.date.today()}, {device}; "
        f"{versions}."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=BENCHMARKS / "results")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure)
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "on_a_gpu.md"
    lines = ["# On a GPU", "", conditions()]
    for heading, head, rows in parts():
        columns = head.count("|") - 1
        lines += ["", f"## {heading}", "", head, columns * "|---" + "|"]
        for row in rows:
            found = run(*row)
            print("\n".join(found), flush=True)
            lines += found
            path.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
